"""Speaking to gateways over their WebSocket: the fake of both eras, and servers that misbehave."""

import asyncio
import json
import logging
import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from websockets.asyncio.server import ServerConnection, serve

from app.domain.errors import GatewayFailed, NotFound
from app.gateway import pairing, rpc
from app.gateway.rpc import Connection
from tests import fake_openclaw

OLD, NEW = "2026.2.1", "2026.9.6"
TOKEN = "tok-0123456789-secret"
HELLO = {"type": "hello-ok", "protocol": 3, "features": {"methods": ["health"], "events": []}}

eras = pytest.mark.parametrize("version", [OLD, NEW])


async def is_ours() -> bool:
    return True


@pytest.fixture
def home(tmp_path: Path, unused_port: int) -> Path:
    """A home whose config both eras accept."""
    folder = tmp_path / "hana"
    for name in ("tmp", "home"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o700)
    tree = {
        "gateway": {
            "mode": "local",
            "port": unused_port,
            "bind": "loopback",
            "auth": {"mode": "token", "token": TOKEN},
        },
        "logging": {"file": str(folder / "gateway.log")},
        "agents": {"list": [{"id": "hana", "workspace": str(folder / "workspace"), "model": "local/fake"}]},
        "plugins": {"entries": {"telegram": {"enabled": True}}},
        "channels": {"telegram": {"botToken": "6881:AAA"}},
    }
    (folder / "config.json5").write_text(json.dumps(tree))
    return folder


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def gateway(version: str, home: Path, port: int, **faults: Any) -> AsyncGenerator[int]:
    """The fake, running and ready."""
    binary = fake_openclaw.install(home.parent / "openclaw", version, **faults)
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(home / "home"),
        "TMPDIR": str(home / "tmp"),
        "NO_COLOR": "1",
        "OPENCLAW_CONFIG_PATH": str(home / "config.json5"),
        "OPENCLAW_STATE_DIR": str(home),
        "OPENCLAW_NO_RESPAWN": "1",
    }
    command = [str(binary), "gateway", "run", "--port", str(port)]
    with (home / "out").open("wb") as out:
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=out, stderr=out)
    try:
        with anyio.fail_after(20):
            while True:
                try:
                    async with rpc.connect(port, TOKEN, is_ours):
                        break
                except GatewayFailed:
                    await asyncio.sleep(0.05)
        yield port
    finally:
        process.terminate()
        async with asyncio.timeout(20):
            await process.wait()


@asynccontextmanager
async def misbehaving(talk: Callable[[ServerConnection], Awaitable[None]]) -> AsyncGenerator[int]:
    """A WebSocket server of another kind, challenge and all."""

    async def one(connection: ServerConnection) -> None:
        await connection.send(json.dumps({"type": "event", "event": "connect.challenge", "payload": {"nonce": "n"}}))
        await talk(connection)

    async with serve(one, "127.0.0.1", 0) as server:
        yield next(iter(server.sockets)).getsockname()[1]


async def welcome(connection: ServerConnection) -> None:
    request = json.loads(await connection.recv())
    await connection.send(json.dumps({"type": "res", "id": request["id"], "ok": True, "payload": HELLO}))


@eras
async def test_a_gateway_of_either_era_says_hello_and_answers(version: str, home: Path, unused_port: int) -> None:
    async with gateway(version, home, unused_port) as port, rpc.connect(port, TOKEN, is_ours) as connection:
        assert connection.protocol == (3 if version == OLD else 4)
        assert ("channels.pairing.list" in connection.methods) == (version == NEW)
        assert "shutdown" in connection.event_names
        answer = await connection.call("channels.status", {"probe": False})
        assert answer["channelAccounts"]["telegram"][0]["running"] is True


