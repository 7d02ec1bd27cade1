"""Talking to a bot: a person's words to its gateway, and what comes back."""

from uuid import UUID

from app.domain.errors import Blank, Conflict, Unavailable
from app.domain.ports import Answer, GatewayChat, IsHere
from app.domain.states import BotStatus
from app.domain.viewer import Viewer
from app.services import audit, keys, roster, words
from app.services.roster import Bot
from app.vault import Vault

#: Seconds a bot has to answer.
ANSWER_TIMEOUT = 60.0


class Messages:
    """Sends what people say to running gateways."""

    def __init__(self, vault: Vault, chat: GatewayChat, is_here: IsHere) -> None:
        self._vault = vault
        self._chat = chat
        self._is_here = is_here

    async def prepare(self, viewer: Viewer, bot_id: UUID, text: str) -> tuple[Bot, str]:
        """The bot and the text, checked.

        Raises:
            Conflict: The bot is not active.
            Unavailable: Its process is on another machine.
        """
        text = words.prose(text, "text", words.MAX_MESSAGE).strip()
        if not text:
            raise Blank("text is empty", "text")
        bot = await roster.require(viewer, bot_id)
        if not viewer.owns(bot.owner):
            raise Conflict("only the bot's owner speaks with it through ClawNet", "botId")
        if bot.status is not BotStatus.ACTIVE or bot.port is None:
            raise Conflict(f"the bot is {bot.status.value}, not ACTIVE; start it with botStart first", "botId")
        if not await self._is_here(bot.id):
            raise Unavailable("the bot's process runs on another machine: ask a server there")
        # Before it is sent: what was said cannot be taken back where it cannot be noted.
        await audit.note("messageSend", audit.Subject("Bot", bot.id))
        return bot, text

    async def send(self, viewer: Viewer, bot: Bot, text: str) -> Answer:
        """What the bot says to the text. Raises `GatewayFailed` with the gateway's reason."""
        assert bot.port is not None  # `prepare` saw to it.
        token = await keys.gateway_token(self._vault, bot.id)
        return await self._chat(bot.port, token.reveal(), bot.agent_id, text, str(viewer.user_id), ANSWER_TIMEOUT)
