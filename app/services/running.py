"""Where the gateway is that opens a channel, and what it is spoken to with."""

from app.db.engine import DB
from app.domain.errors import Unavailable
from app.domain.ports import IsHere, Running
from app.domain.states import BotStatus
from app.services import keys
from app.services.channels import Channel
from app.vault import Vault


async def of_channel(vault: Vault, is_here: IsHere, channel: Channel) -> Running | None:
    """The gateway that opens the channel; None where none does.

    Raises:
        Unavailable: It runs on another machine.
        CredentialsUnreadable: What it is spoken to with cannot be read.
    """
    if not channel.enabled:
        return None
    row = await DB.fetch_one(
        "SELECT b.agent_id, p.status, p.port, p.nonce FROM bot_process p JOIN bot b ON b.id = p.bot WHERE p.bot = $1",
        channel.bot,
    )
    if row is None or row["status"] != BotStatus.ACTIVE or row["port"] is None or row["nonce"] is None:
        return None
    if not await is_here(channel.bot):
        raise Unavailable("the bot's process runs on another machine: ask a server there")
    token = await keys.gateway_token(vault, channel.bot)
    return Running(row["agent_id"], str(row["nonce"]), row["port"], token.reveal())
