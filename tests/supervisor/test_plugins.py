"""Bots whose channels need plugins: prepared before a start, visibly, and nobody else waits for it."""

import fcntl
import os
import signal
from itertools import groupby
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from tests import fake_openclaw
from tests.graphql.test_channels import UPDATE
from tests.graphql.test_channels import channel as make_channel
from tests.harness import Api, Heard, environ, serve
from tests.journeys import documents as docs
from tests.journeys import story
from tests.supervisor.test_reload import until_settled
from tests.supervisor.test_runner import one_bot, read, start, stop

LISTEN = docs.BOT_STATUS.replace(" phase ", " phase phaseProgress { provider number total step megabytes } ")
STATES = "query($by: BotBy!) { bot(by: $by) { channels { nodes { provider accountId status errorMessage } } } }"
PLUGIN = "@openclaw/{}@2026.9.6"
UNREACHED = (
    "Discord's plugin (@openclaw/discord@2026.9.6) cannot be installed: "
    "npm's registry cannot be reached from this server."
)
DISCORD = {"provider": "discord", "name": "Discord", "credentials": {"token": "a-token-0123456789"}}
SLACK = {
    "provider": "slack", "name": "Slack", "credentials": {"botToken": "xoxb-0123456789", "appToken": "xapp-0123456789"},
}  # fmt: skip


async def states(api: Api, bot: dict[str, Any]) -> dict[str, tuple[str, str | None]]:
    """How each channel is, by its account, or by its provider where that is the default one."""
    found = (await api.run(STATES, by={"id": bot["id"]}))["channels"]["nodes"]
    names = [each["provider"] if each["accountId"] == "default" else each["accountId"] for each in found]
    return dict(zip(names, ((each["status"], each["errorMessage"]) for each in found), strict=True))


async def until(
    api: Api, bot: dict[str, Any], heard: Heard, **wanted: str | tuple[str, str | None]
) -> dict[str, tuple[str, str | None]]:
    """The channels, once they are so: of a status, or of a status for a reason."""
    while True:
        now = await states(api, bot)
        if all(so in (now[name], now[name][0]) for name, so in wanted.items()):
            return now
        await heard.until(lambda e: e["kind"] == "CHANNEL_CHANGED")


def steps(heard: Heard) -> list[tuple[str, int, int, str]]:
    """What was said of plugins, in its order; other events in between say the same once more."""
    said = [event["phaseProgress"] for event in heard.seen if event["phase"] == "plugin"]
    told = [(one["provider"], one["number"], one["total"], one["step"]) for one in said]
    return [each for each, _ in groupby(told)]


async def until_npm_installs(wrapper: Path) -> None:
    with anyio.fail_after(30):
        while not any(run["words"][0] == "install" for run in fake_openclaw.npm_runs(wrapper)):
            await anyio.sleep(0.02)


async def test_plugins_are_prepared_in_a_phase_and_once(database: dict[str, Any], tmp_path: Path) -> None:
    async with one_bot(tmp_path, database) as (api, bot, wrapper):
        await make_channel(api, bot, **DISCORD)
        await make_channel(api, bot, **SLACK)
        await make_channel(api, bot, **DISCORD | {"accountId": "off", "enabled": False, "credentials": {}})
        async with api.listen(LISTEN, ids=[bot["id"]]) as heard:
            await api.run(docs.BOT_START, input={"botId": bot["id"], "wait": False})
            started = await heard.until(lambda e: e["kind"] == "STARTED")
            assert (started["phase"], started["phaseProgress"]) == (None, None)
            assert steps(heard) == [
                ("discord", 1, 2, "waiting"), ("discord", 1, 2, "asking"), ("discord", 1, 2, "installing"),
                ("slack", 2, 2, "waiting"), ("slack", 2, 2, "asking"), ("slack", 2, 2, "installing"),
            ]  # fmt: skip
            others = [e["phase"] for e in heard.seen if e["status"] == "STARTING" and e["phaseProgress"] is None]
            assert others[-2:] == ["checking", "launching"]
            await until(api, bot, heard, discord="CONNECTED", slack="CONNECTED", off="DISCONNECTED")
        assert fake_openclaw.installed(wrapper, "hana") == [PLUGIN.format("discord"), PLUGIN.format("slack")]
        runs = len(fake_openclaw.npm_runs(wrapper))
        await stop(api, bot)
        async with api.listen(LISTEN, ids=[bot["id"]]) as heard:
            assert (await start(api, bot))["bot"]["status"] == "ACTIVE"
            await heard.until(lambda e: e["kind"] == "STARTED")
            assert steps(heard) == []
        assert len(fake_openclaw.npm_runs(wrapper)) == runs


