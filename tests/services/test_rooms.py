"""What is said in a room is heard in order, once, and by everybody; what is forgotten is said to be."""

import asyncio
import base64
import struct
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import timedelta
from typing import Any
from uuid import uuid4

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.db.engine import DB
from app.domain.errors import BadInput
from app.pubsub.hub import Hub, HubClosed
from app.services import rooms
from app.services.rooms import Present, Said

#: Seconds a wait may take; far above what it takes.
PATIENCE = 20.0


@pytest.fixture
async def hub(database: dict[str, Any]) -> AsyncGenerator[Hub]:
    await DB.open(database)
    yield Hub()
    await DB.close()


async def say(hub: Hub, *names: str, number: int = 0) -> None:
    async with DB.transaction():
        await rooms.append(hub.wake, names, "SAID", {"n": number}, None)


async def take_back(hub: Hub, name: str) -> None:
    """Says something in a transaction that fails."""
    with suppress(ZeroDivisionError):
        async with DB.transaction():
            await rooms.append(hub.wake, [name], "SAID", {"n": -1}, None)
            _ = 1 / 0


class Ear:
    """A listener that is read item by item."""

    def __init__(self, items: AsyncGenerator[Present | Said]) -> None:
        self._items = items

    async def next(self) -> Present | Said:
        with anyio.fail_after(PATIENCE):
            return await anext(self._items)

    async def present(self) -> Present:
        item = await self.next()
        assert isinstance(item, Present), item
        return item

    async def said(self, count: int) -> list[Said]:
        found: list[Said] = []
        for _ in range(count):
            item = await self.next()
            assert isinstance(item, Said), item
            found.append(item)
        return found

    async def numbers(self, count: int) -> list[int]:
        return [item.event.payload["n"] for item in await self.said(count)]


@asynccontextmanager
async def listening(hub: Hub, *names: str, after: str | None = None) -> AsyncGenerator[Ear]:
    async with aclosing(rooms.follow(hub, names, after)) as items:
        yield Ear(items)


async def test_fifty_writers_leave_no_hole_and_a_listener_hears_each_once_and_in_order(hub: Hub) -> None:
    def number_of(writer: int, turn: int) -> int:
        return writer * 10 + turn

    async def write(writer: int) -> None:
        for turn in range(4):
            if (writer + turn) % 5 == 0:
                await take_back(hub, "a")
            else:
                await say(hub, "a", "b", number=number_of(writer, turn))

    async with listening(hub, "a") as early, listening(hub, "b", "a") as both:
        await early.present()
        await both.present()
        async with asyncio.TaskGroup() as tasks:
            for writer in range(50):
                tasks.create_task(write(writer))
            heard = await early.said(160)
        assert [item.event.seq for item in heard] == list(range(1, 161))
        numbers = [item.event.payload["n"] for item in heard]
        assert sorted(numbers) == [number_of(w, t) for w in range(50) for t in range(4) if (w + t) % 5]
        assert all(numbers.index(number_of(w, t)) < numbers.index(number_of(w, t + 1))
                   for w in range(50) for t in range(3) if (w + t) % 5 and (w + t + 1) % 5)  # fmt: skip
        each = await both.said(320)
        for name in ("a", "b"):
            assert [item.event.seq for item in each if item.event.room == name] == list(range(1, 161))
        assert [item.event.payload["n"] for item in each if item.event.room == "a"] == numbers
    heads = await rooms.heads(["a", "b"])
    assert {name: head.seq for name, head in heads.items()} == {"a": 160, "b": 160}


async def waits_for_lock() -> None:
    """Returns once a statement of ours stands still behind another's lock."""
    sql = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with anyio.fail_after(PATIENCE):
        while not await DB.fetch(sql):
            await asyncio.sleep(0.01)


async def test_who_commits_late_is_not_lost(hub: Hub) -> None:
    may_commit, has_spoken = asyncio.Event(), asyncio.Event()

    async def late() -> None:
        async with DB.transaction():
            await rooms.append(hub.wake, ["a"], "SAID", {"n": 1}, None)
            has_spoken.set()
            await may_commit.wait()

    await say(hub, "a", "b", number=0)
    async with listening(hub, "a", "b") as ear:
        await ear.present()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(late())
            await has_spoken.wait()
            # The other room goes on, and the same room's next speaker waits for its turn.
            await say(hub, "b", number=2)
            assert await ear.numbers(1) == [2]
            behind = tasks.create_task(say(hub, "a", number=3))
            await waits_for_lock()
            assert not behind.done()
            may_commit.set()
        assert await ear.numbers(2) == [1, 3]


