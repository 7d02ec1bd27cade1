"""`clawnet serve` as its user meets it: what it prints, how it stops, and what it finds when it comes back."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import websockets
from anyio import to_thread

from app.settings import OPENCLAW_VERSION
from tests import fake_openclaw
from tests.harness import PATIENCE, REPO, Api, ServerProcess, environ, serve
from tests.journeys import documents as docs
from tests.journeys import story

#: Nobody answers there; bots are started, and never asked anything.
NO_MODEL = "http://127.0.0.1:9/v1"
#: Seconds within which a server has stopped together with its bots.
SECONDS = 15
EX_CONFIG = 78


@asynccontextmanager
async def served(wanted: dict[str, str], token: str | None = None) -> AsyncGenerator[tuple[ServerProcess, Api]]:
    """A server process that is up, and its administrator's client."""
    with await to_thread.run_sync(serve, wanted) as server:
        api = Api(server.url, server.token or token)
        async with api.http:
            await until_ready(api)
            yield server, api


async def until_ready(api: Api) -> None:
    with anyio.fail_after(PATIENCE):
        while (await api.http.get(f"{api.url}/readyz")).status_code != 200:
            await anyio.sleep(0.02)


async def ended(server: ServerProcess) -> int:
    with anyio.fail_after(SECONDS):
        return await to_thread.run_sync(server.process.wait, SECONDS)


