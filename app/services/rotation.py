"""Changes of data keys: every sealed value is encrypted anew while all other work goes on.

The progress is the data: each value names the key it needs, so whoever finds a change of keys under way carries it on,
however the last one ended. A value is written only if its row is still as it was read; who sets it anew at the same
moment wins, and a later pass looks at it again. The old key ends when two passes in a row, some time apart, found
nothing that needs it: by then every server has taken in the new one.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import anyio
import anyio.to_thread
import structlog

from app.db.engine import DB
from app.domain import rooms as names
from app.domain.errors import Conflict, KeyMismatch
from app.domain.ids import new_id
from app.domain.ports import WakeRooms
from app.domain.states import KeyRotationState, NotificationKind
from app.log import barrier
from app.services import audit, keys, notifications, rooms, sealed_rows, words
from app.services.keys import SealedColumn
from app.vault import Vault

log = structlog.get_logger()

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
        total = sum([sum((await sealed_rows.count(column)).values()) for column in keys.SEALED])
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
        async with aclosing(sealed_rows.everything()) as pages:
            async for column, page in pages:
                if not await self._encrypt(rotation, column, page, found):
                    continue
                if anyio.current_time() - told >= EVENT_INTERVAL:
                    told = anyio.current_time()
                    await self._tell_progress(rotation.id)
        # Its last steps: nobody shall wait for them as long as for the next pass.
        if await _keep_failed(rotation.id, found.failed) or found.changed:
            await self._tell_progress(rotation.id)
        return found

    async def _encrypt(
        self, rotation: Rotation, column: SealedColumn, page: list[sealed_rows.Row], found: Pass
    ) -> bool:
        """One batch, in one transaction; whether there was anything to do."""
        seen = await anyio.to_thread.run_sync(sealed_rows.reseal, self._vault, page, rotation.to_key)
        for it in seen:
            if it.unreadable:
                found.unreadable.add((column.table, it.row.id))
                found.needed |= it.needed
                found.failed += len(it.unreadable)
        new = [it for it in seen if it.is_new(rotation.to_key)]
        found.changed += len(new)
        if new:
            async with DB.transaction():
                written = await sealed_rows.write(column, new, rotation.to_key)
                await _count_up(rotation.id, sum(len(it.changed) for it in new if it.row.id in written))
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
            await self._notify(ended)
        for table, row_id in last.unreadable:
            log.error("secret_unreadable", table=table, row=str(row_id))
        log.info("key_rotation_ended", rotation=str(ended.id), state=state, done=ended.done, failed=ended.failed)

    async def _notify(self, ended: Rotation) -> None:
        """Administrators hear how it ended, whoever began it and however long ago."""
        title, body = f"The key was changed to version {ended.to_key}", f"Encrypted with it: {ended.done}"
        if ended.state is KeyRotationState.FAILED:
            title = f"The change of the key to version {ended.to_key} left something out"
            body += (
                f", not readable: {ended.failed}. `clawnet keys verify` names it; set it anew and change the key again"
            )
        await notifications.add_to_administrators(self._wake, NotificationKind.KEY_ROTATION, title, body)

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


async def _count_up(identity: UUID, done: int) -> None:
    row = await DB.fetch_one(
        "UPDATE key_rotation SET done = done + $2, total = greatest(total, done + $2) "
        "WHERE id = $1 AND state = 'RUNNING' RETURNING id",
        identity, done,
    )  # fmt: skip
    if row is None:
        raise _Ended


async def _keep_failed(identity: UUID, failed: int) -> bool:
    """Keeps how many values this pass could not read; whether that is news."""
    row = await DB.fetch_one(
        "UPDATE key_rotation SET failed = $2 WHERE id = $1 AND state = 'RUNNING' AND failed <> $2 RETURNING id",
        identity, failed,
    )  # fmt: skip
    return row is not None
