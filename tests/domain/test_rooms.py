"""Names of rooms, taken apart and put together."""

from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain import rooms


def test_every_name_we_make_can_be_taken_apart() -> None:
    key = uuid4()
    assert rooms.parse(rooms.bot_status(key)) == rooms.RoomName("bot", key)
    assert rooms.parse(rooms.notifications(key)) == rooms.RoomName("notifications:user", key)
    assert rooms.parse(rooms.fleet_user(key)) == rooms.RoomName("fleet:user", key)
    assert rooms.parse(rooms.key_rotation(key)) == rooms.RoomName("keys:rotation", key)
    assert rooms.parse(rooms.FLEET_ALL) == rooms.RoomName("fleet:all", None)


KEY = "018f3c1e-0000-7000-8000-000000000001"


@pytest.mark.parametrize(
    "name", ["", "bot", "bot::status", "fleet:all\n", f"bot:{KEY}", f"fleet:user:{KEY}:status", "x" * 10_000]
)
def test_other_texts_are_no_rooms(name: str) -> None:
    assert rooms.parse(name) is None


@given(st.text())
def test_any_text_is_a_room_or_is_not(text: str) -> None:
    rooms.parse(text)
