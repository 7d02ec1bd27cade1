"""Overrides that OpenClaw's own rules refuse are refused when they are written, not at the next start."""

import json
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import anyio
import pytest

from app.db.engine import DB
from app.domain.errors import BinaryMissing, RateLimited
from app.gateway import candidate, openclaw
from app.gateway.check import Checker
from app.gateway.config import Dialect
from app.gateway.overrides import Reserved
from tests import fake_openclaw
from tests.harness import PATIENCE, environ, running_server
from tests.journeys import documents as docs
from tests.journeys import story
from tests.supervisor.test_runner import change_unasked, one_bot, start


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


def of_a_plugin(name: str) -> dict[str, Any]:
    return {"channels": {name: {"team": "t"}}, "plugins": {"entries": {name: {"enabled": True}}}}


async def test_a_channel_of_somebody_elses_plugin_is_taken(database: dict[str, Any], tmp_path: Path) -> None:
    async with one_bot(tmp_path, database) as (api, bot, _):

        async def told(overrides: dict[str, Any]) -> list[tuple[list[str], str]]:
            answer = await api.run(docs.BOT_UPDATE, input={"botId": bot["id"], "configOverrides": overrides})
            return [(each["field"], each["message"]) for each in answer["userErrors"]]

        for name, why in [("telegram", "channelCreate"), ("webchat", "closed"), ("voice-call", "no channel")]:
            ((field, message),) = await told(of_a_plugin(name))
            assert field == ["configOverrides", "channels", name]
            assert why in message
        ((field, message),) = await told({"channels": {"acme-chat": {}}})
        assert "plugins.entries.acme-chat.enabled" in message
        assert await told(of_a_plugin("acme-chat")) == []
        assert (await start(api, bot))["userErrors"] == []
        (row,) = await DB.fetch("SELECT config_rendered FROM bot_process")
        assert row["config_rendered"]["channels"] == {"acme-chat": {"team": "t"}}


async def test_a_plugin_of_openclaws_own_is_not_started_whoever_wrote_it_down(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database) as (api, bot, wrapper):
        text = json.dumps(of_a_plugin("voice-call"))
        await DB.fetch("UPDATE bot SET config_overrides = $1::jsonb, config_revision = config_revision + 1", text)
        (error,) = (await start(api, bot))["userErrors"]
        assert "configOverrides.channels.voice-call: this is a plugin of OpenClaw's own" in error["message"]
        assert fake_openclaw.starts(wrapper) == []


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
    async def never() -> tuple[Checker, Dialect, Reserved]:
        await anyio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(candidate, "PATIENCE", 0.1)
    with anyio.fail_after(PATIENCE):
        assert await candidate.Candidates(never, tmp_path)(uuid4(), {"tools": {"noSuchSetting": 1}}, None) == []


async def test_many_questions_of_one_person_keep_nobody_else_waiting_and_are_no_way_around_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, goes_on = [0], anyio.Event()

    async def held() -> tuple[Checker, Dialect, Reserved]:
        asked[0] += 1
        await goes_on.wait()
        raise BinaryMissing("there is none")

    monkeypatch.setattr(candidate, "TURN", 0.5)
    ask, eager, other = candidate.Candidates(held, tmp_path), uuid4(), uuid4()
    answers: list[object] = []

    async def one(who: UUID) -> None:
        try:
            answers.append(await ask(who, {"tools": {}}, None))
        except RateLimited as error:
            answers.append(error.wait)

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(one, eager)
            while not asked[0]:
                await anyio.sleep(0.01)
            tasks.start_soon(one, other)
            # All but the one that is being asked are told to come again, and none was taken unasked.
            while len(answers) < 20:
                await anyio.sleep(0.01)
            assert answers == [0.5] * 20
            monkeypatch.setattr(candidate, "TURN", 30.0)
            for who in [*[eager] * 5, other]:
                tasks.start_soon(one, who)
            goes_on.set()
        # Of the six that wait, the other person's is not behind all of the eager one's.
        assert asked[0] == 7
        assert answers[20:] == [[]] * 7


async def test_a_check_that_was_killed_is_asked_again(tmp_path: Path) -> None:
    marker = tmp_path / "killed"
    wrapper = fake_openclaw.install(tmp_path / "openclaw")
    real = wrapper.with_name("real")
    wrapper.rename(real)
    wrapper.write_text(
        f'#!/bin/sh\nif [ "$1 $2" = "config validate" ] && [ ! -e {marker} ]; then touch {marker}; kill -9 $$; fi\n'
        f'exec {real} "$@"\n'
    )
    wrapper.chmod(0o755)
    installation = await openclaw.find(str(wrapper), "2026.9.6", tmp_path / "cache")
    assert installation is not None
    (tmp_path / "home" / "run").mkdir(parents=True)
    checker, wrong = Checker(installation), {"gateway": {"mode": "local"}, "noSuchSetting": 1}
    assert await checker.issues(wrong, tmp_path / "home") == ()
    assert marker.exists()
    assert await checker.issues(wrong, tmp_path / "home") != ()


async def test_what_is_cheap_to_refuse_is_refused_before_openclaw_is_asked(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with one_bot(tmp_path, database, settings={"OPENCLAW_MAX_BOTS": "1"}) as (api, bot, _):
        wrong = {"configOverrides": {"tools": {"noSuchSetting": 1}}}
        for document, more, code in [
            (docs.BOT_UPDATE, {"botId": bot["id"], "expectedRevision": 99}, "STALE"),
            (docs.BOT_UPDATE, {"botId": bot["id"], "name": ""}, "BLANK"),
            (docs.BOT_CREATE, {"name": "Ito", "model": "nobody/echo"}, "INVALID"),
            (docs.BOT_CREATE, {"name": "Ito", "model": "local/echo"}, "LIMIT_REACHED"),
        ]:
            (error,) = (await api.run(document, input={**more, **wrong}))["userErrors"]
            assert (error["code"], "OpenClaw" in error["message"]) == (code, False)


async def test_models_that_openclaw_would_refuse_are_refused_by_their_path(
    database: dict[str, Any], tmp_path: Path
) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw")
    save = """mutation($input: ModelProviderSaveInput!) {
      modelProviderSave(input: $input) { modelProvider { id models } userErrors { code message field } }
    }"""
    async with running_server(environ(tmp_path, database, wrapper)) as api:
        good = {"id": "a", "contextWindow": 1000}
        for models, path, why in [
            ([good, {"id": "b", "contextWindow": "large"}], ["1", "contextWindow"], "expected number"),
            ([good, {"id": "b", "headers": {"x": "y"}}], ["1", "headers"], "known of a model are"),
            ([{"id": "b", "noSuchWord": 1}], ["0", "noSuchWord"], "known of a model are"),
        ]:
            answer = await api.run(save, input={"name": "other", "api": "OPENAI_COMPLETIONS", "models": models})
            (error,) = answer["userErrors"]
            assert (error["code"], error["field"]) == ("INVALID", ["models", *path])
            assert why in error["message"]
            assert answer["modelProvider"] is None
        answer = await api.run(save, input={"name": "other", "api": "OPENAI_COMPLETIONS", "models": [good]})
        assert answer["userErrors"] == []
        # What is kept is not asked about again, whatever OpenClaw is there by now.
        await DB.fetch("UPDATE model_provider SET models = $1::jsonb", json.dumps([good, {"id": "b", "old": 1}]))
        given = {"id": answer["modelProvider"]["id"], "name": "renamed", "api": "OPENAI_COMPLETIONS"}
        answer = await api.run(save, input=given | {"models": [good, {"id": "b", "old": 1}]})
        assert answer["userErrors"] == []