async def test_a_cursor_gives_exactly_what_was_missed(hub: Hub) -> None:
    async with listening(hub, "a", "b") as ear:
        start = await ear.present()
        assert start == Present(("a", "b"), (), start.cursor, owners={"a": None, "b": None})
        for number in range(6):
            await say(hub, "ab"[number % 2], number=number)
        heard = await ear.said(6)
    cursors = [start.cursor, *[item.cursor for item in heard]]
    everything = [item.event for item in heard]
    for place, cursor in enumerate(cursors):
        async with listening(hub, "a", "b", after=cursor) as ear:
            assert [item.event for item in await ear.said(6 - place)] == everything[place:]
            await say(hub, "c", number=99)  # not one of its rooms
        # One of the rooms, and one that the cursor does not know.
        async with listening(hub, "a", "c", after=cursor) as ear:
            present = await ear.present()
            assert (present.current, present.resynced) == (("c",), ())
            missed = [event for event in everything[place:] if event.room == "a"]
            assert [item.event for item in await ear.said(len(missed))] == missed
    # More than is read at a time.
    for number in range(rooms.PAGE + 20):
        await say(hub, "a", number=number)
    async with listening(hub, "a", "b", after=cursors[-1]) as ear:
        assert await ear.numbers(rooms.PAGE + 20) == list(range(rooms.PAGE + 20))


def _packed(*places: tuple[int, int, int]) -> str:
    text = b"".join(struct.pack(">IIQ", *place) for place in places)
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


async def test_what_a_room_cannot_give_any_more_is_said_and_never_silence(hub: Hub) -> None:
    for number in range(10):
        await say(hub, "a", number=number)
    await say(hub, "b")
    await DB.fetch("UPDATE room SET floor = 4 WHERE name = 'a'")
    await DB.fetch("DELETE FROM room_event e USING room r WHERE e.room = r.id AND r.name = 'a' AND e.seq <= 4")
    heads = await rooms.heads(["a", "b"])
    a, b = heads["a"], heads["b"]
    lost = [(a.room_id, a.epoch, 3), (a.room_id, a.epoch, 0), (a.room_id, a.epoch, 11), (a.room_id, a.epoch, 2**64 - 1),
            (a.room_id, a.epoch + 1, 7), (a.room_id, 0, 10)]  # fmt: skip
    for place in lost:
        async with listening(hub, "a", "b", after=_packed(place, (b.room_id, b.epoch, 1))) as ear:
            present = await ear.present()
            assert (present.current, present.resynced, present.dropped) == ((), ("a",), 0), place
            assert rooms.parse_cursor(present.cursor)[a.room_id] == (a.epoch, 10)
            await say(hub, "b", number=7)
            assert await ear.numbers(1) == [7]
            await DB.fetch("UPDATE room SET seq = 1 WHERE name = 'b'")
            await DB.fetch("DELETE FROM room_event e USING room r WHERE e.room = r.id AND r.name = 'b' AND e.seq > 1")
    for seq in range(4, 11):
        async with listening(hub, "a", after=_packed((a.room_id, a.epoch, seq))) as ear:
            assert await ear.numbers(10 - seq) == list(range(seq, 10))
    # A place in a room that is gone, or of another database, is nobody's business here.
    async with listening(hub, "a", after=_packed((a.room_id, a.epoch, 10), (999_999, 1, 1))) as ear:
        await say(hub, "a", number=10)
        assert await ear.numbers(1) == [10]


async def test_who_reads_so_slowly_that_the_room_forgets_is_told_how_much(hub: Hub) -> None:
    async with listening(hub, "a") as ear:
        await ear.present()
        await say(hub, "a", number=0)
        assert await ear.numbers(1) == [0]
        for number in range(1, 10):
            await say(hub, "a", number=number)
        await DB.fetch("UPDATE room SET floor = 6")
        await DB.fetch("DELETE FROM room_event WHERE seq <= 6")
        gap = await ear.present()
        assert (gap.current, gap.resynced, gap.dropped) == ((), ("a",), 5)
        assert await ear.numbers(4) == [6, 7, 8, 9]
    async with listening(hub, "a", after=gap.cursor) as ear:
        await say(hub, "a", number=10)
        again = await ear.said(1)
        assert again[0].event.seq in {8, 11}


@pytest.mark.parametrize("text", ["x", "=", "AAAA", "A" * 21, "é", "\0", "\ud800", "%%%", "A" * 21 + "=", " "])
async def test_garbage_is_no_cursor(text: str) -> None:
    with pytest.raises(BadInput):
        rooms.parse_cursor(text)


