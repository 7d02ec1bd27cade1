"""A whole server on a real socket, and a client that speaks to it as front ends do."""

import asyncio
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx
import websockets

from app import server, settings
from app.db.engine import DB
from app.http.front import Front
from app.main import Running, running

REPO = Path(__file__).resolve().parent.parent

#: Seconds any single wait of a test may take; far above what it takes.
PATIENCE = 30.0


@dataclass
class Api:
    """A GraphQL client: queries over HTTP, subscriptions over graphql-transport-ws."""

    url: str
    token: str | None = None
    running: Running | None = None
    http: httpx.AsyncClient = field(default_factory=lambda: httpx.AsyncClient(trust_env=False, timeout=120))

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"} if self.token else {}

    def signed_in(self, token: str | None) -> "Api":
        return Api(self.url, token, self.running, self.http)

    async def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """The whole answer: `data` and `errors`."""
        body = {"query": query, "variables": variables}
        answer = await self.http.post(f"{self.url}/graphql", json=body, headers=self.headers)
        return answer.json()

    async def run(self, query: str, **variables: Any) -> Any:
        """The one root field's value; errors fail the test."""
        answer = await self.ask(query, **variables)
        assert "errors" not in answer, answer["errors"]
        (value,) = answer["data"].values()
        return value

    @asynccontextmanager
    async def listen(self, query: str, **variables: Any) -> AsyncGenerator["Heard"]:
        """An open subscription. `async for` gives the root field's value of each event.

        Rooms that are named tell their present first, and it is waited for: whatever happens from then on is heard.
        """
        uri = self.url.replace("http", "ws", 1) + "/graphql"
        async with websockets.connect(uri, subprotocols=["graphql-transport-ws"], proxy=None) as socket:
            payload = {"authorization": f"Bearer {self.token}"} if self.token else {}
            await socket.send(json.dumps({"type": "connection_init", "payload": payload}))
            assert json.loads(await socket.recv())["type"] == "connection_ack"
            body = {"query": query, "variables": variables}
            await socket.send(json.dumps({"id": "1", "type": "subscribe", "payload": body}))
            ear = Heard(socket)
            if variables.keys() & {"ids", "names"} and variables.get("after") is None:
                ear.begin(await ear.receive())
            yield ear


class Heard:
    """What a subscription says."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.seen: list[Any] = []
        self._first: dict[str, Any] | None = None

    def begin(self, message: dict[str, Any]) -> None:
        """Puts back what was read too early."""
        self._first = message

    async def receive(self) -> dict[str, Any]:
        """The next message, whatever it is."""
        if (message := self._first) is not None:
            self._first = None
            return message
        with anyio.fail_after(PATIENCE):
            return json.loads(await self.socket.recv())

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        message = await self.receive()
        if message["type"] == "complete":
            raise StopAsyncIteration
        if message["type"] == "error":
            raise AssertionError(message["payload"])
        assert "errors" not in message["payload"], message["payload"]
        (value,) = message["payload"]["data"].values()
        self.seen.append(value)
        return value

    async def until(self, is_it: Callable[[Any], bool], patience: float = PATIENCE) -> Any:
        """The first event that is the one; everything before it stays in `seen`."""
        try:
            with anyio.fail_after(patience):
                async for event in self:
                    if is_it(event):
                        return event
        except TimeoutError:
            raise AssertionError(f"not heard within {patience:g} s; heard {self.seen}") from None
        raise AssertionError(f"the subscription ended; heard {self.seen}")


def dsn(config: dict[str, Any]) -> str:
    """A DATABASE_URL for the connect arguments of an embedded server."""
    return f"postgresql://{config['user']}@/{config['database']}?host={config['host']}"


def environ(folder: Path, database: dict[str, Any] | None, openclaw: Path | None, **more: str) -> dict[str, str]:
    """Settings for a server that keeps everything in one folder and waits for nothing."""
    found = {
        "CLAWNET_DATA_DIR": str(folder / "data"),
        "CLAWNET_CACHE_DIR": str(folder / "cache"),
        "CLAWNET_PORT": "0",
        # Runs of these tests side by side do not fight for one port.
        "OPENCLAW_BASE_PORT": str(random.randrange(20_000, 26_000)),
        "CLAWNET_NODE": "test",
        "CLAWNET_BACKOFF_SCALE": "0.1",
        "CLAWNET_START_CACHE": "off",
        "CLAWNET_LOG_FORMAT": "json",
        "CLAWNET_LOG_LEVEL": "info",
    }
    if database is not None:
        found["DATABASE_URL"] = dsn(database)
        found["ENCRYPTION_KEY"] = hashlib.sha256(b"a key for tests").hexdigest()
    if openclaw is not None:
        found["OPENCLAW_BINARY_PATH"] = str(openclaw)
    return found | more


class _Quiet(server.Server):
    """The server of production, with the test's own signal handlers left alone."""

    def capture_signals(self) -> Any:
        from contextlib import nullcontext

        return nullcontext()


