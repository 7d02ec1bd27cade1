"""Rows with sealed values, of every table that has them: read in pages, checked, and encrypted with another key.

A damaged row stops nobody: what cannot be read in it is named by table and id, and stays as it is.
"""

import json
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import anyio.to_thread
import msgspec

from app import vault
from app.db.engine import DB
from app.domain.errors import SecretError
from app.services import keys
from app.services.keys import SealedColumn
from app.vault import Place, Vault

#: Rows that are read and written together.
BATCH = 200


@dataclass(frozen=True, slots=True)
class Row:
    """A row with sealed values: each with its place, by its key in a JSON column, else by the empty text."""

    id: UUID
    version: int
    key_id: int | None
    leaves: dict[str, tuple[Place, str]]


@dataclass(frozen=True, slots=True)
class Resealed:
    """What a row is to become.

    Args:
        changed: Values under the new key, by the keys of `row.leaves`.
        unreadable: Keys of the values that cannot be read.
    """

    row: Row
    changed: dict[str, str]
    unreadable: list[str]

    def is_new(self, to_key: int) -> bool:
        """There is something to write. A row that is unreadable in part keeps the number of the key it had."""
        return bool(self.changed) or (not self.unreadable and self.row.key_id != to_key)

    @property
    def needed(self) -> set[int]:
        """The keys that what cannot be read asks for: those its values name, and the one that the row does."""
        return named(self.row.key_id, (self.row.leaves[key][1] for key in self.unreadable))


@dataclass(frozen=True, slots=True)
class Checked:
    """Whether what is sealed can be opened: the number of values that can, and table and id of rows that cannot."""

    opened: dict[str, int]
    unreadable: list[tuple[str, UUID]]


async def everything() -> AsyncGenerator[tuple[SealedColumn, list[Row]], None]:
    """Every row that has sealed values, a batch at a time."""
    for column in keys.SEALED:
        async with aclosing(_pages(column)) as pages:
            async for page in pages:
                yield column, page


async def _pages(column: SealedColumn) -> AsyncGenerator[list[Row], None]:
    """The rows of one column, in the order of ids."""
    after = UUID(int=0)
    while True:
        rows = await DB.fetch(
            f"SELECT id, row_version, {column.key_id} AS key_id, {column.path} AS path, {column.column}::text AS value "
            f"FROM {column.table} WHERE id > $1 AND {column.column} IS NOT NULL ORDER BY id LIMIT {BATCH}",
            after,
        )
        yield [
            Row(r["id"], r["row_version"], r["key_id"], leaves)
            for r in rows
            if (leaves := column.leaves(r["id"], r["path"], _json(r["value"]) if column.is_json else r["value"]))
        ]
        if len(rows) < BATCH:
            return
        after = rows[-1]["id"]


def _json(text: str) -> Any:
    """What a JSON column holds. PostgreSQL keeps documents that are too deep for us, and these are no credentials."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


async def count(column: SealedColumn) -> dict[int, int]:
    """Sealed values by the key that the rows say they need. What should be an object and is none counts as one."""
    number = "1"
    if column.is_json:
        number = (
            f"CASE WHEN jsonb_typeof({column.column}) = 'object' "
            f"THEN (SELECT count(*) FROM jsonb_object_keys({column.column})) ELSE 1 END"
        )
    rows = await DB.fetch(
        f"SELECT {column.key_id} AS key_id, sum({number})::bigint AS n FROM {column.table} "
        f"WHERE {column.column} IS NOT NULL AND {column.key_id} IS NOT NULL GROUP BY 1"
    )
    return {row["key_id"]: row["n"] for row in rows}


async def used() -> dict[int, int]:
    """Rows by the keys that their values name, or that they say they need themselves."""
    found = dict[int, int]()
    async with aclosing(everything()) as pages:
        async for _, page in pages:
            for needed in await anyio.to_thread.run_sync(_needed, page):
                found[needed] = found.get(needed, 0) + 1
    return found


def _needed(page: list[Row]) -> list[int]:
    found = list[int]()
    for row in page:
        found += named(row.key_id, (sealed for _, sealed in row.leaves.values()))
    return found


def named(key_id: int | None, values: Iterable[str]) -> set[int]:
    """The keys that a row and its sealed values name; what is no ciphertext names none."""
    found = set[int]() if key_id is None else {key_id}
    for sealed in values:
        with suppress(SecretError):
            found.add(vault.key_id(sealed))
    return found


async def verify(opened: Vault, say: Callable[[int], None]) -> Checked:
    """Opens everything that is sealed.

    Args:
        say: Is told how many values it has come to.
    """
    counted, unreadable = {column.table: 0 for column in keys.SEALED}, list[tuple[str, UUID]]()
    seen = 0
    async with aclosing(everything()) as pages:
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


def reseal(opened: Vault, page: list[Row], to_key: int) -> list[Resealed]:
    """The rows with their values under the active key, where they are not yet. Takes long; call it in a thread."""
    return [_resealed(opened, row, to_key) for row in page]


def _resealed(opened: Vault, row: Row, to_key: int) -> Resealed:
    changed, unreadable = dict[str, str](), list[str]()
    for key, (place, sealed) in row.leaves.items():
        try:
            if vault.key_id(sealed) != to_key:
                changed[key] = str(opened.reseal(sealed, place))
        except SecretError:
            unreadable.append(key)
    return Resealed(row, changed, unreadable)


async def write(column: SealedColumn, new: list[Resealed], to_key: int) -> set[UUID]:
    """The rows that were still as they were read, and have the new values now.

    Who holds a row is not waited for: this transaction holds others, and two that wait for each other lose one.
    """
    # Of a JSON column only what was changed is written: the rest stays as it is, also what is no ciphertext.
    value = f"t.{column.column} || n.value::jsonb" if column.is_json else "n.value"
    rows = await DB.fetch(
        "WITH n AS (SELECT * FROM unnest($1::uuid[], $2::int[], $3::text[], $4::int[]) AS n(id, version, value, key)), "
        f"held AS (SELECT t.id FROM {column.table} t JOIN n ON n.id = t.id AND n.version = t.row_version "
        "FOR NO KEY UPDATE OF t SKIP LOCKED) "
        f"UPDATE {column.table} t SET {column.column} = {value}, {column.key_id} = n.key, "
        "row_version = t.row_version + 1 "
        "FROM n JOIN held ON held.id = n.id WHERE t.id = n.id AND t.row_version = n.version RETURNING t.id",
        [it.row.id for it in new], [it.row.version for it in new], [_value(column, it) for it in new],
        [it.row.key_id if it.unreadable else to_key for it in new],
    )  # fmt: skip
    return {row["id"] for row in rows}


def _value(column: SealedColumn, it: Resealed) -> str:
    if column.is_json:
        return msgspec.json.encode(it.changed).decode()
    return it.changed.get("") or it.row.leaves[""][1]
