"""Linking channels to accounts by a code that a person scans: who may, and at which gateway.

Nothing of a login is stored: the code is a secret, and goes to who asked for it, for as long as they listen.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from uuid import UUID

from app.db.engine import DB
from app.domain.errors import Conflict, Invalid, LimitReached
from app.domain.events import BotEventKind
from app.domain.ports import GatewayLogins, IsHere, LoginStep, Running
from app.domain.states import ChannelLoginState
from app.domain.viewer import Viewer
from app.services import audit, channels, running
from app.services.channels import Channel, Channels
from app.services.recorder import Recorder
from app.vault import Vault

#: Logins of one person, and of one bot, that may be under way at this server.
MAX_AT_ONCE = 3


@dataclass(frozen=True, slots=True)
class Login:
    """One that may begin."""

    viewer: UUID
    channel: Channel
    gateway: Running


class Logins:
    """Asks running gateways for codes."""

    def __init__(
        self, vault: Vault, channels: Channels, recorder: Recorder, gateway: GatewayLogins, is_here: IsHere
    ) -> None:
        self._vault = vault
        self._channels = channels
        self._recorder = recorder
        self._gateway = gateway
        self._is_here = is_here
        #: By channel.
        self._under_way: dict[UUID, Login] = {}

    async def begin(self, viewer: Viewer, channel_id: UUID) -> Login:
        """Notes that somebody is about to link an account.

        Raises:
            NotFound: There is no such channel that the viewer may change.
            Invalid: Channels of this kind are not linked by a code, or not from here yet.
            Conflict: The bot does not run, the channel is switched off, or somebody is at it.
            LimitReached: The viewer, or the bot, has as many logins under way as may be.
            Unavailable: The bot's process is on another machine.
        """
        await self._channels.provider_of(viewer, channel_id)
        channel = await channels.READ.require(viewer, channel_id)
        self._require_offered(channel.provider)
        gateway = await running.of_channel(self._vault, self._is_here, channel)
        if gateway is None:
            raise Conflict("a channel can be linked while its bot runs and the channel is enabled", "channelId")
        login = Login(viewer.user_id, channel, gateway)
        self._require_room(login)
        await audit.note("channelLogin", audit.Subject("Channel", channel_id), bot=str(channel.bot))
        return login

    def _require_room(self, wanted: Login) -> None:
        if wanted.channel.id in self._under_way:
            raise Conflict("somebody is linking this channel right now", "channelId")
        others = self._under_way.values()
        if sum(it.viewer == wanted.viewer for it in others) >= MAX_AT_ONCE:
            raise LimitReached(f"you are linking {MAX_AT_ONCE} channels already; end one of these first", "channelId")
        if sum(it.channel.bot == wanted.channel.bot for it in others) >= MAX_AT_ONCE:
            raise LimitReached(f"{MAX_AT_ONCE} channels of this bot are being linked right now", "channelId")

    def _require_offered(self, name: str) -> None:
        provider = self._channels.provider(name)
        if not provider.pairs_by_qr:
            raise Invalid(f"{provider.label} needs credentials; it is not linked by a code", "channelId")
        if provider.login_unavailable:
            raise Invalid(provider.login_unavailable, "channelId")

    async def follow(self, login: Login) -> AsyncGenerator[LoginStep]:
        """Every step up to LINKED. Raises `GatewayFailed`, and as `begin` where somebody was quicker."""
        channel = login.channel
        self._require_room(login)
        self._under_way[channel.id] = login
        was_linked = True
        try:
            steps = self._gateway.follow(login.gateway, channel.provider, channel.account_id)
            async with aclosing(steps):
                async for step in steps:
                    if step.state is ChannelLoginState.LINKED and not was_linked:
                        await self._tell(channel.bot)
                    was_linked = False
                    yield step
        finally:
            self._under_way.pop(channel.id, None)

    async def _tell(self, bot_id: UUID) -> None:
        async with DB.transaction():
            await self._recorder.tell(bot_id, BotEventKind.CHANNEL_CHANGED)
