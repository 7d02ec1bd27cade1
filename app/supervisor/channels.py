"""Watches the channels of one running bot: asks its gateway how they are, and has the recorder write what changed.

A look is a connection of its own: what a gateway broadcasts between two looks need not be read, nor kept. All pauses
are told in health intervals, so that a server that looks after its bots more often looks at their channels more often.
"""

import re
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

import anyio
import anyio.to_thread
import structlog

from app.domain.errors import ClawNetError, GatewayFailed
from app.domain.states import BotStatus, ChannelStatus
from app.gateway import channel_status, pairing, process, rpc
from app.gateway.channel_status import Seen
from app.gateway.process import Process
from app.gateway.rpc import Connection
from app.services import channel_states, keys, processes
from app.services.channel_states import ChannelState
from app.services.nodes import Lease, LeaseLost
from app.supervisor import launch
from app.supervisor.tools import Tools

log = structlog.get_logger()

#: Health intervals between two looks: soon after a start or a change, for so many intervals, and later on.
SOON, SOON_FOR, LATER = 0.5, 6.0, 3.0
#: Health intervals after which a gateway has opened what it will open by itself.
SETTLED = 3.0
#: Health intervals a bot has to run before the channels are started that OpenClaw held back.
STEADY = 6.0
#: Seconds that trying an account out may take (old OpenClaw says nothing otherwise).
PROBE_TIMEOUT = 20.0
#: A word with a number in it: seconds until the next try, a request's name.
_NUMBER = re.compile(r"\S*\d\S*")


class Watcher:
    """Looks at one incarnation's channels, from ready to the end."""

    def __init__(self, tools: Tools, lease: Lease, bot_id: UUID, gateway: Process) -> None:
        self._tools = tools
        self._lease = lease
        self._bot_id = bot_id
        self._gateway = gateway
        self._unit = tools.health_interval
        self._bell = anyio.Event()
        self._is_over = False
        self._since = self._changed_at = anyio.current_time()
        self._known: object = None
        #: Channels that were started by hand, as they were then.
        self._started: dict[UUID, datetime] = {}
        self._waiting: dict[UUID, list[str]] | None = None

    def ring(self) -> None:
        """Somebody may have changed something."""
        self._bell.set()

    def end(self) -> None:
        """The process is gone, or is given up."""
        self._is_over = True
        self.ring()

    async def run(self) -> None:
        """Returns once there is nothing to look at any more. A look that fails is a look less, and harms nobody."""
        while not self._is_over and self._gateway.is_alive:
            try:
                await self._look()
            except LeaseLost:
                self._tools.doubt()
                return
            except ClawNetError as error:
                log.info("channels_not_seen", error=str(error))
            except Exception:
                # The runner's own task group would end with it, and every bot's life hangs on that.
                log.exception("channels_not_seen")
            with anyio.move_on_after(self._pause()):
                await self._bell.wait()
            self._bell = anyio.Event()

    def _pause(self) -> float:
        is_soon = anyio.current_time() - self._changed_at < SOON_FOR * self._unit
        return self._unit * (SOON if is_soon else LATER)

    async def _look(self) -> None:
        channels = await channel_states.of_bot(self._bot_id)
        self._note_changes(channels)
        for channel in channels:
            if not channel.enabled:
                await self._write(channel, Seen(ChannelStatus.DISCONNECTED))
        enabled = [channel for channel in channels if channel.enabled]
        if not enabled:
            return
        w = await processes.load(self._lease, self._bot_id)
        if w is None or w.port is None or w.status is not BotStatus.ACTIVE:
            return
        token = await keys.gateway_token(self._tools.vault, self._bot_id)
        is_own: Callable[[], Awaitable[bool]] = partial(process.owns_port, self._gateway, w.port)
        async with rpc.connect(w.port, token.reveal(), is_own) as connection:
            await self._look_at(connection, enabled)
            await self._look_who_waits(connection, enabled)

    def _note_changes(self, channels: list[ChannelState]) -> None:
        """A channel that somebody changed is looked at more often for a while."""
        known = {(channel.channel_id, channel.updated_at) for channel in channels}
        if self._known is not None and known != self._known:
            self._changed_at = anyio.current_time()
        self._known = known

    async def _look_at(self, connection: Connection, channels: list[ChannelState]) -> None:
        answer = await self._status(connection, probe=False)
        # Old OpenClaw says that a channel runs, no more: it is tried out until it was seen to be connected once.
        if any(self._read(answer, c).is_unsure for c in channels if c.status is not ChannelStatus.CONNECTED):
            answer = await self._status(connection, probe=True)
        for channel in channels:
            seen = self._read(answer, channel)
            if seen.is_suppressed and self._is_steady:
                await self._start(connection, channel)
            await self._write(channel, seen)

    async def _status(self, connection: Connection, *, probe: bool) -> dict[str, Any]:
        return await connection.call("channels.status", {"probe": probe}, PROBE_TIMEOUT)

    def _read(self, answer: dict[str, Any], channel: ChannelState) -> Seen:
        is_settled = anyio.current_time() - self._changed_at >= SETTLED * self._unit
        return channel_status.read(answer, channel.provider, channel.account_id, is_settled=is_settled)

    @property
    def _is_steady(self) -> bool:
        return anyio.current_time() - self._since >= STEADY * self._unit

    async def _start(self, connection: Connection, channel: ChannelState) -> None:
        """Starts what OpenClaw held back after crashes: the bot has run well for long enough.

        Once, unless somebody changes the channel: what stays held back stays an error, and is not told over and over.
        """
        if self._started.get(channel.channel_id) == channel.updated_at:
            return
        self._started[channel.channel_id] = channel.updated_at
        account = {"channel": channel.provider, "accountId": channel.account_id}
        try:
            has_started = (await connection.call("channels.start", account)).get("started") is True
        except GatewayFailed as error:
            # One that cannot be started must not hide how the others are.
            log.info("channel_not_started", channel_id=str(channel.channel_id), error=str(error))
            return
        if has_started:
            log.info("channel_started_by_hand", channel_id=str(channel.channel_id), provider=channel.provider)
            self._changed_at = anyio.current_time()

    async def _write(self, channel: ChannelState, seen: Seen) -> None:
        raw = None
        if seen.raw is not None:
            # A reason may quote the token, as a part of an address, say.
            lines = await anyio.to_thread.run_sync(launch.without_secrets, self._gateway.home, (seen.raw,))
            raw = lines[0] if lines else None
        error = channel_status.sentence(seen, raw)
        is_news = (channel.status, _told(channel.error)) != (seen.status, _told(error))
        if not is_news or not self._gateway.is_alive or self._is_over:
            return
        await self._tools.recorder.channel_changed(
            self._lease, self._bot_id, channel.channel_id, seen.status, error, seen.connected_at
        )

    async def _look_who_waits(self, connection: Connection, channels: list[ChannelState]) -> None:
        """Tells the room when somebody asks to be let in, or does not wait any more."""
        now: dict[UUID, list[str]] = {}
        for channel in channels:
            try:
                found = await pairing.waiting(connection, self._gateway.home, channel.provider, channel.account_id)
            except GatewayFailed:
                # A channel without pairing is refused; that is an answer as well.
                found = None
            now[channel.channel_id] = [one.code for one in found or ()]
        before, self._waiting = self._waiting, now
        if before is not None and now != before:
            await self._tools.recorder.pairings_changed(self._lease, self._bot_id)


def _told(error: str | None) -> str | None:
    """A reason as it is compared: one that only counts on is no news."""
    return error and _NUMBER.sub("0", error)
