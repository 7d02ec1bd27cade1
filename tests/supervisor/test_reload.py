"""Changing the settings of a bot that runs: what it takes as it is, what it needs a start for, what is taken back."""

import asyncio
import errno
import json
import os
import signal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.db.engine import DB
from app.gateway import config, reloads
from app.supervisor import reload
from app.supervisor.reload import LATEST, QUIET, Edits
from tests import fake_openclaw
from tests.graphql.test_channels import DELETE, SET, UPDATE, channel, token
from tests.harness import Api, environ, running_server, serve
from tests.journeys import documents as docs
from tests.journeys import story
from tests.journeys.recording import recording_model
from tests.supervisor.test_runner import change_unasked, one_bot, read, start, stop

VERSIONS = pytest.mark.parametrize("version", ["2026.2.1", "2026.9.6"])
#: OpenClaw reads this at its start only.
NEEDS_START = {"configOverrides": {"commands": {"native": False}}}


async def change(api: Api, bot: dict[str, Any], **settings: Any) -> dict[str, Any]:
    changed = await api.run(docs.BOT_UPDATE, input={"botId": bot["id"], **settings})
    assert changed["userErrors"] == [], changed
    return changed["bot"]


async def change_at_once(api: Api, bot: dict[str, Any], *settings: dict[str, Any]) -> None:
    """Changes one after the other, in one request: between them lies no more than the server needs."""
    given = {f"i{n}": {"botId": bot["id"], **each} for n, each in enumerate(settings)}
    variables = ", ".join(f"${name}: BotUpdateInput!" for name in given)
    fields = " ".join(f"a{name}: botUpdate(input: ${name}) {{ userErrors {{ message }} }}" for name in given)
    answer = await api.ask(f"mutation ({variables}) {{ {fields} }}", **given)
    assert [each["userErrors"] for each in answer["data"].values()] == [[]] * len(given)


async def until_settled(api: Api, bot: dict[str, Any], patience: float = 60) -> dict[str, Any]:
    """The bot, once nothing of its configuration is waited for."""
    async with asyncio.timeout(patience):
        while (now := await read(api, bot))["config"]["restartPending"] or now["status"] != "ACTIVE":
            await asyncio.sleep(0.05)
    return now


def home_of(folder: Path) -> Path:
    return folder / "data" / "openclaw" / "bots" / "hana"


def lying_in(folder: Path, secret: str) -> list[str]:
    """Configurations in the bot's home that hold the secret, whatever they are called."""
    found = [path for path in home_of(folder).rglob("*.json5*") if path.is_file()]
    return [path.name for path in found if secret in path.read_text()]


def said(folder: Path, word: str) -> int:
    return (home_of(folder) / "logs" / "gateway.log").read_text().count(word)


def test_edits_are_applied_when_they_come_to_rest() -> None:
    edits = Edits()
    assert edits.wait(1, 100.0) == QUIET
    assert edits.wait(2, 100.25) == QUIET
    assert edits.wait(2, 100.5) == QUIET / 2
    assert edits.wait(2, 100.75) == 0


def test_edits_that_never_rest_are_applied_all_the_same() -> None:
    edits, now = Edits(), 100.0
    while edits.wait(revision := int(now * 10), now) > 0:
        now += 0.1
    assert 100 + LATEST - 0.01 <= now <= 100 + LATEST + 0.11
    edits.forget()
    assert edits.wait(revision, now) == QUIET