async def check_invariants() -> None:
    """What holds after whatever happened: no hole in any room, and each bot's status is the last one told."""
    holes = await DB.fetch(
        "SELECT r.name, r.seq, r.floor, count(e.*) AS n FROM room r LEFT JOIN room_event e ON e.room = r.id "
        "AND e.seq > r.floor GROUP BY r.id HAVING count(e.*) <> r.seq - r.floor"
    )
    assert holes == []
    liars = await DB.fetch(
        "SELECT p.bot, p.status, last.payload FROM bot_process p JOIN room r ON r.name = 'bot:' || p.bot || ':status' "
        "CROSS JOIN LATERAL (SELECT e.payload FROM room_event e WHERE e.room = r.id ORDER BY e.seq DESC LIMIT 1) last "
        "WHERE last.payload->>'status' <> p.status"
    )
    assert liars == []


@contextmanager
def _restored(mask: int) -> Generator[None]:
    try:
        yield
    finally:
        os.umask(mask)


@asynccontextmanager
async def running_server(wanted: dict[str, str], token: str | None = None) -> AsyncGenerator[Api]:
    """A server in this process on a free port; `api.token` is the first administrator's, or the given one."""
    loaded = settings.load(wanted)
    listener = server.bind(loaded)
    # A server closes its whole process's files to others; the tests after this one start as open as they were.
    mask = os.umask(0o022)
    os.umask(mask)
    with listener, _restored(mask):
        async with running(loaded, lambda _: None, with_openclaw=False, stop_budget=5.0) as up:
            served = _Quiet(Front(), loaded)
            served.opens(up)
            task = asyncio.create_task(served.serve(sockets=[listener]))
            api = Api(f"http://127.0.0.1:{listener.getsockname()[1]}", up.first_token or token, up)
            try:
                with anyio.fail_after(PATIENCE):
                    while (await api.http.get(f"{api.url}/readyz")).status_code != 200:
                        await asyncio.sleep(0.02)
                yield api
                await check_invariants()
            finally:
                await api.http.aclose()
                served.should_exit = True
                await task
                # Also after a failed test: its bots would outlive it.
                await up.supervisor.stop(5.0)


@dataclass
class ServerProcess:
    """`clawnet serve` as a process of its own, for tests that kill it. Leaving its `with` block kills it."""

    process: subprocess.Popen[str]
    url: str
    token: str | None
    lines: list[str]

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def says(self, word: str) -> None:
        """Returns once it printed a line with this word; `lines` has them all."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if word in line:
                return
        raise AssertionError(f"it never said {word!r}: {self.lines}")


def serve(wanted: dict[str, str], *arguments: str, module: str = "app", may_die: bool = False) -> ServerProcess:
    """Starts `python -m app serve` and returns once it said that it is ready, or died where it may."""
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **wanted}
    with (Path(wanted["CLAWNET_DATA_DIR"]).parent / "server.log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, "serve", "--no-openclaw", *arguments],
            cwd=REPO,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    server = ServerProcess(process, "", None, [])
    try:
        server.says("ready: ")
    except BaseException:
        if may_die and process.wait(PATIENCE) == -signal.SIGKILL:
            return server
        server.__exit__()
        raise
    for line in server.lines:
        if line.strip().startswith("cn_"):
            server.token = line.strip()
    server.url = server.lines[-1].split("ready: ")[1].removesuffix("/playground")
    return server
