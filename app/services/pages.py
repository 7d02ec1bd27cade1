"""Pages of a list by keyset: an order is a column and then the id, and a cursor is one item's place in it.

A cursor names the list and the order it was made for, so that one of another list is refused and never guessed at.
"""

import base64
import binascii
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

from app.db.engine import DB
from app.domain.errors import BadInput
from app.services import words

T = TypeVar("T")


def text(value: Any) -> str:
    """A cursor's value, for an order by text."""
    return words.sought(value, "after")


def time(value: Any) -> datetime:
    """A cursor's value, for an order by time."""
    return datetime.fromisoformat(value).astimezone(UTC)


def number(value: Any) -> int:
    """A cursor's value, for an order by a whole number (`bigint`)."""
    if not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise ValueError("no number that the database could hold")
    return value


@dataclass(frozen=True, slots=True)
class Order:
    """What a list is ordered by.

    Args:
        name: Of the list and its order, as it stands in cursors: `bots.name`.
        key: The column, as SQL; it must not be null. None: the id alone.
        read: Turns a cursor's value back into what the column compares with: `text`, `time` or `number`.
        id: The column that tells apart what is equal by `key`, as SQL; a UUID, unique in the list.
    """

    name: str
    key: str | None = None
    read: Callable[[Any], Any] = text
    id: str = "id"
    is_descending: bool = False

    @property
    def _columns(self) -> list[str]:
        return [self.id] if self.key is None else [self.key, self.id]

    def by(self, *, backward: bool) -> str:
        """The columns with their direction, for ORDER BY."""
        way = "DESC" if self.is_descending != backward else "ASC"
        return ", ".join(f"{column} {way}" for column in self._columns)

    def beyond(self, where: "Where", cursor: str, *, follows: bool) -> None:
        """Adds the condition that an item comes after the cursor's place, or before it."""
        sign = ">" if follows != self.is_descending else "<"
        marks = ", ".join(["{}"] * len(self._columns))
        where.add(f"({', '.join(self._columns)}) {sign} ({marks})", *self._place(cursor))

    def cursor(self, value: Any, identity: UUID) -> str:
        kept = value.isoformat() if isinstance(value, datetime) else value
        place = [self.name, identity.hex] if self.key is None else [self.name, identity.hex, kept]
        return base64.urlsafe_b64encode(json.dumps(place).encode()).rstrip(b"=").decode()

    def _place(self, cursor: str) -> tuple[Any, ...]:
        try:
            packed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
            name, identity, *values = json.loads(packed)
            if name != self.name or len(values) + 1 != len(self._columns):
                raise ValueError("another list's")
            return *(self.read(value) for value in values), UUID(identity)
        except (binascii.Error, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise BadInput("the cursor does not belong to this list and order") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Which part of a list. Of `first` and `last` one is given."""

    first: int | None = None
    after: str | None = None
    last: int | None = None
    before: str | None = None

    @property
    def is_backward(self) -> bool:
        return self.last is not None

    @property
    def size(self) -> int:
        return (self.last if self.last is not None else self.first) or 0


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Items with their cursors, and whether the list goes on at either end."""

    items: list[tuple[str, T]]
    has_next: bool
    has_previous: bool


class Where:
    """Conditions that hold at once, with their values numbered as they come."""

    def __init__(self, condition: str = "true", *values: Any) -> None:
        """The first condition numbers its values itself: `$1`, `$2`."""
        self.texts = [condition]
        self.values: list[Any] = list(values)

    def add(self, condition: str, *values: Any) -> None:
        """One more. Its values' places read `{}`."""
        numbers = [f"${len(self.values) + n}" for n in range(1, len(values) + 1)]
        self.texts.append(condition.format(*numbers))
        self.values += values

    def copy(self) -> "Where":
        other = Where()
        other.texts, other.values = [*self.texts], [*self.values]
        return other

    def __str__(self) -> str:
        return " AND ".join(f"({condition})" for condition in self.texts)


async def read(
    columns: str, source: str, where: Where, order: Order, stretch: Stretch, make: Callable[[dict[str, Any]], T]
) -> Page[T]:
    """One page.

    Args:
        columns: What `make` needs of each row, as SQL after SELECT.
        source: What is read, as SQL after FROM.
        where: Which of it, also on other pages.

    Raises:
        BadInput: A cursor is another list's, or none at all.
    """
    where = where.copy()
    for cursor, follows in ((stretch.after, True), (stretch.before, False)):
        if cursor is not None:
            order.beyond(where, cursor, follows=follows)
    is_backward, size = stretch.is_backward, stretch.size
    rows = await DB.fetch(
        f"SELECT {order.key or 'NULL'} AS page_key, {order.id} AS page_id, {columns} FROM {source} WHERE {where} "
        f"ORDER BY {order.by(backward=is_backward)} LIMIT {size + 1}",
        *where.values,
    )
    has_more = len(rows) > size
    rows = rows[:size]
    if is_backward:
        rows.reverse()
    items = [(order.cursor(row.pop("page_key"), row.pop("page_id")), make(row)) for row in rows]
    has_next = stretch.before is not None if is_backward else has_more
    has_previous = has_more if is_backward else stretch.after is not None
    return Page(items, has_next, has_previous)


async def count(source: str, where: Where) -> int:
    """All items, also those on other pages."""
    row = await DB.fetch_one(f"SELECT count(*) AS n FROM {source} WHERE {where}", *where.values)
    return 0 if row is None else row["n"]
