"""What mutations of channels and bindings take."""

import strawberry
from strawberry.scalars import JSON

from app.graphql.inputs import any_text


@strawberry.input(description="What `channelCreate` takes.")
class ChannelCreateInput:
    bot_id: strawberry.ID = strawberry.field(description="The bot.")
    provider: str = strawberry.field(description="Name of the provider, as in `channelProviders`.")
    account_id: str = strawberry.field(
        default="default", description="Account of the provider, where a bot has several."
    )
    name: str = strawberry.field(description="Name shown to people.")
    enabled: bool = strawberry.field(default=True, description="Open it.")
    settings: JSON | None = strawberry.field(default=None, description="Settings that are not secret.")
    credentials: JSON | None = strawberry.field(
        default=None, description="Secrets by name; they need a token with the scope CREDENTIALS_WRITE."
    )
    client_mutation_id: str | None = any_text()

    def __repr__(self) -> str:
        return f"ChannelCreateInput(bot_id={self.bot_id!r}, provider={self.provider!r}, credentials=<secret>)"


@strawberry.input(description="What `channelUpdate` takes.")
class ChannelUpdateInput:
    channel_id: strawberry.ID = strawberry.field(description="The channel.")
    name: str | None = strawberry.field(default=strawberry.UNSET, description="Name shown to people.")
    enabled: bool | None = strawberry.field(default=strawberry.UNSET, description="Open it.")
    settings: JSON | None = strawberry.field(
        default=strawberry.UNSET, description="Settings that are not secret; they replace the present ones."
    )
    client_mutation_id: str | None = any_text()


@strawberry.input(description="What `channelCredentialsSet` takes.")
class ChannelCredentialsSetInput:
    channel_id: strawberry.ID = strawberry.field(description="The channel.")
    credentials: JSON = strawberry.field(description="Secrets by name; null removes one, and what is not named stays.")
    client_mutation_id: str | None = any_text()

    def __repr__(self) -> str:
        return f"ChannelCredentialsSetInput(channel_id={self.channel_id!r}, credentials=<secret>)"


@strawberry.input(description="What `channelDelete` takes.")
class ChannelDeleteInput:
    channel_id: strawberry.ID = strawberry.field(description="The channel.")
    client_mutation_id: str | None = any_text()


@strawberry.input(description="What `bindingCreate` takes.")
class BindingCreateInput:
    bot_id: strawberry.ID = strawberry.field(description="The bot.")
    channel_id: strawberry.ID | None = strawberry.field(
        default=None, description="Channel the rule looks at; absent for any channel of the bot."
    )
    peer_kind: str | None = strawberry.field(
        default=None, description="Kind of peer: `direct`, `group` or `channel`; absent for any."
    )
    peer_id: str | None = strawberry.field(default=None, description="Peer; absent for any.")
    account_id: str | None = strawberry.field(default=None, description="Account on the channel; absent for any.")
    priority: int = strawberry.field(default=0, description="Rules with a higher number are tried first.")
    client_mutation_id: str | None = any_text()


@strawberry.input(description="What `bindingUpdate` takes: the whole rule as it is to be.")
class BindingUpdateInput:
    binding_id: strawberry.ID = strawberry.field(description="The rule.")
    channel_id: strawberry.ID | None = strawberry.field(
        default=None, description="Channel the rule looks at; absent for any channel of the bot."
    )
    peer_kind: str | None = strawberry.field(
        default=None, description="Kind of peer: `direct`, `group` or `channel`; absent for any."
    )
    peer_id: str | None = strawberry.field(default=None, description="Peer; absent for any.")
    account_id: str | None = strawberry.field(default=None, description="Account on the channel; absent for any.")
    priority: int = strawberry.field(default=0, description="Rules with a higher number are tried first.")
    client_mutation_id: str | None = any_text()


@strawberry.input(description="What `bindingDelete` takes.")
class BindingDeleteInput:
    binding_id: strawberry.ID = strawberry.field(description="The rule.")
    client_mutation_id: str | None = any_text()
