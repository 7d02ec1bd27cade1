"""One wish for many bots: each gets its own answer, and what goes wrong with one is nothing to the others."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import anyio

from app.db.engine import DB
from tests import fake_openclaw
from tests.graphql.people import ERRORS, Caller, global_id, house, person, refusals
from tests.harness import PATIENCE
from tests.journeys import documents as docs
from tests.journeys import story

CONTROL = f"""mutation($input: BotsControlInput!) {{
  botsControl(input: $input) {{
    bots {{ id desiredState }} results {{ botId bot {{ id }} userError {{ code message field }} }} {ERRORS}
    clientMutationId }}
}}"""


async def control(api: Caller, action: str, ids: list[str]) -> dict[str, Any]:
    return await api.run(CONTROL, input={"botIds": ids, "action": action})


async def test_each_bot_has_its_own_answer_in_the_order_asked_for(database: dict[str, Any], tmp_path: Path) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw")
    async with house(database, tmp_path, wrapper) as api:
        mia = await person(api)
        one, two, gone = [await story.make_bot(mia, f"Bot {n}") for n in range(3)]
        foreign = await story.make_bot(api, "Foreign")
        assert (await mia.run(docs.BOT_DELETE, input={"botId": gone["id"]}))["userErrors"] == []
        before = await DB.fetch("SELECT * FROM bot WHERE id = $1", UUID(foreign["databaseId"]))
        unknown = [global_id(name, str(uuid4())) for name in ("Bot", "User")]
        nobody_s = [foreign["id"], gone["id"], *unknown, "", "\0"]
        asked = [two["id"], *nobody_s, two["id"], one["id"], "x", "x", one["id"]]
        answer = await control(mia, "START", asked)
        distinct = list(dict.fromkeys(asked))
        assert [each["botId"] for each in answer["results"]] == distinct
        # Foreign, deleted, missing and mistyped ones are answered alike, each at its place.
        wrong = [text for text in distinct if text not in (one["id"], two["id"])]
        for each in answer["results"]:
            if each["botId"] in wrong:
                error = {
                    "code": "NOT_FOUND",
                    "message": "there is no such bot",
                    "field": ["botIds", str(asked.index(each["botId"]))],
                }
                assert (each["bot"], each["userError"]) == (None, error)
            else:
                assert (each["bot"], each["userError"]) == ({"id": each["botId"]}, None)
        assert answer["userErrors"] == [each["userError"] for each in answer["results"] if each["userError"]]
        assert len(answer["userErrors"]) == len(wrong)
        refused = "SELECT detail FROM audit_entry WHERE action = 'botStart' AND refusal = 'NOT_FOUND' ORDER BY id"
        assert [row["detail"]["field"] for row in await DB.fetch(refused)] == [
            error["field"] for error in answer["userErrors"]
        ]
        assert answer["bots"] == [{"id": bot["id"], "desiredState": "RUNNING"} for bot in (two, one)]
        assert await DB.fetch("SELECT * FROM bot WHERE id = $1", UUID(foreign["databaseId"])) == before
        pids: dict[str, int] = {}
        for bot in (one, two):
            async with mia.listen(docs.BOT_STATUS, ids=[bot["id"]]) as ear:
                pids[bot["id"]] = (await ear.until(lambda event: event["status"] == "ACTIVE"))["pid"]
        # Each was started once, though one was named twice.
        generations = await DB.fetch("SELECT generation FROM bot WHERE desired = 'RUNNING'")
        assert [row["generation"] for row in generations] == [2, 2]
        assert (await control(mia, "RESTART", [one["id"]]))["userErrors"] == []
        async with mia.listen(docs.BOT_STATUS, ids=[one["id"]]) as ear:
            await ear.until(lambda event: event["status"] == "ACTIVE" and event["pid"] != pids[one["id"]])
        assert (await control(mia, "STOP", [one["id"], two["id"]]))["userErrors"] == []
        for bot in (one, two):
            async with mia.listen(docs.BOT_STATUS, ids=[bot["id"]]) as ear:
                await ear.until(lambda event: event["status"] == "INACTIVE")
            assert story.left_of(bot) == []
    assert fake_openclaw.violations(wrapper) == []


async def test_too_many_and_none_at_all_are_refused(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        bot = await story.make_bot(api)
        cases: list[tuple[dict[str, Any], str, list[str]]] = [
            ({"botIds": [], "action": "START"}, "BLANK", ["botIds"]),
            ({"botIds": [bot["id"]] * 101, "action": "START"}, "TOO_LONG", ["botIds"]),
        ]
        assert await refusals(api, CONTROL, cases) == []
        assert (await control(api, "STOP", [bot["id"]] * 100))["bots"] == [{"id": bot["id"], "desiredState": "STOPPED"}]
        wrong = await api.ask(CONTROL, input={"botIds": [bot["id"]], "action": "DELETE"})
        assert wrong["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"
        assert await DB.fetch("SELECT * FROM bot WHERE desired <> 'STOPPED'") == []


async def test_a_hundred_bots_are_started_with_one_entry_each_in_the_audit_trail(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path, OPENCLAW_MAX_BOTS="100") as api:
        mia = await person(api)
        made = await asyncio.gather(*[story.make_bot(mia, agentId=f"b{n:03}") for n in range(100)])
        answer = await control(mia, "START", [bot["id"] for bot in made])
        assert answer["userErrors"] == []
        assert [bot["id"] for bot in answer["bots"]] == [bot["id"] for bot in made]
        entries = await DB.fetch("SELECT subject FROM audit_entry WHERE action = 'botStart' AND refusal IS NULL")
        assert sorted(str(row["subject"]) for row in entries) == sorted(bot["databaseId"] for bot in made)


async def test_a_bot_that_somebody_holds_keeps_none_of_the_others_waiting(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path) as api:
        made = [await story.make_bot(api, f"Bot {n}") for n in range(8)]
        held = UUID(made[0]["databaseId"])
        async with DB.transaction():
            await DB.fetch("SELECT id FROM bot WHERE id = $1 FOR UPDATE", held)
            waiting = asyncio.create_task(control(api, "START", [bot["id"] for bot in made]))
            with anyio.fail_after(PATIENCE):
                while True:
                    rows = await DB.fetch("SELECT id FROM bot WHERE desired = 'RUNNING'")
                    if len(rows) == len(made) - 1:
                        break
                    await asyncio.sleep(0.01)
            assert not waiting.done()
            # Deleted before its turn comes: its own answer, and nobody else's.
            await DB.fetch("UPDATE bot SET desired = 'DELETED', generation = generation + 1 WHERE id = $1", held)
        answer = await waiting
        assert [each["userError"] and each["userError"]["code"] for each in answer["results"]] == [
            "NOT_FOUND", *[None] * 7,
        ]  # fmt: skip
        assert [bot["id"] for bot in answer["bots"]] == [bot["id"] for bot in made[1:]]
