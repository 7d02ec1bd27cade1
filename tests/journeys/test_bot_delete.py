"""Journey 4: a bot is deleted while it runs, and nothing of it is left."""

from pathlib import Path
from typing import Any

from app.db.engine import DB
from tests import fake_openclaw
from tests.harness import environ, running_server
from tests.journeys import documents as docs
from tests.journeys import story


async def test_a_deleted_bot_is_stopped_first_and_takes_everything_with_it(
    database: dict[str, Any], tmp_path: Path
) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw")
    async with running_server(environ(tmp_path, database, wrapper)) as api:
        await story.make_provider(api, "http://127.0.0.1:9/v1")
        bot = await story.make_bot(api, start=True)
        home = tmp_path / "data" / "openclaw" / "bots" / "hana"
        room = bot["rooms"][0]
        async with api.listen(docs.ROOM, names=[room]) as heard:
            await heard.until(lambda e: e["event"] == "bot:started")
            assert home.is_dir()
            gone = await api.run(docs.BOT_DELETE, input={"botId": bot["id"]})
            assert gone == {"deletedBotId": bot["id"], "userErrors": []}
            last = await heard.until(lambda e: e["event"] == "bot:deleted")
            # Who was slow to listen is told that the room has forgotten what was before that.
            told = [e["event"] for e in heard.seen]
            between = told[told.index("bot:started") + 1 : -1]
            assert between in (["bot:stopping", "bot:stopped"], ["bot:stopping", "room:resync"], ["room:resync"])
        assert story.left_of(bot) == []
        assert not home.exists()
        for table in ("bot", "bot_process", "bot_run", "bot_secret"):
            assert await DB.fetch(f"SELECT * FROM {table}") == []
        assert await api.run(docs.BOT_QUERY, by={"id": bot["id"]}) is None
        again = await api.run(docs.BOT_DELETE, input={"botId": bot["id"]})
        assert again["userErrors"][0]["code"] == "NOT_FOUND"
        # The room keeps its last word for who comes back later.
        async with api.listen(docs.ROOM, names=[room], after=heard.seen[-2]["cursor"]) as later:
            assert (await anext(later))["data"] == last["data"]
        # Its place is free again.
        assert (await story.make_bot(api))["agentId"] == "hana"