def refused(wanted: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A server that is expected not to start."""
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **wanted}
    return subprocess.run(
        [sys.executable, "-m", "app", "serve", "--no-openclaw"],
        cwd=REPO,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def starting(wanted: dict[str, str]) -> ServerProcess:
    """A server that installs OpenClaw first, and is not waited for."""
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "serve"],
        cwd=REPO,
        env=wanted,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    return ServerProcess(process, "", None, [])


@contextmanager
def another_run_installs(folder: Path) -> Generator[None]:
    """Whoever wants to install OpenClaw has to wait until this is left."""
    lock = folder / "cache" / "openclaw" / f".{OPENCLAW_VERSION}.lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture
def openclaw(tmp_path: Path) -> Generator[Path]:
    """The fake, and nothing left of it after a test that killed its keeper."""
    wrapper = fake_openclaw.install(tmp_path / "openclaw")
    yield wrapper
    for pid in processes_in(tmp_path):
        os.kill(pid, signal.SIGKILL)


@contextmanager
def data_folder() -> Generator[Path]:
    """One that root's PostgreSQL, which runs as nobody, can pass through."""
    with tempfile.TemporaryDirectory(prefix="clawnet-tests-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


def processes_in(folder: Path) -> list[int]:
    """Gateways whose home lies in the folder, their shims and the database: each names it or holds a file of it."""
    numbers = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in numbers if pid != os.getpid() and _lives_in(Path(f"/proc/{pid}"), f"{folder}/data/")]


def _lives_in(process: Path, folder: str) -> bool:
    try:
        said = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
        held = [str(file.readlink()) for file in (process / "fd").iterdir()]
    except OSError:
        return False
    return folder.encode() in said or any(name.startswith(folder) for name in held)


async def start_bots(api: Api, *names: str) -> list[dict[str, Any]]:
    await story.make_provider(api, NO_MODEL)
    return [await start(api, await story.make_bot(api, name)) for name in names]


async def start(api: Api, bot: dict[str, Any]) -> dict[str, Any]:
    answer = await api.run(docs.BOT_START, input={"botId": bot["id"]})
    assert answer["userErrors"] == []
    assert answer["bot"]["status"] == "ACTIVE", answer
    return answer["bot"]


async def now(api: Api, bots: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [await api.run(docs.BOT_QUERY, by={"id": bot["id"]}) for bot in bots]


async def cursor(api: Api, bots: list[dict[str, Any]]) -> str:
    """Where the bots' rooms stand."""
    async with api.listen(docs.BOT_STATUS, ids=[bot["id"] for bot in bots]) as heard:
        return [await anext(heard) for _ in bots][-1]["cursor"]


def logged(tmp_path: Path, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (tmp_path / "server.log").read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


# What it prints.


async def test_it_tells_each_step_in_a_line_and_the_token_once() -> None:
    with data_folder() as folder:
        wanted = environ(folder, None, None)
        async with served(wanted) as (first, api):
            token = first.token
            assert token
            title, *steps, address = first.lines
            assert title.startswith("ClawNet ")
            told = [step.split(":")[0].strip() for step in steps if step]
            assert told == [
                "Creating the database (once)", "Starting PostgreSQL", "database", "encryption", "OpenClaw",
                "administrator", token,
            ]  # fmt: skip
            assert address.strip() == f"ready: {api.url}/playground"
            assert (await api.http.get(f"{api.url}/playground")).status_code == 200
            assert await to_thread.run_sync(first.stop) == 0
        async with served(wanted, token) as (second, api):
            assert [line.split(":")[0].strip() for line in second.lines[1:]] == [
                "Starting PostgreSQL",
                "OpenClaw",
                "ready",
            ]
            assert (await api.ask("{ viewer { role } }"))["data"]["viewer"] == {"role": "ADMIN"}
        assert token not in (folder / "server.log").read_text()


# What it refuses.


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("CLAWNET_PORT", "eighty", "a whole number from 0 to 65535"),
        ("OPENCLAW_MAX_BOTS", "0", "a whole number from 1"),
        ("CLAWNET_SHUTDOWN", "maybe", "one of stop, keep"),
        ("OPENCLAW_BINARY_PATH", "/nowhere/openclaw", "the path of a file"),
        ("DATABASE_URL", "mysql://there", "postgresql://"),
        ("ENCRYPTION_KEY", "short", "32 bytes"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_expected(tmp_path: Path, name: str, value: str, expected: str) -> None:
    answer = refused(environ(tmp_path, None, None) | {name: value})
    assert answer.returncode == EX_CONFIG
    assert answer.stdout == ""
    assert answer.stderr.startswith(f"clawnet: {name} ")
    assert expected in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert not (tmp_path / "data").exists()


async def test_another_key_than_the_databases_is_refused(database: dict[str, Any], tmp_path: Path) -> None:
    wanted = environ(tmp_path, database, None)
    async with served(wanted) as (server, _):
        assert await to_thread.run_sync(server.stop) == 0
    answer = await to_thread.run_sync(refused, wanted | {"ENCRYPTION_KEY": "ab" * 32})
    assert answer.returncode == EX_CONFIG
    assert answer.stderr.startswith("clawnet: ENCRYPTION_KEY")
    assert "Traceback" not in answer.stderr
    assert "ab" * 32 not in answer.stderr


def test_a_port_in_use_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        answer = refused(environ(tmp_path, None, None) | {"CLAWNET_PORT": port})
    assert answer.returncode == EX_CONFIG
    assert answer.stderr == (
        f"clawnet: CLAWNET_PORT is {port}, which cannot be used on 127.0.0.1 (Address already in use); "
        "expected a free port, or 0 for any\n"
    )
    assert not (tmp_path / "data").exists()


def test_a_database_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    wanted = environ(tmp_path, None, None) | {"ENCRYPTION_KEY": "ab" * 32}
    answer = refused(wanted | {"DATABASE_URL": "postgresql://somebody:hidden@127.0.0.1:1/clawnet"})
    assert answer.returncode != 0
    assert answer.stderr.startswith("clawnet: ")
    assert "Traceback" not in answer.stderr
    assert "hidden" not in answer.stderr


# How it stops.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_it_and_its_bots_and_leaves_nothing(
    database: dict[str, Any], tmp_path: Path, openclaw: Path, number: signal.Signals
) -> None:
    async with served(environ(tmp_path, database, openclaw)) as (server, api):
        bots = await start_bots(api, "Hana", "Bruno", "Chike")
        assert len(processes_in(tmp_path)) >= 2 * len(bots)
        server.process.send_signal(number)
        assert await ended(server) == 0
        server.says("stopped")
    assert processes_in(tmp_path) == []
    assert fake_openclaw.violations(openclaw) == []


async def test_a_bot_that_still_starts_is_stopped_as_well(
    database: dict[str, Any], tmp_path: Path, openclaw: Path
) -> None:
    fake_openclaw.set_faults(openclaw, never_ready=True)
    async with served(environ(tmp_path, database, openclaw)) as (server, api):
        await story.make_provider(api, NO_MODEL)
        bot = await story.make_bot(api)
        await api.run(docs.BOT_START, input={"botId": bot["id"], "wait": False})
        with anyio.fail_after(PATIENCE):
            while not fake_openclaw.running(openclaw):
                await anyio.sleep(0.02)
        server.process.send_signal(signal.SIGTERM)
        assert await ended(server) == 0
    assert processes_in(tmp_path) == []


async def test_a_second_interrupt_ends_it_at_once(database: dict[str, Any], tmp_path: Path, openclaw: Path) -> None:
    fake_openclaw.set_faults(openclaw, bot="hana", ignore_sigterm=True)
    wanted = environ(tmp_path, database, openclaw, CLAWNET_STOP_GRACE="600")
    async with served(wanted) as (server, api):
        await start_bots(api, "Hana", "Bruno")
        server.process.send_signal(signal.SIGINT)
        await to_thread.run_sync(server.says, "stopping")
        with anyio.fail_after(PATIENCE):
            while fake_openclaw.running(openclaw).keys() != {"hana"}:
                await anyio.sleep(0.02)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGINT)
        assert await ended(server) == 0
    assert processes_in(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_while_it_starts_leaves_nothing(number: signal.Signals) -> None:
    with data_folder() as folder, another_run_installs(folder):
        wanted = environ(folder, None, None) | {"PATH": "/usr/bin:/bin"}
        with starting(wanted) as server:
            await to_thread.run_sync(server.says, "waiting for another run")
            assert processes_in(folder) != []
            server.process.send_signal(number)
            assert await ended(server) == 0
            server.says("stopped")
        assert processes_in(folder) == []


async def test_sockets_are_closed_so_that_clients_come_back(database: dict[str, Any], tmp_path: Path) -> None:
    async with served(environ(tmp_path, database, None)) as (server, api):
        await story.make_provider(api, NO_MODEL)
        bot = await story.make_bot(api)
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard, api.listen(docs.BOT_STATUS) as fleet:
            await anext(heard)
            await anext(fleet)
            server.process.send_signal(signal.SIGTERM)
            for listener in (heard, fleet):
                with pytest.raises(websockets.ConnectionClosed) as closed:
                    await anext(listener)
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 1012
        assert await ended(server) == 0


async def test_kept_bots_outlive_it(database: dict[str, Any], tmp_path: Path, openclaw: Path) -> None:
    wanted = environ(tmp_path, database, openclaw, CLAWNET_SHUTDOWN="keep")
    async with served(wanted) as (server, api):
        (bot,) = await start_bots(api, "Hana")
        token = api.token
        assert await to_thread.run_sync(server.stop) == 0
    assert story.is_alive(bot["gateway"]["pid"])
    async with served(wanted, token) as (_, api):
        (again,) = await now(api, [bot])
        assert again["status"] == "ACTIVE"
        assert again["gateway"]["pid"] == bot["gateway"]["pid"]


# What it finds when it comes back.


async def test_bots_that_outlived_a_killed_server_are_adopted(
    database: dict[str, Any], tmp_path: Path, openclaw: Path
) -> None:
    wanted = environ(tmp_path, database, openclaw)
    async with served(wanted) as (server, api):
        bots = await start_bots(api, "Hana", "Bruno", "Chike")
        token, before = api.token, await cursor(api, bots)
        server.kill()
    async with served(wanted, token) as (_, api):
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"] for bot in bots], after=before) as heard:
            events = [await anext(heard) for _ in bots]
        assert [event["kind"] for event in events] == ["ADOPTED"] * len(bots)
        assert {event["botId"] for event in events} == {bot["id"] for bot in bots}
        again = await now(api, bots)
        assert [bot["status"] for bot in again] == ["ACTIVE"] * len(bots)
        assert [bot["gateway"]["pid"] for bot in again] == [bot["gateway"]["pid"] for bot in bots]
        assert [bot["gateway"]["restartCount"] for bot in again] == [0] * len(bots)
    assert len(fake_openclaw.starts(openclaw)) == len(bots)
    assert fake_openclaw.violations(openclaw) == []


async def test_an_exit_that_nobody_watched_is_recorded_with_its_signal(
    database: dict[str, Any], tmp_path: Path, openclaw: Path
) -> None:
    wanted = environ(tmp_path, database, openclaw)
    async with served(wanted) as (server, api):
        bots = await start_bots(api, "Hana", "Bruno")
        token, before = api.token, await cursor(api, bots)
        server.kill()
    died, lived = bots
    os.kill(died["gateway"]["pid"], signal.SIGSEGV)
    async with served(wanted, token) as (_, api):
        async with api.listen(docs.BOT_STATUS, ids=[died["id"]], after=before) as heard:
            error = await anext(heard)
            assert (error["event"], error["reason"], error["exitSignal"]) == ("bot:error", "CRASHED", "SIGSEGV")
            back = await heard.until(lambda event: event["kind"] == "STARTED")
            assert back["pid"] != died["gateway"]["pid"]
        (other,) = await now(api, [lived])
        assert other["gateway"]["pid"] == lived["gateway"]["pid"]
    assert fake_openclaw.violations(openclaw) == []


# Two of them.


@pytest.mark.parametrize("end", [ServerProcess.kill, ServerProcess.stop])
async def test_a_second_server_stands_by_and_takes_over(
    database: dict[str, Any], tmp_path: Path, openclaw: Path, end: Callable[[ServerProcess], Any]
) -> None:
    is_killed = end is ServerProcess.kill
    with data_folder() as folder:
        # The embedded database outlives the server that started it.
        wanted = environ(folder, None if is_killed else database, openclaw)
        async with served(wanted) as (first, api):
            token = api.token
            async with served(wanted, token) as (second, standby):
                assert second.token is None
                with anyio.fail_after(PATIENCE):
                    while not logged(folder, "standby"):
                        await anyio.sleep(0.02)
                (bot,) = await start_bots(standby, "Hana")
                before = await cursor(standby, [bot])
                await to_thread.run_sync(end, first)
                async with standby.listen(docs.BOT_STATUS, ids=[bot["id"]], after=before) as heard:
                    taken = await heard.until(lambda event: event["kind"] == ("ADOPTED" if is_killed else "STARTED"))
                assert (taken["pid"] == bot["gateway"]["pid"]) is is_killed
                assert await to_thread.run_sync(second.stop) == 0
        assert processes_in(folder) == []
    assert fake_openclaw.violations(openclaw) == []
