"""Changes of data keys: every sealed value is encrypted anew while all other work goes on.

The progress is the data: each value names the key it needs, so whoever finds a change of keys under way carries it on,
however the last one ended. A value is written only if its row is still as it was read; who sets it anew at the same
moment wins, and a later pass looks at it again. The old key ends when two passes in a row, some time apart, found
nothing that needs it: by then every server has taken in the new one.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import anyio
import anyio.to_thread
import msgspec
import structlog

from app import vault
from app.db.engine import DB
from app.domain import rooms as names
from app.domain.errors import Conflict, KeyMismatch, SecretError
from app.domain.ids import new_id
from app.domain.ports import WakeRooms
from app.domain.states import KeyRotationState
from app.log import barrier
from app.services import audit, keys, rooms, words
from app.services.keys import SealedColumn
from app.vault import Vault

log = structlog.get_logger()

#: Rows that are read and written together.
BATCH = 200
#: Seconds between two looks for a change of keys that nobody carries on any more.
WATCH_INTERVAL = 10.0
#: Seconds between two events of progress.
EVENT_INTERVAL = 0.25
#: Seconds between passes that find something to do.
PASS_PAUSE = 0.1
#: Longest reason that is kept.
MAX_REASON = 500
#: The number of the advisory lock of who carries a change of keys on.
LOCK = 0x0C1A_0E7D_0B5E_A1ED

_COLUMNS = "id, state, from_key, to_key, total, done, failed, reason, started_at, finished_at"


@dataclass(frozen=True, slots=True)
class Rotation:
    """A change of data keys as its row holds it. `total`, `done` and `failed` count sealed values."""

    id: UUID
    state: KeyRotationState
    from_key: int
    to_key: int
    total: int
    done: int
    failed: int
    reason: str | None
    started_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Key:
    """A data key of the keyring, with the number of sealed values under it by table."""

    key_id: int
    state: str
    kek_id: bytes
    created_at: datetime
    retired_at: datetime | None
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class Row:
    """A row with sealed values: each with its place, by its key in a JSON column, else by the empty text."""

    id: UUID
    version: int
    key_id: int | None
    leaves: dict[str, tuple[vault.Place, str]]


@dataclass(slots=True)
class Pass:
    """What one look at everything found.

    Args:
        changed: Rows that needed the new key, whether they got it or somebody else was faster.
        unreadable: Table and id of the rows that could not be read; never a word of what is in them.
        failed: Sealed values in those.
        needed: Keys that those still ask for.
    """

    changed: int = 0
    failed: int = 0
    unreadable: set[tuple[str, UUID]] = field(default_factory=set[tuple[str, UUID]])
    needed: set[int] = field(default_factory=set[int])


@dataclass(frozen=True, slots=True)
class Checked:
    """Whether what is sealed can be opened: the number of values that can, and table and id of rows that cannot."""

    opened: dict[str, int]
    unreadable: list[tuple[str, UUID]]


class _Ended(Exception):
    """Somebody else ended this change of keys."""


async def get(identity: UUID) -> Rotation | None:
    return (await by_ids([identity])).get(identity)


async def by_ids(ids: list[UUID]) -> dict[UUID, Rotation]:
    rows = await DB.fetch(f"SELECT {_COLUMNS} FROM key_rotation WHERE id = ANY($1::uuid[])", ids)
    return {row["id"]: _rotation(row) for row in rows}


async def running() -> Rotation | None:
    """The change of keys that is under way."""
    row = await DB.fetch_one(f"SELECT {_COLUMNS} FROM key_rotation WHERE state = 'RUNNING'")
    return None if row is None else _rotation(row)


async def versions() -> list[Key]:
    """The data keys, the oldest first."""
    rows = await DB.fetch("SELECT key_id, state, kek_id, created_at, retired_at FROM keyring ORDER BY key_id")
    counted = {column.table: await _count(column) for column in keys.SEALED}
    return [
        Key(
            r["key_id"], r["state"], bytes(r["kek_id"]), r["created_at"], r["retired_at"],
            {table: found[r["key_id"]] for table, found in counted.items() if r["key_id"] in found},
        )
        for r in rows
    ]  # fmt: skip


async def verify(opened: Vault, say: Callable[[int], None]) -> Checked:
    """Opens everything that is sealed.

    Args:
        say: Is told how many values it has come to.
    """
    counted, unreadable = {column.table: 0 for column in keys.SEALED}, list[tuple[str, UUID]]()
    seen = 0
    async with aclosing(_everything()) as pages:
        async for column, page in pages:
            good, bad = await anyio.to_thread.run_sync(_open_all, opened, page)
            if bad:  # Perhaps a key was made since this process looked.
                await keys.refresh(opened)
                good, bad = await anyio.to_thread.run_sync(_open_all, opened, page)
            counted[column.table] += good
            unreadable += [(column.table, row_id) for row_id in bad]
            seen += sum(len(row.leaves) for row in page)
            say(seen)
    return Checked(counted, unreadable)


class Rotations:
    """Starts changes of keys and carries them on.

    Args:
        opened: This process's vault, which takes in each new key.
        wait: Seconds between the last two passes; more than twice what others take to look at the keyring.
    """

    def __init__(self, opened: Vault, wake: WakeRooms, wait: float) -> None:
        self._vault = opened
        self._wake = wake
        self._wait = wait
        self._bell = anyio.Event()

    async def start(self, reason: str | None) -> Rotation:
        """Makes a new data key the active one. `run`, here or anywhere, then encrypts everything with it."""
        reason = words.prose(reason, "reason", MAX_REASON).strip() or None if reason else None
        async with DB.transaction():
            await keys.hold()
            if await running():
                raise Conflict("a change of keys is under way already")
            old = await self._known_active()
            key = self._vault.new_key(old + 1)
            await DB.fetch("UPDATE keyring SET state = 'decrypt' WHERE state = 'active'")
            await keys.add_key(key)
            rotation = await self._insert(old, key.key_id, reason)
            await audit.note(
                "keyRotationStart", audit.Subject("KeyRotation", rotation.id),
                fromVersion=old, toVersion=key.key_id, reason=reason,
            )  # fmt: skip
            await self._tell(rotation)
            DB.after_commit(self._ring)
        return rotation

    def _ring(self) -> None:
        self._bell.set()

    async def _known_active(self) -> int:
        """The active key's number, once it is sure that what this server wraps fits the rest of the keyring."""
        try:
            await keys.refresh(self._vault)
        except KeyMismatch as error:
            raise Conflict(
                "the master key was changed; start this server again with the new ENCRYPTION_KEY first"
            ) from error
        return self._vault.active_key_id

    async def _insert(self, old: int, new: int, reason: str | None) -> Rotation:
        total = sum([sum((await _count(column)).values()) for column in keys.SEALED])
        (row,) = await DB.fetch(
            "INSERT INTO key_rotation (id, state, from_key, to_key, total, reason, started_at) "
            f"VALUES ($1, 'RUNNING', $2, $3, $4, $5, now()) RETURNING {_COLUMNS}",
            new_id(), old, new, total, reason,
        )  # fmt: skip
        return _rotation(row)

    async def run(self) -> None:
        """Carries on whatever change of keys there is. Runs until cancelled."""
        while True:
            bell = self._bell
            with barrier(log, "key_rotation_interrupted"):
                await self.carry_on()
            with anyio.move_on_after(WATCH_INTERVAL):
                await bell.wait()
            if bell.is_set():
                self._bell = anyio.Event()

    async def carry_on(self) -> bool:
        """Brings the change of keys that is under way to its end; False where there is none, or somebody else does."""
        if await running() is None:
            return False
        async with _alone() as is_mine:
            rotation = await running() if is_mine else None
            if rotation is None:
                return False
            await keys.refresh(self._vault)
            log.info("key_rotation_carried_on", rotation=str(rotation.id), to=rotation.to_key, done=rotation.done)
            with suppress(_Ended):
                await self._finish(rotation, await self._passes(rotation))
            return True

    async def _passes(self, rotation: Rotation) -> Pass:
        """Passes until two in a row, `wait` apart, found nothing to do; the last of them."""
        clean = 0
        while True:
            found = await self._pass(rotation)
            clean = 0 if found.changed else clean + 1
            if clean == 2:
                return found
            # Whoever is in the way of a row, or still seals with the old key, is done with it soon.
            await anyio.sleep(self._wait if clean else PASS_PAUSE)

    async def _pass(self, rotation: Rotation) -> Pass:
        found, told = Pass(), anyio.current_time()
        async with aclosing(_everything()) as pages:
            async for column, page in pages:
                if not await self._encrypt(rotation, column, page, found):
                    continue
                if anyio.current_time() - told >= EVENT_INTERVAL:
                    told = anyio.current_time()
                    await self._tell_progress(rotation.id)
        if found.changed:  # Its last steps: nobody shall wait for them as long as for the next pass.
            await self._tell_progress(rotation.id)
        return found

    async def _encrypt(self, rotation: Rotation, column: SealedColumn, page: list[Row], found: Pass) -> bool:
        """One batch, in one transaction; whether there was anything to do."""
        new, bad = await anyio.to_thread.run_sync(_seal_all, self._vault, page, rotation.to_key)
        for row in bad:
            found.unreadable.add((column.table, row.id))
            found.needed |= _needed(row)
            found.failed += len(row.leaves)
        found.changed += len(new)
        if new:
            async with DB.transaction():
                written = await _write(column, new, rotation.to_key)
                await _count_up(rotation.id, sum(len(changed) for row, changed in new if row.id in written))
        return bool(new)

    async def _finish(self, rotation: Rotation, last: Pass) -> None:
        state = KeyRotationState.FAILED if last.failed else KeyRotationState.SUCCEEDED
        async with DB.transaction():
            await keys.hold()
            # A key that something unreadable asks for stays: perhaps it can be read again one day.
            await DB.fetch(
                "UPDATE keyring SET state = 'retired', retired_at = now() "
                "WHERE state = 'decrypt' AND key_id <> ALL($1::int[])",
                list(last.needed),
            )
            row = await DB.fetch_one(
                "UPDATE key_rotation SET state = $2, failed = $3, total = done + $3, finished_at = now() "
                f"WHERE id = $1 AND state = 'RUNNING' RETURNING {_COLUMNS}",
                rotation.id, state.value, last.failed,
            )  # fmt: skip
            if row is None:
                raise _Ended
            ended = _rotation(row)
            await audit.note(
                "keyRotationEnd", audit.Subject("KeyRotation", ended.id),
                state=state, done=ended.done, failed=ended.failed,
            )  # fmt: skip
            await self._tell(ended)
        for table, row_id in last.unreadable:
            log.error("secret_unreadable", table=table, row=str(row_id))
        log.info("key_rotation_ended", rotation=str(ended.id), state=state, done=ended.done, failed=ended.failed)

    async def _tell_progress(self, identity: UUID) -> None:
        async with DB.transaction():
            if rotation := await get(identity):
                await self._tell(rotation)

    async def _tell(self, rotation: Rotation) -> None:
        payload = told(rotation)
        await rooms.append(self._wake, [names.key_rotation(rotation.id)], rotation.state, payload, None)