async def test_the_time_for_a_plugin_is_not_the_start_s(database: dict[str, Any], tmp_path: Path) -> None:
    budget = {"CLAWNET_START_BUDGET": "5"}
    async with one_bot(tmp_path, database, settings=budget, npm_install_s=6.0) as (api, bot, _):
        await make_channel(api, bot, **DISCORD)
        assert (await start(api, bot))["bot"]["status"] == "ACTIVE"


async def test_a_registry_that_is_away_is_told_at_bot_and_channel_and_asked_again(
    database: dict[str, Any], tmp_path: Path
) -> None:
    patient = {"restartPolicy": {"mode": "ALWAYS", "maxRestarts": 100, "backoffSeconds": 20}}
    async with one_bot(tmp_path, database, bot=patient, registry="refused") as (api, bot, wrapper):
        await make_channel(api, bot, **DISCORD)
        await make_channel(api, bot, provider="telegram", name="T", credentials={"botToken": "6881:AAAbbb"})
        async with api.listen(LISTEN, ids=[bot["id"]]) as heard:
            await api.run(docs.BOT_START, input={"botId": bot["id"], "wait": False})
            failed = await heard.until(lambda e: e["kind"] == "BACKOFF")
            assert (failed["reason"], failed["error"]) == ("PLUGIN_MISSING", UNREACHED)
            now = await until(api, bot, heard, discord="ERROR")
            assert now == {"discord": ("ERROR", UNREACHED), "telegram": ("DISCONNECTED", None)}
            assert fake_openclaw.starts(wrapper) == []
            fake_openclaw.set_faults(wrapper, registry="up")
            await heard.until(lambda e: e["kind"] == "STARTED")
            now = await until(api, bot, heard, discord="CONNECTED")
            assert now["discord"] == ("CONNECTED", None)