@VERSIONS
async def test_a_new_key_and_a_new_model_are_in_force_without_a_restart(
    version: str, database: dict[str, Any], tmp_path: Path
) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw", version)
    with recording_model() as model:
        async with running_server(environ(tmp_path, database, wrapper)) as api:
            provider = {"name": "local", "baseUrl": model.base_url}
            made = await api.run(docs.PROVIDER_SAVE, input={**provider, "apiKey": "sk-first-0123456789"})
            bot = await story.make_bot(api)
            pid = (await start(api, bot))["bot"]["gateway"]["pid"]
            await api.run(docs.MESSAGE_SEND, input={"botId": bot["id"], "text": "One"})
            assert model.asked[-1].key == "sk-first-0123456789"
            provider |= {"id": made["modelProvider"]["id"], "apiKey": "sk-second-9876543210"}
            assert (await api.run(docs.PROVIDER_SAVE, input=provider))["userErrors"] == []
            changed = await change(api, bot, model="local/fake", systemPrompt="Be brief.")
            assert changed["config"]["restartPending"]
            now = await until_settled(api, bot)
            await api.run(docs.MESSAGE_SEND, input={"botId": bot["id"], "text": "Two"})
            assert model.asked[-1].key == "sk-second-9876543210"
            assert json.loads(model.asked[-1].body)["model"] == "fake"
            assert "Be brief." in model.asked[-1].body
            assert (now["gateway"]["pid"], len(fake_openclaw.starts(wrapper))) == (pid, 1)
            assert now["config"]["rolledBack"] is None
            await stop(api, bot)


@VERSIONS
async def test_a_change_new_takes_in_silence_is_taken_too(
    version: str, database: dict[str, Any], tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database, version=version) as (api, bot, wrapper):
        await start(api, bot)
        await change(api, bot, configOverrides={"session": {"dmScope": "per-peer"}})
        await until_settled(api, bot)
        assert len(fake_openclaw.starts(wrapper)) == 1
        assert said(tmp_path, "evaluating reload") == 1


async def test_ten_quick_edits_are_one_change(database: dict[str, Any], tmp_path: Path) -> None:
    async with one_bot(tmp_path, database) as (api, bot, wrapper):
        await start(api, bot)
        await change_at_once(api, bot, *[{"model": f"local/m{number}"} for number in range(10)])
        await until_settled(api, bot)
        assert said(tmp_path, "evaluating reload") == 1
        assert "local/m9" in (home_of(tmp_path) / "config.json5").read_text()
        overrides = [{"commands": {"native": is_native}} for is_native in (True, False)]
        for each in overrides:
            # OpenClaw is asked about each once, which takes longer than edits may lie apart.
            await change(api, bot, configOverrides=each)
            await until_settled(api, bot)
        count = len(fake_openclaw.starts(wrapper))
        await change_at_once(api, bot, *[{"configOverrides": each} for each in overrides[::-1] * 4 + overrides[:1]])
        await until_settled(api, bot)
        assert len(fake_openclaw.starts(wrapper)) == count + 1


