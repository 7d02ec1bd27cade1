"""A list is walked by place, not by number: nothing is shown twice or left out, whatever comes and goes meanwhile."""

import base64
import json
import random
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.db.engine import DB
from app.domain.errors import BadInput
from app.domain.ids import new_id
from app.services import pages
from app.services.pages import Order, Page, Stretch, Where

BY_TIME = Order("things.at", "t.at", pages.time, "t.id")
BY_WORD = Order("things.word", "t.word", pages.text, "t.id")
BY_SIZE = Order("things.size", "t.size", pages.number, "t.id")
NEWEST = Order("things.id", id="t.id", is_descending=True)


@pytest.fixture
async def things(database: dict[str, Any]) -> AsyncGenerator[list[dict[str, Any]]]:
    await DB.open(database)
    await DB.fetch("CREATE TABLE thing (id uuid PRIMARY KEY, at timestamptz, word varchar(20), size bigint)")
    for n in range(23):
        # Values repeat, so that an order by them alone would lose some between pages.
        await DB.fetch(
            "INSERT INTO thing VALUES ($1, '2026-01-01T00:00:00.000001Z'::timestamptz + $2 * interval '1 us', $3, $4)",
            new_id(), n % 5, random.choice(["a", "é", "日本", "%", "a b"]), random.choice([-(2**63), 0, 2**63 - 1]),
        )  # fmt: skip
    yield await DB.fetch("SELECT * FROM thing")
    await DB.close()


async def read(order: Order, where: Where | None = None, **stretch: Any) -> Page[UUID]:
    where = where or Where()
    return await pages.read("t.id", "thing t", where, order, Stretch(**stretch), lambda row: row["id"])


async def walk(order: Order, size: int, *, forward: bool) -> list[UUID]:
    found: list[UUID] = []
    cursor = None
    while True:
        page = await read(order, **({"first": size, "after": cursor} if forward else {"last": size, "before": cursor}))
        keys = [key for _, key in page.items]
        found = found + keys if forward else keys + found
        assert (page.has_previous if forward else page.has_next) is (cursor is not None)
        if not (page.has_next if forward else page.has_previous):
            return found
        assert len(keys) == size
        cursor = page.items[-1 if forward else 0][0]


@pytest.mark.parametrize(("order", "key"), [(BY_TIME, "at"), (BY_WORD, "word"), (BY_SIZE, "size"), (NEWEST, None)])
async def test_every_order_is_walked_whole_either_way_and_in_any_step(
    order: Order, key: str | None, things: list[dict[str, Any]]
) -> None:
    # As the database sorts, where texts are concerned.
    rows = await DB.fetch(f"SELECT id FROM thing t ORDER BY {f't.{key}, ' if key else ''}t.id")
    expected = [row["id"] for row in rows]
    for turned in (False, True):
        each = replace(order, is_descending=turned != order.is_descending)
        wanted = expected[::-1] if each.is_descending else expected
        for size in (1, 7, 22, 23, 24):
            assert await walk(each, size, forward=True) == wanted
            assert await walk(each, size, forward=False) == wanted


async def test_what_is_added_or_removed_meanwhile_shifts_nothing(things: list[dict[str, Any]]) -> None:
    page = await read(NEWEST, first=5)
    await DB.fetch("INSERT INTO thing (id) SELECT $1", new_id())
    await DB.fetch("DELETE FROM thing WHERE id = $1", page.items[-1][1])
    rest = await read(NEWEST, first=100, after=page.items[-1][0])
    seen = [key for _, key in [*page.items, *rest.items]]
    assert seen == sorted((row["id"] for row in things), reverse=True)
    assert await pages.count("thing t", Where()) == len(things)


async def test_conditions_hold_on_every_page_and_in_the_count(things: list[dict[str, Any]]) -> None:
    where = Where("t.size >= $1", 0)
    where.add("t.word = ANY({}::text[]) OR t.word = {}", ["a", "é"], "%")
    wanted = sorted(row["id"] for row in things if row["size"] >= 0 and row["word"] in ("a", "é", "%"))
    first = await read(NEWEST, where, first=2)
    rest = await read(NEWEST, where, first=100, after=first.items[-1][0])
    assert [key for _, key in [*first.items, *rest.items]] == wanted[::-1]
    # Reading a page leaves the condition as it was.
    assert await pages.count("thing t", where) == len(wanted)
    both = await read(NEWEST, where, first=100, after=first.items[0][0], before=rest.items[-1][0])
    assert [key for _, key in both.items] == wanted[::-1][1:-1]
    assert (both.has_next, both.has_previous) == (False, True)


async def test_a_cursor_of_another_list_or_order_is_refused(things: list[dict[str, Any]]) -> None:
    orders = [BY_TIME, BY_WORD, BY_SIZE, NEWEST, Order("others.word", "t.word", pages.text, "t.id")]
    for mine in orders:
        cursor = (await read(mine, first=1)).items[0][0]
        for other in orders:
            if other is mine:
                await read(other, first=1, after=cursor, before=cursor)
                continue
            with pytest.raises(BadInput):
                await read(other, first=1, after=cursor)
            with pytest.raises(BadInput):
                await read(other, last=1, before=cursor)


@given(st.one_of(st.text(), st.binary().map(lambda raw: base64.urlsafe_b64encode(raw).decode().rstrip("="))))
def test_any_text_is_a_cursor_or_bad_input(text: str) -> None:
    for order in (BY_TIME, BY_WORD, BY_SIZE, NEWEST):
        with pytest.raises(BadInput):
            order.beyond(Where(), text, follows=True)


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=4)


@given(st.sampled_from([BY_TIME, BY_WORD, BY_SIZE, NEWEST]), st.lists(JSON, max_size=3))
def test_a_cursor_with_our_name_on_it_and_anything_in_it_is_read_or_refused(order: Order, values: list[Any]) -> None:
    packed = base64.urlsafe_b64encode(json.dumps([order.name, *values]).encode()).decode().rstrip("=")
    where = Where()
    try:
        order.beyond(where, packed, follows=True)
    except BadInput:
        assert where.values == []
    else:
        assert len(where.values) in (1, 2)
