"""What an owner sees of a bot's channels while its gateway lives, and when it does not any more."""

import base64
import json
import os
import re
import signal
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import anyio
import pytest

from app.db.engine import DB
from app.domain.states import ChannelStatus
from app.gateway import channel_log, channel_status, config, rpc
from app.services.nodes import Lease, LeaseLost
from app.services.recorder import Recorder
from app.supervisor import channels as watching
from tests import fake_openclaw
from tests.fake_openclaw.program.channels import HELD
from tests.gateway.test_rpc import asks, is_ours
from tests.harness import Api, Heard, environ, running_server
from tests.journeys import documents as docs
from tests.journeys import story

OLD, NEW = "2026.2.1", "2026.9.6"
TOKEN = "6881:AAAbbbCCCddd"
CREATE = """mutation($input: ChannelCreateInput!) {
  channelCreate(input: $input) { channel { id } userErrors { message } } }"""
SET = "mutation($input: ChannelCredentialsSetInput!) { channelCredentialsSet(input: $input) { userErrors { code } } }"
#: Looks come every 50 ms then, and a bot is steady after 0.6 s.
QUICK = {"CLAWNET_HEALTH_INTERVAL": "0.1", "CLAWNET_STOP_GRACE": "1"}

eras = pytest.mark.parametrize("version", [OLD, NEW])


@asynccontextmanager
async def one_bot(
    folder: Path, database: dict[str, Any], version: str = NEW, **faults: Any
) -> AsyncGenerator[tuple[Api, dict[str, Any], Path]]:
    """A server with one bot that is not started yet."""
    wrapper = fake_openclaw.install(folder / "openclaw", version, **faults)
    async with running_server(environ(folder, database, wrapper, **QUICK)) as api:
        await story.make_provider(api, "http://127.0.0.1:9/v1")
        yield api, await story.make_bot(api), wrapper
    assert fake_openclaw.violations(wrapper) == []


async def has_channel(api: Api, bot: dict[str, Any], token: str = TOKEN, *, enabled: bool = True) -> UUID:
    """A Telegram channel on the bot."""
    made = await api.run(
        CREATE,
        input={
            "botId": bot["id"], "provider": "telegram", "name": "Telegram", "enabled": enabled,
            "credentials": {"botToken": token}, "accountId": "default" if enabled else "second",
        },
    )  # fmt: skip
    assert made["userErrors"] == [], made
    return UUID(base64.b64decode(made["channel"]["id"]).decode().partition(":")[2])


async def start(api: Api, bot: dict[str, Any]) -> dict[str, Any]:
    started = await api.run(docs.BOT_START, input={"botId": bot["id"]})
    assert started["bot"]["status"] == "ACTIVE", started
    return started


async def stop(api: Api, bot: dict[str, Any]) -> None:
    await api.run(docs.BOT_STOP, input={"botId": bot["id"]})


async def state(channel: UUID) -> dict[str, Any]:
    row = await DB.fetch_one("SELECT status, error, last_connected_at FROM channel_state WHERE channel = $1", channel)
    assert row is not None
    return row


async def changes_to(heard: Heard, channel: UUID, status: str) -> dict[str, Any]:
    """Waits for the events until the channel is so."""
    while (await state(channel))["status"] != status:
        await heard.until(lambda e: e["kind"] == "CHANNEL_CHANGED")
    return await state(channel)


@eras
async def test_a_channel_is_connected_while_its_gateway_lives(
    version: str, database: dict[str, Any], tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database, version) as (api, bot, _):
        channel = await has_channel(api, bot)
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            await start(api, bot)
            found = await changes_to(heard, channel, "CONNECTED")
            assert found["error"] is None
            assert found["last_connected_at"] is not None
            await stop(api, bot)
            await heard.until(lambda e: e["kind"] == "STOPPED")
            lost = await heard.until(lambda e: e["kind"] == "CHANNEL_CHANGED")
            assert lost["event"] == "bot:channel_changed"
            assert (await state(channel))["status"] == "DISCONNECTED"