@given(st.text())
def test_any_text_is_a_cursor_or_bad_input(text: str) -> None:
    with suppress(BadInput):
        assert all(len(place) == 2 for place in rooms.parse_cursor(text).values())


@given(st.dictionaries(st.integers(0, 2**31 - 1), st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**63 - 1))))
def test_a_cursor_is_read_as_it_was_written(places: dict[int, tuple[int, int]]) -> None:
    heads = {str(n): rooms.Head(str(n), n, epoch, seq, 0, None) for n, (epoch, seq) in places.items()}
    assert rooms.parse_cursor(rooms.Positions(heads).cursor()) == places


async def test_forgetting_keeps_the_newest_events_the_last_week_and_every_sequence(hub: Hub) -> None:
    async def fill(name: str, count: int, age: str) -> None:
        """So many events, the oldest so old, the others evenly up to now."""
        await rooms.ensure([name])
        await DB.fetch(
            "INSERT INTO room_event (room, seq, type, payload, at) SELECT r.id, n, 'SAID', '{}', "
            "now() - $3::interval * (1 - (n - 1)::float8 / $2) FROM room r, generate_series(1, $2) n WHERE r.name = $1",
            name, count, timedelta(days=float(age)),
        )  # fmt: skip
        await DB.fetch("UPDATE room SET seq = $2 WHERE name = $1", name, count)

    async def kept() -> dict[str, tuple[int, int, int | None, int]]:
        rows = await DB.fetch(
            "SELECT r.name, r.floor, r.seq, min(e.seq) AS first, count(e.*) AS n FROM room r "
            "LEFT JOIN room_event e ON e.room = r.id GROUP BY r.id"
        )
        return {row["name"]: (row["floor"], row["seq"], row["first"], row["n"]) for row in rows}

    await fill("young", 100, "6.9")
    await fill("many", rooms.KEPT_EVENTS + 25, "1")
    await fill("half", 100, "13.9")
    await fill("exactly", rooms.KEPT_EVENTS, "1")
    await rooms.ensure(["silent"])
    await fill("old", 5, "1000")
    old_s = "(SELECT id FROM room WHERE name = 'old')"
    await DB.fetch(f"UPDATE room_event SET at = at - interval '30 days' WHERE room = {old_s}")
    await rooms.prune()
    expected = {
        "young": (0, 100, 1, 100),
        "many": (25, rooms.KEPT_EVENTS + 25, 26, rooms.KEPT_EVENTS),
        "half": (50, 100, 51, 50),
        "exactly": (0, rooms.KEPT_EVENTS, 1, rooms.KEPT_EVENTS),
        "silent": (0, 0, None, 0),
        "old": (5, 5, None, 0),
    }
    assert await kept() == expected
    await rooms.prune()
    assert await kept() == expected
    # The sequence goes on where it was, and who had heard everything has missed nothing.
    (old,) = (await rooms.heads(["old"])).values()
    async with listening(hub, "old", after=_packed((old.room_id, old.epoch, 5))) as ear:
        await say(hub, "old", number=6)
        (next_,) = await ear.said(1)
        assert next_.event.seq == 6
    async with listening(hub, "old", after=_packed((old.room_id, old.epoch, 4))) as ear:
        assert (await ear.present()).resynced == ("old",)


async def test_nothing_is_heard_of_what_was_taken_back(hub: Hub) -> None:
    async with listening(hub, "a") as ear:
        await ear.present()
        await take_back(hub, "a")
        await say(hub, "a", number=2)
        (only,) = await ear.said(1)
        assert (only.event.seq, only.event.payload) == (1, {"n": 2})


async def test_listeners_leave_no_room_behind(hub: Hub) -> None:
    names = [f"bot:{uuid4()}:status" for _ in range(50)]
    async with listening(hub, *names) as one, listening(hub, names[0]) as two:
        await one.present()
        await two.present()
        assert sorted(hub.occupied()) == sorted(names)
    assert hub.occupied() == []
    hub.wake(names)  # nobody is there, and that is fine


async def test_a_closed_hub_ends_every_listener_and_each_that_comes_later(hub: Hub) -> None:
    async def listen() -> str:
        seen = 0
        try:
            async for _ in rooms.follow(hub, ["a"], None):
                seen += 1
        except HubClosed:
            return f"{seen} seen"
        return "silence"

    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(listen()) for _ in range(5)]
        with anyio.fail_after(PATIENCE):
            while not hub.occupied():
                await asyncio.sleep(0.01)
        hub.close()
        waiting.append(tasks.create_task(listen()))
    assert [task.result() for task in waiting] == ["1 seen"] * 6
    assert hub.occupied() == []
