"""A channel, as the API shows one: of its secrets the names, never more."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import strawberry
from strawberry.scalars import JSON

from app.domain.ports import ChannelProvider as Kind
from app.domain.states import ChannelStatus
from app.domain.viewer import Viewer
from app.graphql.context import Info, Services
from app.graphql.cost import Cost
from app.graphql.types import node
from app.graphql.types.page import PageInfo
from app.graphql.types.pairing import ChannelPairing
from app.services import channels
from app.services.channels import Channel as Row
from app.services.pages import Stretch

if TYPE_CHECKING:
    from app.graphql.types.bot import Bot

#: What a list of who waits costs: a connection to the bot's gateway.
PAIRINGS = 10


@strawberry.type(description="A place a bot can be talked to: a Discord bot account, a Telegram number, a web chat.")
class Channel(node.Node):
    name: str = strawberry.field(description="Name shown to people.")
    provider: str = strawberry.field(description="Name of the provider, as in `channelProviders`.")
    account_id: str = strawberry.field(description="Account of the provider, where a bot has several.")
    enabled: bool = strawberry.field(description="Whether the process opens it.")
    status: ChannelStatus = strawberry.field(description="Whether it is connected.")
    error_message: str | None = strawberry.field(description="Why the status is ERROR; null otherwise.")
    settings: JSON = strawberry.field(description="Settings that are not secret.")
    credential_keys: list[str] = strawberry.field(
        description="Names of the secrets that are set. Their values never leave the server."
    )
    credential_key_version: int | None = strawberry.field(
        description="Version of the key the secrets are encrypted with; null without secrets."
    )
    credentials_updated_at: datetime | None = strawberry.field(
        description="When a secret was last written; null without secrets."
    )
    last_connected_at: datetime | None = strawberry.field(
        description="When the channel was last connected; null if never."
    )
    created_at: datetime = strawberry.field(description="When the channel was made.")
    row: strawberry.Private[Row]

    @strawberry.field(description="The bot it belongs to.")
    async def bot(self, info: Info) -> Annotated["Bot", strawberry.lazy("app.graphql.types.bot")]:
        # Here, because a bot's type in its turn needs its channels'.
        from app.graphql.types.bot import bot_of  # noqa: PLC0415

        return await bot_of(info.context, self.row.bot, self.row.on)

    @strawberry.field(
        description="Who waits to be let in; null where the gateway does not say.", directives=[Cost(weight=PAIRINGS)]
    )
    async def pairings(self, info: Info) -> list[ChannelPairing] | None:
        found = await info.context.services.pairings.waiting(self.row)
        return None if found is None else [ChannelPairing.of(each) for each in found]

    @classmethod
    def from_row(cls, row: Row, services: Services) -> "Channel":
        fault = row.unreadable(services.vault)
        return cls(
            id=node.global_id("Channel", row.id),
            name=row.name,
            provider=row.provider,
            account_id=row.account_id,
            enabled=row.enabled,
            status=ChannelStatus.ERROR if fault else row.status,
            error_message=fault or _error(row, services),
            settings=JSON(row.settings),
            credential_keys=row.credential_keys,
            credential_key_version=row.credentials_key_id,
            credentials_updated_at=row.credentials_updated_at,
            last_connected_at=row.last_connected_at,
            created_at=row.created_at,
            row=row,
        )


def _error(row: Row, services: Services) -> str | None:
    """OpenClaw does not say why it opens no channel that was left out of its configuration."""
    if row.status is not ChannelStatus.ERROR:
        return None
    return services.channels.lacks(row) or row.error


@strawberry.type(description="One of the channels on a page.")
class ChannelEdge:
    cursor: str = strawberry.field(description="Place on the list; give it as `after` or `before`.")
    node: Channel = strawberry.field(description="The item.")


@strawberry.type(description="A page of channels.")
class ChannelConnection:
    edges: list[ChannelEdge] = strawberry.field(description="The channels with their cursors.")
    nodes: list[Channel] = strawberry.field(description="The channels alone.")
    page_info: PageInfo = strawberry.field(description="Where the page starts and ends.")
    viewer: strawberry.Private[Viewer]
    bot_id: strawberry.Private[UUID]

    @strawberry.field(
        description="All channels, also those on other pages; counted only when asked for. "
        "Null where counting is too dear."
    )
    async def total_count(self) -> int | None:
        return await channels.READ.count(self.viewer, self.bot_id)

    @classmethod
    async def read(cls, viewer: Viewer, services: Services, bot_id: UUID, stretch: Stretch) -> "ChannelConnection":
        page = await channels.READ.page(viewer, bot_id, stretch)
        edges = [ChannelEdge(cursor=cursor, node=Channel.from_row(row, services)) for cursor, row in page.items]
        return cls(
            edges=edges,
            nodes=[edge.node for edge in edges],
            page_info=PageInfo.of(page),
            viewer=viewer,
            bot_id=bot_id,
        )


@strawberry.type(description="A kind of channel OpenClaw can open.")
class ChannelProvider:
    name: str = strawberry.field(description="Name in configurations, for example `discord`.")
    label: str = strawberry.field(description="Name shown to people.")
    credential_schema: JSON = strawberry.field(description="JSON Schema of the secrets it needs.")
    settings_schema: JSON = strawberry.field(description="JSON Schema of its other settings.")
    pairs_by_qr: bool = strawberry.field(
        description="Whether it is linked to an account by a code that a person scans, with `channelLogin`."
    )
    login_unavailable: str | None = strawberry.field(
        description="Why `channelLogin` does not offer its code yet; null where it does, and where none is needed."
    )

    @classmethod
    def of(cls, kind: Kind) -> "ChannelProvider":
        return cls(
            name=kind.name,
            label=kind.label,
            credential_schema=JSON(kind.credential_schema),
            settings_schema=JSON(kind.settings_schema),
            pairs_by_qr=kind.pairs_by_qr,
            login_unavailable=kind.login_unavailable,
        )
