"""The fake as a process: what it prints, answers, writes and leaves behind, in both eras."""

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests import fake_openclaw
from tests.fake_openclaw.program import config
from tests.fake_openclaw.program.eras import Era

OLD, NEW = "2026.2.1", "2026.9.6"
TOKEN = "tok-0123456789"
BOT_TOKEN = "6881:AAAbbbCCCdddEEEfffGGGhhhIIIjjjKKKlll"
MODEL = Path(__file__).parents[2] / "scripts" / "model"
#: Seconds any wait may take.
PATIENCE = 10.0

#: Making one costs more than most tests do.
HTTP = httpx.Client(trust_env=False, verify=False, timeout=PATIENCE)

eras = pytest.mark.parametrize("version", [OLD, NEW])


def until(look: Callable[[], Any]) -> Any:
    """The first thing that is true."""
    deadline = time.monotonic() + PATIENCE
    while not (fact := look()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
    return fact


class Home:
    """A bot's home with a config that both eras accept, and its gateways."""

    def __init__(self, binary: Path, folder: Path, agent_id: str = "hana", model_url: str = "") -> None:
        self.binary, self.folder, self.agent_id = binary, folder / agent_id, agent_id
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        (self.folder / "tmp").mkdir(parents=True)
        self.config = {
            "gateway": {
                "mode": "local",
                "port": self.port,
                "bind": "loopback",
                "auth": {"mode": "token", "token": TOKEN},
                "http": {"endpoints": {"chatCompletions": {"enabled": True}}},
            },
            "logging": {"file": str(self.folder / "logs" / "gateway.log")},
            "models": {
                "providers": {
                    "local": {"baseUrl": model_url, "apiKey": "sk-local", "models": [{"id": "fake", "name": "Fake"}]}
                }
            },
            "agents": {"list": [{"id": agent_id, "workspace": str(self.folder / "workspace"), "model": "local/fake"}]},
            "plugins": {"entries": {"telegram": {"enabled": True}}},
            "channels": {"telegram": {"botToken": BOT_TOKEN}},
        }
        self.write()
        self.processes: list[subprocess.Popen[bytes]] = []

    @property
    def output(self) -> str:
        return (self.folder / "stdout").read_bytes().decode(errors="replace")

    def write(self) -> None:
        draft = self.folder / "draft"
        draft.write_text(json.dumps(self.config))
        draft.replace(self.folder / "config.json5")

    def command(self, *words: str) -> list[str]:
        return [str(self.binary), *(words or ("gateway", "run", "--port", str(self.port)))]

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder / "home"),
            "TMPDIR": str(self.folder / "tmp"),
            "NO_COLOR": "1",
            "OPENCLAW_CONFIG_PATH": str(self.folder / "config.json5"),
            "OPENCLAW_STATE_DIR": str(self.folder),
            "OPENCLAW_NO_RESPAWN": "1",
            "CLAWNET_NONCE": f"nonce-{self.agent_id}",
        }

    def start(self) -> subprocess.Popen[bytes]:
        with (self.folder / "stdout").open("wb") as out:
            process = subprocess.Popen(self.command(), env=self.environment, stdout=out, stderr=out)
        self.processes.append(process)
        return process

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """To the end, bounded."""
        return subprocess.run(
            self.command(*words), env=self.environment, capture_output=True, text=True, timeout=PATIENCE
        )

    def started(self) -> subprocess.Popen[bytes]:
        process = self.start()
        until(lambda: self.is_ready() or process.poll() is not None)
        assert process.poll() is None, self.output
        return process

    def is_ready(self) -> bool:
        """As ClawNet asks: /readyz where there is one, else the handshake."""
        try:
            status = self.get("/readyz").status_code
            if status == 404:
                with connect(f"ws://127.0.0.1:{self.port}", proxy=None, open_timeout=0.5) as ws:
                    return json.loads(ws.recv(0.5))["event"] == "connect.challenge"
        except (httpx.TransportError, OSError, TimeoutError):
            return False
        return status == 200

    def get(self, path: str, timeout: float = PATIENCE) -> httpx.Response:
        return HTTP.get(f"http://127.0.0.1:{self.port}{path}", timeout=timeout)

    def chat(self, text: str, token: str = TOKEN, user: str = "alice", agent: str | None = "hana") -> httpx.Response:
        headers = {"authorization": f"Bearer {token}"} | ({"x-openclaw-agent-id": agent} if agent else {})
        body = {"model": "openclaw", "user": user, "messages": [{"role": "user", "content": text}]}
        url = f"http://127.0.0.1:{self.port}/v1/chat/completions"
        return HTTP.post(url, json=body, headers=headers)

    @contextmanager
    def talk(self, token: str = TOKEN) -> Iterator["Talk"]:
        with connect(f"ws://127.0.0.1:{self.port}", proxy=None, max_size=None) as ws:
            talk = Talk(ws)
            assert talk.next()["event"] == "connect.challenge"
            talk.hello = talk.ask("connect", minProtocol=3, maxProtocol=4, auth={"token": token}, scopes=[])
            yield talk

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