async def test_a_channel_is_lost_in_the_moment_its_process_is(database: dict[str, Any], tmp_path: Path) -> None:
    async with one_bot(tmp_path, database) as (api, bot, _):
        channel = await has_channel(api, bot)
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            pid = (await start(api, bot))["bot"]["gateway"]["pid"]
            await changes_to(heard, channel, "CONNECTED")
            os.kill(pid, signal.SIGKILL)
            await heard.until(lambda e: e["event"] == "bot:error")
            assert (await state(channel))["status"] != "CONNECTED"
            # And is back with the next one.
            await changes_to(heard, channel, "CONNECTED")


@eras
async def test_a_refused_token_is_an_error_with_its_reason_and_without_the_token(
    version: str, database: dict[str, Any], tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database, version) as (api, bot, wrapper):
        channel = await has_channel(api, bot, "999:refused-secret")
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            await start(api, bot)
            found = await changes_to(heard, channel, "ERROR")
        assert "refuses the credentials" in found["error"]
        assert "401" in found["error"]
        assert "refused-secret" not in found["error"]
        if version == NEW:
            # It calls itself not ready for as long as that lasts, which must end no bot.
            await _looks(tmp_path, bot, 10)
        assert (await api.run(docs.BOT_QUERY, by={"id": bot["id"]}))["status"] == "ACTIVE"
    assert len(fake_openclaw.starts(wrapper)) == 1


async def test_a_reason_that_quotes_the_token_is_told_without_it(database: dict[str, Any], tmp_path: Path) -> None:
    why = f"fetch https://api.telegram.org/bot{TOKEN}/getUpdates: 409 Conflict: terminated by other getUpdates"
    dead = {"telegram": {"running": True, "connected": False, "lifecycle": "recovering", "lastError": why}}
    async with one_bot(tmp_path, database, channels=dead) as (api, bot, _):
        channel = await has_channel(api, bot)
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            await start(api, bot)
            found = await changes_to(heard, channel, "ERROR")
        assert found["error"].startswith("somebody else receives this account's messages")
        assert TOKEN not in found["error"]
        assert "***" in found["error"]


async def test_old_openclaw_is_asked_to_try_the_account_out(database: dict[str, Any], tmp_path: Path) -> None:
    probe = {"ok": False, "status": 401, "error": "Unauthorized"}
    async with one_bot(tmp_path, database, OLD, channels={"telegram": {"probe": probe}}) as (api, bot, _):
        channel = await has_channel(api, bot)
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            await start(api, bot)
            assert "refuses the credentials" in (await changes_to(heard, channel, "ERROR"))["error"]


async def test_a_channel_the_gateway_does_not_open_is_an_error_after_a_while(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database, channels_unloadable=["telegram"]) as (api, bot, _):
        missing, disabled = await has_channel(api, bot), await has_channel(api, bot, "6882:AAA", enabled=False)
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            await start(api, bot)
            assert "does not open" in (await changes_to(heard, missing, "ERROR"))["error"]
        assert (await state(disabled))["status"] == "DISCONNECTED"


async def test_channels_that_were_held_back_are_started_once_the_bot_is_steady(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database, channels_held=True) as (api, bot, _):
        channel = await has_channel(api, bot)
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            await start(api, bot)
            assert "after several crashes" in (await changes_to(heard, channel, "ERROR"))["error"]
            await changes_to(heard, channel, "CONNECTED")


async def test_a_start_that_failed_for_a_passing_reason_is_tried_again(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database, channels_held=True, channel_starts_fail=2) as (api, bot, _):
        channel = await has_channel(api, bot)
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            await start(api, bot)
            await changes_to(heard, channel, "ERROR")
            await changes_to(heard, channel, "CONNECTED")
        assert _log(tmp_path, bot).read_text().count("channels.start") == 3


async def test_a_start_that_fails_again_and_again_is_given_up(
    database: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "START_TRIES", 2)
    async with one_bot(tmp_path, database, channels_held=True, channel_starts_fail=99) as (api, bot, _):
        channel, log = await has_channel(api, bot), _log(tmp_path, bot)
        await start(api, bot)
        with anyio.fail_after(30):
            while log.read_text().count("channels.start") < 2:
                await anyio.sleep(0.02)
        # Longer than the pause before a third one would be.
        await _looks(tmp_path, bot, 12)
        assert log.read_text().count("channels.start") == 2
        assert (await state(channel))["status"] == "ERROR"