def told(rotation: Rotation) -> dict[str, Any]:
    """A change of keys in the words of room messages."""
    return {
        "keyRotationId": str(rotation.id),
        "state": rotation.state,
        "fromVersion": rotation.from_key,
        "toVersion": rotation.to_key,
        "total": rotation.total,
        "done": rotation.done,
        "failed": rotation.failed,
    }


def _rotation(row: dict[str, Any]) -> Rotation:
    known: dict[str, Any] = row | {"state": KeyRotationState(row["state"])}
    return Rotation(**known)


@asynccontextmanager
async def _alone() -> AsyncGenerator[bool, None]:
    """Whether nobody else carries it on. The lock belongs to a connection, and ends with its process."""
    connection = await DB.connect()
    try:
        yield await connection.fetchval("SELECT pg_try_advisory_lock($1)", LOCK)
    finally:
        with anyio.CancelScope(shield=True):
            await connection.close(timeout=5)


# What is done with rows.


async def _everything() -> AsyncGenerator[tuple[SealedColumn, list[Row]], None]:
    for column in keys.SEALED:
        async with aclosing(_pages(column)) as pages:
            async for page in pages:
                yield column, page


async def _pages(column: SealedColumn) -> AsyncGenerator[list[Row], None]:
    """Every row of the column that has sealed values, a batch at a time in the order of ids."""
    after = UUID(int=0)
    while True:
        rows = await DB.fetch(
            f"SELECT id, row_version, {column.key_id} AS key_id, {column.path} AS path, {column.column} AS value "
            f"FROM {column.table} WHERE id > $1 AND {column.column} IS NOT NULL ORDER BY id LIMIT {BATCH}",
            after,
        )
        yield [
            Row(r["id"], r["row_version"], r["key_id"], leaves)
            for r in rows
            if (leaves := column.leaves(r["id"], r["path"], r["value"]))
        ]
        if len(rows) < BATCH:
            return
        after = rows[-1]["id"]


