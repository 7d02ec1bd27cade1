"""Bots by name, and lists of them."""

from typing import Annotated
from uuid import UUID

import strawberry

from app.domain.states import TokenScope
from app.graphql.context import Info
from app.graphql.inputs.bots import BotBy, BotFilter, BotOrder
from app.graphql.permissions import Rule, query
from app.graphql.types import node, page
from app.graphql.types.bot import Bot, BotConnection
from app.graphql.types.enums import BotOrderField, OrderDirection
from app.graphql.types.page import After, Before, First, Last
from app.services import roster
from app.services.roster import OrderField

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
        viewer = info.context.caller
        row = None
        if by.id is not None:
            parsed = node.parse(by.id.value)
            row = await roster.get(viewer, parsed[1]) if parsed and parsed[0] == "Bot" else None
        elif by.agent_id is not None:
            row = await roster.by_agent_id(viewer, by.agent_id.value)
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
        which = filter or BotFilter()
        wanted = roster.Query(
            status=tuple(which.status) if which.status is not None else None,
            owners=_owners(which.owner_id),
            tags=tuple(which.tags) if which.tags is not None else None,
            search=which.search,
            order=_ORDER[order_by.field] if order_by else OrderField.CREATED_AT,
            is_descending=order_by is not None and order_by.direction is OrderDirection.DESC,
            stretch=page.stretch(first, after, last, before),
        )
        return await BotConnection.read(info.context.caller, wanted)


def _owners(ids: list[strawberry.ID] | None) -> tuple[UUID, ...] | None:
    if ids is None:
        return None
    parsed = [node.parse(identity) for identity in ids]
    return tuple(item[1] for item in parsed if item and item[0] == "User")