async def test_a_channel_that_dies_under_a_live_process_shows_it_and_when_it_was_connected_last(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database) as (api, bot, _):
        channel = await has_channel(api, bot)
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            gateway = (await start(api, bot))["bot"]["gateway"]
            connected = await changes_to(heard, channel, "CONNECTED")
            token = json.loads((_home(tmp_path, bot) / "config.json5").read_text())["gateway"]["auth"]["token"]
            async with rpc.connect(gateway["port"], token, is_ours) as connection:
                await connection.call("channels.stop", {"channel": "telegram"})
                dead = await changes_to(heard, channel, "ERROR")
                assert "stopped" in dead["error"]
                assert dead["last_connected_at"] == connected["last_connected_at"]
                now = await api.run(docs.BOT_QUERY, by={"id": bot["id"]})
                assert (now["status"], now["gateway"]["pid"]) == ("ACTIVE", gateway["pid"])
                await connection.call("channels.start", {"channel": "telegram"})
            again = await changes_to(heard, channel, "CONNECTED")
            assert again["error"] is None
            assert again["last_connected_at"] >= connected["last_connected_at"]


@eras
async def test_a_channel_that_is_left_out_of_the_configuration_says_so_until_it_is_in(
    version: str, database: dict[str, Any], tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database, version) as (api, bot, _):
        made = await api.run(
            CREATE, input={"botId": bot["id"], "provider": "telegram", "name": "Second", "accountId": "second"}
        )
        identity = made["channel"]["id"]
        left_out = UUID(base64.b64decode(identity).decode().partition(":")[2])
        channel = await has_channel(api, bot)
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            await start(api, bot)
            why = (await changes_to(heard, left_out, "ERROR"))["error"]
            assert why.startswith("not in the bot's configuration: credentials")
            await changes_to(heard, channel, "CONNECTED")
            assert (await state(left_out))["error"] == why
            given = {"channelId": identity, "credentials": {"botToken": "6882:BBBsecond"}}
            assert (await api.run(SET, input=given))["userErrors"] == []
            await changes_to(heard, left_out, "CONNECTED")


async def test_on_old_somebody_else_who_polls_is_found_in_the_log_until_it_is_over(
    database: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_log, "LASTS", timedelta(seconds=1))
    async with one_bot(tmp_path, database, OLD) as (api, bot, _):
        channel = await has_channel(api, bot)
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            await start(api, bot)
            await changes_to(heard, channel, "CONNECTED")
            _says(tmp_path, bot, f"POST /bot{TOKEN}/getUpdates: 409: Conflict: terminated by other getUpdates request")
            found = await changes_to(heard, channel, "ERROR")
            assert found["error"].startswith("somebody else receives this account's messages")
            assert TOKEN not in found["error"]
            await changes_to(heard, channel, "CONNECTED")


@pytest.mark.parametrize(
    ("subsystem", "at", "is_told"),
    [
        ("gateway/channels/telegram", 0, True),
        ("telegram", -20, True),
        # What the bot's model says, another process's trouble, and trouble that is over.
        ("agent", 0, False),
        ("telegram", -40, False),
        ("telegram", -300, False),
    ],
)
def test_a_conflict_is_what_the_channel_itself_said_lately(
    subsystem: str, at: float, is_told: bool, tmp_path: Path
) -> None:
    home = tmp_path / "hana"
    (home / "logs").mkdir(parents=True)
    home.chmod(0o700)
    log, now = home / "logs" / "gateway.log", datetime.now(UTC)
    noise = json.dumps({"0": json.dumps({"subsystem": "agent"}), "1": "x" * 1000, "time": now.isoformat()})
    with log.open("w") as lines:
        lines.write(f"{noise}\n" * 1000)
        lines.write(_line("409: Conflict", now + timedelta(seconds=at), subsystem))
        lines.write("half a li")
    conflicts = channel_log.Conflicts(home)
    assert (conflicts.telegram(now - timedelta(seconds=30)) is not None) == is_told
    # It is remembered, though it is read once.
    assert (conflicts.telegram(now - timedelta(seconds=30)) is not None) == is_told
    assert conflicts.telegram(now + timedelta(seconds=1)) is None


