"""One bot's life when things go wrong: what its owner sees, and what is left of it."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from app.db.engine import DB
from app.supervisor import launch
from tests import fake_openclaw
from tests.harness import Api, environ, running_server
from tests.journeys import documents as docs
from tests.journeys import story

QUICK = {"CLAWNET_HEALTH_INTERVAL": "0.2", "CLAWNET_STOP_GRACE": "1"}


@asynccontextmanager
async def one_bot(
    folder: Path,
    database: dict[str, Any],
    *,
    version: str = "2026.9.6",
    settings: dict[str, str] | None = None,
    bot: dict[str, Any] | None = None,
    **faults: Any,
) -> AsyncGenerator[tuple[Api, dict[str, Any], Path]]:
    """A server with one bot under faults; nothing of it may be left, and never were there two of it."""
    wrapper = fake_openclaw.install(folder / "openclaw", version, **faults)
    async with running_server(environ(folder, database, wrapper, **QUICK, **(settings or {}))) as api:
        await story.make_provider(api, "http://127.0.0.1:9/v1")
        made = await story.make_bot(api, **(bot or {}))
        yield api, made, wrapper
    assert fake_openclaw.violations(wrapper) == []
    assert story.left_of(made) == []


async def start(api: Api, bot: dict[str, Any]) -> dict[str, Any]:
    return await api.run(docs.BOT_START, input={"botId": bot["id"]})


async def stop(api: Api, bot: dict[str, Any], **more: Any) -> dict[str, Any]:
    return await api.run(docs.BOT_STOP, input={"botId": bot["id"], **more})


async def change_unasked(api: Api, bot: dict[str, Any]) -> None:
    """Overrides that OpenClaw refuses, kept because it could not be asked: only the process gets to know."""
    text = json.dumps({"tools": {"noSuchSetting": 1}})
    await DB.fetch(
        "UPDATE bot SET config_overrides = $2::jsonb, config_revision = config_revision + 1 WHERE id = $1",
        UUID(bot["databaseId"]), text,
    )  # fmt: skip
    assert api.running is not None
    api.running.supervisor.wake(UUID(bot["databaseId"]))


async def read(api: Api, bot: dict[str, Any]) -> dict[str, Any]:
    return await api.run(docs.BOT_QUERY, by={"id": bot["id"]})


@pytest.mark.parametrize("version", ["2026.2.1", "2026.9.6"])
async def test_a_config_openclaw_refuses_ends_in_error_with_its_reason(
    version: str, database: dict[str, Any], tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database, version=version) as (api, bot, _):
        await change_unasked(api, bot)
        failed = await start(api, bot)
        assert failed["bot"]["status"] == "ERROR"
        (error,) = failed["userErrors"]
        assert error["code"] == "GATEWAY_FAILED"
        assert "noSuchSetting" in error["message"]
        # Mended settings start it without another wish.
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            await api.run(docs.BOT_UPDATE, input={"botId": bot["id"], "configOverrides": {}})
            await heard.until(lambda e: e["kind"] == "STARTED")


async def test_exit_78_is_not_tried_again(database: dict[str, Any], tmp_path: Path) -> None:
    async with one_bot(tmp_path, database, exit_78=True) as (api, bot, wrapper):
        failed = await start(api, bot)
        assert (failed["bot"]["status"], len(fake_openclaw.starts(wrapper))) == ("ERROR", 1)
        row = await DB.fetch_one("SELECT reason, next_retry_at FROM bot_process")
        assert row == {"reason": "CONFIG_INVALID", "next_retry_at": None}


async def test_a_crash_loop_ends_in_error_and_tells_the_owner(database: dict[str, Any], tmp_path: Path) -> None:
    policy = {"restartPolicy": {"mode": "ALWAYS", "maxRestarts": 2, "windowSeconds": 600, "backoffSeconds": 0.1}}
    async with one_bot(tmp_path, database, bot=policy, exit_at_start=3) as (api, bot, wrapper):
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            await api.run(docs.BOT_START, input={"botId": bot["id"], "wait": False})
            error = await heard.until(lambda e: e["kind"] == "ERROR")
        assert (error["reason"], error["exitCode"]) == ("CRASH_LOOP", 3)
        assert len(fake_openclaw.starts(wrapper)) == 3
        row = await DB.fetch_one("SELECT kind, title FROM notification")
        assert row == {"kind": "BOT_ERROR", "title": "Hana stopped with an error"}
        # A start by hand forgets the past.
        fake_openclaw.clear_faults(wrapper)
        assert (await start(api, bot))["bot"]["status"] == "ACTIVE"


@pytest.mark.parametrize(("mode", "code", "status"), [("NEVER", 1, "ERROR"), ("ON_FAILURE", 0, "ERROR")])
async def test_the_policy_decides_whether_a_bot_comes_back(
    mode: str, code: int, status: str, database: dict[str, Any], tmp_path: Path
) -> None:
    policy = {"restartPolicy": {"mode": mode}}
    async with one_bot(tmp_path, database, bot=policy, crash_after_s=0.1, crash_code=code) as (api, bot, wrapper):
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            await start(api, bot)
            ended = await heard.until(lambda e: e["event"] == "bot:error")
        assert (ended["status"], ended["reason"], ended["exitCode"]) == (status, "NOT_RESTARTED", code)
        assert len(fake_openclaw.starts(wrapper)) == 1


async def test_a_bot_that_never_becomes_ready_is_ended(database: dict[str, Any], tmp_path: Path) -> None:
    async with one_bot(tmp_path, database, settings={"CLAWNET_START_BUDGET": "1"}, never_ready=True) as (api, bot, _):
        failed = await start(api, bot)
        assert failed["bot"]["status"] == "BACKOFF"
        assert "not ready within 1 s" in failed["userErrors"][0]["message"]
        await stop(api, bot)
        assert story.left_of(bot) == []


@pytest.mark.parametrize("how", ["mute", "stop"])
async def test_a_bot_that_hangs_is_found_by_its_probes(how: str, database: dict[str, Any], tmp_path: Path) -> None:
    async with one_bot(tmp_path, database, hang_after_s=0.1, hang_how=how) as (api, bot, wrapper):
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            await start(api, bot)
            fake_openclaw.clear_faults(wrapper)
            hung = await heard.until(lambda e: e["event"] == "bot:error")
            assert (hung["status"], hung["reason"]) == ("BACKOFF", "UNHEALTHY")
            await heard.until(lambda e: e["kind"] == "STARTED")


async def test_a_stop_ends_whatever_the_bot_started(database: dict[str, Any], tmp_path: Path) -> None:
    async with one_bot(tmp_path, database, fork_grandchildren=3, ignore_sigterm=True) as (api, bot, _):
        await start(api, bot)
        assert len(story.left_of(bot)) > 3
        stopped = await stop(api, bot, graceSeconds=0.2)
        assert stopped["bot"]["status"] == "INACTIVE"
        assert story.left_of(bot) == []


async def test_a_flooding_bot_is_started_and_stopped_like_any_other(database: dict[str, Any], tmp_path: Path) -> None:
    async with one_bot(tmp_path, database, flood_bytes=30_000_000, flood_every_byte=True) as (api, bot, _):
        assert (await start(api, bot))["bot"]["status"] == "ACTIVE"
        assert (await stop(api, bot))["bot"]["status"] == "INACTIVE"
        logs = tmp_path / "data" / "openclaw" / "bots" / "hana" / "logs"
        assert sum(file.stat().st_size for file in logs.glob("bot.log*")) < 45_000_000


async def test_a_stop_reaches_a_bot_that_is_still_starting(database: dict[str, Any], tmp_path: Path) -> None:
    async with one_bot(tmp_path, database, start_delay_s=60) as (api, bot, _):
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            await api.run(docs.BOT_START, input={"botId": bot["id"], "wait": False})
            await heard.until(lambda e: e["phase"] == "launching")
            assert (await stop(api, bot))["bot"]["status"] == "INACTIVE"
        assert story.left_of(bot) == []


async def test_a_restart_gives_another_process_and_no_error(database: dict[str, Any], tmp_path: Path) -> None:
    async with one_bot(tmp_path, database) as (api, bot, _):
        first = (await start(api, bot))["bot"]["gateway"]["pid"]
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            again = await api.run(docs.BOT_RESTART, input={"botId": bot["id"]})
            assert again["userErrors"] == []
            assert again["bot"]["gateway"]["pid"] != first
            await heard.until(lambda e: e["kind"] == "STARTED")
            kinds = [event["kind"] for event in heard.seen]
            assert "ERROR" not in kinds
            assert "BACKOFF" not in kinds


async def test_a_restart_of_a_starting_bot_begins_anew_without_an_error(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database, start_delay_s=60) as (api, bot, wrapper):
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            await api.run(docs.BOT_START, input={"botId": bot["id"], "wait": False})
            await heard.until(lambda e: e["phase"] == "launching")
            fake_openclaw.clear_faults(wrapper)
            again = await api.run(docs.BOT_RESTART, input={"botId": bot["id"]})
            assert again["bot"]["status"] == "ACTIVE", again
            assert not any(event["event"] == "bot:error" for event in heard.seen)


async def test_settings_only_a_start_reads_are_read_by_a_new_process(database: dict[str, Any], tmp_path: Path) -> None:
    async with one_bot(tmp_path, database) as (api, bot, _):
        first = (await start(api, bot))["bot"]["gateway"]["pid"]
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            await anext(heard)
            overrides = {"commands": {"native": False}}
            changed = await api.run(docs.BOT_UPDATE, input={"botId": bot["id"], "configOverrides": overrides})
            assert changed["bot"]["config"]["restartPending"]
            again = await heard.until(lambda e: e["kind"] == "STARTED")
            assert again["pid"] != first
        assert not (await read(api, bot))["config"]["restartPending"]
        rendered = await api.run("query($by: BotBy!) { bot(by: $by) { config { rendered } } }", by={"id": bot["id"]})
        assert "native" in str(rendered)


async def test_a_new_persona_restarts_nobody(database: dict[str, Any], tmp_path: Path) -> None:
    async with one_bot(tmp_path, database, bot={"systemPrompt": "Be kind."}) as (api, bot, _):
        first = (await start(api, bot))["bot"]["gateway"]["pid"]
        await api.run(docs.BOT_UPDATE, input={"botId": bot["id"], "systemPrompt": "Be brief."})
        soul = tmp_path / "data" / "openclaw" / "bots" / "hana" / "workspace" / "SOUL.md"
        async with asyncio.timeout(10):
            while "Be brief." not in soul.read_text():
                await asyncio.sleep(0.02)
        assert (await read(api, bot))["gateway"]["pid"] == first


async def test_a_refused_change_leaves_the_running_bot_alone(database: dict[str, Any], tmp_path: Path) -> None:
    async with one_bot(tmp_path, database) as (api, bot, _):
        first = (await start(api, bot))["bot"]["gateway"]["pid"]
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            await change_unasked(api, bot)
            await heard.until(lambda e: e["kind"] == "CONFIG_ROLLED_BACK")
        now = await read(api, bot)
        assert (now["status"], now["gateway"]["pid"]) == ("ACTIVE", first)
        assert "noSuchSetting" in now["config"]["rolledBack"]


async def test_a_strangers_port_is_left_to_it(database: dict[str, Any], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        settings = {"OPENCLAW_BASE_PORT": str(port), "OPENCLAW_MAX_BOTS": "1"}
        async with one_bot(tmp_path, database, settings=settings) as (api, bot, _):
            active = (await start(api, bot))["bot"]
            assert active["gateway"]["port"] == port + 120


async def test_no_free_port_at_all_is_an_error_that_says_so(database: dict[str, Any], tmp_path: Path) -> None:
    base = 65_400
    with socket.create_server(("127.0.0.1", base)):
        settings = {"OPENCLAW_BASE_PORT": str(base), "OPENCLAW_MAX_BOTS": "1"}
        async with one_bot(tmp_path, database, settings=settings) as (api, bot, _):
            failed = await start(api, bot)
            assert failed["bot"]["status"] == "ERROR"
            assert f"other programs listen on {base}" in failed["userErrors"][0]["message"]


async def test_a_start_whose_row_was_moved_meanwhile_is_waited_for_again(
    database: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, moved = launch.ready, list[str]()

    async def overtaken(*given: Any) -> None:
        await ready(*given)
        if len(moved) < 2:
            moved.append("once more")
            await DB.fetch("UPDATE bot_process SET status_seq = status_seq + 1")

    monkeypatch.setattr(launch, "ready", overtaken)
    async with one_bot(tmp_path, database) as (api, bot, wrapper):
        active = (await start(api, bot))["bot"]
        assert (active["status"], len(moved)) == ("ACTIVE", 2)
        assert len(fake_openclaw.starts(wrapper)) == 1
        assert active["gateway"]["restartCount"] == 0


async def test_openclaw_missing_is_an_error_that_says_what_to_do(database: dict[str, Any], tmp_path: Path) -> None:
    async with one_bot(tmp_path, database) as (api, bot, wrapper):
        wrapper.rename(wrapper.with_name("moved"))
        failed = await start(api, bot)
        assert failed["bot"]["status"] == "ERROR"
        assert "OPENCLAW_BINARY_PATH" in failed["userErrors"][0]["message"]
        wrapper.with_name("moved").rename(wrapper)
        assert (await start(api, bot))["bot"]["status"] == "ACTIVE"


@pytest.mark.parametrize("obstacle", ["openclaw", "home"])
async def test_a_start_that_fails_at_once_waits_like_any_other(
    obstacle: str, database: dict[str, Any], tmp_path: Path
) -> None:
    policy = {"restartPolicy": {"mode": "ALWAYS", "backoffSeconds": 300}}
    async with one_bot(tmp_path, database, bot=policy) as (api, bot, wrapper):
        if obstacle == "openclaw":
            wrapper.rename(wrapper.with_name("moved"))
        else:
            homes = tmp_path / "data" / "openclaw" / "bots"
            homes.mkdir(parents=True, exist_ok=True)
            (homes / "hana").write_text("a file where the home should be")
        failed = await start(api, bot)
        assert failed["bot"]["status"] == ("ERROR" if obstacle == "openclaw" else "BACKOFF")
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            assert (await anext(heard))["kind"] == "CURRENT"
            await stop(api, bot)
            await heard.until(lambda e: e["kind"] == "STOPPED")
        # One try, told in the bot's room and in the fleet's two; never a storm.
        row = await DB.fetch_one("SELECT count(*) AS n FROM room_event WHERE type = 'STARTING'")
        assert row == {"n": 3}


async def test_a_row_that_claims_more_than_the_processes_show_is_repaired(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database) as (api, bot, _), api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
        # As a restored backup would have it: running, by a nonce that nobody carries.
        async with DB.transaction():  # or the runner sees the first half, a running bot that nobody wants
            await DB.fetch("UPDATE bot_process SET status = 'ACTIVE', nonce = gen_random_uuid(), port = 18789")
            await DB.fetch("UPDATE bot SET desired = 'RUNNING', generation = generation + 1")
        lost = await heard.until(lambda e: e["event"] == "bot:error")
        assert lost["reason"] == "LOST"
        await heard.until(lambda e: e["kind"] == "STARTED")


async def test_a_dying_bot_gives_none_of_its_secrets_away(database: dict[str, Any], tmp_path: Path) -> None:
    async with one_bot(tmp_path, database, print_secret=True, crash_after_s=0.2) as (api, bot, _):
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            await start(api, bot)
            await heard.until(lambda e: e["event"] == "bot:error")
        run = await DB.fetch_one("SELECT tail FROM bot_run WHERE ended_at IS NOT NULL")
        assert run is not None
        assert "***" in run["tail"]
        assert "sk-test-0123456789" not in run["tail"]


async def test_a_process_that_dies_is_heard_of_with_its_signal(database: dict[str, Any], tmp_path: Path) -> None:
    async with one_bot(tmp_path, database) as (api, bot, _):
        pid = (await start(api, bot))["bot"]["gateway"]["pid"]
        async with api.listen(docs.BOT_STATUS) as fleet:
            assert (await anext(fleet))["kind"] == "CURRENT"
            os.kill(pid, signal.SIGSEGV)
            error = await fleet.until(lambda e: e["event"] == "bot:error")
            assert (error["exitSignal"], error["exitCode"]) == ("SIGSEGV", None)
