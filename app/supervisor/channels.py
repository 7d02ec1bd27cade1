"""Watches the channels of one running bot: asks its gateway how they are, and has the recorder write what changed.

A look is a connection of its own: what a gateway broadcasts between two looks need not be read, nor kept. All pauses
are told in health intervals, so that a server that looks after its bots more often looks at their channels more often.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
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
from app.gateway.channel_log import Conflicts
from app.gateway.channel_status import Seen
from app.gateway.channels import render as render_channels
from app.gateway.process import Process
from app.gateway.rpc import Connection
from app.services import channel_states, keys, processes
from app.services.channel_states import ChannelState
from app.services.nodes import Lease, LeaseLost
from app.supervisor import accounts, launch
from app.supervisor.tools import Tools

log = structlog.get_logger()

#: Health intervals between two looks: soon after a start or a change, for so many intervals, and later on.
SOON, SOON_FOR, LATER = 0.5, 6.0, 3.0
#: Health intervals after which a gateway has opened what it will open by itself.
SETTLED = 3.0
#: Health intervals a bot has to run before the channels are started that OpenClaw held back.
STEADY = 6.0
#: Times that such a channel is started where that fails; the pauses between them double, beginning with `STEADY`.
START_TRIES = 5
#: Seconds that trying an account out may take (old OpenClaw says nothing otherwise).
PROBE_TIMEOUT = 20.0
#: A word with a number in it: seconds until the next try, a request's name.
_NUMBER = re.compile(r"\S*\d\S*")


@dataclass(slots=True)
class _Start:
    """How often a held back channel was started, as it was then."""

    updated_at: datetime
    tries: int = 0
    next_at: float = 0.0


class Watcher:
    """Looks at one incarnation's channels, from ready to the end."""

    def __init__(
        self, tools: Tools, lease: Lease, bot_id: UUID, gateway: Process, unprepared: Mapping[str, str | None]
    ) -> None:
        self._tools = tools
        self._lease = lease
        self._bot_id = bot_id
        self._gateway = gateway
        self._unit = tools.health_interval
        self._bell = anyio.Event()
        self._is_over = False
        self._since = self._changed_at = anyio.current_time()
        #: The process was not told yet of everything that people changed.
        self._is_behind = False
        self._known: object = None
        #: Channels that were started by hand.
        self._started: dict[UUID, _Start] = {}
        #: Providers and accounts that are not in the bot's configuration, with why.
        self._left_out: dict[tuple[str, str], str] = {}
        self._conflicts = Conflicts(gateway.home)
        self._waiting: dict[UUID, list[str]] | None = None
        #: Providers whose plugin the bot does not have, and why not; None while it is being fetched. What the gateway
        #: says of channels that it does not know is no news.
        self._unprepared = unprepared

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
        if self._note_changes(channels):
            await self._look_who_is_left_out()
        for channel in channels:
            if not channel.enabled:
                await self._write(channel, Seen(ChannelStatus.DISCONNECTED))
            elif why := self._left_out.get((channel.provider, channel.account_id)):
                await self._write(channel, Seen(ChannelStatus.ERROR, f"not in the bot's configuration: {why}"))
            elif channel.provider in self._unprepared:
                why = self._unprepared[channel.provider]
                await self._write(channel, Seen(ChannelStatus.ERROR, why) if why else Seen(ChannelStatus.CONNECTING))
        enabled = [channel for channel in channels if channel.enabled and self._is_in(channel)]
        if not enabled:
            return
        w = await processes.load(self._lease, self._bot_id)
        if w is None or w.port is None or w.status is not BotStatus.ACTIVE:
            return
        was_behind, self._is_behind = self._is_behind, w.revision > w.applied_revision
        if was_behind and not self._is_behind:
            self._changed_at = anyio.current_time()
        token = await keys.gateway_token(self._tools.vault, self._bot_id)
        is_own: Callable[[], Awaitable[bool]] = partial(process.owns_port, self._gateway, w.port)
        async with rpc.connect(w.port, token.reveal(), is_own) as connection:
            await self._look_at(connection, enabled, w.started_at)
            await self._look_who_waits(connection, enabled)

    def _is_in(self, channel: ChannelState) -> bool:
        """The gateway knows it."""
        is_left_out = (channel.provider, channel.account_id) in self._left_out
        return not is_left_out and channel.provider not in self._unprepared

    def _note_changes(self, channels: list[ChannelState]) -> bool:
        """Whether there are any; a channel that somebody changed is looked at more often for a while."""
        known = {(channel.channel_id, channel.updated_at) for channel in channels}
        has_changed = known != self._known
        if self._known is not None and has_changed:
            self._changed_at = anyio.current_time()
        self._known = known
        return has_changed

    async def _look_who_is_left_out(self) -> None:
        """Only what people change brings a channel in or out, so that no secret is opened at every look."""
        try:
            openclaw = await self._tools.openclaw.get()
            opened = await accounts.read(self._tools.vault, self._bot_id)
        except ClawNetError:
            # Nobody can tell; the next look asks again.
            self._known, self._left_out = None, {}
            return
        rendered = render_channels(opened, openclaw.dialect, openclaw.installation.version)
        self._left_out = {(provider, account_id): why for provider, account_id, why in rendered.left_out}

    async def _look_at(self, connection: Connection, channels: list[ChannelState], started_at: datetime | None) -> None:
        answer = await self._status(connection, probe=False)
        conflicts = await self._conflicts_of(connection, channels, started_at)
        # Old OpenClaw says that a channel runs, no more: it is tried out until it was seen to be connected once.
        untried = [c for c in channels if c.status is not ChannelStatus.CONNECTED and c.channel_id not in conflicts]
        if any(self._read(answer, channel).is_unsure for channel in untried):
            answer = await self._status(connection, probe=True)
        for channel in channels:
            seen = self._read(answer, channel)
            if seen.status is ChannelStatus.CONNECTED:
                seen = conflicts.get(channel.channel_id, seen)
            if seen.is_suppressed and self._is_steady:
                await self._start(connection, channel)
            await self._write(channel, seen)

    async def _conflicts_of(
        self, connection: Connection, channels: list[ChannelState], started_at: datetime | None
    ) -> dict[UUID, Seen]:
        """Which of them somebody else polls, where only the log says so."""
        polled = [channel for channel in channels if channel.provider == "telegram"]
        if not polled or connection.protocol != pairing.OLD_PROTOCOL:
            return {}
        since = max(channel.updated_at for channel in polled)
        said = await anyio.to_thread.run_sync(self._conflicts.telegram, max(since, started_at or since))
        if said is None:
            return {}
        seen = channel_status.conflict(said, is_certain=len(polled) == 1)
        return {channel.channel_id: seen for channel in polled}

    async def _status(self, connection: Connection, *, probe: bool) -> dict[str, Any]:
        return await connection.call("channels.status", {"probe": probe}, PROBE_TIMEOUT)

    def _read(self, answer: dict[str, Any], channel: ChannelState) -> Seen:
        is_settled = not self._is_behind and anyio.current_time() - self._changed_at >= SETTLED * self._unit
        return channel_status.read(answer, channel.provider, channel.account_id, is_settled=is_settled)

    @property
    def _is_steady(self) -> bool:
        return anyio.current_time() - self._since >= STEADY * self._unit

    async def _start(self, connection: Connection, channel: ChannelState) -> None:
        """Starts what OpenClaw held back after crashes: the bot has run well for long enough.

        Once, unless somebody changes the channel: what stays held back stays an error, and is not told over and over.
        Where that fails it is tried some more times.
        """
        start = self._started.get(channel.channel_id)
        if start is None or start.updated_at != channel.updated_at:
            start = self._started[channel.channel_id] = _Start(channel.updated_at)
        if start.tries >= START_TRIES or anyio.current_time() < start.next_at:
            return
        start.next_at = anyio.current_time() + STEADY * self._unit * 2**start.tries
        start.tries += 1
        account = {"channel": channel.provider, "accountId": channel.account_id}
        try:
            has_started = (await connection.call("channels.start", account)).get("started") is True
        except GatewayFailed as error:
            # One that cannot be started must not hide how the others are.
            log.info("channel_not_started", channel_id=str(channel.channel_id), error=str(error))
            return
        if has_started:
            start.tries = START_TRIES
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