@pytest.mark.parametrize("said", ["Telegram getUpdates conflict: ", "; retrying in 1111111111"])
def test_a_line_that_is_too_long_is_passed_by(said: str, tmp_path: Path) -> None:
    home = tmp_path / "hana"
    (home / "logs").mkdir(parents=True)
    home.chmod(0o700)
    now = datetime.now(UTC)
    long = json.loads(_line("409: Conflict", now)) | {"1": f"Telegram getUpdates conflict: a{said * 9_000}"[:250_000]}
    (home / "logs" / "gateway.log").write_text(json.dumps(long) + "\n")
    began = time.process_time()
    assert channel_log.Conflicts(home).telegram(now - timedelta(days=1)) is None
    assert time.process_time() - began < 0.1


def test_a_conflict_that_somebody_else_speaks_of_is_none(tmp_path: Path) -> None:
    home = tmp_path / "hana"
    (home / "logs").mkdir(parents=True)
    home.chmod(0o700)
    now = datetime.now(UTC)
    quoted = json.loads(_line("409: Conflict", now))
    quoted["1"] = f"message from Mia: {quoted['1']}"
    log = home / "logs" / "gateway.log"
    log.write_text(json.dumps(quoted) + "\n")
    conflicts = channel_log.Conflicts(home)
    assert conflicts.telegram(now - timedelta(days=1)) is None
    # Neither does a link or a pipe in the log's place, and nobody waits for one.
    elsewhere = tmp_path / "elsewhere.log"
    elsewhere.write_text(_line("409: Conflict", now))
    for put in (lambda: log.symlink_to(elsewhere), lambda: os.mkfifo(log)):
        log.unlink()
        put()
        assert conflicts.telegram(now - timedelta(days=1)) is None


def _says(folder: Path, bot: dict[str, Any], why: str) -> None:
    """Old OpenClaw's line, as 2026.2.1 writes it."""
    with (_home(folder, bot) / "logs" / "gateway.log").open("a") as log:
        log.write(_line(why, datetime.now(UTC)))


def _line(why: str, at: datetime, subsystem: str = "gateway/channels/telegram") -> str:
    said = f"Telegram getUpdates conflict: Call to 'getUpdates' failed! ({why}); retrying in 2.36s."
    return json.dumps({"0": json.dumps({"subsystem": subsystem}), "1": said, "time": at.isoformat()}) + "\n"


def _home(folder: Path, bot: dict[str, Any]) -> Path:
    return folder / "data" / "openclaw" / "bots" / bot["agentId"]


def _log(folder: Path, bot: dict[str, Any]) -> Path:
    return _home(folder, bot) / "logs" / "bot.log"


async def test_what_did_not_change_is_not_told_again(database: dict[str, Any], tmp_path: Path) -> None:
    async with one_bot(tmp_path, database) as (api, bot, wrapper):
        channel = await has_channel(api, bot)
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            await start(api, bot)
            await changes_to(heard, channel, "CONNECTED")
        told = await DB.fetch_one("SELECT count(*) AS n FROM room_event WHERE type = 'CHANNEL_CHANGED'")
        await _looks(tmp_path, bot, 5)
        assert await DB.fetch_one("SELECT count(*) AS n FROM room_event WHERE type = 'CHANNEL_CHANGED'") == told
        # A look writes nothing that a restart could come of.
        assert len(fake_openclaw.starts(wrapper)) == 1


async def test_a_reason_that_only_counts_on_is_told_once(database: dict[str, Any], tmp_path: Path) -> None:
    why = "getUpdates failed; next try in {} s"
    dead = {"telegram": {"running": True, "connected": False, "lifecycle": "recovering", "lastError": why}}
    async with one_bot(tmp_path, database, channels=dead) as (api, bot, wrapper):
        program = wrapper.parent / "program" / "channels.py"
        found = "self._gateway.faults.channels.get(name, {})"
        counting = f"{{k: v.format(ids.now_ms()) if k == 'lastError' else v for k, v in {found}.items()}}"
        assert found in program.read_text()
        program.write_text(program.read_text().replace(found, counting))
        channel = await has_channel(api, bot)
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            await start(api, bot)
            assert "next try" in (await changes_to(heard, channel, "ERROR"))["error"]
        told = await DB.fetch_one("SELECT count(*) AS n FROM room_event WHERE type = 'CHANNEL_CHANGED'")
        await _looks(tmp_path, bot, 5)
        assert await DB.fetch_one("SELECT count(*) AS n FROM room_event WHERE type = 'CHANNEL_CHANGED'") == told


