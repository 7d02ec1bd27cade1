"""The data keys of the keyring: which there are, what needs them, and the end of those that nothing does."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from app.db.engine import DB
from app.domain.errors import Conflict
from app.services import audit, keys, sealed_rows

#: How long a key is kept after the last secret left it.
KEPT_DAYS = 30


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
    rows = await DB.fetch("SELECT key_id, state, kek_id, created_at, retired_at FROM keyring ORDER BY key_id")
    counted = {column.table: await sealed_rows.count(column) for column in keys.SEALED}
    return [
        Key(
            r["key_id"], r["state"], bytes(r["kek_id"]), r["created_at"], r["retired_at"],
            {table: found[r["key_id"]] for table, found in counted.items() if r["key_id"] in found},
        )
        for r in rows
    ]  # fmt: skip


async def prune(days: int = KEPT_DAYS) -> list[Key]:
    """Deletes the keys that were retired so many days ago, all of them or none; those it deleted.

    What is still sealed with one of them somewhere else (rows copied out of a backup) can be opened by nobody then.

    Raises:
        Conflict: A row needs one of them all the same.
    """
    async with DB.transaction():
        await keys.hold()
        rows = await DB.fetch(
            "SELECT key_id FROM keyring WHERE state = 'retired' AND retired_at <= now() - $1::interval",
            timedelta(days=days),
        )
        old = {row["key_id"] for row in rows}
        if not old:
            return []
        await _require_unused(old)
        gone = [key for key in await versions() if key.key_id in old]
        await DB.fetch("DELETE FROM keyring WHERE key_id = ANY($1::int[])", list(old))
        await audit.note("keysPrune", keys=sorted(old))
    return gone


async def _require_unused(old: set[int]) -> None:
    found = await sealed_rows.used()
    in_use = [f"key {key} ({found[key]} rows)" for key in sorted(old & found.keys())]
    if in_use:
        raise Conflict(f"still needed: {', '.join(in_use)}; nothing was deleted. Change the key again first")
