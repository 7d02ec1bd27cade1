"""What mutations of bots answer."""

import strawberry

from app.graphql.payloads import errors, text
from app.graphql.types.bot import Bot
from app.graphql.types.error import UserError


def _bot() -> Bot | None:
    return strawberry.field(default=None, description="The bot after the change; null if it was refused.")


@strawberry.type(description="What `botCreate` answers.")
class BotCreatePayload:
    bot: Bot | None = _bot()
    user_errors: list[UserError] = errors()
    client_mutation_id: str | None = text()


@strawberry.type(description="What `botUpdate` answers.")
class BotUpdatePayload:
    bot: Bot | None = _bot()
    user_errors: list[UserError] = errors()
    client_mutation_id: str | None = text()


@strawberry.type(description="What `botDelete` answers.")
class BotDeletePayload:
    deleted_bot_id: strawberry.ID | None = strawberry.field(
        default=None, description="Identity of the deleted bot; null if it was refused."
    )
    deleted_channel_count: int = strawberry.field(default=0, description="Channels deleted with it.")
    deleted_binding_count: int = strawberry.field(default=0, description="Bindings deleted with it.")
    user_errors: list[UserError] = errors()
    client_mutation_id: str | None = text()


@strawberry.type(description="What `botStart` answers.")
class BotStartPayload:
    bot: Bot | None = _bot()
    user_errors: list[UserError] = errors()
    client_mutation_id: str | None = text()


@strawberry.type(description="What `botStop` answers.")
class BotStopPayload:
    bot: Bot | None = _bot()
    user_errors: list[UserError] = errors()
    client_mutation_id: str | None = text()


@strawberry.type(description="What `botRestart` answers.")
class BotRestartPayload:
    bot: Bot | None = _bot()
    user_errors: list[UserError] = errors()
    client_mutation_id: str | None = text()


@strawberry.type(description="What `botTransfer` answers.")
class BotTransferPayload:
    bot: Bot | None = _bot()
    user_errors: list[UserError] = errors()
    client_mutation_id: str | None = text()


@strawberry.type(description="What became of one of the bots that `botsControl` named.")
class BotControlResult:
    bot_id: strawberry.ID = strawberry.field(description="The identity, as it was sent.")
    bot: Bot | None = strawberry.field(description="The bot after the change; null if it was refused.")
    user_error: UserError | None = strawberry.field(description="Why it was refused; null if it was done.")


@strawberry.type(description="What `botsControl` answers.")
class BotsControlPayload:
    bots: list[Bot] = strawberry.field(default_factory=list[Bot], description="The bots it was done to.")
    results: list[BotControlResult] = strawberry.field(
        default_factory=list[BotControlResult], description="One answer a bot, in the order asked for."
    )
    user_errors: list[UserError] = errors()
    client_mutation_id: str | None = text()