async def test_a_channel_that_stays_held_back_is_started_once_and_stays_an_error(
    database: dict[str, Any], tmp_path: Path
) -> None:
    held = {"running": False, "connected": False, "lifecycle": "stopped", "lastError": HELD}
    async with one_bot(tmp_path, database, channels={"telegram": held}) as (api, bot, _):
        channel = await has_channel(api, bot)
        log = tmp_path / "data" / "openclaw" / "bots" / bot["agentId"] / "logs" / "bot.log"
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            await start(api, bot)
            await changes_to(heard, channel, "ERROR")
        told = await DB.fetch_one("SELECT count(*) AS n FROM room_event WHERE type = 'CHANNEL_CHANGED'")
        with anyio.fail_after(20):
            while "channels.start" not in log.read_text():
                await anyio.sleep(0.02)
        once = log.read_text().count("channels.start")
        await _looks(tmp_path, bot, 5)
        assert log.read_text().count("channels.start") == once
        assert (await state(channel))["status"] == "ERROR"
        assert await DB.fetch_one("SELECT count(*) AS n FROM room_event WHERE type = 'CHANNEL_CHANGED'") == told


async def _looks(folder: Path, bot: dict[str, Any], count: int) -> None:
    """Returns after so many more looks, which new OpenClaw's log has."""
    log = folder / "data" / "openclaw" / "bots" / bot["agentId"] / "logs" / "bot.log"
    enough = log.read_text().count("channels.status") + count
    with anyio.fail_after(20):
        while log.read_text().count("channels.status") < enough:
            await anyio.sleep(0.02)


async def test_somebody_who_asks_to_be_let_in_is_an_event(database: dict[str, Any], tmp_path: Path) -> None:
    async with one_bot(tmp_path, database) as (api, bot, _):
        channel = await has_channel(api, bot)
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            port = (await start(api, bot))["bot"]["gateway"]["port"]
            await changes_to(heard, channel, "CONNECTED")
            await _looks(tmp_path, bot, 2)
            home = tmp_path / "data" / "openclaw" / "bots" / bot["agentId"]
            token = json.loads((home / "config.json5").read_text())["gateway"]["auth"]["token"]
            await asks(port, "4200001", token=token)
            await heard.until(lambda e: e["kind"] == "CHANNEL_CHANGED")


async def test_what_a_process_said_is_not_written_after_it_nor_under_a_lost_lease(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database) as (api, bot, _):
        channel, told = await has_channel(api, bot), list[str]()
        row = await DB.fetch_one("SELECT bot, node_id, lease_epoch FROM bot_process")
        assert row is not None
        recorder = Recorder(told.extend)
        held = Lease(row["node_id"], uuid4(), row["lease_epoch"], 15.0)
        assert not await recorder.channel_changed(held, row["bot"], channel, ChannelStatus.CONNECTED, None)
        lost = Lease(row["node_id"], uuid4(), row["lease_epoch"] + 1, 15.0)
        with pytest.raises(LeaseLost):
            await recorder.channel_changed(lost, row["bot"], channel, ChannelStatus.CONNECTED, None)
        assert (await state(channel))["status"] == "DISCONNECTED"
        assert told == []


# Words.


@pytest.mark.parametrize(
    "secret", ["6881:AAAright-0123456789", "xoxb-1234567890-abcdefghij", "MTk4NjIyNDgz.Cl2FMQ.ZnCjm1XVW7vRze4b"]
)
def test_a_reason_does_not_repeat_what_looks_like_a_secret(secret: str) -> None:
    account = {"accountId": "default", "running": False, "lastError": f"GET https://x/bot{secret}/getMe: 500"}
    seen = channel_status.read({"channelAccounts": {"x": [account]}}, "x", "default", is_settled=True)
    assert secret not in str(channel_status.sentence(seen, seen.raw))


