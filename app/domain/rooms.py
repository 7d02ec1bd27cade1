"""Names of rooms, and who is meant to hear what is said in them.

A room is where events are heard. Its name is public and stable; ids in it are plain UUIDs.
"""

import re
from dataclasses import dataclass
from uuid import UUID

FLEET_ALL = "fleet:all"

#: Longest name a client may ask for; far above the longest there is.
MAX_NAME = 100

_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_NAME = re.compile(
    rf"(?:(?P<kind>bot|notifications:user|fleet:user|keys:rotation):(?P<id>{_UUID})(?P<tail>:status)?|fleet:all)\Z"
)


@dataclass(frozen=True, slots=True)
class RoomName:
    """A room's name taken apart: `bot:<id>:status` is kind `bot` and the bot's id."""

    kind: str
    subject: UUID | None


def bot_status(bot_id: UUID) -> str:
    return f"bot:{bot_id}:status"


def notifications(user_id: UUID) -> str:
    return f"notifications:user:{user_id}"


def fleet_user(user_id: UUID) -> str:
    return f"fleet:user:{user_id}"


def key_rotation(rotation_id: UUID) -> str:
    return f"keys:rotation:{rotation_id}"


def parse(name: str) -> RoomName | None:
    """The parts of a room's name; None where no room can have that name."""
    match = _NAME.match(name) if len(name) <= MAX_NAME else None
    if match is None:
        return None
    kind: str | None = match["kind"]
    if kind is None:
        return RoomName("fleet:all", None)
    if (kind == "bot") != (match["tail"] is not None):
        return None
    return RoomName(kind, UUID(match["id"]))
