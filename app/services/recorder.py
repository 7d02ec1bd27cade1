"""The only writer of a bot's status: the row, the room's event and the owner's notification in one transaction."""

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import structlog

from app.db.engine import DB
from app.domain import rooms as names
from app.domain.errors import ClawNetError
from app.domain.events import KIND_OF_STATUS, BotEventKind, BotStatusChanged, PhaseProgress
from app.domain.ports import WakeRooms
from app.domain.states import BotStatus, ChannelStatus, NotificationKind, Phase, Reason
from app.services import channel_states, notifications, processes, rooms
from app.services.nodes import Lease

log = structlog.get_logger()


class LostRace(ClawNetError):
    """Somebody else moved the bot first, its status or its owner; read again and decide anew."""


class Recorder:
    """Writes facts about bots and tells the rooms."""

    def __init__(self, wake: WakeRooms) -> None:
        self._wake = wake

    async def transition(
        self,
        lease: Lease,
        bot_id: UUID,
        expected: int,
        to: BotStatus,
        reason: Reason,
        *,
        owner: UUID | None = None,
        **facts: Any,
    ) -> int:
        """Moves a bot to a status and says so; the new sequence of its row.

        Args:
            lease: Under which the caller acts.
            expected: `status_seq` the caller decided by.
            owner: Whose settings are spoken of; nobody else is told.
            facts: Columns of `bot_process` that changed with it.

        Raises:
            LostRace: The row was moved meanwhile, or is not that owner's; nothing was written.
            LeaseLost: Another server supervises the bot by now; nothing was written.
        """
        columns, values = processes.assignments(facts, start=7)
        extra = f", {columns}" if columns else ""
        async with DB.transaction():
            if owner is not None and not await processes.hold_owner(bot_id, owner):
                raise LostRace(f"bot {bot_id} was given away")
            row = await DB.fetch_one(
                "UPDATE bot_process p SET status = $3, reason = $4, status_seq = p.status_seq + 1" + extra +
                " FROM bot b, bot_process old WHERE p.bot = $1 AND p.status_seq = $2 AND b.id = p.bot "
                "AND p.node_id = $5 AND p.lease_epoch = $6 "
                "AND old.bot = p.bot RETURNING p.*, old.status AS previous, b.owner, b.agent_id, b.name",
                bot_id, expected, to.value, reason.value, lease.node, lease.epoch, *values,
            )  # fmt: skip
            if row is None:
                await processes.hold(lease, bot_id)
                raise LostRace(f"bot {bot_id} has moved on from {expected}")
            lost = _takes_channels_along(to, reason) and await channel_states.disconnect_all(bot_id)
            # Whose it is now: it may have been given away since the row was read.
            row["owner"] = await rooms.hold(names.bot_status(bot_id)) or row["owner"]
            event = _event(KIND_OF_STATUS[to], row)
            await self._say(event, row["owner"])
            if event.kind in (BotEventKind.ERROR, BotEventKind.BACKOFF):
                await self._notify(row, event)
            if lost:
                await self._say(replace(event, kind=BotEventKind.CHANNEL_CHANGED), row["owner"])
        log.info(
            "bot_status_changed", status=to, reason=reason, pid=event.pid, port=event.port, error=event.error,
            exit_code=event.exit_code, exit_signal=event.exit_signal,
        )  # fmt: skip
        return row["status_seq"]

    async def tell(self, bot_id: UUID, kind: BotEventKind) -> None:
        """Says something about a bot that is no change of status, inside the caller's transaction."""
        # The room first: what is read then cannot be overtaken before it is said.
        await rooms.hold(names.bot_status(bot_id))
        row = await _read(bot_id)
        if row is not None:
            await self._say(_event(kind, row), row["owner"])

    async def transferred(self, bot_id: UUID, old: UUID, new: UUID) -> None:
        """Says that the bot is somebody else's now, inside the caller's transaction.

        The old owner hears that and nothing of the bot any more; the new one hears everything from there on.
        """
        await rooms.hand_over(names.bot_status(bot_id), new)
        row = await _read(bot_id)
        if row is not None:
            await self._say(_event(BotEventKind.TRANSFERRED, row), new, old)

    async def phase(
        self,
        lease: Lease,
        bot_id: UUID,
        phase: str | None,
        progress: PhaseProgress | None = None,
        *,
        is_running: bool = False,
    ) -> None:
        """Shows what a start is doing; a client sees it as STARTING with a phase.

        Args:
            is_running: It is no start: a change that a running bot is to get is made ready.
        """
        how_far = None if progress is None else json.dumps(asdict(progress))
        async with DB.transaction():
            await processes.note(lease, bot_id, phase=phase, phase_progress=how_far)
            await self.tell(bot_id, BotEventKind.UPDATED if is_running else BotEventKind.STARTING)

    async def adopted(self, lease: Lease, bot_id: UUID, pid: int, *, is_active: bool) -> None:
        """A server that was started anew took the running process over.

        Args:
            is_active: It was ready; what the last server was fetching for it is fetched no more.
        """
        facts = {"phase": None, "phase_progress": None} if is_active else {}
        async with DB.transaction():
            await processes.note(lease, bot_id, pid=pid, last_seen_at=datetime.now(UTC), **facts)
            await self.tell(bot_id, BotEventKind.ADOPTED)

    async def config_refused(self, lease: Lease, bot_id: UUID, owner: UUID, revision: int, why: str) -> None:
        """A new revision was refused; the bot goes on with the last good one, and its owner should know.

        Args:
            owner: Whose settings they are; nobody else is told why.

        Raises:
            LostRace: Somebody else has the bot by now, with a newer revision; nothing was written.
            LeaseLost: Another server supervises the bot by now; nothing was written.
        """
        async with DB.transaction():
            if not await processes.hold_owner(bot_id, owner):
                raise LostRace(f"bot {bot_id} was given away since revision {revision}")
            await processes.note(lease, bot_id, config_revision=revision, config_error=why)
            await self.tell(bot_id, BotEventKind.CONFIG_ROLLED_BACK)
            row = await _read(bot_id)
            if row is not None:
                title = f"{row['name']}'s new settings were refused and taken back"
                await notifications.add(self._wake, row["owner"], NotificationKind.BOT_ERROR, title, why, bot_id=bot_id)

    async def channel_changed(
        self,
        lease: Lease,
        bot_id: UUID,
        channel_id: UUID,
        status: ChannelStatus,
        error: str | None,
        connected_at: datetime | None = None,
    ) -> bool:
        """A channel was connected, lost or refused; whether that is news.

        Args:
            connected_at: Since when it is connected, if the gateway says so; else it is now.

        Raises:
            LeaseLost: Another server supervises the bot by now; nothing was written.
        """
        async with DB.transaction():
            # Held until the end, so that what a process said cannot be written after the process was.
            if not await processes.hold_running(lease, bot_id) and status is not ChannelStatus.DISCONNECTED:
                return False
            if not await channel_states.write(bot_id, channel_id, status, error, connected_at):
                return False
            await self.tell(bot_id, BotEventKind.CHANNEL_CHANGED)
        log.info("channel_changed", channel_id=str(channel_id), status=status, error=error)
        return True

    async def channels_closed(self, lease: Lease, bot_id: UUID, provider: str, error: str | None) -> None:
        """Nothing of this provider is open yet: its plugin cannot be had, or is there at last."""
        async with DB.transaction():
            await processes.hold(lease, bot_id)
            if await channel_states.disconnect(bot_id, provider, error):
                await self.tell(bot_id, BotEventKind.CHANNEL_CHANGED)

    async def pairings_changed(self, lease: Lease, bot_id: UUID) -> None:
        """Somebody asks to be let in, or does not wait any more."""
        async with DB.transaction():
            await processes.hold(lease, bot_id)
            await self.tell(bot_id, BotEventKind.CHANNEL_CHANGED)

    async def removal_held_up(self, lease: Lease, bot_id: UUID, why: str) -> None:
        """A bot that is down cannot be removed, which who asked and administrators should know; again is no news."""
        async with DB.transaction():
            await processes.hold(lease, bot_id)
            row = await _read(bot_id)
            if row is None or row["error"] == why:
                return
            await processes.note(lease, bot_id, error=why)
            title = f"{row['name']} cannot be deleted yet"
            await notifications.add_to_administrators(self._wake, NotificationKind.BOT_ERROR, title, why)

    async def delete(self, lease: Lease, bot_id: UUID) -> None:
        """Removes the bot with all that hangs on it, and says its last word, which is all that its room remembers."""
        async with DB.transaction():
            await processes.hold(lease, bot_id)
            await self.tell(bot_id, BotEventKind.DELETED)
            await rooms.forget_all_but_last(names.bot_status(bot_id))
            await processes.remove(bot_id)

    async def _say(self, event: BotStatusChanged, owner: UUID, *others: UUID) -> None:
        """Says it in the bot's room, in the fleets of its owner and of `others`, and in everybody's, in this order.

        Fleets are taken by name, so that two bots which change hands crosswise do not wait for each other.
        """
        payload = _payload(event)
        users = sorted({owner, *others}, key=names.fleet_user)
        heard_in = [(names.bot_status(event.bot_id), owner), *[(names.fleet_user(user), user) for user in users]]
        for room, whose in [*heard_in, (names.FLEET_ALL, None)]:
            await rooms.append(self._wake, [room], event.kind, payload, whose)

    async def _notify(self, row: dict[str, Any], event: BotStatusChanged) -> None:
        """A crash and a final failure are news to the owner; one more try of the same trouble is not."""
        if event.kind is BotEventKind.BACKOFF and event.previous_status is not BotStatus.ACTIVE:
            return
        title = f"{event.name} {'stopped with an error' if event.kind is BotEventKind.ERROR else 'ended unasked'}"
        await notifications.add(
            self._wake, row["owner"], NotificationKind.BOT_ERROR, title, event.error, bot_id=event.bot_id
        )


