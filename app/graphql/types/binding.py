"""A rule that leads a peer to a bot, as the API shows one."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import strawberry
from strawberry.dataloader import DataLoader

from app.domain.viewer import Viewer
from app.graphql.context import Context, Info
from app.graphql.types import node
from app.graphql.types.channel import Channel
from app.graphql.types.page import PageInfo
from app.services import bindings, channels
from app.services.bindings import Binding as Row
from app.services.pages import Stretch

if TYPE_CHECKING:
    from app.graphql.types.bot import Bot


@strawberry.type(description="A rule that leads a peer on a channel to a bot.")
class Binding(node.Node):
    peer_kind: str | None = strawberry.field(description="Kind of peer: `direct`, `group` or `channel`; null for any.")
    peer_id: str | None = strawberry.field(description="Peer the rule is for; null for any.")
    account_id: str | None = strawberry.field(description="Account on the channel; null for any.")
    priority: int = strawberry.field(description="Rules with a higher number are tried first.")
    created_at: datetime = strawberry.field(description="When the rule was made.")
    row: strawberry.Private[Row]

    @strawberry.field(description="Bot that answers.")
    async def bot(self, info: Info) -> Annotated["Bot", strawberry.lazy("app.graphql.types.bot")]:
        # Here, because a bot's type in its turn needs its bindings'.
        from app.graphql.types.bot import bot_of  # noqa: PLC0415

        return await bot_of(info.context, self.row.bot, self.row.on)

    @strawberry.field(description="Channel the rule looks at; null for any channel of the bot.")
    async def channel(self, info: Info) -> Channel | None:
        if self.row.channel is None:
            return None
        return await info.context.loader("channels", lambda: _channel_loader(info.context)).load(self.row.channel)

    @classmethod
    def from_row(cls, row: Row) -> "Binding":
        return cls(
            id=node.global_id("Binding", row.id),
            peer_kind=row.peer_kind,
            peer_id=row.peer_id,
            account_id=row.account_id,
            priority=row.priority,
            created_at=row.created_at,
            row=row,
        )


def _channel_loader(context: Context) -> DataLoader[UUID, Channel | None]:
    async def load(ids: list[UUID]) -> list[Channel | None]:
        found = await channels.READ.by_ids(context.caller, ids)
        return [Channel.from_row(row, context.services) if (row := found.get(key)) else None for key in ids]

    return DataLoader(load_fn=load, cache=False)


@strawberry.type(description="One of the bindings on a page.")
class BindingEdge:
    cursor: str = strawberry.field(description="Place on the list; give it as `after` or `before`.")
    node: Binding = strawberry.field(description="The item.")


@strawberry.type(description="A page of bindings.")
class BindingConnection:
    edges: list[BindingEdge] = strawberry.field(description="The bindings with their cursors.")
    nodes: list[Binding] = strawberry.field(description="The bindings alone.")
    page_info: PageInfo = strawberry.field(description="Where the page starts and ends.")
    viewer: strawberry.Private[Viewer]
    bot_id: strawberry.Private[UUID]

    @strawberry.field(
        description="All bindings, also those on other pages; counted only when asked for. "
        "Null where counting is too dear."
    )
    async def total_count(self) -> int | None:
        return await bindings.READ.count(self.viewer, self.bot_id)

    @classmethod
    async def read(cls, viewer: Viewer, bot_id: UUID, stretch: Stretch) -> "BindingConnection":
        page = await bindings.READ.page(viewer, bot_id, stretch)
        edges = [BindingEdge(cursor=cursor, node=Binding.from_row(row)) for cursor, row in page.items]
        return cls(
            edges=edges,
            nodes=[edge.node for edge in edges],
            page_info=PageInfo.of(page),
            viewer=viewer,
            bot_id=bot_id,
        )
