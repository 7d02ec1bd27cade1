"""A Telegram channel on OpenClaw itself, of the seed era and of today, with a stand-in for Telegram."""

import os
import re
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from app.gateway import channel_log, install, login
from tests import fake_telegram
from tests.fake_telegram import Telegram
from tests.harness import Api, Heard, environ, running_server
from tests.journeys import documents as docs
from tests.journeys import story
from tests.journeys.test_real_openclaw import PATIENCE, user_cache
from tests.supervisor.test_reload import lying_in, until_settled

OLD, NEW = "2026.2.1", "2026.9.6"
RIGHT, OTHER, REFUSED = "6881:AAAright-0123456789", "6882:AAAother-0123456789", "999:AAArefused-0123456789"
#: Seconds until a channel has made up its mind; old OpenClaw gives a token that is refused a few tries.
SOON = 60.0

CHANNEL = "id status errorMessage lastConnectedAt credentialKeys pairings { code peer requestedAt }"
ERRORS = "userErrors { code message field }"
CREATE = f"mutation($input: ChannelCreateInput!) {{ channelCreate(input: $input) {{ channel {{ id }} {ERRORS} }} }}"
SET = (
    "mutation($input: ChannelCredentialsSetInput!) "
    f"{{ channelCredentialsSet(input: $input) {{ channel {{ id }} {ERRORS} }} }}"
)
UPDATE = f"mutation($input: ChannelUpdateInput!) {{ channelUpdate(input: $input) {{ channel {{ id }} {ERRORS} }} }}"
LOGIN = f"subscription($id: ID!) {{ channelLogin(channelId: $id) {{ state code {ERRORS} }} }}"
READ = f"query($id: ID!) {{ node(id: $id) {{ ... on Channel {{ {CHANNEL} }} }} }}"


def resolve(field: str) -> str:
    return (
        f"mutation($input: PairingInput!) {{ {field}(input: $input) {{ channel {{ pairings {{ code }} }} {ERRORS} }} }}"
    )


@asynccontextmanager
async def house(
    version: str, telegram: Telegram, folder: Path, database: dict[str, Any], base_url: str
) -> AsyncGenerator[Api]:
    """A server whose OpenClaw of this version takes the stand-in for Telegram."""
    found = await install.ensure(version, user_cache(), print)
    assert found.node is not None
    assert found.package_root is not None
    openclaw = None
    if version == OLD:
        openclaw = await anyio.to_thread.run_sync(
            fake_telegram.wrapper, folder / "openclaw", found.package_root, found.node, telegram
        )
    real = {
        "CLAWNET_CACHE_DIR": str(user_cache()),
        "CLAWNET_OPENCLAW_VERSION": version,
        # The wrapper is another one each time, and would leave a cache of its own.
        "CLAWNET_START_CACHE": "on" if version == NEW else "off",
        "CLAWNET_START_BUDGET": "140",
        "CLAWNET_HEALTH_INTERVAL": "2",
    }
    async with running_server(environ(folder, database, openclaw, **real)) as api:
        await story.make_provider(api, base_url)
        yield api


async def opened(api: Api, bot: dict[str, Any], version: str, telegram: Telegram, token: str) -> str:
    settings: dict[str, Any] = {"dmPolicy": "pairing"}
    if version == NEW:
        settings |= {"apiRoot": telegram.url}
    made = await api.run(
        CREATE,
        input={
            "botId": bot["id"], "provider": "telegram", "name": "Telegram", "settings": settings,
            "credentials": {"botToken": token},
        },
    )  # fmt: skip
    assert made["userErrors"] == [], made
    return made["channel"]["id"]


async def opened_whatsapp(api: Api, bot: dict[str, Any]) -> str:
    made = await api.run(CREATE, input={"botId": bot["id"], "provider": "whatsapp", "name": "WhatsApp"})
    assert made["userErrors"] == [], made
    return made["channel"]["id"]


async def started(api: Api, bot: dict[str, Any]) -> int:
    """The gateway's pid, however long a cold start takes here."""
    answer = await api.run(docs.BOT_START, input={"botId": bot["id"]})
    with anyio.fail_after(PATIENCE):
        while answer["bot"]["status"] == "STARTING":
            answer = await api.run(docs.BOT_START, input={"botId": bot["id"]})
    assert answer["bot"]["status"] == "ACTIVE", answer
    return answer["bot"]["gateway"]["pid"]


async def until(api: Api, heard: Heard, channel: str, status: str) -> dict[str, Any]:
    """The channel, once it is so; waits for the room's events."""
    while (found := await api.run(READ, id=channel))["status"] != status:
        await heard.until(lambda e: e["kind"] == "CHANNEL_CHANGED", SOON)
    return found


async def told(telegram: Telegram, token: str, pattern: str) -> re.Match[str]:
    """What the bot said that fits."""
    with anyio.fail_after(SOON):
        while True:
            for said in await anyio.to_thread.run_sync(telegram.sent, token):
                if found := re.search(pattern, said["text"]):
                    return found
            await anyio.sleep(0.1)


