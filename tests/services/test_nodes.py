"""A machine's row belongs to one folder of bots at a time."""

import asyncio
from typing import Any
from uuid import uuid4

from app.db.engine import DB
from app.domain.ids import new_id
from app.services import nodes, processes


async def a_bot(agent_id: str, node: str = "host-a") -> Any:
    bot_id = new_id()
    await DB.fetch(
        "INSERT INTO app_user (id, name, role, created_at) VALUES (gen_random_uuid(), 'Ada', 'ADMIN', now()) "
        "ON CONFLICT DO NOTHING"
    )
    await DB.fetch(
        "INSERT INTO bot (id, owner, agent_id, name, model, tags) SELECT $1, id, $2, 'x', 'a/b', '{}' FROM app_user "
        "LIMIT 1",
        bot_id,
        agent_id,
    )
    await DB.fetch("INSERT INTO bot_process (bot, node_id) VALUES ($1, $2)", bot_id, node)
    return bot_id


async def test_a_lease_has_one_holder_until_it_runs_out(database: dict[str, Any]) -> None:
    await DB.open(database)
    try:
        first, second = uuid4(), uuid4()
        assert await nodes.lease("host-a", first)
        assert not await nodes.lease("host-a", second)
        assert await nodes.lease("host-a", first)
        await DB.fetch("UPDATE node SET heartbeat_at = now() - interval '16 seconds'")
        assert await nodes.lease("host-a", second)
        assert not await nodes.lease("host-a", first)
        row = await DB.fetch_one("SELECT epoch FROM node")
        assert row == {"epoch": 2}
    finally:
        await DB.close()


async def test_a_machine_with_a_new_name_keeps_the_bots_of_its_folder(database: dict[str, Any]) -> None:
    await DB.open(database)
    try:
        folder, other = uuid4(), uuid4()
        assert await nodes.lease("host-a", folder)
        assert await nodes.lease("host-c", other)
        mine, theirs = await a_bot("mine"), await a_bot("theirs", "host-c")
        assert await nodes.lease("host-b", folder)
        assert await nodes.take_over("host-b", folder) == ["host-a"]
        assert await processes.of_node("host-b") == [mine]
        assert await processes.of_node("host-c") == [theirs]
    finally:
        await DB.close()


async def test_a_port_that_many_bots_want_at_once_is_one_bot_s(database: dict[str, Any]) -> None:
    await DB.open(database)
    try:
        bots = [await a_bot(f"bot-{n}") for n in range(12)]
        won = await asyncio.gather(*(processes.claim_port(bot, 18_789) for bot in bots))
        assert sorted(won) == [False] * 11 + [True]
    finally:
        await DB.close()
