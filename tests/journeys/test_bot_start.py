"""Journey 1: a bot is made, started, talked to, killed, comes back, and is stopped."""

from pathlib import Path
from typing import Any

import pytest

from tests import fake_openclaw
from tests.harness import environ, running_server
from tests.journeys import documents as docs
from tests.journeys import story


@pytest.mark.parametrize("version", ["2026.2.1", "2026.9.6"])
async def test_a_bot_lives_as_its_owner_wishes(version: str, database: dict[str, Any], tmp_path: Path) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw", version)
    with story.local_model() as base_url:
        async with running_server(environ(tmp_path, database, wrapper)) as api:
            await story.live(api, base_url, patience=20)
    assert fake_openclaw.violations(wrapper) == []


async def test_a_bot_runs_again_after_the_server_was_stopped_and_started(
    database: dict[str, Any], tmp_path: Path
) -> None:
    wanted = environ(tmp_path, database, fake_openclaw.install(tmp_path / "openclaw"))
    async with running_server(wanted) as api:
        await story.make_provider(api, "http://127.0.0.1:9/v1")
        bot = await story.make_bot(api)
        first = (await api.run(docs.BOT_START, input={"botId": bot["id"]}))["bot"]
        token = api.token
    assert not story.is_alive(first["gateway"]["pid"])
    async with running_server(wanted, token) as api, api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
        again = await heard.until(lambda e: e["status"] == "ACTIVE")
        assert again["pid"] != first["gateway"]["pid"]
        assert again["bot"]["status"] == "ACTIVE"