async def test_what_is_told_between_two_questions_is_not_lost(home: Path, unused_port: int) -> None:
    async with gateway(NEW, home, unused_port, tick_s=0.05) as port, rpc.connect(port, TOKEN, is_ours) as connection:
        await asyncio.sleep(0.2)
        await connection.call("health")
        with anyio.fail_after(10):
            names = [event.name async for event, _ in _some(connection, 5)]
        assert names == ["tick"] * 5


async def _some(connection: Connection, count: int) -> AsyncGenerator[tuple[rpc.Event, int]]:
    number = 0
    async for event in connection.events():
        yield event, (number := number + 1)
        if number == count:
            return


@eras
async def test_a_token_the_gateway_does_not_know_is_refused_without_saying_it(
    version: str, home: Path, unused_port: int
) -> None:
    async with gateway(version, home, unused_port) as port:
        with pytest.raises(GatewayFailed, match=r"refused connect \(INVALID_REQUEST\)") as refused:
            async with rpc.connect(port, "tok-another-secret", is_ours):
                pass
    assert "another-secret" not in repr(refused.value)


async def test_a_method_this_version_does_not_offer_is_not_asked_for(home: Path, unused_port: int) -> None:
    async with gateway(OLD, home, unused_port) as port, rpc.connect(port, TOKEN, is_ours) as connection:
        with pytest.raises(GatewayFailed, match=r"does not offer channels\.start"):
            await connection.call("channels.start", {"channel": "telegram"})


async def test_a_refused_question_is_told_with_the_gateway_s_code(home: Path, unused_port: int) -> None:
    async with gateway(NEW, home, unused_port) as port, rpc.connect(port, TOKEN, is_ours) as connection:
        with pytest.raises(GatewayFailed, match=r"refused channels\.start \(INVALID_REQUEST\)$"):
            await connection.call("channels.start", {})
        assert (await connection.call("health"))["ok"] is True


async def test_a_stranger_on_the_port_never_sees_the_token() -> None:
    heard: list[str | bytes] = []

    async def listen(connection: ServerConnection) -> None:
        heard.extend([frame async for frame in connection])

    async def is_not_ours() -> bool:
        return False

    async with misbehaving(listen) as port:
        with pytest.raises(GatewayFailed, match="belongs to another program"):
            async with rpc.connect(port, TOKEN, is_not_ours):
                pass
    assert heard == []


async def test_who_never_answers_is_given_up() -> None:
    async def say_nothing(connection: ServerConnection) -> None:
        await welcome(connection)
        await connection.wait_closed()

    async with misbehaving(say_nothing) as port, rpc.connect(port, TOKEN, is_ours) as connection:
        with pytest.raises(GatewayFailed, match=r"health did not answer within 0\.1 s"):
            await connection.call("health", timeout=0.1)


@pytest.mark.parametrize("frame", ["no json", "[" * 100_000, "\x00", "x" * (rpc.MAX_FRAME + 1)])
async def test_frames_that_cannot_be_read_are_a_failure_in_one_sentence(frame: str) -> None:
    async def babble(connection: ServerConnection) -> None:
        await welcome(connection)
        await connection.recv()
        await connection.send(frame)
        await connection.wait_closed()

    async with misbehaving(babble) as port, rpc.connect(port, TOKEN, is_ours) as connection:
        with pytest.raises(GatewayFailed) as failed:
            await connection.call("health")
    assert len(failed.value.message) < 200


@pytest.mark.parametrize("payload", [{}, {"type": "hello-ok", "protocol": 99}, {"type": "hello-ok", "protocol": "3"}])
async def test_a_greeting_in_another_protocol_is_not_trusted(payload: dict[str, Any]) -> None:
    async def greet(connection: ServerConnection) -> None:
        request = json.loads(await connection.recv())
        await connection.send(json.dumps({"type": "res", "id": request["id"], "ok": True, "payload": payload}))
        await connection.wait_closed()

    async with misbehaving(greet) as port:
        with pytest.raises(GatewayFailed, match="not understood"):
            async with rpc.connect(port, TOKEN, is_ours):
                pass