@pytest.mark.openclaw
@pytest.mark.parametrize("version", [OLD, NEW])
async def test_a_real_bot_is_talked_to_over_telegram(
    version: str, database: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The stand-in's polls are short, and a minute is long for a test.
    monkeypatch.setattr(channel_log, "LASTS", timedelta(seconds=12))
    monkeypatch.setattr(login, "CODE_WITHIN", 5.0)
    with fake_telegram.running() as telegram, story.local_model() as base_url:
        async with house(version, telegram, tmp_path, database, base_url) as api:
            bot = await story.make_bot(api)
            channel = await opened(api, bot, version, telegram, RIGHT)
            # New OpenClaw would have to download a plugin for it.
            linkable = await opened_whatsapp(api, bot) if version == OLD else None
            async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
                pid = await started(api, bot)
                connected = await until(api, heard, channel, "CONNECTED")
                assert connected["lastConnectedAt"] is not None
                assert RIGHT in telegram.tokens()
                await strangers_are_let_in_or_sent_away(api, telegram, heard, channel)
                await another_token_connects_it_anew(api, telegram, heard, channel)
                await it_is_closed_and_opened_again(api, telegram, heard, bot, channel, tmp_path)
                if linkable:
                    await somebody_else_who_polls_shows(api, telegram, heard, channel)
                    await whatsapp_that_is_out_of_reach_gives_no_code(api, heard, linkable)
                now = await api.run(docs.BOT_QUERY, by={"id": bot["id"]})
                assert (now["status"], now["gateway"]["pid"]) == ("ACTIVE", pid)
    assert story.left_of(bot) == []


@pytest.mark.openclaw
async def test_channels_that_openclaw_holds_back_after_crashes_are_started_again(
    database: dict[str, Any], tmp_path: Path
) -> None:
    with fake_telegram.running() as telegram, story.local_model() as base_url:
        async with house(NEW, telegram, tmp_path, database, base_url) as api:
            bot = await story.make_bot(api)
            channel = await opened(api, bot, NEW, telegram, RIGHT)
            for _ in range(3):
                os.kill(await started(api, bot), signal.SIGKILL)
                await crashed(api, bot)
            await started(api, bot)
            async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
                held_back = await until(api, heard, channel, "ERROR")
                assert "after several crashes" in held_back["errorMessage"]
                await until(api, heard, channel, "CONNECTED")


async def crashed(api: Api, bot: dict[str, Any]) -> None:
    with anyio.fail_after(SOON):
        while (await api.run(docs.BOT_QUERY, by={"id": bot["id"]}))["status"] == "ACTIVE":
            await anyio.sleep(0.05)


async def strangers_are_let_in_or_sent_away(api: Api, telegram: Telegram, heard: Heard, channel: str) -> None:
    telegram.says(RIGHT, "Hello", user=4200001, name="Ada")
    code = (await told(telegram, RIGHT, r"\b([A-HJ-NP-Z2-9]{8})\b"))[1]
    await heard.until(lambda e: e["kind"] == "CHANNEL_CHANGED", SOON)
    (waiting,) = (await api.run(READ, id=channel))["pairings"]
    assert waiting["code"] == code
    assert waiting["peer"]["id"] == "4200001"
    wrong = await api.run(resolve("pairingApprove"), input={"channelId": channel, "code": "NOBODYS2"})
    assert [each["code"] for each in wrong["userErrors"]] == ["NOT_FOUND"]
    let_in = await api.run(resolve("pairingApprove"), input={"channelId": channel, "code": code})
    assert let_in == {"channel": {"pairings": []}, "userErrors": []}
    telegram.says(RIGHT, "Good morning", user=4200001, name="Ada")
    await told(telegram, RIGHT, "Good morning")

    telegram.says(RIGHT, "Hello", user=4200002, name="Ben")
    await heard.until(lambda e: e["kind"] == "CHANNEL_CHANGED", SOON)
    (waiting,) = (await api.run(READ, id=channel))["pairings"]
    sent_away = await api.run(resolve("pairingDismiss"), input={"channelId": channel, "code": waiting["code"]})
    assert sent_away == {"channel": {"pairings": []}, "userErrors": []}


async def another_token_connects_it_anew(api: Api, telegram: Telegram, heard: Heard, channel: str) -> None:
    for token, status in ((REFUSED, "ERROR"), (OTHER, "CONNECTED")):
        changed = await api.run(SET, input={"channelId": channel, "credentials": {"botToken": token}})
        assert changed["userErrors"] == [], changed
        found = await until(api, heard, channel, status)
        assert token in telegram.tokens()
        if status == "ERROR":
            assert "refuses the credentials" in found["errorMessage"]
            assert token not in found["errorMessage"]


async def it_is_closed_and_opened_again(
    api: Api, telegram: Telegram, heard: Heard, bot: dict[str, Any], channel: str, folder: Path
) -> None:
    await api.run(UPDATE, input={"channelId": channel, "enabled": False})
    await until(api, heard, channel, "DISCONNECTED")
    await until_settled(api, bot, SOON)
    assert lying_in(folder, OTHER) == []
    telegram.says(OTHER, "Are you there?", user=4200001, name="Ada")
    await api.run(UPDATE, input={"channelId": channel, "enabled": True})
    # It had stopped asking, so this waited for it.
    await told(telegram, OTHER, "Are you there")
    await until(api, heard, channel, "CONNECTED")
    assert lying_in(folder, OTHER) != []


async def somebody_else_who_polls_shows(api: Api, telegram: Telegram, heard: Heard, channel: str) -> None:
    with telegram.somebody_else_polls(OTHER):
        said = (await until(api, heard, channel, "ERROR"))["errorMessage"]
    assert said.startswith("somebody else receives this account's messages")
    assert "Conflict: terminated by other getUpdates request" in said
    assert OTHER not in said
    await until(api, heard, channel, "CONNECTED")


async def whatsapp_that_is_out_of_reach_gives_no_code(api: Api, heard: Heard, channel: str) -> None:
    assert "not linked to an account" in (await until(api, heard, channel, "ERROR"))["errorMessage"]
    async with api.listen(LOGIN, id=channel) as steps:
        failed = await steps.until(lambda step: step["state"] == "FAILED", SOON)
    assert failed["code"] is None
    assert "got no code" in failed["userErrors"][0]["message"]
