"""Bots by name, and lists of them."""

from typing import Annotated
from uuid import UUID

import strawberry

from app.domain.states import TokenScope
from app.graphql.context import Info
from app.graphql.inputs.bots import BotBy, BotFilter, BotOrder
from app.graphql.permissions import Rule, query
from app.graphql.queries.paging import After, Before, First, Last
from app.graphql.types import node, page
from app.graphql.types.bot import Bot, BotConnection
from app.graphql.types.enums import BotOrderField, OrderDirection
from app.services.bots import OrderField
from app.services.bots import Query as BotsQuery

_ORDER = {
    BotOrderField.CREATED_AT: OrderField.CREATED_AT,
    BotOrderField.LAST_SEEN_AT: OrderField.LAST_SEEN_AT,
    BotOrderField.NAME: OrderField.NAME,
    BotOrderField.STATUS: OrderField.STATUS,
}


@strawberry.type
class BotQueries:
    @query(Rule.VISIBLE, TokenScope.FLEET_READ, "One bot; null if there is none or the caller may not see it.")
    async def bot(
        self, info: Info, by: Annotated[BotBy, strawberry.argument(description="How to find it.")]
    ) -> Bot | None:
        viewer, bots = info.context.caller, info.context.services.bots
        row = None
        if by.id is not None:
            parsed = node.parse(by.id.value)
            row = await bots.get(viewer, parsed[1]) if parsed and parsed[0] == "Bot" else None
        elif by.agent_id is not None:
            row = await bots.by_agent_id(viewer, by.agent_id.value)
        return Bot.from_row(row, viewer) if row else None

    @query(Rule.VISIBLE, TokenScope.FLEET_READ, "Bots the caller may see.")
    async def bots(
        self,
        info: Info,
        first: First = None,
        after: After = None,
        last: Last = None,
        before: Before = None,
        filter: Annotated[BotFilter | None, strawberry.argument(description="Which ones.")] = None,
        order_by: Annotated[BotOrder | None, strawberry.argument(description="In which order.")] = None,
    ) -> BotConnection:
        first, last = page.sizes(first, last)
        which = filter or BotFilter()
        wanted = BotsQuery(
            status=tuple(which.status) if which.status is not None else None,
            owners=_owners(which.owner_id),
            tags=tuple(which.tags) if which.tags is not None else None,
            search=which.search,
            order=_ORDER[order_by.field] if order_by else OrderField.CREATED_AT,
            is_descending=order_by is not None and order_by.direction is OrderDirection.DESC,
            first=first,
            after=after,
            last=last,
            before=before,
        )
        return BotConnection.from_page(await info.context.services.bots.page(info.context.caller, wanted))


def _owners(ids: list[strawberry.ID] | None) -> tuple[UUID, ...] | None:
    if ids is None:
        return None
    parsed = [node.parse(identity) for identity in ids]
    return tuple(item[1] for item in parsed if item and item[0] == "User")