@pytest.mark.parametrize(
    "secret",
    [
        "Zm9vYmFyYmF6cXV4MTIzNDU2Nzg5/secretTail/part+two=",
        "correct  horse\tsecretTail battery",
        "pa\x1bsecretTail",
        "x" * 5_000 + "secretTail",
    ],
)
def test_a_reason_holds_no_part_of_a_secret_that_is_known(secret: str) -> None:
    account = {"accountId": "default", "running": False, "lastError": f"refused for {secret * 3}\n, says it"}
    seen = channel_status.read({"channelAccounts": {"x": [account]}}, "x", "default", is_settled=True)
    hidden = config.hide(seen.raw or "", {"password": secret})
    # A long one is hidden in parts.
    told = channel_status.sentence(seen, hidden)
    assert told is not None
    assert re.fullmatch(r"the channel failed \(refused for (\*{3})+ , says it\)", told)


def test_a_channel_that_is_blocked_says_why() -> None:
    why = "PluginTrustRefusalError: openKeyedStore is only available for trusted plugins"
    account = {"accountId": "default", "running": False, "lifecycle": "blocked", "lastError": why}
    seen = channel_status.read({"channelAccounts": {"x": [account]}}, "x", "default", is_settled=False)
    assert seen.status is ChannelStatus.ERROR
    assert channel_status.sentence(seen, seen.raw) == f"OpenClaw has no plugin for the channel that it can run ({why})"


def test_a_reason_of_any_length_is_told_in_one_line_at_once() -> None:
    account = {"accountId": "default", "running": False, "lastError": "plugin a" * 400_000 + "\x1b[31m\n"}
    seen = channel_status.read({"channelAccounts": {"x": [account]}}, "x", "default", is_settled=True)
    said = str(channel_status.sentence(seen, seen.raw))
    assert said.isprintable()
    assert len(said) < 500


@pytest.mark.parametrize(
    ("account", "status"),
    [
        ({"running": True, "connected": True, "lifecycle": "ready"}, "CONNECTED"),
        ({"running": True, "lifecycle": "ready"}, "CONNECTED"),
        ({"running": True}, "CONNECTED"),
        ({"running": True, "probe": {"ok": True}}, "CONNECTED"),
        ({"running": True, "probe": {"ok": False}}, "ERROR"),
        ({"running": True, "connected": False, "lifecycle": "starting"}, "CONNECTING"),
        ({"running": True, "connected": False, "lifecycle": "recovering", "lastError": "409"}, "ERROR"),
        ({"running": False, "lifecycle": "starting"}, "CONNECTING"),
        ({"running": False, "lifecycle": "stopped", "lastError": "boom"}, "ERROR"),
        ({"running": False, "lifecycle": "stopped"}, "ERROR"),
        ({"running": False, "lifecycle": "blocked"}, "ERROR"),
        ({"running": False, "enabled": False, "lastError": "disabled"}, "DISCONNECTED"),
        ({"running": False, "stateReason": "disabled"}, "DISCONNECTED"),
        ({"running": False, "lifecycle": "stopped", "stateReason": "not linked", "lastError": None}, "ERROR"),
        ({"running": "yes", "lastError": ["x"], "lastConnectedAt": "soon"}, "ERROR"),
        ({"running": True, "connected": True, "lifecycle": "ready", "lastConnectedAt": 1e300}, "CONNECTED"),
    ],
)
def test_what_an_account_says_is_one_of_four_words(account: dict[str, Any], status: str) -> None:
    answer = {"channelAccounts": {"telegram": [{"accountId": "other"}, {"accountId": "default", **account}]}}
    assert channel_status.read(answer, "telegram", "default", is_settled=True).status == status


def test_a_channel_that_was_switched_on_again_has_not_failed() -> None:
    account = {"accountId": "default", "enabled": True, "running": False, "lastError": "disabled"}
    answer = {"channelAccounts": {"telegram": [account]}}
    assert channel_status.read(answer, "telegram", "default", is_settled=False).status == "CONNECTING"


@pytest.mark.parametrize("answer", [{}, {"channelAccounts": []}, {"channelAccounts": {"telegram": "?"}}])
def test_an_answer_without_the_account_is_waited_on_and_then_an_error(answer: dict[str, Any]) -> None:
    assert channel_status.read(answer, "telegram", "default", is_settled=False).status == "CONNECTING"
    assert channel_status.read(answer, "telegram", "default", is_settled=True).status == "ERROR"