async def test_a_flood_of_events_keeps_the_newest_and_counts_the_rest() -> None:
    async def flood(connection: ServerConnection) -> None:
        await welcome(connection)
        request = json.loads(await connection.recv())
        for number in range(rpc.MAX_EVENTS + 10):
            await connection.send(json.dumps({"type": "event", "event": f"e{number}"}))
        await connection.send(json.dumps({"type": "res", "id": request["id"], "ok": True, "payload": {}}))
        await connection.wait_closed()

    async with misbehaving(flood) as port, rpc.connect(port, TOKEN, is_ours) as connection:
        await connection.call("health")
        assert connection.dropped == 10
        async for event, _ in _some(connection, 1):
            assert event.name == "e10"


@pytest.mark.parametrize("code", ["UNAVAILABLE", f"NO_{TOKEN}", "6881:AAA-bot-token", "x" * 10_000, 5, None])
async def test_neither_errors_nor_logs_repeat_what_a_gateway_says_of_a_refusal(
    code: object, caplog: pytest.LogCaptureFixture
) -> None:
    async def quote(connection: ServerConnection) -> None:
        request = json.loads(await connection.recv())
        said = f"{request['params']['auth']['token']} or /bot6881:AAA-bot-token/ is wrong"
        error = {"code": code, "message": said}
        await connection.send(json.dumps({"type": "res", "id": request["id"], "ok": False, "error": error}))
        await connection.close(1008, f"no {TOKEN}")

    caplog.set_level(logging.DEBUG)
    async with misbehaving(quote) as port:
        with pytest.raises(GatewayFailed) as failed:
            async with rpc.connect(port, TOKEN, is_ours):
                pass
    told = " (UNAVAILABLE)" if code == "UNAVAILABLE" else ""
    assert failed.value.message == f"the bot's gateway refused connect{told}"
    ours = "\n".join(record.getMessage() for record in caplog.records if record.name != "websockets.server")
    assert TOKEN not in ours
    assert "6881:" not in ours


async def test_why_a_gateway_hung_up_is_told_by_its_code_alone() -> None:
    async def hang_up(connection: ServerConnection) -> None:
        await connection.close(1008, "no channel for 6881:AAA-bot-token")

    async with misbehaving(hang_up) as port:
        with pytest.raises(GatewayFailed, match=r"closed the connection \(1008\)$"):
            async with rpc.connect(port, TOKEN, is_ours):
                pass


# Pairing.


async def asks(port: int, peer: str, name: str = "Ada", token: str = TOKEN) -> str:
    """Somebody writes to the bot and is shown a code."""
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.post(
            f"http://127.0.0.1:{port}/__fake/pairing",
            json={"channel": "telegram", "peer": peer, "name": name},
            headers={"authorization": f"Bearer {token}"},
        )
    return str(answer.json()["code"])


@eras
async def test_who_asks_to_be_let_in_is_shown_with_the_code_they_saw(
    version: str, home: Path, unused_port: int
) -> None:
    async with gateway(version, home, unused_port) as port, rpc.connect(port, TOKEN, is_ours) as connection:
        assert await pairing.waiting(connection, home, "telegram", "default") == []
        codes = [await asks(port, "4200001"), await asks(port, "4200002", "Ben")]
        found = await pairing.waiting(connection, home, "telegram", "default")
        assert found is not None
        assert [one.code for one in found] == codes
        assert found[1].peer == {"id": "4200002", "firstName": "Ben"}
        assert await pairing.waiting(connection, home, "discord", "default") == []


