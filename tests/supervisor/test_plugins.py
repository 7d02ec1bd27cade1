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
SLACK_UNREACHED = UNREACHED.replace("Discord", "Slack").replace("discord", "slack")
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


async def speak(api: Api, bot: dict[str, Any], language: str) -> int:
    """An edit that has nothing to do with channels; the process that has taken it."""
    changed = await api.run(docs.BOT_UPDATE, input={"botId": bot["id"], "systemPrompt": f"Speak {language}."})
    assert changed["userErrors"] == []
    return (await until_settled(api, bot))["gateway"]["pid"]


def is_at_home(run: dict[str, Any]) -> bool:
    """It installs into a bot's home, from what was brought into the cache before."""
    return run["words"][0] == "install" and "npm_config_offline" in run["environ"]


async def until_npm_installs(wrapper: Path) -> None:
    with anyio.fail_after(30):
        while not any(is_at_home(run) for run in fake_openclaw.npm_runs(wrapper)):
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
                ("discord", 1, 2, "waiting"), ("discord", 1, 2, "asking"),
                ("discord", 1, 2, "downloading"), ("discord", 1, 2, "installing"),
                ("slack", 2, 2, "waiting"), ("slack", 2, 2, "asking"),
                ("slack", 2, 2, "downloading"), ("slack", 2, 2, "installing"),
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


async def test_a_bot_starts_without_the_channel_whose_plugin_cannot_be_had(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database, registry="refused") as (api, bot, wrapper):
        await make_channel(api, bot, **DISCORD)
        await make_channel(api, bot, **SLACK)
        await make_channel(api, bot, provider="telegram", name="T", credentials={"botToken": "6881:AAAbbb"})
        async with api.listen(LISTEN, ids=[bot["id"]]) as heard:
            await api.run(docs.BOT_START, input={"botId": bot["id"], "wait": False})
            started = await heard.until(lambda e: e["kind"] == "STARTED")
            assert {e["phaseProgress"]["provider"] for e in heard.seen if e["phaseProgress"]} == {"discord", "slack"}
            assert (started["status"], started["error"]) == ("ACTIVE", None)
            wanted = {"discord": ("ERROR", UNREACHED), "slack": ("ERROR", SLACK_UNREACHED)}
            await until(api, bot, heard, telegram="CONNECTED", **wanted)
            # Others take their turn without a new try, by hand it is tried at once.
            runs = len(fake_openclaw.npm_runs(wrapper))
            await speak(api, bot, "Latin")
            assert len(fake_openclaw.npm_runs(wrapper)) == runs
            fake_openclaw.set_faults(wrapper, registry="up")
            await api.run(docs.BOT_RESTART, input={"botId": bot["id"]})
            now = await until(api, bot, heard, discord="CONNECTED", slack="CONNECTED", telegram="CONNECTED")
            assert now["discord"] == ("CONNECTED", None)


async def test_whatever_stands_in_the_way_of_a_plugin_keeps_no_bot_down(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database) as (api, bot, _):
        (tmp_path / "cache").mkdir(exist_ok=True)
        (tmp_path / "cache" / "npm").write_text("in the way")
        pid = (await start(api, bot))["bot"]["gateway"]["pid"]
        async with api.listen(LISTEN, ids=[bot["id"]]) as heard:
            await make_channel(api, bot, **DISCORD)
            cannot = "Discord's plugin (@openclaw/discord@2026.9.6) cannot be installed: "
            while not (why := (await states(api, bot))["discord"][1] or "").startswith(cannot):
                await heard.until(lambda e: e["kind"] == "CHANNEL_CHANGED")
            assert str(tmp_path) not in why
            assert {e["status"] for e in heard.seen} == {"ACTIVE"}
        assert (await until_settled(api, bot))["gateway"]["pid"] == pid
        assert (await stop(api, bot))["bot"]["status"] == "INACTIVE"
        assert (await start(api, bot))["bot"]["status"] == "ACTIVE"


async def test_an_installation_that_fails_at_the_restart_leaves_the_bot_running_without(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database, plugin_installs_fail=True) as (api, bot, wrapper):
        pid = (await start(api, bot))["bot"]["gateway"]["pid"]
        async with api.listen(LISTEN, ids=[bot["id"]]) as heard:
            await make_channel(api, bot, **DISCORD)
            await heard.until(lambda e: e["kind"] == "STARTED")
            await until(api, bot, heard, discord="ERROR")
            assert not {e["kind"] for e in heard.seen} & {"BACKOFF", "ERROR"}
            now = await until_settled(api, bot)
            assert now["gateway"]["pid"] != pid
            assert (now["gateway"]["restartCount"], len(fake_openclaw.starts(wrapper))) == (0, 2)


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
                "waiting", "installing",
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


