"""A machine's row belongs to one folder of bots at a time, and so does what is written of its bots."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.db.engine import DB
from app.domain.events import BotEventKind
from app.domain.ids import new_id
from app.domain.states import BotStatus, Reason
from app.services import nodes, processes
from app.services.nodes import Lease, LeaseLost, Load, Renewal
from app.services.recorder import LostRace, Recorder

LOAD = Load(capacity=7, start_slots=2, cpu_ratio=0.25, memory_bytes=1_000)


@pytest.fixture(autouse=True)
async def opened(database: dict[str, Any]) -> AsyncGenerator[None]:
    await DB.open(database)
    yield
    await DB.close()


async def a_bot(agent_id: str, node: str = "host-a") -> UUID:
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


async def taken(name: str, holder: UUID | None = None) -> Lease:
    lease = await nodes.take(name, holder or uuid4())
    assert lease is not None
    return lease


async def taken_away(lease: Lease) -> Lease:
    """The lease of another folder's server, which came when this one had run out."""
    await DB.fetch("UPDATE node SET heartbeat_at = now() - interval '16 seconds' WHERE name = $1", lease.node)
    return await taken(lease.node)


async def renew(lease: Lease) -> bool:
    renewal = Renewal(lease)
    try:
        return await renewal.once(LOAD, 10)
    finally:
        renewal.close()


async def row_of(bot_id: UUID) -> dict[str, Any]:
    row = await DB.fetch_one("SELECT * FROM bot_process WHERE bot = $1", bot_id)
    assert row is not None
    return row


# Who has it.


async def test_a_lease_has_one_holder_until_it_runs_out() -> None:
    first, second = uuid4(), uuid4()
    mine = await taken("host-a", first)
    assert await nodes.take("host-a", second) is None
    assert (await taken("host-a", first)).epoch == mine.epoch
    theirs = await taken_away(mine)
    assert (theirs.epoch, theirs.is_inherited) == (mine.epoch + 1, True)
    assert await nodes.take("host-a", first) is None


async def test_many_that_want_a_new_machine_s_lease_at_once_get_one() -> None:
    won = await asyncio.gather(*(nodes.take("host-a", uuid4()) for _ in range(10)))
    (lease,) = filter(None, won)
    assert (lease.epoch, lease.is_inherited) == (1, False)


async def test_a_renewed_lease_holds_and_says_how_the_machine_is() -> None:
    lease = await taken("host-a")
    await DB.fetch("UPDATE node SET heartbeat_at = now() - interval '1 hour'")
    lease.renewed_at -= 3600
    assert lease.may_be_taken
    assert await renew(lease)
    assert not lease.may_be_taken
    row = await DB.fetch_one(
        "SELECT capacity, start_slots, cpu_ratio, memory_bytes, now() - heartbeat_at < '5 s' AS is_new FROM node"
    )
    assert row == {"capacity": 7, "start_slots": 2, "cpu_ratio": 0.25, "memory_bytes": 1_000, "is_new": True}


async def test_a_lease_that_was_taken_is_not_renewed() -> None:
    mine = await taken("host-a")
    theirs = await taken_away(mine)
    assert not await renew(mine)
    assert await renew(theirs)


async def test_a_lease_taken_back_is_another_one() -> None:
    before = await taken("host-a")
    await taken_away(before)
    await DB.fetch("UPDATE node SET heartbeat_at = now() - interval '16 seconds'")
    after = await taken("host-a", before.holder)
    assert after.epoch == before.epoch + 2
    assert not await renew(before)


async def test_a_machine_with_a_new_name_keeps_the_bots_of_its_folder() -> None:
    folder = uuid4()
    await taken("host-a", folder)
    other = await taken("host-c")
    mine, theirs = await a_bot("mine"), await a_bot("theirs", "host-c")
    lease = await taken("host-b", folder)
    assert await nodes.take_over(lease) == ["host-a"]
    await processes.claim(other)
    assert await processes.of_lease(lease) == [mine]
    assert await processes.of_lease(other) == [theirs]
    assert await nodes.holder_of(mine) == folder
    assert await nodes.holder_of(theirs) == other.holder


# What is written under it.


async def test_bots_made_meanwhile_are_claimed_by_the_holder_alone() -> None:
    before = await taken("host-a")
    lease = await taken_away(before)
    bot = await a_bot("hana")
    elsewhere = await a_bot("bruno", "host-b")
    assert await processes.claim(before) == []
    assert (await processes.overdue(lease)).is_anybody_new
    assert await processes.claim(lease) == [bot]
    assert not (await processes.overdue(lease)).is_anybody_new
    assert (await row_of(elsewhere))["lease_epoch"] == 0