async def _count(column: SealedColumn) -> dict[int, int]:
    """Sealed values by the key that the rows say they need."""
    number = f"(SELECT count(*) FROM jsonb_object_keys({column.column}))" if column.is_json else "1"
    rows = await DB.fetch(
        f"SELECT {column.key_id} AS key_id, sum({number})::bigint AS n FROM {column.table} "
        f"WHERE {column.column} IS NOT NULL AND {column.key_id} IS NOT NULL GROUP BY 1"
    )
    return {row["key_id"]: row["n"] for row in rows}


def _open_all(opened: Vault, page: list[Row]) -> tuple[int, list[UUID]]:
    """How many values can be opened, and which rows have one that cannot."""
    good, bad = 0, dict[UUID, None]()
    for row in page:
        for place, sealed in row.leaves.values():
            try:
                opened.unseal(sealed, place)
                good += 1
            except SecretError:
                bad[row.id] = None
    return good, list(bad)


def _seal_all(opened: Vault, page: list[Row], to_key: int) -> tuple[list[tuple[Row, dict[str, str]]], list[Row]]:
    """The rows that need the new key with their values under it, and those that cannot be read."""
    new, bad = list[tuple[Row, dict[str, str]]](), list[Row]()
    for row in page:
        try:
            old = {key: it for key, it in row.leaves.items() if vault.key_id(it[1]) != to_key}
            if old or row.key_id != to_key:
                new.append((row, {key: opened.reseal(sealed, place) for key, (place, sealed) in old.items()}))
        except SecretError:
            bad.append(row)
    return new, bad