async def test_a_running_bot_whose_plugins_cannot_be_had_takes_every_other_edit_and_asks_seldom(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database, registry="refused") as (api, bot, wrapper):
        telegram = await make_channel(api, bot, provider="telegram", name="T", credentials={"botToken": "6881:AAAbbb"})
        pid = (await start(api, bot))["bot"]["gateway"]["pid"]
        async with api.listen(LISTEN, ids=[bot["id"]]) as heard:
            made = await make_channel(api, bot, **DISCORD)
            await make_channel(api, bot, **SLACK)
            wanted = {"discord": ("ERROR", UNREACHED), "slack": ("ERROR", SLACK_UNREACHED)}
            await until(api, bot, heard, **wanted)
            await api.run(UPDATE, input={"channelId": telegram["id"], "enabled": False})
            await until(api, bot, heard, telegram="DISCONNECTED")
            assert await speak(api, bot, "Latin") == pid
            # Its gateway is looked at every tenth of a second, and says something else of the channels.
            for _ in range(5):
                await anyio.sleep(0.1)
                now = await states(api, bot)
                assert {name: now[name] for name in wanted} == wanted
            assert {run["words"][0] for run in fake_openclaw.npm_runs(wrapper)} == {"view"}
            # A change of the channel is a reason to try again at once; that it fails again is no news.
            runs = len(fake_openclaw.npm_runs(wrapper))
            fake_openclaw.set_faults(wrapper, registry="up")
            await api.run(UPDATE, input={"channelId": made["id"], "name": "Guild"})
            await until(api, bot, heard, discord="CONNECTED")
            await until(api, bot, heard, slack="CONNECTED")
            assert len(fake_openclaw.npm_runs(wrapper)) > runs
        assert len(fake_openclaw.starts(wrapper)) <= 3


async def test_tries_that_fail_again_are_no_news_and_one_that_does_not_comes_by_itself(
    database: dict[str, Any], tmp_path: Path
) -> None:
    quick = {"CLAWNET_BACKOFF_SCALE": "0.01"}
    async with one_bot(tmp_path, database, settings=quick, registry="refused") as (api, bot, wrapper):
        await start(api, bot)
        async with api.listen(LISTEN, ids=[bot["id"]]) as heard:
            await make_channel(api, bot, **DISCORD)
            await until(api, bot, heard, discord=("ERROR", UNREACHED))
            said = len([e for e in heard.seen if e["phase"] == "plugin"])
            with anyio.fail_after(30):
                while len(fake_openclaw.npm_runs(wrapper)) < 3:
                    await anyio.sleep(0.02)
            fake_openclaw.set_faults(wrapper, registry="up")
            fetched = await heard.until(lambda e: (e["phaseProgress"] or {}).get("step") == "downloading")
            assert fetched["status"] == "ACTIVE"
            assert len([e for e in heard.seen if e["phase"] == "plugin"]) == said + 1
            await until(api, bot, heard, discord="CONNECTED")


async def test_a_channel_that_is_switched_off_again_is_waited_for_no_more(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database, npm_download_s=120.0) as (api, bot, wrapper):
        pid = (await start(api, bot))["bot"]["gateway"]["pid"]
        async with api.listen(LISTEN, ids=[bot["id"]]) as heard:
            made = await make_channel(api, bot, **DISCORD)
            await heard.until(lambda e: (e["phaseProgress"] or {}).get("step") == "downloading")
            await api.run(UPDATE, input={"channelId": made["id"], "enabled": False})
            # Nothing is fetched any more, and nothing says so.
            await heard.until(lambda e: e["kind"] == "UPDATED" and e["phase"] is None)
            now = await until(api, bot, heard, discord="DISCONNECTED")
            assert now["discord"] == ("DISCONNECTED", None)
        assert (await until_settled(api, bot))["gateway"]["pid"] == pid
        assert len(fake_openclaw.starts(wrapper)) == 1


async def test_a_start_does_not_wait_for_a_plugin_that_nobody_wants_any_more(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database, npm_install_s=120.0) as (api, bot, wrapper):
        made = await make_channel(api, bot, **DISCORD)
        async with api.listen(LISTEN, ids=[bot["id"]]) as heard:
            await api.run(docs.BOT_START, input={"botId": bot["id"], "wait": False})
            await until_npm_installs(wrapper)
            await api.run(UPDATE, input={"channelId": made["id"], "enabled": False})
            with anyio.fail_after(60):
                await heard.until(lambda e: e["kind"] == "STARTED")
            assert (await states(api, bot))["discord"] == ("DISCONNECTED", None)


async def test_a_server_that_was_killed_while_it_fetched_says_so_no_more(
    database: dict[str, Any], tmp_path: Path
) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw", "2026.9.6", npm_download_s=120.0)
    wanted = environ(tmp_path, database, wrapper)
    with await to_thread.run_sync(serve, wanted) as server:
        api = Api(server.url, server.token)
        async with api.http:
            await story.make_provider(api, "http://127.0.0.1:9/v1")
            bot = await story.make_bot(api)
            await start(api, bot)
            async with api.listen(LISTEN, ids=[bot["id"]]) as heard:
                await make_channel(api, bot, **DISCORD)
                await heard.until(lambda e: (e["phaseProgress"] or {}).get("step") == "downloading")
                server.process.send_signal(signal.SIGKILL)
                await to_thread.run_sync(server.process.wait)
    fake_openclaw.set_faults(wrapper, registry="refused", npm_download_s=0.0)
    with await to_thread.run_sync(serve, wanted) as server:
        again = Api(server.url, api.token)
        async with again.http:
            with anyio.fail_after(30):
                while (await states(again, bot))["discord"] != ("ERROR", UNREACHED):
                    await anyio.sleep(0.05)
            async with again.listen(LISTEN, ids=[bot["id"]]) as heard:
                await again.run(docs.BOT_UPDATE, input={"botId": bot["id"], "description": "told"})
                told = await heard.until(lambda e: e["kind"] == "UPDATED")
                assert (told["status"], told["phase"], told["phaseProgress"]) == ("ACTIVE", None, None)
            await stop(again, bot)
        assert await to_thread.run_sync(server.stop) == 0


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
