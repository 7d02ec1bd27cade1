"""The data keys of the keyring: which there are, what needs them, and the end of those that nothing does."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import asyncpg

from app.db.engine import DB
from app.domain.errors import Conflict
from app.services import audit, keys, sealed_rows

#: How long a key is kept after the last secret left it.
KEPT_DAYS = 30

_COLUMNS = "key_id, state, kek_id, created_at, retired_at"
_OLD = "state = 'retired' AND retired_at <= now() - $1::interval"


@dataclass(frozen=True, slots=True)
class Key:
    """A data key of the keyring, with the number of sealed values under it by table."""

    key_id: int
    state: str
    kek_id: bytes
    created_at: datetime
    retired_at: datetime | None
    counts: dict[str, int]


async def versions() -> list[Key]:
    """The data keys, the oldest first."""
    rows = await DB.fetch(f"SELECT {_COLUMNS} FROM keyring ORDER BY key_id")
    counted = {column.table: await sealed_rows.count(column) for column in keys.SEALED}
    return [
        _key(row, {table: found[row["key_id"]] for table, found in counted.items() if row["key_id"] in found})
        for row in rows
    ]


def _key(row: dict[str, Any], counts: dict[str, int]) -> Key:
    return Key(row["key_id"], row["state"], bytes(row["kek_id"]), row["created_at"], row["retired_at"], counts)


async def prune(days: int = KEPT_DAYS) -> list[Key]:
    """Deletes the keys that were retired so many days ago, all of them or none; those it deleted.

    What is still sealed with one of them somewhere else (rows copied out of a backup) can be opened by nobody then.

    Raises:
        Conflict: A row needs one of them all the same.
    """
    rows = await DB.fetch(f"SELECT {_COLUMNS} FROM keyring WHERE {_OLD} ORDER BY key_id", timedelta(days=days))
    old = {row["key_id"] for row in rows}
    if not old:
        return []
    # This reads every sealed value, so nothing is locked meanwhile: what is written after it was read has its foreign
    # key, and a retired key never comes back into use.
    await _require_unused(old)
    await _delete(old)
    return [_key(row, {}) for row in rows]


async def _delete(old: set[int]) -> None:
    try:
        async with DB.transaction():
            await keys.hold()
            rows = await DB.fetch("DELETE FROM keyring WHERE key_id = ANY($1::int[]) RETURNING key_id", list(old))
            if len(rows) != len(old):
                raise Conflict("somebody else deletes keys at this moment")
            await audit.note("keysPrune", keys=sorted(old))
    except (
        asyncpg.ForeignKeyViolationError,
        asyncpg.RestrictViolationError,
    ) as error:  # before PostgreSQL 18, and since
        raise Conflict(
            "still needed: a row was written with one of them a moment ago; nothing was deleted. "
            "Change the key again first"
        ) from error


async def _require_unused(old: set[int]) -> None:
    found = await sealed_rows.used()
    in_use = [f"key {key} ({found[key]} rows)" for key in sorted(old & found.keys())]
    if in_use:
        raise Conflict(f"still needed: {', '.join(in_use)}; nothing was deleted. Change the key again first")
