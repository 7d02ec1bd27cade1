"""Who waits to be let in at a bot's channels, and what its owner decides about them."""

from collections.abc import Sequence
from contextlib import suppress
from uuid import UUID
from weakref import WeakValueDictionary

import anyio

from app.domain.errors import Conflict, CredentialsUnreadable, GatewayFailed, NotFound, Unavailable
from app.domain.ports import Asking, GatewayPairings, IsHere, Running
from app.domain.viewer import Viewer
from app.services import audit, channels, running, words
from app.services.channels import Channel, Channels
from app.vault import Vault

#: Longest code that is looked for, in characters.
MAX_CODE = 100
#: Connections at once that lists of who waits are read over, in all and to one gateway.
AT_ONCE, AT_A_BOT = 16, 2
#: Seconds a list may take, the wait for its turn included.
PATIENCE = 20.0


class Pairings:
    """Asks running gateways; nothing of this is kept here."""

    def __init__(self, vault: Vault, channels: Channels, gateway: GatewayPairings, is_here: IsHere) -> None:
        self._vault = vault
        self._channels = channels
        self._gateway = gateway
        self._is_here = is_here
        self._turns = anyio.Semaphore(AT_ONCE)
        # A bot's are forgotten when nobody asks it any more.
        self._turns_of_bots = WeakValueDictionary[UUID, anyio.Semaphore]()

    async def waiting(self, channel: Channel) -> Sequence[Asking] | None:
        """Everybody who waits at a channel that the caller may see; None where nobody can say at the moment."""
        found = None
        turns_of_bot = self._turns_of_bots.setdefault(channel.bot, anyio.Semaphore(AT_A_BOT))
        # A channel without pairing is refused in the same words as one that is not open yet.
        with anyio.move_on_after(PATIENCE), suppress(GatewayFailed, Unavailable, CredentialsUnreadable):
            # A bot's own turn first: one that hangs keeps few places from the others.
            async with turns_of_bot, self._turns:
                gateway = await running.of_channel(self._vault, self._is_here, channel)
                found = gateway and await self._gateway.waiting(gateway, channel.provider, channel.account_id)
        return found

    async def resolve(self, viewer: Viewer, channel_id: UUID, code: str, *, is_let_in: bool) -> Channel:
        """Lets somebody in, or sends them away.

        Raises:
            NotFound: There is no such channel, or nobody waits at it with this code.
            Conflict: The bot is not active, or the channel is switched off.
            Unavailable: Its process is on another machine.
            GatewayFailed: The gateway refused; its reason may quote secrets, so it is not told.
        """
        # Who may only look at it is told that there is none.
        await self._channels.provider_of(viewer, channel_id)
        channel = await channels.READ.require(viewer, channel_id)
        code = words.line(code, "code", MAX_CODE)
        gateway = await running.of_channel(self._vault, self._is_here, channel)
        if gateway is None:
            raise Conflict("nobody can be let in or sent away while the channel is not open", "channelId")
        await self._require_waiting(gateway, channel, code)
        # Before it is done: a gateway's word cannot be taken back where it cannot be noted.
        action = "pairingApprove" if is_let_in else "pairingDismiss"
        await audit.note(action, audit.Subject("Channel", channel_id), bot=str(channel.bot))
        await self._gateway.resolve(gateway, channel.provider, channel.account_id, code, is_let_in=is_let_in)
        return await channels.READ.require(viewer, channel_id)

    async def _require_waiting(self, gateway: Running, channel: Channel, code: str) -> None:
        """So that nothing is noted that cannot be done."""
        found = await self._gateway.waiting(gateway, channel.provider, channel.account_id)
        if found is None:
            raise GatewayFailed("this version of OpenClaw does not say who waits, so nobody can be let in from here")
        if code.upper() not in {each.code.upper() for each in found}:
            raise NotFound("nobody waits at the channel with this code; it may have run out", "code")
