"""Two people who share an installation learn nothing of each other, whatever they ask and wherever they listen."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
from graphql import GraphQLObjectType

from app.db.engine import DB
from app.domain.ids import new_id
from app.graphql.queries.nodes import LOADS
from app.graphql.schema import schema
from tests.fake_openclaw import install
from tests.graphql.people import Caller, first, global_id, heard, house, opened, provider
from tests.graphql.test_people import TOKEN, account, signed_in
from tests.journeys import documents as docs
from tests.journeys import story

NODE = "query($id: ID!) { node(id: $id) { id __typename } }"
NODES = "query($ids: [ID!]!) { nodes(ids: $ids) { id } }"


async def _bot(mia: Caller) -> str:
    return (await mia.run("{ bots { nodes { id } } }"))["nodes"][0]["id"]


async def _channel(mia: Caller) -> str:
    return (await mia.run("{ bots { nodes { channels { nodes { id } } } } }"))["nodes"][0]["channels"]["nodes"][0]["id"]


async def _binding(mia: Caller) -> str:
    return (await mia.run("{ bots { nodes { bindings { nodes { id } } } } }"))["nodes"][0]["bindings"]["nodes"][0]["id"]


async def _provider(mia: Caller) -> str:
    return next(p["id"] for p in await mia.run("{ modelProviders { id shared } }") if not p["shared"])


async def _user(mia: Caller) -> str:
    return (await mia.run("{ viewer { id } }"))["id"]


async def _token(mia: Caller) -> str:
    return (await mia.run("{ accessTokens { nodes { id } } }"))["nodes"][0]["id"]


async def _entry(mia: Caller) -> str:
    rows = await DB.fetch("SELECT id::text FROM audit_entry WHERE action = 'accessTokenCreate' ORDER BY id")
    row = rows[-1]
    return global_id("AuditEntry", row["id"])


async def _host(mia: Caller) -> str:
    (row,) = await DB.fetch("SELECT public_id::text FROM node")
    return global_id("FleetHost", row["public_id"])


async def _rotation(mia: Caller) -> str:
    (row,) = await DB.fetch(
        "INSERT INTO key_rotation (id, state, from_key, to_key) VALUES ($1, 'SUCCEEDED', 1, 2) RETURNING id::text",
        new_id(),
    )
    return global_id("KeyRotation", row["id"])


#: How to find Mia's object of each type. A new type of object needs its line here.
FIND: dict[str, Callable[[Caller], Awaitable[str]]] = {
    "Bot": _bot,
    "Channel": _channel,
    "Binding": _binding,
    "ModelProvider": _provider,
    "User": _user,
    "AccessToken": _token,
    "AuditEntry": _entry,
    "FleetHost": _host,
    "KeyRotation": _rotation,
}
#: What Mia herself may not fetch either: it is the administrators'.
NOT_HERS = {"AuditEntry", "FleetHost", "KeyRotation"}


def node_types() -> set[str]:
    interface = schema._schema.type_map["Node"]
    types = schema._schema.type_map.values()
    return {it.name for it in types if isinstance(it, GraphQLObjectType) and interface in it.interfaces}


def test_every_type_of_object_can_be_fetched_and_is_looked_for_here() -> None:
    assert node_types() == LOADS.keys() == FIND.keys()


async def mia_and_leo(api: Caller) -> tuple[Caller, Caller]:
    """Mia with one of everything, and Leo with nothing."""
    await account(api, "Mia")
    await account(api, "Leo")
    mia, leo = await signed_in(api, "Mia"), await signed_in(api, "Leo")
    await provider(mia, "hidden-provider", models=[{"id": "m"}], apiKey="sk-hidden")
    await mia.run(TOKEN, input={"name": "hidden-token", "scopes": ["FLEET_READ"]})
    return mia, leo


async def test_nothing_of_the_other_s_is_seen_in_nodes_lists_counts_or_errors(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path) as api:
        mia, leo = await mia_and_leo(api)
        bot = await story.make_bot(mia, name="Hidden bot", agentId="hidden-bot", tags=["hidden-tag"])
        await mia.run(
            'mutation($id: ID!) { channelCreate(input: {botId: $id, provider: "telegram", name: "hidden"}) '
            "{ userErrors { code } } }",
            id=bot["id"],
        )
        await mia.run("mutation($id: ID!) { bindingCreate(input: {botId: $id}) { userErrors { code } } }", id=bot["id"])
        ids = {name: await find(mia) for name, find in FIND.items()}
        for name, identity in ids.items():
            assert await leo.run(NODE, id=identity) is None, name
            assert (await mia.run(NODE, id=identity) is None) == (name in NOT_HERS), name
        assert await leo.run(NODES, ids=list(ids.values())) == [None] * len(ids)
        # Lists and counts, with every filter that would find it.
        for filter_ in ({}, {"search": "hidden"}, {"tags": ["hidden-tag"]}, {"ownerId": [ids["User"]]}):
            page = await leo.run("query($f: BotFilter) { bots(filter: $f) { totalCount nodes { id } } }", f=filter_)
            assert page == {"totalCount": 0, "nodes": []}, filter_
        seen = await leo.run("{ modelProviders { name } }")
        assert [p["name"] for p in seen] == ["local"]
        assert (await leo.run("{ accessTokens { totalCount } }"))["totalCount"] == 1
        assert await leo.run('{ bot(by: {agentId: "hidden-bot"}) { id } }') is None
        fleet = await leo.run("{ fleet { statusCounts { count } memoryBytes startSlots { used waiting } } }")
        assert sum(line["count"] for line in fleet["statusCounts"]) == 0
        assert (fleet["memoryBytes"], fleet["startSlots"]["used"], fleet["startSlots"]["waiting"]) == (0, 0, 0)
        # Whether an agentId is free must be told to be of use; nothing else may be, and errors name nobody.
        taken = await leo.ask(
            'mutation { botCreate(input: {name: "x", model: "hidden-provider/m"}) '
            "{ bot { id } userErrors { code message field } } }"
        )
        assert "there is no model provider" in json.dumps(taken)
        assert bot["id"] == ids["Bot"]


async def test_nothing_of_the_other_s_is_heard_in_rooms_and_events(database: dict[str, Any], tmp_path: Path) -> None:
    openclaw = install(tmp_path)
    async with house(database, tmp_path, openclaw) as api:
        mia, leo = await mia_and_leo(api)
        bot = await story.make_bot(mia, agentId="hidden-bot")
        user = (await DB.fetch("SELECT id::text FROM app_user WHERE name = 'Mia'"))[0]["id"]
        room = "subscription($names: [String!]!) { room(names: $names) { event } }"
        own = (await DB.fetch("SELECT id::text FROM app_user WHERE name = 'Leo'"))[0]["id"]
        for name in (
            f"bot:{bot['databaseId']}:status",
            f"fleet:user:{user}",
            f"notifications:user:{user}",
            "fleet:all",
            "auth",
        ):
            for names in ([name], [f"fleet:user:{own}", name]):
                answer = await first(leo, room, names=names)
                assert [e["extensions"]["code"] for e in answer["errors"]] == ["NOT_FOUND"], name
        watch = "subscription($ids: [ID!]) { botStatus(botIds: $ids) { botId } }"
        answer = await first(leo, watch, ids=[bot["id"]])
        assert [e["extensions"]["code"] for e in answer["errors"]] == ["NOT_FOUND"]
        async with opened(leo) as socket:
            await heard(socket)
            await socket.send(json.dumps({"id": "1", "type": "subscribe", "payload": {"query": watch}}))
            assert (await mia.run(docs.BOT_START, input={"botId": bot["id"]}))["userErrors"] == []
            # His own bot's events come after all of hers: had he heard any of those, they would be here first.
            his = await story.make_bot(leo, agentId="his-bot")
            with anyio.fail_after(30):
                message = await heard(socket)
            assert message["payload"]["data"]["botStatus"]["botId"] == his["id"]
