"""What is heard in rooms, as subscriptions carry it."""

from datetime import UTC, datetime
from typing import Any, NewType

import strawberry
from strawberry.scalars import JSON

from app.domain.events import BotEventKind, RoomEvent, bot_event_name
from app.domain.states import BotStatus, Phase
from app.domain.viewer import Viewer
from app.graphql.types import node
from app.graphql.types.bot import Bot
from app.services import rooms
from app.services.roster import Bot as Row

BigInt = NewType("BigInt", int)


@strawberry.type(name="RoomEvent", description="A message in a room, as every listener gets it, whatever the room.")
class RoomMessage:
    cursor: str = strawberry.field(description="Give it as `after` to go on from here.")
    room: str = strawberry.field(description="Name of the room.")
    type: str = strawberry.field(description="Family: `bot`, `session`, `feed`, `notification`, `system`.")
    event: str = strawberry.field(description="Name, for example `bot:started`.")
    data: JSON = strawberry.field(
        description="What the event says. For `bot:*`: botId, agentId, name, port, pid, status, error."
    )
    timestamp: datetime = strawberry.field(description="When it happened.")
    timestamp_ms: BigInt = strawberry.field(description="When it happened, in milliseconds since 1970.")

    @classmethod
    def from_event(cls, said: rooms.Said) -> "RoomMessage":
        family, name = _envelope(said.event)
        data = said.event.payload
        if family == "bot":
            data = data | {"status": BotStatus(data["status"]).public}
        return cls._at(said.cursor, said.event.room, family, name, data, said.event.at)

    @classmethod
    def present(cls, cursor: str, room: str, event: str, data: dict[str, Any]) -> "RoomMessage":
        """How a room stands now: `room:current`, or `room:resync` where events were missed."""
        return cls._at(cursor, room, "system", event, data, datetime.now(UTC))

    @classmethod
    def _at(cls, cursor: str, room: str, type_: str, event: str, data: dict[str, Any], at: datetime) -> "RoomMessage":
        milliseconds = BigInt(int(at.timestamp() * 1000))
        return cls(
            cursor=cursor, room=room, type=type_, event=event, data=JSON(data), timestamp=at, timestamp_ms=milliseconds
        )


def _envelope(event: RoomEvent) -> tuple[str, str]:
    if event.room.startswith("notifications:"):
        return "notification", f"notification:{event.type.lower()}"
    if event.room.startswith("keys:"):
        return "system", "keys:rotation"
    return "bot", bot_event_name(BotEventKind(event.type))


def bot_data(row: Row) -> dict[str, Any]:
    """A bot as it is now, in the words of room messages."""
    return {
        "botId": str(row.id),
        "agentId": row.agent_id,
        "name": row.name,
        "status": row.status.public,
        "port": row.port if row.status is BotStatus.ACTIVE else None,
        "pid": row.pid if row.status.has_process else None,
        "error": row.error if row.status.public == "error" else None,
    }


@strawberry.type(description="How far the phase `plugin` is, in which the plugins of a bot's channels are installed.")
class PhaseProgress:
    provider: str = strawberry.field(description="Provider of the channel, for example `discord`.")
    number: int = strawberry.field(description="Which of the plugins it is, from 1.")
    total: int = strawberry.field(description="How many there are to be installed.")
    step: str = strawberry.field(
        description="What is being done: `waiting` (for other bots), `asking` (the registry), `downloading` (for a bot "
        "that runs on meanwhile) or `installing`."
    )
    megabytes: int = strawberry.field(description="What is there of the bot's plugins by now, in MB on disk.")

    @classmethod
    def from_said(cls, said: dict[str, Any] | None) -> "PhaseProgress | None":
        return cls(**said) if said else None


@strawberry.type(description="Something that happened to a bot's process.")
class BotStatusEvent:
    cursor: str = strawberry.field(description="Give it as `after` to go on from here.")
    event: str = strawberry.field(description="Name, for example `bot:started`, `bot:stopped` or `bot:error`.")
    kind: BotEventKind = strawberry.field(description="The same for programs.")
    bot_id: strawberry.ID = strawberry.field(description="Identity of the bot, valid also after its deletion.")
    agent_id: str = strawberry.field(description="Short name of the agent.")
    name: str = strawberry.field(description="Name shown to people.")
    status: BotStatus = strawberry.field(description="Status after the event.")
    previous_status: BotStatus | None = strawberry.field(description="Status before the event; null for a new bot.")
    port: int | None = strawberry.field(description="Port the process listens on; null while it does not.")
    pid: int | None = strawberry.field(description="Number of the process; null while none runs.")
    error: str | None = strawberry.field(description="What went wrong; null if nothing did.")
    reason: str | None = strawberry.field(description="Why, for example `CRASHED`, `CONFIG_INVALID`, `RETRY`.")
    phase: str | None = strawberry.field(
        description="What a start is doing, for example `waiting` or `checking`; `plugin` also while something is "
        "downloaded for a bot that runs; null otherwise."
    )
    phase_progress: PhaseProgress | None = strawberry.field(
        description="How far the phase `plugin` is; null in any other."
    )
    exit_code: int | None = strawberry.field(
        description="How the process ended; null while it runs or if it was ended by a signal."
    )
    exit_signal: str | None = strawberry.field(
        description="Signal that ended the process, for example `SIGKILL`; null while it runs or if it ended by itself."
    )
    dropped_count: int = strawberry.field(description="Events that this listener missed just before this one.")
    timestamp: datetime = strawberry.field(description="When it happened.")
    bot: Bot | None = strawberry.field(
        description="The bot as it is now; null after its deletion, and where it is somebody else's by now."
    )

    @classmethod
    def from_event(cls, said: rooms.Said, row: Row | None, viewer: Viewer) -> "BotStatusEvent":
        p = said.event.payload
        kind = BotEventKind(said.event.type)
        previous = p["previousStatus"]
        return cls(
            cursor=said.cursor,
            event=bot_event_name(kind),
            kind=kind,
            bot_id=strawberry.ID(node.to_base64("Bot", p["botId"])),
            agent_id=p["agentId"],
            name=p["name"],
            status=BotStatus(p["status"]),
            previous_status=BotStatus(previous) if previous else None,
            port=p["port"],
            pid=p["pid"],
            error=p["error"],
            reason=p["reason"],
            phase=p["phase"],
            # Events of earlier versions do not have it.
            phase_progress=PhaseProgress.from_said(p.get("phaseProgress")),
            exit_code=p["exitCode"],
            exit_signal=p["exitSignal"],
            dropped_count=0,
            timestamp=said.event.at,
            bot=Bot.from_row(row, viewer) if row else None,
        )

    @classmethod
    def present(cls, cursor: str, kind: BotEventKind, row: Row, viewer: Viewer, dropped: int = 0) -> "BotStatusEvent":
        """The bot as it is now."""
        data = bot_data(row)
        return cls(
            cursor=cursor,
            event=bot_event_name(kind),
            kind=kind,
            bot_id=node.global_id("Bot", row.id),
            agent_id=row.agent_id,
            name=row.name,
            status=row.status,
            previous_status=None,
            port=data["port"],
            pid=data["pid"],
            error=data["error"],
            reason=row.reason,
            phase=row.phase,
            phase_progress=PhaseProgress.from_said(row.phase_progress if row.phase == Phase.PLUGIN else None),
            exit_code=None,
            exit_signal=None,
            dropped_count=dropped,
            timestamp=datetime.now(UTC),
            bot=Bot.from_row(row, viewer),
        )