class Talk:
    """A WebSocket conversation with a gateway."""

    def __init__(self, ws: ClientConnection) -> None:
        self.ws, self.hello = ws, {}
        self.events: list[dict[str, Any]] = []
        self.heard = 0

    def next(self) -> dict[str, Any]:
        return json.loads(self.ws.recv(PATIENCE))

    def ask(self, method: str, **params: Any) -> Any:
        self.ws.send(json.dumps({"type": "req", "id": method, "method": method, "params": params}))
        while (frame := self.next())["type"] != "res":
            self.events.append(frame)
        assert frame["ok"], frame
        return frame["payload"]

    def hear(self, done: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The awaited event, from where the last one was found."""
        while True:
            while self.heard == len(self.events):
                self.events.append(self.next())
            self.heard += 1
            if done(self.events[self.heard - 1]):
                return self.events[self.heard - 1]

    def closed(self) -> int:
        """The code of the close that comes."""
        with pytest.raises(ConnectionClosed) as end:
            self._hear_forever()
        assert end.value.rcvd
        return end.value.rcvd.code

    def _hear_forever(self) -> None:
        while True:
            self.ws.recv(PATIENCE)


Make = Callable[..., Home]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Installs a version with faults and gives a home for it."""
    with ExitStack() as after:

        def build(version: str = NEW, agent_id: str = "hana", model_url: str = "", **faults: Any) -> Home:
            binary = fake_openclaw.install(tmp_path / f"openclaw-{version}", version, **faults)
            home = Home(binary, tmp_path / version, agent_id, model_url)
            after.callback(home.end)
            return home

        yield build


@pytest.fixture
def model_url() -> Iterator[str]:
    with subprocess.Popen([str(MODEL), "0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found
        yield found[0]
        process.terminate()


def is_final(frame: dict[str, Any]) -> bool:
    return frame["event"] == "chat" and frame["payload"]["state"] in {"final", "aborted", "error"}


def story(frames: list[dict[str, Any]]) -> list[str]:
    """Events in short, repeated ones once."""
    told: list[str] = []
    for frame in frames:
        payload = frame["payload"]
        data = payload.get("data", {})
        words = [payload.get("stream"), payload.get("state"), data.get("phase") or payload.get("phase")]
        line = " ".join([frame["event"], *(word for word in words if word)])
        told += [line] if told[-1:] != [line] else []
    return told


# Starting


def test_new_is_live_before_it_is_ready(make: Make) -> None:
    home = make(NEW, never_ready=True)
    process = home.start()
    until(lambda: "starting channels" in home.output)
    assert home.get("/healthz").json() == {"ok": True, "status": "live"}
    waiting = home.get("/readyz")
    assert (waiting.status_code, waiting.json()["ready"]) == (503, False)
    assert waiting.json()["failing"]
    assert not home.is_ready()
    process.terminate()
    process.wait(PATIENCE)
    fake_openclaw.clear_faults(home.binary)
    home.started()
    assert home.get("/ready").json()["ready"]
    assert "[gateway] ready" in home.output


def test_old_has_no_health_and_answers_the_handshake(make: Make) -> None:
    home = make(OLD)
    home.started()
    assert [home.get(path).status_code for path in ("/health", "/healthz", "/readyz")] == [404, 404, 404]
    assert f"[gateway] listening on ws://127.0.0.1:{home.port} (PID " in home.output


@eras
def test_a_first_start_is_slower_than_the_next(make: Make, version: str) -> None:
    home = make(version, first_start_delay_s=2.0)
    began = time.monotonic()
    home.started().terminate()
    assert time.monotonic() - began >= 2.0
    cache = home.folder / "tmp" / ("jiti" if version == OLD else "node-compile-cache")
    assert list(cache.iterdir())
    home.processes[0].wait(PATIENCE)
    began = time.monotonic()
    home.started()
    assert time.monotonic() - began < 2.0


@eras
def test_its_version_is_printed(make: Make, version: str) -> None:
    said = make(version).run("--version")
    assert (said.returncode, said.stdout.strip()) == (0, version if version == OLD else f"OpenClaw {NEW} (eb377ac)")


def test_the_kernel_sees_openclaw_s_title(make: Make) -> None:
    process = psutil.Process(make().started().pid)
    assert process.cmdline()[0].rstrip("\0") == "openclaw-gateway"
    assert process.environ()["CLAWNET_NONCE"] == "nonce-hana"


def test_old_without_no_respawn_runs_in_a_child(make: Make) -> None:
    home = make(OLD)
    environment = {name: value for name, value in home.environment.items() if name != "OPENCLAW_NO_RESPAWN"}
    with subprocess.Popen(home.command(), env=environment, stdout=subprocess.DEVNULL) as parent:
        until(home.is_ready)
        assert fake_openclaw.running(home.binary)["hana"] != parent.pid
        parent.terminate()
        assert parent.wait(PATIENCE) == 0
    assert fake_openclaw.running(home.binary) == {}


# Being refused


@eras
def test_a_strange_option_is_refused(make: Make, version: str) -> None:
    said = make(version).run("gateway", "run", "--config", "x")
    assert (said.returncode, "does not recognize option" in said.stderr) == (1, True)


@eras
def test_a_strange_key_is_refused_with_its_path(make: Make, version: str) -> None:
    home = make(version)
    home.config["gateway"]["foo"] = 1
    home.write()
    said = home.run()
    assert said.returncode == (1 if version == OLD else 78)
    assert '- gateway: Unrecognized key: "foo"' in said.stdout + said.stderr
    assert ("Config invalid" in said.stderr and "Problem:" in said.stderr) == (version == OLD)


@pytest.mark.parametrize(
    ("path", "value", "refused_by"),
    [
        ("agents.entries", {"hana": {}}, {OLD}),
        ("models.catalogRefresh", {"enabled": False}, {OLD}),
        ("channels.telegram.apiRoot", "http://127.0.0.1:1", {OLD}),
        ("channels.telegram.dmPolicy", "open", {OLD}),
        ("channels.telegram.dmPolicy", "all", {OLD, NEW}),
        ("channels.telegram.streamMode", "off", {NEW}),
        ("channels.nowhere", {}, {OLD, NEW}),
        ("agents.defaults.systemPrompt", "Be kind.", {OLD, NEW}),
        ("tools.bash", True, {OLD, NEW}),
        ("gateway.mode", "remotely", {OLD, NEW}),
        ("bindings", [{"agentId": "hana", "match": {"channel": "telegram", "peer": {"kind": "dm", "id": "1"}}}], {NEW}),
        ("session.dmScope", "per-peer", set()),
    ],
)
def test_each_era_takes_its_own_keys(make: Make, path: str, value: Any, refused_by: set[str]) -> None:
    home = make()
    *way, name = path.split(".")
    block = home.config
    for key in way:
        block = block.setdefault(key, {})
    block[name] = value
    home.write()
    assert {version for version in (OLD, NEW) if is_refused(home, version)} == refused_by


def is_refused(home: Home, version: str) -> bool:
    try:
        config.load(home.folder / "config.json5", Era(version))
    except config.Refused:
        return True
    return False


def test_new_validates_and_warns(make: Make) -> None:
    home = make(NEW)
    accepted = json.loads(home.run("config", "validate", "--json").stdout)
    assert accepted["valid"]
    assert accepted["warnings"][0]["path"] == "agents.entries"
    home.config["foo"] = 1
    home.write()
    said = home.run("config", "validate", "--json")
    assert said.returncode == 1
    assert json.loads(said.stdout)["issues"] == [{"path": "", "message": 'Unrecognized key: "foo"'}]


def test_variables_are_replaced_unless_a_second_dollar_says_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAME", "Ada")
    assert config.replace_variables({"a": ["${NAME}", "$${NAME}"]}) == ({"a": ["Ada", "${NAME}"]}, [])
    assert config.replace_variables("${NO_SUCH}") == ("${NO_SUCH}", ["NO_SUCH"])


@eras
def test_a_missing_config_and_a_taken_port_are_refused(make: Make, version: str) -> None:
    home = make(version, port_delay_s=0.1)
    with socket.create_server(("127.0.0.1", home.port)):
        said = home.run()
        assert (said.returncode, "another gateway instance is already listening" in said.stderr) == (1, True)
    (home.folder / "config.json5").unlink()
    assert home.run().returncode == (1 if version == OLD else 78)


@eras
def test_one_home_runs_one_gateway(make: Make, version: str) -> None:
    home = make(version)
    first = home.started()
    (lock,) = (home.folder / "tmp" / f"openclaw-{os.getuid()}").glob("gateway.*.lock")
    assert json.loads(lock.read_text())["pid"] == first.pid
    said = home.run()
    assert said.returncode == (1 if version == OLD else 78)
    assert ("Gateway already running locally" if version == OLD else "GatewayLockError") in said.stdout + said.stderr
    (violation,) = fake_openclaw.violations(home.binary)
    assert (violation.other, violation.agent_id) == (first.pid, "hana")


@eras
def test_after_a_kill_the_next_start_takes_over(make: Make, version: str) -> None:
    home = make(version)
    first = home.started()
    first.kill()
    first.wait()
    second = home.started()
    assert fake_openclaw.running(home.binary) == {"hana": second.pid}
    assert fake_openclaw.violations(home.binary) == []
    assert [start.pid for start in fake_openclaw.starts(home.binary)] == [first.pid, second.pid]
    assert {start.nonce for start in fake_openclaw.starts(home.binary, "hana")} == {"nonce-hana"}


# Ending


@eras
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2])
def test_signals_end_it_as_they_end_openclaw(make: Make, version: str, number: signal.Signals) -> None:
    home = make(version)
    process = home.started()
    process.send_signal(number)
    if (version, number) == (NEW, signal.SIGUSR2):
        assert home.is_ready()
        process.send_signal(signal.SIGTERM)
    ends = number == signal.SIGHUP or (version, number) == (OLD, signal.SIGUSR2)
    assert process.wait(PATIENCE) == (-number if ends else 0)
    if not ends:
        assert fake_openclaw.running(home.binary) == {}
        assert not list((home.folder / "tmp" / f"openclaw-{os.getuid()}").iterdir())


def test_a_signal_during_the_start_ends_it(make: Make) -> None:
    home = make(start_delay_s=60)
    process = home.start()
    until(lambda: b"starting..." in (home.folder / "stdout").read_bytes())
    process.terminate()
    assert process.wait(PATIENCE) == 0


def test_a_drain_lasts_and_sigterm_can_be_ignored(make: Make) -> None:
    home = make(drain_s=0.2)
    process = home.started()
    began = time.monotonic()
    process.terminate()
    assert process.wait(PATIENCE) == 0
    assert time.monotonic() - began >= 0.2
    fake_openclaw.set_faults(home.binary, bot="hana", ignore_sigterm=True)
    process = home.started()
    process.terminate()
    until(lambda: "ignored" in home.output)
    assert home.is_ready()


def test_the_broker_has_a_session_of_its_own_and_ends_with_its_gateway(make: Make) -> None:
    process = make().started()
    (broker,) = psutil.Process(process.pid).children()
    assert os.getsid(broker.pid) == broker.pid
    process.kill()
    until(lambda: not broker.is_running() or broker.status() == psutil.STATUS_ZOMBIE)


def test_grandchildren_outlive_it(make: Make) -> None:
    home = make(OLD, fork_grandchildren=2)
    process = home.started()
    assert psutil.Process(process.pid).children(recursive=True) == []
    process.kill()
    process.wait()
    strays = [stray for stray in psutil.process_iter() if carries(stray, str(home.folder))]
    for stray in strays:
        stray.kill()
    assert len(strays) == 2


def carries(process: psutil.Process, home: str) -> bool:
    try:
        return process.environ().get("OPENCLAW_STATE_DIR") == home
    except psutil.Error:
        return False


# Talking


@eras
def test_a_chat_reaches_the_model_and_the_disk(make: Make, version: str, model_url: str) -> None:
    home = make(version, model_url=model_url)
    home.started()
    assert home.chat("Hello", token="wrong").status_code == 401
    assert home.chat("Hello").json()["choices"][0]["message"]["content"] == "You said: Hello"
    (home.folder / "workspace" / "prices.txt").write_text("tube 7")
    told = home.chat('use read {"path": "prices.txt"}').json()["choices"][0]["message"]["content"]
    assert told == "The tool said: tube 7"
    assert "You said: Hello" in home.output
    key = "agent:hana:openai-user:alice"
    roles = [event["message"]["role"] for event in transcript(home, key) if event["type"] == "message"]
    assert roles == ["user", "assistant", "user", "assistant", "toolResult", "assistant"]


@eras
def test_a_conversation_goes_on_after_a_restart(make: Make, version: str) -> None:
    home = make(version)
    first = home.started()
    home.chat("one")
    first.kill()
    first.wait()
    home.started()
    home.chat("two " * 600)
    events = transcript(home, "agent:hana:openai-user:alice")
    assert [event["type"] for event in events].count("session") == 1
    assert [event["type"] for event in events].count("message") == 4
    parents = [event.get("parentId") for event in events[2:]]
    assert parents == [event["id"] for event in events[1:-1]]


def transcript(home: Home, key: str) -> list[dict[str, Any]]:
    agent = home.folder / "agents" / "hana"
    if (agent / "sessions").is_dir():
        index = json.loads((agent / "sessions" / "sessions.json").read_text())
        return [json.loads(line) for line in Path(index[key]["sessionFile"]).read_text().splitlines()]
    database = sqlite3.connect(f"file:{agent}/agent/openclaw-agent.sqlite?mode=ro", uri=True)
    rows = database.execute(
        "SELECT event_json, event_zstd, event_utf8_bytes FROM transcript_events JOIN session_windows USING (session_id)"
        " WHERE session_key = ? ORDER BY seq",
        (key,),
    ).fetchall()
    database.close()
    assert all((text is None) == (size >= 1024) for text, _, size in rows)
    # A frame of one raw block: 9 bytes of header, 3 of the block.
    return [json.loads(text or frame[12 : 12 + size]) for text, frame, size in rows]


@eras
def test_a_failing_model_fails_the_chat(make: Make, version: str, model_url: str) -> None:
    home = make(version, model_url=model_url, model_retry_s=0)
    home.started()
    assert home.chat("fail 503").status_code == 500
    events = transcript(home, "agent:hana:openai-user:alice")
    if version == OLD:
        errors = [event["message"].get("errorMessage") for event in events[5:]]
        assert errors == ["503 the model is unwell"] * 4
    else:
        assert events[-1]["customType"] == "run-failed-before-reply"


def test_old_without_the_header_speaks_as_main(make: Make) -> None:
    home = make(OLD)
    home.started()
    home.chat("Hello", agent=None)
    assert (home.folder / "agents" / "main" / "sessions" / "sessions.json").exists()


@eras
def test_the_handshake_says_who_it_is(make: Make, version: str) -> None:
    home = make(version)
    home.started()
    with home.talk() as talk:
        assert talk.hello["type"] == "hello-ok"
        assert (talk.hello["protocol"], talk.hello["server"]["version"]) == ((3, "dev") if version == OLD else (4, NEW))
        assert ("sessions.subscribe" in talk.hello["features"]["methods"]) == (version == NEW)
        assert talk.ask("health")["ok"]
        (account,) = talk.ask("channels.status", probe=False)["channelAccounts"]["telegram"]
        assert (account["running"], account.get("lifecycle")) == (True, None if version == OLD else "ready")
        kept = talk.ask("config.get")
        assert (BOT_TOKEN in json.dumps(kept), len(kept["hash"])) == (version == OLD, 64)
    with pytest.raises(AssertionError, match="unauthorized"), home.talk("wrong"):
        pass


def test_old_tells_a_run_as_recorded(make: Make) -> None:
    home = make(OLD)
    home.started()
    with home.talk() as talk:
        sent = talk.ask("chat.send", sessionKey="agent:hana:main", message="Hello you", idempotencyKey="run-1")
        assert sent == {"runId": "run-1", "status": "started"}
        last = talk.hear(is_final)
    assert story(talk.events) == [
        "agent lifecycle start",
        "agent assistant",
        "chat delta",
        "agent assistant",
        "agent lifecycle end",
        "chat final",
    ]
    assert last["payload"]["message"]["content"][0]["text"] == "You said: Hello you"
    text = transcript(home, "agent:hana:main")[4]["message"]["content"][0]["text"]
    assert re.fullmatch(r"\[\w{3} \d{4}-\d\d-\d\d \d\d:\d\d UTC\] Hello you\n\[message_id: run-1\]", text)


def test_new_tells_a_run_as_recorded(make: Make) -> None:
    home = make(NEW)
    home.started()
    with home.talk() as talk:
        assert talk.ask("sessions.subscribe") == {"subscribed": True}
        talk.ask("chat.send", sessionKey="agent:hana:main", message="Hello you", idempotencyKey="run-1")
        talk.hear(is_final)
    told = [line for line in story(talk.events) if not line.startswith("sessions.changed")]
    assert told == [
        "chat status preparing_workspace",
        "agent run_status preparing_workspace",
        "chat status preparing_context",
        "agent run_status preparing_context",
        "session.message",
        "agent lifecycle start",
        "chat status starting_model",
        "agent run_status starting_model",
        "agent lifecycle model",
        "agent assistant",
        "chat delta",
        "agent assistant",
        "agent usage",
        "session.message",
        "chat delta",
        "agent lifecycle finishing",
        "agent lifecycle end",
        "chat final",
    ]


@eras
def test_a_run_is_aborted_and_what_came_meanwhile_follows(make: Make, version: str, model_url: str) -> None:
    home = make(version, model_url=model_url)
    home.started()
    with home.talk() as talk:
        talk.ask("chat.send", sessionKey="agent:hana:main", message="slow 500", idempotencyKey="run-1")
        talk.hear(lambda frame: frame["payload"].get("data", {}).get("phase") == "start")
        talk.ask("chat.send", sessionKey="agent:hana:main", message="Next", idempotencyKey="run-2")
        early = talk.hear(is_final)["payload"]
        assert (early["runId"], "message" in early) == ("run-2", False)
        ended = talk.ask("chat.abort", sessionKey="agent:hana:main", runId="run-1")
        assert ended == {"ok": True, "aborted": True, "runIds": ["run-1"]}
        talk.hear(lambda frame: is_final(frame) and frame["payload"]["state"] == "aborted")
        talk.hear(lambda frame: is_final(frame) and "message" in frame["payload"])
    stops = [event["message"].get("stopReason") for event in transcript(home, "agent:hana:main")[4:]]
    assert stops == [None, "aborted", None, "stop"]


@eras
def test_a_person_s_message_over_a_channel_is_answered(make: Make, version: str) -> None:
    home = make(version)
    home.config["session"] = {"dmScope": "per-channel-peer"}
    home.write()
    home.started()
    said = {"channel": "telegram", "peer": "42", "name": "Ada", "text": "Hello"}
    url, bearer = f"http://127.0.0.1:{home.port}/__fake/inbound", {"authorization": f"Bearer {TOKEN}"}
    direct = HTTP.post(url, json=said, headers=bearer).json()
    assert direct["sessionKey"] == f"agent:hana:telegram:{'dm' if version == OLD else 'direct'}:42"
    said |= {"group": "-100777", "title": "Bike crew", "thread": 5}
    group = HTTP.post(url, json=said, headers=bearer).json()
    assert group["sessionKey"] == "agent:hana:telegram:group:-100777:topic:5"
    assert transcript(home, group["sessionKey"])


# Changing


@eras
def test_an_edit_is_applied_and_a_bad_one_skipped(make: Make, version: str) -> None:
    home = make(version)
    process = home.started()
    home.config["channels"]["telegram"]["botToken"] = "999:refused"
    home.write()
    until(lambda: "config hot reload applied (channels.telegram.botToken" in home.output)
    with home.talk() as talk:
        (account,) = talk.ask("channels.status")["channelAccounts"]["telegram"]
        assert (account["running"], "401" in account["lastError"]) == (False, True)
        before = talk.ask("config.get")["hash"]
        home.config["foo"] = 1
        home.write()
        until(lambda: 'config reload skipped (invalid config): : Unrecognized key: "foo"' in home.output)
        assert talk.ask("config.get")["hash"] == before
    assert process.poll() is None


@eras
def test_a_new_gateway_token_closes_every_socket(make: Make, version: str) -> None:
    home = make(version)
    process = home.started()
    with home.talk() as talk:
        home.config["gateway"]["auth"]["token"] = "another"
        home.write()
        assert talk.closed() == (1012 if version == OLD else 4001)
    until(home.is_ready)
    assert home.chat("Hello", token="another").status_code == 200
    assert process.poll() is None


# Going wrong


def test_a_misspelt_fault_is_an_error(make: Make) -> None:
    with pytest.raises(TypeError, match="no such fault: crash_afer_s"):
        make(crash_afer_s=1)


@pytest.mark.parametrize(
    ("faults", "code"),
    [
        ({"exit_at_start": 3}, 3),
        ({"exit_78": True}, 78),
        ({"crash_after_s": 0.05, "crash_code": 7}, 7),
        ({"crash_after_s": 0.05, "crash_signal": signal.SIGKILL}, -signal.SIGKILL),
        ({"crash_after_s": 0.05, "crash_signal": signal.SIGSEGV}, -signal.SIGSEGV),
    ],
)
def test_it_ends_as_told(make: Make, faults: dict[str, Any], code: int) -> None:
    assert make(**faults).start().wait(PATIENCE) == code


def test_a_fault_can_be_one_bot_s_and_can_be_cleared(make: Make) -> None:
    home = make(bots={"hana": {"exit_at_start": 3}, "otto": {"exit_at_start": 4}})
    assert home.run().returncode == 3
    fake_openclaw.clear_faults(home.binary, "hana")
    home.started()


@pytest.mark.parametrize("how", ["mute", "stop"])
def test_it_hangs(make: Make, how: str) -> None:
    home = make(hang_after_s=0, hang_how=how)
    process = home.start()

    def is_hung() -> bool:
        try:
            home.get("/readyz", timeout=0.1)
        except httpx.TimeoutException:
            return True
        except httpx.TransportError:
            pass
        return False

    until(is_hung)
    process.terminate()
    if how == "stop":
        assert psutil.Process(process.pid).status() == psutil.STATUS_STOPPED
    else:
        assert process.wait(PATIENCE) == 0


def test_old_may_never_be_ready(make: Make) -> None:
    home = make(OLD, never_ready=True)
    home.start()
    until(lambda: "listening" in home.output)
    assert home.get("/readyz").status_code == 404
    with pytest.raises(TimeoutError), connect(f"ws://127.0.0.1:{home.port}", proxy=None, open_timeout=0.1):
        pass


def test_it_floods_and_lets_secrets_slip(make: Make) -> None:
    home = make(flood_bytes=100_000, flood_every_byte=True, flood_lines_per_s=200, print_secret=True)
    home.started()
    until(lambda: "line 3" in home.output)
    assert bytes(range(256)) in (home.folder / "stdout").read_bytes()
    assert len(home.output) > 100_000
    assert all(secret in home.output for secret in (TOKEN, BOT_TOKEN, "sk-local"))


def test_it_leaks(make: Make) -> None:
    process = psutil.Process(make(leak_mb_per_s=600).started().pid)
    until(lambda: process.memory_info().rss > 80_000_000)


def test_a_version_between_the_eras_mixes_them(make: Make) -> None:
    home = make("2026.5.1", traits={"store": "jsonl", "protocol": 3, "refused": 1})
    home.started()
    assert home.chat("Hello").status_code == 200
    assert len(transcript(home, "agent:hana:openai-user:alice")) == 6
    with home.talk() as talk:
        assert talk.hello["protocol"] == 3
