"""What mutations answer: the changed object, what the caller can mend, and the caller's own text back."""

import strawberry

from app.graphql.types.bot import Bot
from app.graphql.types.error import UserError
from app.graphql.types.message import TranscriptMessage
from app.graphql.types.model_provider import ModelProvider

_ERRORS = "What the caller can mend; empty when all went well."
_TEXT = "The text the caller sent."


def _bot() -> Bot | None:
    return strawberry.field(default=None, description="The bot after the change; null if it was refused.")


def _errors() -> list[UserError]:
    return strawberry.field(default_factory=list[UserError], description=_ERRORS)


def _text() -> str | None:
    return strawberry.field(default=None, description=_TEXT)


@strawberry.type(description="What `botCreate` answers.")
class BotCreatePayload:
    bot: Bot | None = _bot()
    user_errors: list[UserError] = _errors()
    client_mutation_id: str | None = _text()


@strawberry.type(description="What `botUpdate` answers.")
class BotUpdatePayload:
    bot: Bot | None = _bot()
    user_errors: list[UserError] = _errors()
    client_mutation_id: str | None = _text()


@strawberry.type(description="What `botDelete` answers.")
class BotDeletePayload:
    deleted_bot_id: strawberry.ID | None = strawberry.field(
        default=None, description="Identity of the deleted bot; null if it was refused."
    )
    user_errors: list[UserError] = _errors()
    client_mutation_id: str | None = _text()


@strawberry.type(description="What `botStart` answers.")
class BotStartPayload:
    bot: Bot | None = _bot()
    user_errors: list[UserError] = _errors()
    client_mutation_id: str | None = _text()


@strawberry.type(description="What `botStop` answers.")
class BotStopPayload:
    bot: Bot | None = _bot()
    user_errors: list[UserError] = _errors()
    client_mutation_id: str | None = _text()


@strawberry.type(description="What `botRestart` answers.")
class BotRestartPayload:
    bot: Bot | None = _bot()
    user_errors: list[UserError] = _errors()
    client_mutation_id: str | None = _text()


@strawberry.type(description="What `messageSend` answers.")
class MessageSendPayload:
    message: TranscriptMessage | None = strawberry.field(default=None, description="What was said.")
    reply: TranscriptMessage | None = strawberry.field(
        default=None, description="What the bot said; null without `wait`."
    )
    user_errors: list[UserError] = _errors()
    client_mutation_id: str | None = _text()


@strawberry.type(description="What `modelProviderSave` answers.")
class ModelProviderSavePayload:
    model_provider: ModelProvider | None = strawberry.field(
        default=None, description="The provider as it is now; null if it was refused."
    )
    user_errors: list[UserError] = _errors()
    client_mutation_id: str | None = _text()


@strawberry.type(description="What `modelProviderDelete` answers.")
class ModelProviderDeletePayload:
    deleted_id: strawberry.ID | None = strawberry.field(
        default=None, description="Identity of what is gone; null if it was refused."
    )
    user_errors: list[UserError] = _errors()
    client_mutation_id: str | None = _text()
