"""What is done to bots and providers stands in the audit trail, by whom, and without what they typed."""

from pathlib import Path
from typing import Any

from app.db.engine import DB
from tests import fake_openclaw
from tests.graphql.people import CANARY, code, house, person, provider
from tests.journeys import documents as docs
from tests.journeys import story
from tests.journeys.story import local_model


async def trail(after: int = 0) -> list[tuple[str, str | None, str | None, dict[str, Any]]]:
    """Action, type of the subject, refusal and detail of each entry."""
    rows = await DB.fetch("SELECT action, subject_type, refusal, detail FROM audit_entry ORDER BY id")
    return [(row["action"], row["subject_type"], row["refusal"], row["detail"]) for row in rows[after:]]


async def test_every_change_of_a_bot_is_in_the_trail_by_name_and_without_its_words(
    database: dict[str, Any], tmp_path: Path
) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw")
    with local_model() as url:
        async with house(database, tmp_path, wrapper) as api:
            mia = await person(api)
            before = len(await trail())
            own = await provider(mia, "own", baseUrl=url, models=[{"id": "echo"}], apiKey=CANARY)
            await provider(mia, "own", id=own["id"], baseUrl=url, models=[{"id": "echo"}])
            bot = await story.make_bot(mia, model="own/echo", systemPrompt="canary words", description="canary words")
            given = {"botId": bot["id"]}
            for document, more in (
                (docs.BOT_UPDATE, {"tags": ["canary"], "description": "canary"}),
                (docs.BOT_UPDATE, {}),
                (docs.BOT_START, {}),
                (docs.BOT_START, {}),  # it runs already: nothing was done
                (docs.MESSAGE_SEND, {"text": "canary words"}),
                (docs.BOT_RESTART, {}),
                (docs.BOT_STOP, {}),
                (docs.BOT_STOP, {}),
                (docs.BOT_DELETE, {}),
            ):
                answer = await mia.run(document, input=given | more)
                assert answer["userErrors"] == [], document
            assert code(await mia.run(docs.BOT_DELETE, input=given)) == "NOT_FOUND"
            deleted = await mia.run(
                "mutation($id: ID!) { modelProviderDelete(input: {id: $id}) { deletedId userErrors { code } } }",
                id=own["id"],
            )
            assert deleted["userErrors"] == []
            assert await trail(before) == [
                ("modelProviderSave", "ModelProvider", None, {"name": "own", "shared": False, "keyChanged": True}),
                ("modelProviderSave", "ModelProvider", None, {"name": "own", "shared": False, "keyChanged": False}),
                ("botCreate", "Bot", None, {"agentId": "hana", "start": False}),
                ("botUpdate", "Bot", None, {"changed": ["description", "tags"]}),
                ("botStart", "Bot", None, {}),
                ("messageSend", "Bot", None, {}),
                ("botRestart", "Bot", None, {}),
                ("botStop", "Bot", None, {}),
                ("botDelete", "Bot", None, {"agentId": "hana", "channels": 0, "bindings": 0}),
                ("botDelete", "Bot", "NOT_FOUND", {"field": ["botId"]}),
                ("modelProviderDelete", "ModelProvider", None, {"name": "own"}),
            ]
            who = await DB.fetch(
                "SELECT DISTINCT u.name, a.token, a.address FROM audit_entry a JOIN app_user u ON u.id = a.actor "
                "WHERE a.action LIKE 'bot%'"
            )
            assert [(row["name"], row["token"], row["address"]) for row in who] == [
                ("Mia", (mia.token or "")[5:17], "127.0.0.1")
            ]
            everything = str(await DB.fetch("SELECT * FROM audit_entry"))
            assert CANARY not in everything
            assert "canary" not in everything


async def test_a_change_that_is_taken_back_leaves_no_entry_but_its_refusal(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path) as api:
        bot, before = await story.make_bot(api), len(await trail())
        refused = await api.run(docs.BOT_UPDATE, input={"botId": bot["id"], "description": "fine", "model": "no/such"})
        assert code(refused) == "INVALID"
        assert await trail(before) == [("botUpdate", "Bot", "INVALID", {"field": ["model"]})]
