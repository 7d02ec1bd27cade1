"""Journey 1 on OpenClaw itself, of the seed era and of today."""

import os
from pathlib import Path
from typing import Any

import pytest

from app.db.engine import DB
from app.gateway import install
from tests.harness import environ, running_server
from tests.journeys import documents as docs
from tests.journeys import story

#: Seconds one start of real OpenClaw may take on a busy machine.
PATIENCE = 150.0


def user_cache() -> Path:
    """Where installations are kept from one run to the next, as `scripts/serve` keeps them."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("CLAWNET_CACHE_DIR") or Path(base) / "clawnet")


@pytest.mark.openclaw
@pytest.mark.parametrize("version", ["2026.2.1", "2026.9.6"])
async def test_a_real_bot_lives_as_its_owner_wishes(version: str, database: dict[str, Any], tmp_path: Path) -> None:
    await install.ensure(version, user_cache(), print)
    real = {
        "CLAWNET_CACHE_DIR": str(user_cache()),
        "CLAWNET_OPENCLAW_VERSION": version,
        "CLAWNET_START_CACHE": "on",
        "CLAWNET_START_BUDGET": "140",
    }
    wanted = environ(tmp_path, database, None, **real)
    with story.local_model() as base_url:
        async with running_server(wanted) as api:
            bot = await story.live(api, base_url, PATIENCE)
            await a_failing_model_is_said_so(api, bot)
            token = api.token
        # It was running when the server stopped, so it runs when the server is back.
        async with running_server(wanted, token) as api, api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            again = await heard.until(lambda e: e["status"] == "ACTIVE", PATIENCE)
            assert again["bot"]["status"] == "ACTIVE"
    assert story.left_of(bot) == []


async def a_failing_model_is_said_so(api: Any, bot: dict[str, Any]) -> None:
    """The last start of the story, from which the next server takes over."""
    async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
        await api.run(docs.BOT_START, input={"botId": bot["id"], "wait": False})
        await heard.until(lambda e: e["status"] == "ACTIVE", PATIENCE)
    said = await api.run(docs.MESSAGE_SEND, input={"botId": bot["id"], "text": "fail 400"})
    assert said["reply"] is None, said
    assert said["userErrors"][0]["code"] == "GATEWAY_FAILED"
    row = await DB.fetch_one("SELECT openclaw_version FROM bot_process")
    assert row is not None