async def test_nothing_is_installed_in_a_home_that_somebody_holds(database: dict[str, Any], tmp_path: Path) -> None:
    patient = {"restartPolicy": {"mode": "ALWAYS", "maxRestarts": 100}}
    async with one_bot(tmp_path, database, bot=patient) as (api, bot, wrapper):
        await make_channel(api, bot, **DISCORD)
        run = tmp_path / "data" / "openclaw" / "bots" / "hana" / "run"
        run.mkdir(parents=True)
        async with api.listen(LISTEN, ids=[bot["id"]]) as heard:
            with (run / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                await api.run(docs.BOT_START, input={"botId": bot["id"], "wait": False})
                failed = await heard.until(lambda e: e["kind"] == "BACKOFF")
                assert failed["reason"] == "SPAWN_FAILED"
                assert fake_openclaw.npm_runs(wrapper) == []
            await heard.until(lambda e: e["kind"] == "STARTED")


async def test_a_stop_ends_a_preparation_at_once(database: dict[str, Any], tmp_path: Path) -> None:
    async with one_bot(tmp_path, database, npm_install_s=120.0) as (api, bot, wrapper):
        await make_channel(api, bot, **DISCORD)
        async with api.listen(LISTEN, ids=[bot["id"]]) as heard:
            await api.run(docs.BOT_START, input={"botId": bot["id"], "wait": False})
            await heard.until(lambda e: (e["phaseProgress"] or {}).get("step") == "installing")
            await until_npm_installs(wrapper)
            with anyio.fail_after(20):
                stopped = await stop(api, bot)
        assert (stopped["bot"]["status"], stopped["bot"]["errorMessage"]) == ("INACTIVE", None)
        assert story.left_of(bot) == []
        fake_openclaw.clear_faults(wrapper)
        assert (await start(api, bot))["bot"]["status"] == "ACTIVE"
        assert len(fake_openclaw.installed(wrapper, "hana")) == 2


async def test_bots_that_are_prepared_keep_nobody_from_starting(database: dict[str, Any], tmp_path: Path) -> None:
    async with one_bot(tmp_path, database, npm_install_s=120.0) as (api, bot, _):
        slow = [await story.make_bot(api, f"Slow {number}") for number in range(2 + (os.cpu_count() or 1))]
        for number, each in enumerate(slow):
            await make_channel(api, each, **DISCORD | {"credentials": {"token": f"a-token-of-number-{number}"}})
        ids = [each["id"] for each in slow]
        async with api.listen(LISTEN, ids=ids) as heard:
            for each in slow:
                await api.run(docs.BOT_START, input={"botId": each["id"], "wait": False})
            while len({e["botId"] for e in heard.seen if e["phase"] == "plugin"}) < len(slow):
                await anext(heard)
        assert (await start(api, bot))["bot"]["status"] == "ACTIVE"
        assert {(await read(api, each))["status"] for each in slow} == {"STARTING"}
        for each in slow:
            await stop(api, each)
            assert story.left_of(each) == []


async def test_a_running_bot_goes_on_until_its_new_plugin_is_there(database: dict[str, Any], tmp_path: Path) -> None:
    async with one_bot(tmp_path, database) as (api, bot, wrapper):
        pid = (await start(api, bot))["bot"]["gateway"]["pid"]
        async with api.listen(LISTEN, ids=[bot["id"]]) as heard:
            await make_channel(api, bot, **DISCORD)
            await heard.until(lambda e: e["kind"] == "STARTED")
            assert [step for *_, step in steps(heard)] == [
                "waiting", "asking", "downloading",
                "waiting", "asking", "installing",
            ]  # fmt: skip
            fetching = [e for e in heard.seen if e["phaseProgress"] and e["status"] == "ACTIVE"]
            assert {e["pid"] for e in fetching} == {pid}
            assert "downloading" in {e["phaseProgress"]["step"] for e in fetching}
            await until(api, bot, heard, discord="CONNECTED")
        now = await until_settled(api, bot)
        assert now["gateway"]["pid"] != pid
        assert (now["gateway"]["restartCount"], len(fake_openclaw.starts(wrapper))) == (0, 2)
        assert fake_openclaw.installed(wrapper, "hana") == [PLUGIN.format("discord")]
        # The second account needs nothing more.
        await make_channel(api, bot, **DISCORD | {"accountId": "two", "credentials": {"token": "another-0123456789"}})
        assert (await until_settled(api, bot))["gateway"]["pid"] == now["gateway"]["pid"]
        assert len(fake_openclaw.installed(wrapper, "hana")) == 1


async def test_a_running_bot_whose_plugin_cannot_be_had_runs_on_and_asks_seldom(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database, registry="refused") as (api, bot, wrapper):
        pid = (await start(api, bot))["bot"]["gateway"]["pid"]
        async with api.listen(LISTEN, ids=[bot["id"]]) as heard:
            await make_channel(api, bot, **DISCORD)
            await until(api, bot, heard, discord=("ERROR", UNREACHED))
            # Its gateway is looked at every tenth of a second, and says something else of the channel.
            for _ in range(5):
                await anyio.sleep(0.1)
                assert (await states(api, bot))["discord"] == ("ERROR", UNREACHED)
            assert (await read(api, bot))["gateway"]["pid"] == pid
            assert [run["words"][0] for run in fake_openclaw.npm_runs(wrapper)] == ["view"]
            fake_openclaw.set_faults(wrapper, registry="up")
            # By itself, after a tenth of a minute here.
            await until(api, bot, heard, discord="CONNECTED")
        assert len(fake_openclaw.starts(wrapper)) == 2


async def test_a_channel_that_is_switched_off_again_is_waited_for_no_more(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database, registry="refused") as (api, bot, wrapper):
        pid = (await start(api, bot))["bot"]["gateway"]["pid"]
        async with api.listen(LISTEN, ids=[bot["id"]]) as heard:
            made = await make_channel(api, bot, **DISCORD)
            await until(api, bot, heard, discord=("ERROR", UNREACHED))
            await api.run(UPDATE, input={"channelId": made["id"], "enabled": False})
            now = await until(api, bot, heard, discord="DISCONNECTED")
            assert now["discord"] == ("DISCONNECTED", None)
        assert (await until_settled(api, bot))["gateway"]["pid"] == pid
        assert len(fake_openclaw.starts(wrapper)) == 1


async def test_a_server_that_was_killed_meanwhile_begins_anew(database: dict[str, Any], tmp_path: Path) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw", "2026.9.6", npm_install_s=120.0)
    wanted = environ(tmp_path, database, wrapper)
    with await to_thread.run_sync(serve, wanted) as server:
        api = Api(server.url, server.token)
        async with api.http:
            await story.make_provider(api, "http://127.0.0.1:9/v1")
            bot = await story.make_bot(api)
            await make_channel(api, bot, **DISCORD)
            async with api.listen(LISTEN, ids=[bot["id"]]) as heard:
                await api.run(docs.BOT_START, input={"botId": bot["id"], "wait": False})
                await heard.until(lambda e: (e["phaseProgress"] or {}).get("step") == "installing")
                await until_npm_installs(wrapper)
                server.process.send_signal(signal.SIGKILL)
                await to_thread.run_sync(server.process.wait)
    left = [run["pid"] for run in fake_openclaw.npm_runs(wrapper)]
    fake_openclaw.clear_faults(wrapper)
    with await to_thread.run_sync(serve, wanted) as server:
        again = Api(server.url, api.token)
        async with again.http:
            async with again.listen(LISTEN, ids=[bot["id"]]) as heard:
                await heard.until(lambda e: e["status"] == "ACTIVE")
            assert not any(story.is_alive(pid) for pid in left)
            await stop(again, bot)
        assert await to_thread.run_sync(server.stop) == 0
    assert len(fake_openclaw.installed(wrapper, "hana")) == 2
