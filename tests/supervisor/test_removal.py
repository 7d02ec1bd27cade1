"""What a deleted bot leaves is removed in the end, and holds up nobody meanwhile."""

import itertools
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any
from uuid import UUID, uuid4

import anyio
import pytest
from anyio import to_thread

from app.db.engine import DB
from app.gateway import config, trash
from app.services import bots
from app.supervisor import removal
from app.supervisor import trash as emptying
from app.supervisor.supervisor import Supervisor
from tests import fake_openclaw
from tests.graphql.people import code, house
from tests.harness import PATIENCE, environ, running_server
from tests.journeys import documents as docs
from tests.journeys import story
from tests.stuck import needs_root, stuck
from tests.supervisor.test_delete import DELETE, names_in, until_empty


async def test_the_trash_is_emptied_though_the_rows_went_at_the_second_try_only(
    database: dict[str, Any], tmp_path: Path
) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw")
    async with house(database, tmp_path, wrapper) as api:
        bot = await story.make_bot(api)
        assert (await api.run(docs.BOT_START, input={"botId": bot["id"]}))["userErrors"] == []
        await DB.fetch("CREATE SEQUENCE tries")
        await DB.fetch(
            "CREATE FUNCTION hiccup() RETURNS trigger AS $$ BEGIN IF nextval('tries') = 1 THEN "
            "RAISE EXCEPTION 'too many' USING ERRCODE = '53300'; END IF; RETURN OLD; END $$ LANGUAGE plpgsql"
        )
        await DB.fetch("CREATE TRIGGER hiccup BEFORE DELETE ON bot FOR EACH ROW EXECUTE FUNCTION hiccup()")
        assert (await api.run(DELETE, input={"botId": bot["id"]}))["userErrors"] == []
        assert await DB.fetch("SELECT last_value FROM tries") == [{"last_value": 2}]
        await until_empty(tmp_path / "data/openclaw/.trash")


@needs_root
async def test_what_could_not_be_removed_goes_once_it_can(
    database: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emptying, "FIRST_PAUSE", 0.05)
    wrapper = fake_openclaw.install(tmp_path / "openclaw")
    base = tmp_path / "data/openclaw"
    async with house(database, tmp_path, wrapper) as api:
        bot, other = await story.make_bot(api), await story.make_bot(api, "Mio")
        for each in (bot, other):
            assert (await api.run(docs.BOT_START, input={"botId": each["id"]}))["userErrors"] == []
        kept = base / "bots/hana/workspace/kept"
        kept.write_text("")
        with stuck(kept):
            for each in (bot, other):
                assert (await api.run(DELETE, input={"botId": each["id"]}))["userErrors"] == []
            # Nothing else is kept by it, secrets least of all.
            with anyio.fail_after(PATIENCE):
                while len([path for path in (base / ".trash").rglob("*") if path.is_file()]) != 1:
                    await anyio.sleep(0.02)
            assert len(names_in(base / ".trash")) == 1
        await until_empty(base / ".trash")


class Endless:
    """A home so large that its removal comes to no end: it goes on until it is told not to."""

    def __init__(self) -> None:
        self.has_begun, self.has_ended, self.was_told = Event(), Event(), False

    def __call__(self, grave: Path, goes_on: Callable[[], bool]) -> None:
        self.has_begun.set()
        until = time.monotonic() + 2 * PATIENCE
        while goes_on() and time.monotonic() < until:
            time.sleep(0.01)
        self.was_told = not goes_on()
        self.has_ended.set()
        raise trash.Unfinished(grave)


async def test_a_removal_that_takes_long_holds_up_neither_a_start_nor_a_lost_lease_nor_the_end(
    database: dict[str, Any], tmp_path: Path
) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw")
    base, endless = tmp_path / "data/openclaw", Endless()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trash, "remove", endless)
        async with house(database, tmp_path, wrapper) as api:
            bot, other = await story.make_bot(api), await story.make_bot(api, "Mio")
            assert (await api.run(docs.BOT_START, input={"botId": bot["id"]}))["userErrors"] == []
            assert (await api.run(DELETE, input={"botId": bot["id"]}))["userErrors"] == []
            assert await to_thread.run_sync(endless.has_begun.wait, PATIENCE)
            # It is gone for everybody, and so is its name; others start.
            assert (await story.make_bot(api))["agentId"] == "hana"
            assert (await api.run(docs.BOT_START, input={"botId": other["id"]}))["userErrors"] == []
            await DB.fetch("UPDATE node SET epoch = epoch + 1, holder = $1", uuid4())
            assert api.running is not None
            with anyio.fail_after(PATIENCE):
                while api.running.supervisor.standby is None:
                    await anyio.sleep(0.02)
            assert story.left_of(other) == []
            assert len(names_in(base / ".trash")) == 1
            assert not endless.was_told
        assert await to_thread.run_sync(endless.has_ended.wait, PATIENCE)
        assert endless.was_told
    # Also a server that only stands by goes on with it, for nobody else is at this folder.
    async with running_server(environ(tmp_path, database, wrapper)):
        await until_empty(base / ".trash")


