"""What was done to a bot's parts is told as it was done, also if the bot is gone by then."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from app.db.engine import DB
from app.services.bindings import Bindings
from app.services.channels import Channels
from tests.graphql.people import house
from tests.graphql.test_channels import channel
from tests.journeys import story

CREATE = """mutation($input: ChannelCreateInput!) { channelCreate(input: $input) {
  channel { name bot { id agentId config { revision } } } userErrors { code } } }"""
BIND = """mutation($input: BindingCreateInput!) { bindingCreate(input: $input) {
  binding { peerId bot { id agentId config { revision } } } userErrors { code } } }"""
DELETE = """mutation($input: ChannelDeleteInput!) { channelDelete(input: $input) {
  deletedChannelId bot { id } userErrors { code } } }"""


def deleting_afterwards(act: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Does it, and then somebody's deletion of the bot is faster than the answer."""

    async def then_gone(*given: Any) -> Any:
        result = await act(*given)
        await DB.fetch("DELETE FROM bot")
        return result

    return then_gone


async def test_a_part_of_a_bot_is_answered_with_the_bot_that_it_was_written_to(
    database: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(database, tmp_path) as api:
        bot = await story.make_bot(api)
        monkeypatch.setattr(Channels, "create", deleting_afterwards(Channels.create))
        given = {"botId": bot["id"], "provider": "telegram", "name": "x", "accountId": "a", "enabled": False}
        made = await api.run(CREATE, input=given)
        told = {"id": bot["id"], "agentId": "hana", "config": {"revision": 2}}
        assert made == {"channel": {"name": "x", "bot": told}, "userErrors": []}
        bot = await story.make_bot(api)
        monkeypatch.setattr(Bindings, "create", deleting_afterwards(Bindings.create))
        made = await api.run(BIND, input={"botId": bot["id"], "peerKind": "direct", "peerId": "1"})
        assert made == {"binding": {"peerId": "1", "bot": told | {"id": bot["id"]}}, "userErrors": []}


async def test_a_part_that_was_deleted_is_so_without_its_bot(
    database: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(database, tmp_path) as api:
        made = await channel(api, await story.make_bot(api))
        monkeypatch.setattr(Channels, "delete", deleting_afterwards(Channels.delete))
        gone = await api.run(DELETE, input={"channelId": made["id"]})
        assert gone == {"deletedChannelId": made["id"], "bot": None, "userErrors": []}
