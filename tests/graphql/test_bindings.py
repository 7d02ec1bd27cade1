"""Bindings over the API: which are refused, and in which order they reach a bot's configuration."""

import asyncio
import json
from pathlib import Path
from typing import Any

from app.db.engine import DB
from tests import fake_openclaw
from tests.graphql.people import Caller, code, house, person, refusals
from tests.graphql.test_channels import DELETE as CHANNEL_DELETE
from tests.graphql.test_channels import UPDATE as CHANNEL_UPDATE
from tests.graphql.test_channels import _mutation, channel, token
from tests.journeys import documents as docs
from tests.journeys import story

BINDING = "id peerKind peerId accountId priority createdAt channel { id } bot { id }"
CREATE = _mutation("bindingCreate", f"binding {{ {BINDING} }}")
UPDATE = _mutation("bindingUpdate", f"binding {{ {BINDING} }}")
DELETE = _mutation("bindingDelete", "deletedBindingId bot { id }")
LIST = f"""query($by: BotBy!) {{ bot(by: $by) {{
  bindings {{ nodes {{ {BINDING} }} totalCount }} config {{ revision }} }} }}"""


async def bind(api: Caller, bot: dict[str, Any], **more: Any) -> dict[str, Any]:
    made = await api.run(CREATE, input={"botId": bot["id"], **more})
    assert made["userErrors"] == [], made
    return made["binding"]


async def seen(api: Caller, bot: dict[str, Any]) -> dict[str, Any]:
    return await api.run(LIST, by={"id": bot["id"]})


