"""Changing the settings of a bot while OpenClaw itself runs it, of the seed era and of today."""

from pathlib import Path
from typing import Any

import pytest

from app.gateway import install
from tests.harness import environ, running_server
from tests.journeys import documents as docs
from tests.journeys import story
from tests.journeys.recording import recording_model
from tests.journeys.test_real_openclaw import PATIENCE, user_cache
from tests.supervisor.test_reload import change, until_settled
from tests.supervisor.test_runner import change_unasked


@pytest.mark.openclaw
@pytest.mark.parametrize("version", ["2026.2.1", "2026.9.6"])
async def test_a_real_bot_takes_new_settings_while_it_runs(
    version: str, database: dict[str, Any], tmp_path: Path
) -> None:
    await install.ensure(version, user_cache(), print)
    real = {
        "CLAWNET_CACHE_DIR": str(user_cache()),
        "CLAWNET_OPENCLAW_VERSION": version,
        "CLAWNET_START_CACHE": "on",
        "CLAWNET_START_BUDGET": "140",
    }
    with recording_model() as model:
        async with running_server(environ(tmp_path, database, None, **real)) as api:
            provider = {"name": "local", "baseUrl": model.base_url, "apiKey": "sk-first-0123456789"}
            made = await api.run(docs.PROVIDER_SAVE, input=provider)
            provider |= {"id": made["modelProvider"]["id"], "apiKey": "sk-second-9876543210"}
            bot = await story.make_bot(api, systemPrompt="You are Hana.")
            started = await api.run(docs.BOT_START, input={"botId": bot["id"]})
            pid = started["bot"]["gateway"]["pid"]

            async def say(text: str) -> str:
                """Everything the model was asked for it."""
                del model.asked[:]
                said = await api.run(docs.MESSAGE_SEND, input={"botId": bot["id"], "text": text})
                assert said["userErrors"] == [], said
                return "\n".join(f"{asked.key} {asked.body}" for asked in model.asked)

            asked = await say("One")
            assert "sk-first-0123456789" in asked
            assert "You are Hana." in asked
            assert (await api.run(docs.PROVIDER_SAVE, input=provider))["userErrors"] == []
            await change(api, bot, model="local/fake", systemPrompt="You are Hana the second.")
            assert (await until_settled(api, bot, PATIENCE))["config"]["rolledBack"] is None
            asked = await say("Two")
            assert "sk-second-9876543210" in asked
            assert "sk-first-0123456789" not in asked
            assert '"model":"fake"' in asked.replace(" ", "")
            assert "You are Hana the second." in asked

            # New says nothing of this one in its log, old says that it is read at its next use.
            await change(api, bot, configOverrides={"session": {"dmScope": "per-peer"}})
            await until_settled(api, bot, PATIENCE)

            # OpenClaw's own rules are asked first; what they were not asked about is taken back.
            wrong = {"botId": bot["id"], "configOverrides": {"tools": {"noSuchSetting": 1}}}
            (error,) = (await api.run(docs.BOT_UPDATE, input=wrong))["userErrors"]
            assert (error["code"], error["field"]) == ("INVALID", ["configOverrides", "tools"])
            assert "noSuchSetting" in error["message"]
            async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
                await change_unasked(api, bot)
                await heard.until(lambda e: e["kind"] == "CONFIG_ROLLED_BACK", PATIENCE)
            now = await api.run(docs.BOT_QUERY, by={"id": bot["id"]})
            assert "noSuchSetting" in now["config"]["rolledBack"]
            assert (now["status"], now["gateway"]["pid"]) == ("ACTIVE", pid)
            await say("Three")

            # What only a start reads, the bot is started anew for.
            await change(api, bot, configOverrides={"commands": {"native": False}})
            now = await until_settled(api, bot, PATIENCE)
            assert now["gateway"]["pid"] != pid
            assert (now["config"]["rolledBack"], now["gateway"]["restartCount"]) == (None, 0)
    assert story.left_of(bot) == []