async def test_a_claim_waits_for_who_takes_the_lease_at_that_moment() -> None:
    before = await taken("host-a")
    bot = await a_bot("hana")
    async with DB.transaction():
        await DB.fetch("UPDATE node SET epoch = epoch + 1, holder = gen_random_uuid()")
        claim = asyncio.get_running_loop().create_task(_apart(processes.claim, before))
        # It can only be waited for by looking at who waits.
        async with asyncio.timeout(10):
            while not await DB.fetch("SELECT FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.01)
    assert await claim == []
    assert (await row_of(bot))["lease_epoch"] == 0


async def _apart(work: Any, *args: Any) -> Any:
    """Work of another server's: outside the transaction this task was started in."""
    DB.current_transaction.set(None)
    return await work(*args)


async def test_the_status_of_a_bot_is_written_under_the_present_lease_alone() -> None:
    mine = await taken("host-a")
    bot = await a_bot("hana")
    await processes.claim(mine)
    recorder = Recorder(lambda names: None)
    seq = await recorder.transition(mine, bot, 0, BotStatus.STARTING, Reason.USER)
    theirs = await taken_away(mine)
    before = await row_of(bot)
    said = await DB.fetch("SELECT * FROM room_event")
    with pytest.raises(LeaseLost):
        await recorder.transition(mine, bot, seq, BotStatus.ACTIVE, Reason.READY, port=18_789)
    # Nor under one that only looks the same: of another machine.
    with pytest.raises(LeaseLost):
        await recorder.transition(replace(theirs, node="host-b"), bot, seq, BotStatus.ACTIVE, Reason.READY)
    assert await row_of(bot) == before
    assert await DB.fetch("SELECT * FROM room_event") == said
    with pytest.raises(LostRace):
        await recorder.transition(theirs, bot, seq - 1, BotStatus.ACTIVE, Reason.READY)
    assert await recorder.transition(theirs, bot, seq, BotStatus.ACTIVE, Reason.READY) == seq + 1


async def test_nothing_else_of_a_bot_is_written_under_an_old_lease() -> None:
    mine = await taken("host-a")
    bot, nonce = await a_bot("hana"), uuid4()
    await processes.claim(mine)
    recorder = Recorder(lambda names: None)
    await processes.note(mine, bot, nonce=nonce)
    await processes.begin_run(mine, bot, nonce)
    await DB.fetch("UPDATE bot SET desired = 'DELETED'")
    await taken_away(mine)

    async def everything() -> list[list[dict[str, Any]]]:
        return [await DB.fetch(f"SELECT * FROM {table}") for table in ("bot", "bot_process", "bot_run", "room_event")]

    before = await everything()
    (row,) = await DB.fetch("SELECT owner FROM bot")
    for write in (
        processes.load(mine, bot),
        processes.note(mine, bot, memory_bytes=1),
        processes.claim_port(mine, bot, 18_789),
        recorder.phase(mine, bot, "checking"),
        recorder.adopted(mine, bot, 1, is_active=True),
        recorder.config_refused(mine, bot, row["owner"], 1, "no"),
        recorder.delete(mine, bot),
    ):
        with pytest.raises(LeaseLost):
            await write
    await processes.begin_run(mine, bot, uuid4())
    await processes.ready_run(mine, bot)
    await processes.end_run(mine, nonce, "CRASHED", True, 1, None, None, None)
    assert await everything() == before


async def test_a_port_that_many_bots_want_at_once_is_one_bot_s() -> None:
    lease = await taken("host-a")
    bots = [await a_bot(f"bot-{n}") for n in range(12)]
    await processes.claim(lease)
    won = await asyncio.gather(*(processes.claim_port(lease, bot, 18_789) for bot in bots))
    assert sorted(won) == [False] * 11 + [True]


async def test_a_bot_that_is_gone_is_told_of_by_nobody() -> None:
    lease = await taken("host-a")
    bot = await a_bot("hana")
    await processes.claim(lease)
    recorder = Recorder(lambda names: None)
    await DB.fetch("UPDATE bot SET desired = 'DELETED'")
    await recorder.delete(lease, bot)
    with pytest.raises(LeaseLost):
        await recorder.delete(lease, bot)
    rows = await DB.fetch("SELECT DISTINCT type FROM room_event")
    assert rows == [{"type": BotEventKind.DELETED}]