async def test_signs_of_life_and_states_change_no_configuration(database: dict[str, Any], tmp_path: Path) -> None:
    async with one_bot(tmp_path, database) as (api, bot, wrapper):
        await start(api, bot)
        written = (home_of(tmp_path) / "config.json5").stat()
        before = await DB.fetch_one("SELECT last_seen_at FROM bot_process")
        for number in range(300):
            await DB.fetch("UPDATE bot_process SET last_seen_at = now(), memory_bytes = $1", number)
            assert api.running is not None
            api.running.supervisor.wake(UUID(bot["databaseId"]))
        await api.run(docs.BOT_UPDATE, input={"botId": bot["id"], "description": "A label", "tags": ["one"]})
        async with asyncio.timeout(10):
            # The prober has written on its own as well, several times.
            seen = set[Any]()
            while len(seen) < 4:
                row = await DB.fetch_one("SELECT last_seen_at FROM bot_process")
                seen.add(row and row["last_seen_at"])
                await asyncio.sleep(0.05)
        assert before is not None
        now = (home_of(tmp_path) / "config.json5").stat()
        assert (now.st_ino, now.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
        assert len(fake_openclaw.starts(wrapper)) == 1
        assert (await read(api, bot))["config"]["revision"] == bot["config"]["revision"]


@VERSIONS
async def test_a_refused_change_is_taken_back_and_the_next_one_counts(
    version: str, database: dict[str, Any], tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database, version=version) as (api, bot, wrapper):
        await start(api, bot)
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            await change_unasked(api, bot)
            await heard.until(lambda e: e["kind"] == "CONFIG_ROLLED_BACK")
        now = await read(api, bot)
        assert "noSuchSetting" in now["config"]["rolledBack"]
        assert not now["config"]["restartPending"]
        rows = await DB.fetch("SELECT kind, title, body FROM notification")
        assert [row["title"] for row in rows] == ["Hana's new settings were refused and taken back"]
        assert "noSuchSetting" in rows[0]["body"]
        await change(api, bot, configOverrides={"tools": {"deny": ["browser"]}})
        assert (await until_settled(api, bot))["config"]["rolledBack"] is None
        assert len(fake_openclaw.starts(wrapper)) == 1


async def test_a_bot_that_crashes_after_a_refused_change_comes_back_with_the_last_good_one(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database) as (api, bot, _):
        pid = (await start(api, bot))["bot"]["gateway"]["pid"]
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            await change_unasked(api, bot)
            await heard.until(lambda e: e["kind"] == "CONFIG_ROLLED_BACK")
            os.kill(pid, signal.SIGKILL)
            again = await heard.until(lambda e: e["kind"] == "STARTED")
            assert again["pid"] != pid
        assert "noSuchSetting" in (await read(api, bot))["config"]["rolledBack"]
        assert "noSuchSetting" not in (home_of(tmp_path) / "config.json5").read_text()


async def test_a_change_is_not_blamed_for_what_an_earlier_one_was_refused_for(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database) as (api, bot, wrapper):
        pid = (await start(api, bot))["bot"]["gateway"]["pid"]
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            await change_unasked(api, bot)
            await heard.until(lambda e: e["kind"] == "CONFIG_ROLLED_BACK")
            moved = wrapper.rename(wrapper.with_name("moved"))
            os.kill(pid, signal.SIGKILL)
            await heard.until(lambda e: e["event"] == "bot:error")
            await change(api, bot, configOverrides={})
            await heard.until(lambda e: e["reason"] == "BINARY_MISSING")
            # The reason that stands there is about another revision than the one that waits.
            async with asyncio.timeout(30):
                while (await read(api, bot))["config"]["rolledBack"]:
                    await asyncio.sleep(0.05)
            moved.rename(wrapper)
            assert (await start(api, bot))["bot"]["config"]["rolledBack"] is None


@VERSIONS
async def test_a_change_refused_while_the_bot_is_down_starts_it_with_the_last_good_one(
    version: str, database: dict[str, Any], tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database, version=version) as (api, bot, _):
        await start(api, bot)
        await stop(api, bot)
        await change_unasked(api, bot)
        started = await start(api, bot)
        assert started["userErrors"] == []
        assert started["bot"]["status"] == "ACTIVE"
        assert "noSuchSetting" in started["bot"]["config"]["rolledBack"]
        assert len(await DB.fetch("SELECT id FROM notification")) == 1


@pytest.mark.parametrize(
    "fault", [{"exit_78": True}, {"never_ready": True}, {"exit_at_start": 1}], ids=lambda fault: next(iter(fault))
)
async def test_a_change_no_process_gets_ready_with_is_taken_back_once(
    fault: dict[str, Any], database: dict[str, Any], tmp_path: Path
) -> None:
    settings = {"CLAWNET_START_BUDGET": "3"}
    async with one_bot(tmp_path, database, settings=settings) as (api, bot, wrapper):
        await start(api, bot)
        fake_openclaw.set_faults(wrapper, **fault)
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            await change(api, bot, **NEEDS_START)
            await heard.until(lambda e: e["kind"] == "CONFIG_ROLLED_BACK")
            fake_openclaw.clear_faults(wrapper)
            await heard.until(lambda e: e["kind"] == "STARTED")
            assert "ERROR" not in [event["kind"] for event in heard.seen]
        now = await read(api, bot)
        assert now["config"]["rolledBack"]
        assert not now["config"]["restartPending"]
        assert '"commands"' not in (home_of(tmp_path) / "config.json5").read_text()
        assert len(await DB.fetch("SELECT id FROM notification")) == 1
        # Asked for by hand, what was taken back gets another try.
        again = await api.run(docs.BOT_RESTART, input={"botId": bot["id"]})
        assert again["bot"]["config"]["rolledBack"] is None
        assert '"commands"' in (home_of(tmp_path) / "config.json5").read_text()


async def test_a_bot_that_was_taken_over_takes_changes_as_before(database: dict[str, Any], tmp_path: Path) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw")
    wanted = environ(tmp_path, database, wrapper)
    with serve(wanted) as first:
        api = Api(first.url, first.token)
        await story.make_provider(api, "http://127.0.0.1:9/v1")
        bot = await story.make_bot(api)
        await start(api, bot)
        await api.http.aclose()
        first.kill()
    with serve(wanted) as second:
        api = Api(second.url, first.token)
        await change(api, bot, model="local/other")
        await until_settled(api, bot)
        assert len(fake_openclaw.starts(wrapper)) == 1
        assert (await stop(api, bot))["bot"]["status"] == "INACTIVE"
        await api.http.aclose()
        second.stop()


async def test_a_bot_that_was_given_away_does_not_run_on_with_its_former_owners_keys(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database) as (api, bot, _):
        await start(api, bot)
        kept = home_of(tmp_path) / "config.good.json5"
        given = json.loads(kept.read_text()) | {"owner": str(uuid4())}
        kept.write_text(json.dumps(given))
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            await change_unasked(api, bot)
            failed = await heard.until(lambda e: e["kind"] == "ERROR")
        assert "noSuchSetting" in failed["error"]
        assert story.left_of(bot) == []


async def test_a_gateway_that_does_not_say_that_it_took_a_change_is_started_anew(
    database: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with one_bot(tmp_path, database) as (api, bot, wrapper):
        await start(api, bot)
        monkeypatch.setattr(reloads, "SEEN_WITHIN", 0.0)
        await change(api, bot, model="local/other")
        now = await until_settled(api, bot)
        assert now["config"]["rolledBack"] is None
        assert len(fake_openclaw.starts(wrapper)) == 2


async def test_a_change_that_was_cut_short_is_read_by_a_new_process(database: dict[str, Any], tmp_path: Path) -> None:
    async with one_bot(tmp_path, database) as (api, bot, wrapper):
        await start(api, bot)
        file = home_of(tmp_path) / "config.json5"
        # As if the server had been killed between the file and the row.
        file.write_text(file.read_text().replace("local/echo", "local/other"))
        await change(api, bot, model="local/other")
        await until_settled(api, bot)
        assert len(fake_openclaw.starts(wrapper)) == 2


async def test_nothing_is_gone_back_to_that_the_bot_wrote_itself(database: dict[str, Any], tmp_path: Path) -> None:
    async with one_bot(tmp_path, database) as (api, bot, _):
        await start(api, bot)
        await stop(api, bot)
        kept = home_of(tmp_path) / "config.good.json5"
        kept.write_text(kept.read_text().replace("loopback", "lan"))
        await change_unasked(api, bot)
        failed = await start(api, bot)
        assert failed["bot"]["status"] == "ERROR"


async def test_a_change_waits_for_no_answer_once_the_bot_is_to_stop(database: dict[str, Any], tmp_path: Path) -> None:
    async with one_bot(tmp_path, database, hang_after_s=1.0, hang_how="stop") as (api, bot, _):
        pid = (await start(api, bot))["bot"]["gateway"]["pid"]
        os.kill(pid, signal.SIGSTOP)
        await change(api, bot, model="local/other")
        async with asyncio.timeout(10):
            while "local/other" not in (home_of(tmp_path) / "config.json5").read_text():
                await asyncio.sleep(0.02)
        async with asyncio.timeout(5):
            await stop(api, bot, graceSeconds=0.1)
        assert story.left_of(bot) == []


async def test_no_secret_of_a_configuration_lies_open(database: dict[str, Any], tmp_path: Path) -> None:
    async with one_bot(tmp_path, database) as (api, bot, _):
        await start(api, bot)
        await change(api, bot, model="local/other")
        await until_settled(api, bot)
        for name in ("config.json5", "config.good.json5"):
            assert (home_of(tmp_path) / name).stat().st_mode & 0o777 == 0o600
        row = await DB.fetch_one("SELECT p::text AS everything FROM bot_process p")
        assert row is not None
        assert "sk-test-0123456789" not in row["everything"]


async def test_a_change_taken_back_after_it_was_cut_short_is_a_change_too(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database) as (api, bot, wrapper):
        await start(api, bot)
        file = home_of(tmp_path) / "config.json5"
        # As if the server had been killed between the file and the row, and the owner had thought better of it.
        file.write_text(file.read_text().replace("local/echo", "local/other"))
        await change(api, bot, model="local/echo")
        await until_settled(api, bot)
        assert "local/other" not in file.read_text()
        assert len(fake_openclaw.starts(wrapper)) == 2


TAKEN_AWAY = {
    "deleted": (DELETE, {}),
    "disabled": (UPDATE, {"enabled": False}),
    "without its secret": (SET, {"credentials": {"botToken": None}}),
    "with another secret": (SET, {"credentials": {"botToken": token(2)}}),
}


@pytest.mark.parametrize("how", TAKEN_AWAY)
async def test_what_is_taken_away_from_a_bot_whose_change_was_taken_back_is_gone(
    how: str, database: dict[str, Any], tmp_path: Path
) -> None:
    document, more = TAKEN_AWAY[how]
    async with one_bot(tmp_path, database) as (api, bot, _):
        made = await channel(api, bot, credentials={"botToken": token(1)})
        await start(api, bot)
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            await change_unasked(api, bot)
            await heard.until(lambda e: e["kind"] == "CONFIG_ROLLED_BACK")
            assert (await api.run(document, input={"channelId": made["id"], **more}))["userErrors"] == []
            failed = await heard.until(lambda e: e["kind"] == "ERROR")
            assert "noSuchSetting" in failed["error"]
            assert story.left_of(bot) == []
            async with asyncio.timeout(10):
                while lying_in(tmp_path, token(1)):
                    await asyncio.sleep(0.02)
            await change(api, bot, configOverrides={})
            await heard.until(lambda e: e["kind"] == "STARTED")


async def test_a_change_that_something_else_stood_in_the_way_of_is_tried_again(
    database: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with one_bot(tmp_path, database) as (api, bot, wrapper):
        await start(api, bot)
        monkeypatch.setattr(reload, "HELD_UP", 0.1)
        write, failures = config.write, list[str]()

        def full(path: Path, text: str) -> None:
            if path.name == "config.json5" and len(failures) < 2:
                failures.append(text)
                raise OSError(errno.ENOSPC, "No space left on device")
            write(path, text)

        monkeypatch.setattr(config, "write", full)
        await change(api, bot, model="local/other")
        now = await until_settled(api, bot)
        assert len(failures) == 2
        assert now["config"]["rolledBack"] is None
        assert "local/other" in (home_of(tmp_path) / "config.json5").read_text()
        assert await DB.fetch("SELECT id FROM notification") == []
        assert len(fake_openclaw.starts(wrapper)) == 1


async def test_a_change_with_a_key_that_cannot_be_read_yet_stays_wanted(
    database: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with one_bot(tmp_path, database) as (api, bot, wrapper):
        await start(api, bot)
        # Longer than the test: the other edit alone may end the wait.
        monkeypatch.setattr(reload, "HELD_UP", 600.0)
        await DB.fetch("ALTER TABLE model_provider ADD COLUMN kept text")
        await DB.fetch("UPDATE model_provider SET kept = api_key, api_key = 'cn9.damaged'")
        await change(api, bot, model="local/other")
        assert api.running is not None
        (held,) = api.running.supervisor._runners.values()
        async with asyncio.timeout(10):
            while held._reloader._held_up[0] == 0:
                await asyncio.sleep(0.02)
        now = await read(api, bot)
        assert (now["status"], now["config"]["restartPending"], now["config"]["rolledBack"]) == ("ACTIVE", True, None)
        await DB.fetch("UPDATE model_provider SET api_key = kept")
        await change(api, bot, model="local/third")
        await until_settled(api, bot)
        assert len(fake_openclaw.starts(wrapper)) == 1


async def test_no_secret_that_was_taken_away_stays_with_a_bot_that_is_down(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database) as (api, bot, _):
        made = await channel(api, bot, credentials={"botToken": token(1)})
        await start(api, bot)
        await stop(api, bot)
        home = home_of(tmp_path)
        for name in (".config.json5.0011223344556677", "run/candidate-0011223344556677.json5"):
            (home / name).write_text(f"As a kill left it: {token(1)}")
        assert (await api.run(DELETE, input={"channelId": made["id"]}))["userErrors"] == []
        async with asyncio.timeout(10):
            while lying_in(tmp_path, token(1)):
                await asyncio.sleep(0.02)
        assert (await start(api, bot))["bot"]["status"] == "ACTIVE"


async def test_a_new_owner_s_process_finds_nothing_of_the_former_one_s(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database) as (api, bot, wrapper):
        await start(api, bot)
        kept = home_of(tmp_path) / "config.good.json5"
        given = json.loads(kept.read_text()) | {"owner": str(uuid4()), "note": "sk-former-owner"}
        await stop(api, bot)
        kept.write_text(json.dumps(given))
        fake_openclaw.set_faults(wrapper, never_ready=True)
        await api.run(docs.BOT_START, input={"botId": bot["id"], "wait": False})
        async with asyncio.timeout(30):
            while not ((await read(api, bot))["gateway"] or {}).get("pid"):
                await asyncio.sleep(0.02)
        assert lying_in(tmp_path, "sk-former-owner") == []
        await stop(api, bot)


async def test_a_start_that_was_taken_over_ends_well_whatever_the_bot_wrote(
    database: dict[str, Any], tmp_path: Path
) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw", start_delay_s=4.0)
    wanted = environ(tmp_path, database, wrapper)
    with serve(wanted) as first:
        api = Api(first.url, first.token)
        await story.make_provider(api, "http://127.0.0.1:9/v1")
        bot = await story.make_bot(api)
        await api.run(docs.BOT_START, input={"botId": bot["id"], "wait": False})
        async with asyncio.timeout(30):
            while not ((await read(api, bot))["gateway"] or {}).get("pid"):
                await asyncio.sleep(0.02)
            # It has read its configuration by then; before that it would refuse what is written next.
            while not [*(home_of(tmp_path) / "tmp").rglob("gateway.*.lock")]:
                await asyncio.sleep(0.02)
        await api.http.aclose()
        first.kill()
    file = home_of(tmp_path) / "config.json5"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"x": float("nan")}))
    with serve(wanted) as second:
        api = Api(second.url, first.token)
        async with asyncio.timeout(30):
            while (await read(api, bot))["status"] != "ACTIVE":
                await asyncio.sleep(0.05)
        assert (await stop(api, bot))["bot"]["status"] == "INACTIVE"
        await api.http.aclose()
        second.stop()
