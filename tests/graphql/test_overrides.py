"""Overrides that OpenClaw's own rules refuse are refused when they are written, not at the next start."""

from pathlib import Path
from typing import Any

import anyio
import pytest

from app.db.engine import DB
from app.gateway import candidate
from app.gateway.check import Checker
from app.gateway.config import Dialect
from tests import fake_openclaw
from tests.harness import PATIENCE, environ, running_server
from tests.journeys import documents as docs
from tests.journeys import story
from tests.supervisor.test_runner import change_unasked, one_bot


async def test_what_openclaw_would_refuse_is_refused_by_its_path_and_nothing_is_written(
    database: dict[str, Any], tmp_path: Path
) -> None:
    good = {"tools": {"deny": ["browser"]}}
    async with one_bot(tmp_path, database, bot={"configOverrides": good}) as (api, bot, _):
        before = await DB.fetch("SELECT * FROM bot"), await DB.fetch("SELECT * FROM room_event")
        for wrong, path in [
            ({"tools": {"noSuchSetting": 1}}, ["tools"]),
            (good | {"session": {"dmScope": "nonsense"}}, ["session", "dmScope"]),
        ]:
            for document, more in [
                (docs.BOT_UPDATE, {"botId": bot["id"]}),
                (docs.BOT_CREATE, {"name": "Ito", "model": "local/echo"}),
            ]:
                answer = await api.run(document, input={**more, "configOverrides": wrong})
                (error,) = answer["userErrors"]
                assert (error["code"], error["field"]) == ("INVALID", ["configOverrides", *path])
                assert "OpenClaw refuses this" in error["message"]
                assert answer["bot"] is None
        assert (await DB.fetch("SELECT * FROM bot"), await DB.fetch("SELECT * FROM room_event")) == before


async def test_a_mistake_that_is_there_already_stands_in_no_other_edits_way(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database) as (api, bot, _):
        await change_unasked(api, bot)
        kept = {"tools": {"noSuchSetting": 1}}
        # A form sends back what it was given; it is no change.
        edits: list[dict[str, Any]] = [
            {"name": "Ito"},
            {"name": "Kei", "configOverrides": kept},
            {"configOverrides": {}},
        ]
        for edit in edits:
            assert (await api.run(docs.BOT_UPDATE, input={"botId": bot["id"], **edit}))["userErrors"] == []


async def test_where_openclaw_is_absent_overrides_are_kept_and_the_start_has_the_word(
    database: dict[str, Any], tmp_path: Path
) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw")
    async with running_server(environ(tmp_path, database, wrapper)) as api:
        await story.make_provider(api, "http://127.0.0.1:9/v1")
        wrapper.unlink()
        wrong = {"tools": {"noSuchSetting": 1}}
        await story.make_bot(api, configOverrides=wrong)
        (row,) = await DB.fetch("SELECT config_overrides FROM bot")
        assert row["config_overrides"] == wrong


async def test_an_openclaw_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never() -> tuple[Checker, Dialect]:
        await anyio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(candidate, "PATIENCE", 0.1)
    with anyio.fail_after(PATIENCE):
        assert await candidate.Candidates(never, tmp_path)({"tools": {"noSuchSetting": 1}}, None) == []