def _takes_channels_along(to: BotStatus, reason: Reason) -> bool:
    """Without its process no channel is connected. Which of them kept a bot from starting is to be seen, though."""
    return not to.has_process and reason is not Reason.CREDENTIALS_UNREADABLE


async def _read(bot_id: UUID) -> dict[str, Any] | None:
    return await DB.fetch_one(
        "SELECT p.*, p.status AS previous, b.owner, b.agent_id, b.name FROM bot_process p "
        "JOIN bot b ON b.id = p.bot WHERE b.id = $1",
        bot_id,
    )


def _event(kind: BotEventKind, row: dict[str, Any]) -> BotStatusChanged:
    status = BotStatus(row["status"])
    return BotStatusChanged(
        kind=kind,
        bot_id=row["bot"],
        agent_id=row["agent_id"],
        name=row["name"],
        status=status,
        previous_status=None if kind is BotEventKind.CREATED else BotStatus(row["previous"]),
        port=row["port"] if status is BotStatus.ACTIVE else None,
        pid=row["pid"] if status.has_process else None,
        error=row["error"] if status in (BotStatus.ERROR, BotStatus.BACKOFF) else None,
        reason=row["reason"],
        phase=row["phase"] if status.has_process else None,
        phase_progress=row["phase_progress"] if status.has_process and row["phase"] == Phase.PLUGIN else None,
        exit_code=None if status.has_process else row["exit_code"],
        exit_signal=None if status.has_process else row["exit_signal"],
    )


def _payload(event: BotStatusChanged) -> dict[str, Any]:
    return {
        "botId": event.bot_id,
        "agentId": event.agent_id,
        "name": event.name,
        "status": event.status,
        "previousStatus": event.previous_status,
        "port": event.port,
        "pid": event.pid,
        "error": event.error,
        "reason": event.reason,
        "phase": event.phase,
        "phaseProgress": event.phase_progress,
        "exitCode": event.exit_code,
        "exitSignal": event.exit_signal,
    }