async def test_a_home_that_cannot_be_moved_is_told_of_once_and_tried_ever_less_often(
    database: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tries: list[float] = []
    take, first = trash.take, 0.1

    def counted(base: Path, home: Path) -> Path | None:
        tries.append(time.monotonic())
        return take(base, home)

    monkeypatch.setattr(trash, "take", counted)
    monkeypatch.setattr(removal, "FIRST_PAUSE", first)
    monkeypatch.setattr(bots, "MAX_WAIT", 4.0)
    wrapper = fake_openclaw.install(tmp_path / "openclaw")
    home = tmp_path / "data/openclaw/bots/hana"
    async with house(database, tmp_path, wrapper) as api:
        bot = await story.make_bot(api)
        assert (await api.run(docs.BOT_START, input={"botId": bot["id"]}))["userErrors"] == []
        assert (await api.run(docs.BOT_STOP, input={"botId": bot["id"]}))["userErrors"] == []
        assert api.running is not None
        supervisor = api.running.supervisor
        with stuck(home):
            async with anyio.create_task_group() as ringing:
                ringing.start_soon(_ring, supervisor, UUID(bot["databaseId"]))
                kept = await api.run(DELETE, input={"botId": bot["id"]})
                ringing.cancel_scope.cancel()
            (error,) = kept["userErrors"]
            assert (code(kept), error["field"]) == ("GATEWAY_FAILED", ["botId"])
            assert "its home cannot be moved: " in error["message"]
            assert str(tmp_path) not in error["message"]
            assert kept["deletedBotId"] is None
            assert len(tries) > 1
            for number, (before, after) in enumerate(itertools.pairwise(tries)):
                assert after - before >= first * 2**number
            told = await DB.fetch(
                "SELECT n.kind, n.title, n.body FROM notification n JOIN app_user u ON u.id = n.user "
                "WHERE u.role = 'ADMIN'"
            )
            assert [(row["kind"], row["title"]) for row in told] == [("BOT_ERROR", "Hana cannot be deleted yet")]
            assert told[0]["body"] in error["message"]
            assert capfd.readouterr().out.count("home_not_moved") == 1
        assert home.is_dir()
        with anyio.fail_after(PATIENCE):
            while await DB.fetch("SELECT 1 FROM bot"):
                await anyio.sleep(0.02)
        assert not home.exists()
        await until_empty(tmp_path / "data/openclaw/.trash")


async def _ring(supervisor: Supervisor, bot_id: UUID) -> None:
    while True:
        supervisor.wake(bot_id)
        await anyio.sleep(0.01)


async def test_a_home_that_cannot_be_moved_holds_up_no_end(database: dict[str, Any], tmp_path: Path) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw")
    async with house(database, tmp_path, wrapper) as api:
        bot = await story.make_bot(api)
        assert (await api.run(docs.BOT_START, input={"botId": bot["id"]}))["userErrors"] == []
        # It failed of something else before, and that is not what is told.
        await DB.fetch("UPDATE bot_process SET error = 'something else'")
        assert api.running is not None
        with stuck(tmp_path / "data/openclaw/bots/hana"):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(api.ask, DELETE, input={"botId": bot["id"]}))
                with anyio.fail_after(PATIENCE):
                    while not await DB.fetch("SELECT 1 FROM bot_process WHERE error LIKE 'its home cannot%'"):
                        await anyio.sleep(0.02)
                begun = time.monotonic()
                await api.running.supervisor.stop(PATIENCE)
                assert time.monotonic() - begun < PATIENCE
                tasks.cancel_scope.cancel()


def test_what_was_written_into_a_home_is_forgotten_with_it(tmp_path: Path) -> None:
    home = tmp_path / "bots" / "hana"
    home.mkdir(parents=True)
    config.write(home / config.IN_USE, json.dumps({"gateway": {}}))
    assert config.is_as_written(home / config.IN_USE, {"gateway": {}})
    config.forget(home)
    # By now it is known by its token alone.
    assert not config.is_as_written(home / config.IN_USE, {"gateway": {}})