def _needed(row: Row) -> set[int]:
    """The keys that the row's values name, and the one that the row does."""
    found = set[int]() if row.key_id is None else {row.key_id}
    for _, sealed in row.leaves.values():
        with suppress(SecretError):
            found.add(vault.key_id(sealed))
    return found


async def _write(column: SealedColumn, new: list[tuple[Row, dict[str, str]]], to_key: int) -> set[UUID]:
    """The rows that were still as they were read, and have the new values now.

    Who holds a row is not waited for: this transaction holds others, and two that wait for each other lose one.
    """
    value = "n.value::jsonb" if column.is_json else "n.value"
    rows = await DB.fetch(
        "WITH n AS (SELECT * FROM unnest($1::uuid[], $2::int[], $3::text[]) AS n(id, version, value)), "
        f"held AS (SELECT t.id FROM {column.table} t JOIN n ON n.id = t.id AND n.version = t.row_version "
        "FOR NO KEY UPDATE OF t SKIP LOCKED) "
        f"UPDATE {column.table} t SET {column.column} = {value}, {column.key_id} = $4, row_version = t.row_version + 1 "
        "FROM n JOIN held ON held.id = n.id WHERE t.id = n.id AND t.row_version = n.version RETURNING t.id",
        [row.id for row, _ in new], [row.version for row, _ in new],
        [_value(column, row, changed) for row, changed in new], to_key,
    )  # fmt: skip
    return {row["id"] for row in rows}


def _value(column: SealedColumn, row: Row, changed: dict[str, str]) -> str:
    values = {key: str(sealed) for key, (_, sealed) in row.leaves.items()}
    values |= {key: str(sealed) for key, sealed in changed.items()}
    return msgspec.json.encode(values).decode() if column.is_json else values[""]


async def _count_up(identity: UUID, done: int) -> None:
    row = await DB.fetch_one(
        "UPDATE key_rotation SET done = done + $2, total = greatest(total, done + $2) "
        "WHERE id = $1 AND state = 'RUNNING' RETURNING id",
        identity, done,
    )  # fmt: skip
    if row is None:
        raise _Ended