@eras
async def test_one_is_let_in_and_the_other_sent_away(version: str, home: Path, unused_port: int) -> None:
    async with gateway(version, home, unused_port) as port, rpc.connect(port, TOKEN, is_ours) as connection:
        ada, ben = await asks(port, "4200001"), await asks(port, "4200002")
        with pytest.raises(NotFound):
            await pairing.approve(connection, home, "telegram", "default", "WRONG")
        await pairing.approve(connection, home, "telegram", "default", ada.lower())
        await pairing.dismiss(connection, home, "telegram", "default", ben)
        assert await pairing.waiting(connection, home, "telegram", "default") == []
        with pytest.raises(NotFound):
            await pairing.dismiss(connection, home, "telegram", "default", ben)
    if version == OLD:
        allowed = home / "credentials" / "telegram-allowFrom.json"
        assert json.loads(allowed.read_text()) == {"version": 1, "allowFrom": ["4200001"]}
        assert allowed.stat().st_mode & 0o777 == 0o600
        assert not list(allowed.parent.glob("*.lock"))


async def test_a_request_of_more_than_an_hour_ago_has_run_out(home: Path, unused_port: int) -> None:
    (home / "credentials").mkdir(mode=0o700)
    old = {"id": "1", "code": "AAAAAAAA", "createdAt": "2020-01-01T00:00:00.000Z"}
    (home / "credentials" / "telegram-pairing.json").write_text(json.dumps({"version": 1, "requests": [old]}))
    async with gateway(OLD, home, unused_port) as port, rpc.connect(port, TOKEN, is_ours) as connection:
        assert await pairing.waiting(connection, home, "telegram", "default") == []


async def test_a_lock_that_the_gateway_holds_is_waited_for_and_never_broken(
    home: Path, unused_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairing, "LOCK_TIMEOUT", 0.3)
    async with gateway(OLD, home, unused_port) as port, rpc.connect(port, TOKEN, is_ours) as connection:
        code = await asks(port, "1")
        lock = home / "credentials" / "telegram-allowFrom.json.lock"
        lock.mkdir()
        with pytest.raises(GatewayFailed, match="try again"):
            await pairing.approve(connection, home, "telegram", "default", code)
        assert lock.is_dir()
        lock.rmdir()
        await pairing.approve(connection, home, "telegram", "default", code)


@pytest.mark.parametrize("what", ["link", "pipe", "noise", "folder"])
async def test_what_a_bot_put_in_the_place_of_its_pairings_is_not_followed(
    what: str, home: Path, unused_port: int
) -> None:
    credentials = home / "credentials"
    file = credentials / "telegram-pairing.json"
    if what == "folder":
        credentials.symlink_to(home.parent)
    else:
        credentials.mkdir(mode=0o700)
    match what:
        case "link":
            outside = home.parent / "outside.json"
            request = {"id": "1", "code": "AAAAAAAA", "createdAt": "2999-01-01T00:00:00Z"}
            outside.write_text(json.dumps({"requests": [request]}))
            file.symlink_to(outside)
        case "pipe":
            os.mkfifo(file)
        case "noise":
            file.write_text("[" * 100_000)
    async with gateway(OLD, home, unused_port) as port, rpc.connect(port, TOKEN, is_ours) as connection:
        if what == "folder":
            with pytest.raises(GatewayFailed, match="not a folder of its own"):
                await pairing.waiting(connection, home, "telegram", "default")
        else:
            assert await pairing.waiting(connection, home, "telegram", "default") == []


async def test_without_the_store_a_request_has_its_own_name_for_a_code(home: Path, unused_port: int) -> None:
    async with gateway(NEW, home, unused_port) as port, rpc.connect(port, TOKEN, is_ours) as connection:
        code = await asks(port, "1")
        elsewhere = home.parent / "ben"
        (elsewhere / "state").mkdir(parents=True)
        (elsewhere / "state" / "openclaw.sqlite").symlink_to(home / "state" / "openclaw.sqlite")
        found = await pairing.waiting(connection, elsewhere, "telegram", "default")
        assert found is not None
        assert found[0].code == found[0].request_id != code
        await pairing.dismiss(connection, elsewhere, "telegram", "default", found[0].code)
