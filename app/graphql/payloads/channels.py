"""What mutations of channels and bindings answer."""

import strawberry

from app.graphql.payloads import errors, text
from app.graphql.types.binding import Binding
from app.graphql.types.bot import Bot
from app.graphql.types.channel import Channel
from app.graphql.types.error import UserError


def _channel() -> Channel | None:
    return strawberry.field(default=None, description="The channel after the change; null if it was refused.")


def _binding() -> Binding | None:
    return strawberry.field(default=None, description="The rule after the change; null if it was refused.")


@strawberry.type(description="What `channelCreate` answers.")
class ChannelCreatePayload:
    channel: Channel | None = _channel()
    user_errors: list[UserError] = errors()
    client_mutation_id: str | None = text()


@strawberry.type(description="What `channelUpdate` answers.")
class ChannelUpdatePayload:
    channel: Channel | None = _channel()
    user_errors: list[UserError] = errors()
    client_mutation_id: str | None = text()


@strawberry.type(description="What `channelCredentialsSet` answers.")
class ChannelCredentialsSetPayload:
    channel: Channel | None = _channel()
    user_errors: list[UserError] = errors()
    client_mutation_id: str | None = text()


@strawberry.type(description="What `channelDelete` answers.")
class ChannelDeletePayload:
    deleted_channel_id: strawberry.ID | None = strawberry.field(
        default=None, description="Identity of the deleted channel; null if it was refused."
    )
    bot: Bot | None = strawberry.field(
        default=None, description="The bot it was on; null if it was refused, or the bot deleted."
    )
    user_errors: list[UserError] = errors()
    client_mutation_id: str | None = text()


@strawberry.type(description="What `bindingCreate` answers.")
class BindingCreatePayload:
    binding: Binding | None = _binding()
    user_errors: list[UserError] = errors()
    client_mutation_id: str | None = text()


@strawberry.type(description="What `bindingUpdate` answers.")
class BindingUpdatePayload:
    binding: Binding | None = _binding()
    user_errors: list[UserError] = errors()
    client_mutation_id: str | None = text()


@strawberry.type(description="What `bindingDelete` answers.")
class BindingDeletePayload:
    deleted_binding_id: strawberry.ID | None = strawberry.field(
        default=None, description="Identity of the deleted rule; null if it was refused."
    )
    bot: Bot | None = strawberry.field(
        default=None, description="The bot it led to; null if it was refused, or the bot deleted."
    )
    user_errors: list[UserError] = errors()
    client_mutation_id: str | None = text()