async def test_a_binding_is_made_replaced_and_deleted(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        mia = await person(api)
        bot = await story.make_bot(mia)
        on = await channel(mia, bot, credentials={"botToken": token(1)})
        made = await bind(mia, bot, channelId=on["id"], peerKind="dm", peerId=" 42 ", priority=5)
        expected = {"peerKind": "direct", "peerId": "42", "accountId": None, "priority": 5, "channel": {"id": on["id"]}}
        assert made.items() >= (expected | {"bot": {"id": bot["id"]}}).items()
        found = await seen(mia, bot)
        assert found == {"bindings": {"nodes": [made], "totalCount": 1}, "config": {"revision": 3}}
        same = {"bindingId": made["id"], "channelId": on["id"], "peerKind": "direct", "peerId": "42", "priority": 5}
        assert (await mia.run(UPDATE, input=same))["binding"] == made
        assert (await seen(mia, bot))["config"] == {"revision": 3}
        changed = (await mia.run(UPDATE, input={"bindingId": made["id"], "accountId": "default"}))["binding"]
        anybody = {"peerKind": None, "peerId": None, "accountId": "default", "priority": 0, "channel": None}
        assert changed == made | anybody
        gone = await mia.run(DELETE, input={"bindingId": made["id"]})
        assert (gone["deletedBindingId"], gone["bot"]) == (made["id"], {"id": bot["id"]})
        assert (await seen(mia, bot)) == {"bindings": {"nodes": [], "totalCount": 0}, "config": {"revision": 5}}
        assert code(await mia.run(DELETE, input={"bindingId": made["id"]})) == "NOT_FOUND"
        rows = await DB.fetch("SELECT action FROM audit_entry WHERE action LIKE 'binding%' AND refusal IS NULL")
        assert sorted(row["action"] for row in rows) == ["bindingCreate", "bindingDelete", "bindingUpdate"]


async def test_what_would_never_match_and_what_is_there_already_is_refused(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path) as api:
        mia = await person(api)
        bot, other = await story.make_bot(mia), await story.make_bot(mia)
        leo = await person(api, "Leo")
        foreign = await story.make_bot(leo)
        foreigns = await channel(leo, foreign)
        on, elsewhere = await channel(mia, bot), await channel(mia, other)
        at = {"botId": bot["id"]}
        cases: list[tuple[dict[str, Any], str, list[str]]] = [
            (at | {"peerKind": "crowd"}, "INVALID", ["peerKind"]),
            (at | {"peerId": "42"}, "INVALID", ["peerKind"]),
            (at | {"peerKind": "direct", "peerId": " "}, "BLANK", ["peerId"]),
            (at | {"peerKind": "direct", "peerId": "x" * 201}, "TOO_LONG", ["peerId"]),
            (at | {"peerKind": "direct", "peerId": "a\0b"}, "INVALID", ["peerId"]),
            (at | {"accountId": "A B"}, "INVALID", ["accountId"]),
            (at | {"priority": 1_000_001}, "INVALID", ["priority"]),
            (at | {"channelId": "x"}, "NOT_FOUND", ["channelId"]),
            (at | {"channelId": elsewhere["id"]}, "NOT_FOUND", ["channelId"]),
            (at | {"channelId": foreigns["id"]}, "NOT_FOUND", ["channelId"]),
            (at | {"channelId": on["id"], "accountId": "second"}, "INVALID", ["accountId"]),
            ({"botId": foreign["id"]}, "NOT_FOUND", ["botId"]),
        ]
        assert await refusals(mia, CREATE, cases) == []
        assert await DB.fetch("SELECT * FROM binding") == []
        first = await bind(mia, bot, channelId=on["id"], peerKind="direct", peerId="42")
        second = await bind(mia, bot, channelId=on["id"], peerKind="group", peerId="42")
        again = at | {"channelId": on["id"], "accountId": "default", "peerKind": "dm", "peerId": "42", "priority": 9}
        assert code(await mia.run(CREATE, input=again)) == "TAKEN"
        moved = {"bindingId": second["id"], "channelId": on["id"], "peerKind": "direct", "peerId": "42"}
        assert code(await mia.run(UPDATE, input=moved)) == "TAKEN"
        assert (
            code(await mia.run(UPDATE, input={"bindingId": first["id"], "channelId": elsewhere["id"]})) == "NOT_FOUND"
        )
        await bind(mia, other, peerKind="direct", peerId="42")
        assert [b["id"] for b in (await seen(mia, bot))["bindings"]["nodes"]] == [first["id"], second["id"]]


async def test_of_many_that_say_the_same_at_once_one_is_made(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        bot = await story.make_bot(api)
        answers = await asyncio.gather(*[api.run(CREATE, input={"botId": bot["id"]}) for _ in range(6)])
        assert sorted(code(answer) or "made" for answer in answers) == ["TAKEN"] * 5 + ["made"]


async def test_bindings_reach_the_configuration_in_order_and_go_with_their_channel(
    database: dict[str, Any], tmp_path: Path
) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw")
    async with house(database, tmp_path, wrapper) as api:
        bot = await story.make_bot(api)
        one = await channel(api, bot, credentials={"botToken": token(1)})
        two = await channel(api, bot, accountId="second", credentials={"botToken": token(2)})
        await bind(api, bot)
        await bind(api, bot, channelId=two["id"], priority=1)
        await bind(api, bot, channelId=one["id"], peerKind="group", peerId="g")
        await bind(api, bot, channelId=one["id"], peerKind="group", peerId="h", priority=7)

        async def written() -> list[tuple[str, str, str | None]]:
            assert (await api.run(docs.BOT_RESTART, input={"botId": bot["id"]}))["userErrors"] == []
            tree = json.loads((tmp_path / "data/openclaw/bots/hana/config.json5").read_text())
            matches = [entry["match"] for entry in tree.get("bindings", [])]
            assert {entry["agentId"] for entry in tree.get("bindings", [])} <= {"hana"}
            return [(m["channel"], m["accountId"], m.get("peer", {}).get("id")) for m in matches]

        assert await written() == [
            ("telegram", "default", "h"),
            ("telegram", "second", None),
            ("telegram", "default", "g"),
            ("telegram", "default", None),
        ]
        assert (await api.run(CHANNEL_UPDATE, input={"channelId": two["id"], "enabled": False}))["userErrors"] == []
        assert ("telegram", "second", None) not in await written()
        assert (await api.run(CHANNEL_DELETE, input={"channelId": one["id"]}))["userErrors"] == []
        assert await written() == []
        assert (await seen(api, bot))["bindings"]["totalCount"] == 2
    assert fake_openclaw.violations(wrapper) == []
