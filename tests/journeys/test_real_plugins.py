"""A Discord channel on today's OpenClaw, whose plugin is a package that has to be installed first."""

import re
from pathlib import Path
from typing import Any

import pytest

from app.gateway import install
from app.gateway.plugins import Plugins
from app.gateway.start_cache import StartCache
from tests.graphql.test_channels import channel as make_channel
from tests.harness import environ, running_server
from tests.journeys import documents as docs
from tests.journeys import story
from tests.journeys.test_real_channels import started
from tests.journeys.test_real_openclaw import PATIENCE, user_cache
from tests.supervisor.test_plugins import DISCORD, LISTEN, UNREACHED, states, until

VERSION = "2026.9.6"
#: Shaped like one of Discord's, and nobody's.
TOKEN = "MTIzNDU2Nzg5MDEyMzQ1Njc4.Gabcde.abcdefghijklmnopqrstuvwxyz0123456789AB"
#: Seconds in which a registry that is away has to be noticed, on a machine that does other things as well.
SOON = 15.0


@pytest.mark.openclaw
async def test_discord_s_plugin_is_installed_once_and_its_gateway_is_called(
    database: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = await install.ensure(VERSION, user_cache(), print)
    # No word is said while it is filled, and that takes longer than a listener here waits for one.
    await StartCache(found, user_cache()).fill()
    home = tmp_path / "data" / "openclaw" / "bots" / "hana"
    real = {
        "CLAWNET_CACHE_DIR": str(user_cache()),
        "CLAWNET_OPENCLAW_VERSION": VERSION,
        "CLAWNET_START_CACHE": "on",
        "CLAWNET_START_BUDGET": "140",
        "CLAWNET_HEALTH_INTERVAL": "2",
    }
    with story.local_model() as base_url:
        async with running_server(environ(tmp_path, database, None, **real)) as api:
            await story.make_provider(api, base_url)
            bot = await story.make_bot(api)
            await make_channel(api, bot, **DISCORD | {"credentials": {"token": TOKEN}})
            wish = {"botId": bot["id"], "wait": False}

            # A port that nobody listens on.
            monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")
            async with api.listen(LISTEN, ids=[bot["id"]]) as heard:
                await api.run(docs.BOT_START, input=wish)
                await heard.until(lambda e: e["phase"] == "plugin", PATIENCE)
                await heard.until(lambda e: e["phase"] == "checking", SOON)
                await started(api, bot)
                await heard.until(lambda e: e["kind"] == "STARTED", PATIENCE)
                assert (await states(api, bot))["discord"] == ("ERROR", UNREACHED)
            monkeypatch.delenv("npm_config_registry")

            async with api.listen(LISTEN, ids=[bot["id"]]) as heard:
                await api.run(docs.BOT_RESTART, input={"botId": bot["id"], "wait": False})
                await heard.until(lambda e: (e["phaseProgress"] or {}).get("step") == "installing", PATIENCE)
                await heard.until(lambda e: e["phase"] == "checking", PATIENCE)
                assert max(e["phaseProgress"]["megabytes"] for e in heard.seen if e["phaseProgress"]) > 0
                await started(api, bot)
                await heard.until(lambda e: e["kind"] == "STARTED", PATIENCE)
                # Nobody lets it in, and it says so itself; a channel without its plugin is not listed at all.
                assert "does not open" not in (await until(api, bot, heard, discord="ERROR"))["discord"][1]
            assert re.search(r"\[default\] starting provider", (home / "logs" / "gateway.log").read_text())
            assert re.search(
                r"awaiting gateway readiness|gateway (metadata|websocket)|401|4004",
                (home / "logs" / "bot.log").read_text(),
            )

            await api.run(docs.BOT_STOP, input={"botId": bot["id"]})
            # By OpenClaw's own record, after a gateway had it in hand: the next start finds nothing to do.
            assert await Plugins(found, user_cache()).missing(home, {"channels": {"discord": {}}}) == []
    assert story.left_of(bot) == []
