"""What is said in rooms: events in the past tense, carrying ids and states, never rows or secrets."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from app.domain.states import BotStatus, PluginStep


class BotEventKind(StrEnum):
    """What happened to a bot's process."""

    CURRENT = "CURRENT"
    RESYNC = "RESYNC"
    CREATED = "CREATED"
    STARTING = "STARTING"
    STARTED = "STARTED"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    CHANNEL_CHANGED = "CHANNEL_CHANGED"
    CONFIG_ROLLED_BACK = "CONFIG_ROLLED_BACK"
    ERROR = "ERROR"
    BACKOFF = "BACKOFF"
    ADOPTED = "ADOPTED"
    UPDATED = "UPDATED"
    TRANSFERRED = "TRANSFERRED"
    DELETED = "DELETED"


#: The event that tells of a bot's new status.
KIND_OF_STATUS = {
    BotStatus.INACTIVE: BotEventKind.STOPPED,
    BotStatus.STARTING: BotEventKind.STARTING,
    BotStatus.ACTIVE: BotEventKind.STARTED,
    BotStatus.STOPPING: BotEventKind.STOPPING,
    BotStatus.BACKOFF: BotEventKind.BACKOFF,
    BotStatus.ERROR: BotEventKind.ERROR,
}

_NAMES = {BotEventKind.BACKOFF: "bot:error", BotEventKind.CONFIG_ROLLED_BACK: "bot:config_rolled_back"}


def bot_event_name(kind: BotEventKind) -> str:
    """The event's name in room messages, for example `bot:started`."""
    return _NAMES.get(kind, f"bot:{kind.value.lower()}")


@dataclass(frozen=True, slots=True)
class RoomEvent:
    """One thing said in a room: `seq` is contiguous within the room, from 1."""

    room: str
    seq: int
    type: str
    payload: dict[str, Any]
    at: datetime


@dataclass(frozen=True, slots=True)
class PhaseProgress:
    """How far a phase is: whose plugin is prepared, the how manieth of how many (from 1), and what is there (MB)."""

    provider: str
    number: int
    total: int
    step: PluginStep
    megabytes: int


@dataclass(frozen=True, slots=True)
class BotStatusChanged:
    """A bot's process, or what is wanted of it, changed."""

    kind: BotEventKind
    bot_id: UUID
    agent_id: str
    name: str
    status: BotStatus
    previous_status: BotStatus | None = None
    port: int | None = None
    pid: int | None = None
    error: str | None = None
    reason: str | None = None
    phase: str | None = None
    phase_progress: dict[str, Any] | None = None
    exit_code: int | None = None
    exit_signal: str | None = None
