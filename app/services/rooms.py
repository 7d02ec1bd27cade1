"""Rooms in the database: what was said, in which order, and where each listener stands.

The sequence of a room is contiguous, because it grows in the transaction of the change itself; a reader that sees
a gap therefore knows that the room has forgotten, and says so.
"""

import base64
import binascii
import secrets
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID

import anyio
import msgspec
import structlog

from app.db.engine import DB
from app.domain.errors import BadInput, Unavailable
from app.domain.events import RoomEvent
from app.domain.ports import WakeRooms
from app.log import barrier
from app.pubsub.hub import Hub

log = structlog.get_logger()

#: Events read at a time by one listener.
PAGE = 100
#: Seconds between looks for what other servers said.
POLL_INTERVAL = 1.0
#: What a room remembers: so many events, for so long.
KEPT_EVENTS = 10_000
KEPT_TIME = timedelta(days=7)
#: Seconds between two rounds of forgetting.
PRUNE_INTERVAL = 600.0

T = TypeVar("T")

_PLACE = struct.Struct(">IIQ")


@dataclass(frozen=True, slots=True)
class Head:
    """How far a room has come."""

    name: str
    room_id: int
    epoch: int
    seq: int
    floor: int
    owner: UUID | None


@dataclass(frozen=True, slots=True)
class Present:
    """How things stand now: a listener gets this first, and again where it missed something.

    `current` are rooms it enters anew, `resynced` those whose past it asked for and cannot have any more. `before`
    leaves these rooms out: who got only part of the present gets all of it again from there. `owners` says of each of
    the rooms whose it is at this moment.
    """

    current: tuple[str, ...]
    resynced: tuple[str, ...]
    cursor: str
    before: str = ""
    dropped: int = 0
    owners: dict[str, UUID | None] = field(default_factory=dict[str, UUID | None])


@dataclass(frozen=True, slots=True)
class Said:
    """One event, with the cursor that goes on after it, and whose the room was when it was read.

    That is read together with the event: no event reaches a listener without the owner that the room had with it.
    """

    event: RoomEvent
    cursor: str
    owner: UUID | None


@dataclass(slots=True)
class Positions:
    """Where one listener stands in each of its rooms."""

    places: dict[str, Head] = field(default_factory=dict[str, Head])

    def cursor(self, without: Collection[str] = ()) -> str:
        places = [place for name, place in self.places.items() if name not in without]
        packed = b"".join(_PLACE.pack(p.room_id, p.epoch, p.seq) for p in places)
        return base64.urlsafe_b64encode(packed).rstrip(b"=").decode()

    def advance(self, name: str, seq: int, owner: UUID | None) -> None:
        self.places[name] = replace(self.places[name], seq=seq, owner=owner)

    def present(self, current: Sequence[str], resynced: Sequence[str], dropped: int = 0) -> Present:
        concerned = {*current, *resynced}
        owners = {name: self.places[name].owner for name in concerned}
        return Present(tuple(current), tuple(resynced), self.cursor(), self.cursor(concerned), dropped, owners)


def parse_cursor(text: str) -> dict[int, tuple[int, int]]:
    """Epoch and sequence by room id. Raises `BadInput` for what is no cursor of ours."""
    try:
        packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return {room: (epoch, seq) for room, epoch, seq in _PLACE.iter_unpack(packed)}
    except (binascii.Error, struct.error, ValueError) as error:
        raise BadInput("`after` is no cursor of this server") from error


async def append(
    wake: WakeRooms, names: Sequence[str], type_: str, payload: dict[str, Any], owner: UUID | None
) -> None:
    """Says something in rooms, inside the caller's transaction; listeners hear it after the commit.

    Rooms are locked in the order given; every caller names the bot's room before the fleet's.
    """
    body = msgspec.json.encode(payload).decode()
    for name in names:
        if await _append_one(name, type_, body) is None:
            await ensure([name], owner)
            await _append_one(name, type_, body)
    DB.after_commit(lambda: wake(names))


async def hold(name: str) -> UUID | None:
    """Lets nobody speak in the room until the caller's transaction ends; whose it is, None where there is none."""
    row = await DB.fetch_one("SELECT owner FROM room WHERE name = $1 FOR NO KEY UPDATE", name)
    return None if row is None else row["owner"]


async def hand_over(name: str, owner: UUID) -> None:
    """Makes the room somebody else's, and holds it."""
    await DB.fetch("UPDATE room SET owner = $2 WHERE name = $1", name, owner)


async def forget_all_but_last(name: str) -> None:
    """Forgets what was said in the room, inside the caller's transaction, so that its last word stands alone."""
    await DB.fetch("UPDATE room SET floor = seq - 1 WHERE name = $1 AND seq > floor", name)
    await DB.fetch(
        "DELETE FROM room_event e USING room r WHERE r.name = $1 AND e.room = r.id AND e.seq <= r.floor", name
    )


async def _append_one(name: str, type_: str, body: str) -> int | None:
    row = await DB.fetch_one(
        "WITH r AS (UPDATE room SET seq = seq + 1 WHERE name = $1 RETURNING id, seq) "
        "INSERT INTO room_event (room, seq, type, payload, at) "
        "SELECT id, seq, $2, $3::jsonb, clock_timestamp() FROM r RETURNING seq",
        name, type_, body,
    )  # fmt: skip
    return None if row is None else row["seq"]


async def ensure(names: Iterable[str], owner: UUID | None = None) -> None:
    """Makes the rooms that are not there yet."""
    for name in names:
        await DB.fetch(
            "INSERT INTO room (name, epoch, owner) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING",
            name, secrets.randbits(31), owner,
        )  # fmt: skip


async def heads(names: Iterable[str]) -> dict[str, Head]:
    rows = await DB.fetch(
        "SELECT name, id, epoch, seq, floor, owner FROM room WHERE name = ANY($1::text[])", list(names)
    )
    return {r["name"]: Head(r["name"], r["id"], r["epoch"], r["seq"], r["floor"], r["owner"]) for r in rows}


async def follow(hub: Hub, names: Sequence[str], after: str | None) -> AsyncGenerator[Present | Said, None]:
    """The present, or what was missed since `after`, and then everything that is said in the rooms.

    Per room the order is total and nothing is left out; what the room has forgotten is told as `resynced`.
    Ends with `HubClosed` when the server goes down.
    """
    known = parse_cursor(after) if after else {}
    with hub.join(names) as listener:
        found = await heads(names)
        if len(found) < len(set(names)):
            await ensure(set(names) - found.keys())
            found = await heads(names)
        positions, fresh, lost = _start([found[name] for name in dict.fromkeys(names)], known)
        if fresh or lost:
            yield positions.present(fresh, lost)
        while True:
            events = await patiently(lambda: _read(positions))
            for event, owner in events:
                expected = positions.places[event.room].seq + 1
                positions.advance(event.room, event.seq, owner)
                if event.seq != expected:
                    yield positions.present((), (event.room,), event.seq - expected)
                yield Said(event, positions.cursor(), owner)
            if len(events) < PAGE:
                await listener.wait()


async def patiently(read: Callable[[], Awaitable[T]]) -> T:
    """What a listener reads, however long the database is away: it has promised to miss nothing."""
    while True:
        try:
            return await read()
        except Unavailable:
            await anyio.sleep(POLL_INTERVAL)


def _start(found: list[Head], known: dict[int, tuple[int, int]]) -> tuple[Positions, list[str], list[str]]:
    positions, fresh, lost = Positions(), list[str](), list[str]()
    for head in found:
        name = head.name
        positions.places[name] = head
        if head.room_id not in known:
            fresh.append(name)
            continue
        epoch, seq = known[head.room_id]
        if epoch == head.epoch and head.floor <= seq <= head.seq:
            positions.advance(name, seq, head.owner)
            continue
        lost.append(name)
        if head.seq == head.floor + 1:
            # Nothing but its last word is left of it (the bot is deleted, say), and that is still to be heard.
            positions.advance(name, head.floor, head.owner)
    return positions, fresh, lost


async def _read(positions: Positions) -> list[tuple[RoomEvent, UUID | None]]:
    places = list(positions.places.values())
    rows = await DB.fetch(
        "SELECT e.room, e.seq, e.type, e.payload, e.at, r.owner "
        "FROM unnest($1::int[], $2::bigint[]) AS p(room, seq) JOIN room r ON r.id = p.room "
        "CROSS JOIN LATERAL (SELECT * FROM room_event e WHERE e.room = p.room AND e.seq > p.seq "
        f"ORDER BY e.seq LIMIT {PAGE}) e ORDER BY e.room, e.seq LIMIT {PAGE}",
        [p.room_id for p in places], [p.seq for p in places],
    )  # fmt: skip
    names = {p.room_id: p.name for p in places}
    return [(RoomEvent(names[r["room"]], r["seq"], r["type"], r["payload"], r["at"]), r["owner"]) for r in rows]


async def watch(hub: Hub) -> None:
    """Rings for what other servers on this database said. Runs until cancelled."""
    seen: dict[str, int] = {}
    while True:
        await anyio.sleep(POLL_INTERVAL)
        with barrier(log, "rooms_not_watched"):
            now = {name: head.seq for name, head in (await heads(hub.occupied())).items()}
            hub.wake([name for name, seq in now.items() if seen.get(name) != seq])
            seen = now


async def forget() -> None:
    """Forgets, every now and then, what rooms need not remember. Runs until cancelled."""
    while True:
        with barrier(log, "rooms_not_pruned"):
            await prune()
        await anyio.sleep(PRUNE_INTERVAL)


async def prune() -> None:
    """Raises each room's floor and drops what lies at or below it, and rooms of deleted bots with their last word."""
    async with DB.transaction():
        await DB.fetch(
            "UPDATE room SET floor = greatest(floor, seq - $1, "
            "coalesce((SELECT max(e.seq) FROM room_event e "
            "WHERE e.room = room.id AND e.at < now() - $2::interval), 0)) "
            "WHERE seq - $1 > floor OR EXISTS "
            "(SELECT FROM room_event e WHERE e.room = room.id AND e.seq > floor AND e.at < now() - $2::interval)",
            KEPT_EVENTS, KEPT_TIME,
        )  # fmt: skip
        await DB.fetch("DELETE FROM room_event e USING room r WHERE e.room = r.id AND e.seq <= r.floor")
        await DB.fetch(
            "DELETE FROM room r WHERE r.name LIKE 'bot:%' AND r.seq = r.floor "
            "AND NOT EXISTS (SELECT FROM bot b WHERE r.name = 'bot:' || b.id || ':status')"
        )
