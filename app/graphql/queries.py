"""Everything that can be read."""

from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import strawberry

from app import __version__
from app.domain.errors import BadInput
from app.domain.states import TokenScope
from app.graphql.context import Context, Info, user_loader
from app.graphql.inputs import BotBy, BotFilter, BotOrder
from app.graphql.permissions import Rule, query
from app.graphql.types import node, page
from app.graphql.types.bot import Bot, BotConnection
from app.graphql.types.enums import BotOrderField, OrderDirection
from app.graphql.types.model_provider import ModelProvider
from app.graphql.types.node import Node
from app.graphql.types.server import ServerInfo
from app.graphql.types.user import User
from app.services import accounts, models
from app.services.bots import OrderField
from app.services.bots import Query as BotsQuery

#: Ways a subscription can be carried here.
PROTOCOLS = ("graphql-transport-ws",)

_ORDER = {
    BotOrderField.CREATED_AT: OrderField.CREATED_AT,
    BotOrderField.LAST_SEEN_AT: OrderField.LAST_SEEN_AT,
    BotOrderField.NAME: OrderField.NAME,
    BotOrderField.STATUS: OrderField.STATUS,
}

First = Annotated[int | None, strawberry.argument(description="How many from the start; at most 100.")]
After = Annotated[str | None, strawberry.argument(description="Cursor to go on from.")]
Last = Annotated[int | None, strawberry.argument(description="How many from the end; at most 100.")]
Before = Annotated[str | None, strawberry.argument(description="Cursor to end before.")]


async def _nodes(context: Context, ids: list[str]) -> list[Node | None]:
    """Objects by identity, read a type at a time; null for whatever the viewer may not see."""
    viewer = context.caller
    wanted = [node.parse(identity) for identity in ids]
    keys: dict[str, list[UUID]] = {}
    for parsed in wanted:
        if parsed:
            keys.setdefault(parsed[0], []).append(parsed[1])
    found: dict[tuple[str, UUID], Node] = {}
    if viewer.may(TokenScope.FLEET_READ):
        for key, row in (await context.services.bots.by_ids(viewer, keys.get("Bot", []))).items():
            found["Bot", key] = Bot.from_row(row, viewer)
        for key, provider in (await models.by_ids(viewer, keys.get("ModelProvider", []))).items():
            found["ModelProvider", key] = ModelProvider.from_row(provider)
    people = [key for key in keys.get("User", []) if viewer.writes_all or key == viewer.user_id]
    for key, user in (await accounts.users(people)).items():
        found["User", key] = User.from_row(user, viewer)
    return [found.get(parsed) if parsed else None for parsed in wanted]


@strawberry.type(description="Everything that can be read.")
class Query:
    @query(Rule.VISIBLE, None, "Any object by its identity; null if there is none or the caller may not see it.")
    async def node(
        self, info: Info, id: Annotated[strawberry.ID, strawberry.argument(description="Identity.")]
    ) -> Node | None:
        return (await _nodes(info.context, [id]))[0]

    @query(Rule.VISIBLE, None, "Objects by their identities, in the same order, null where there is none.")
    async def nodes(
        self,
        info: Info,
        ids: Annotated[list[strawberry.ID], strawberry.argument(description="Identities, at most 100.")],
    ) -> list[Node | None]:
        if len(ids) > page.MAX_SIZE:
            raise BadInput(f"`ids` holds {len(ids)} identities; at most {page.MAX_SIZE} are allowed")
        return await _nodes(info.context, list(ids))

    @query(Rule.PUBLIC, None, "The person or token that asks; null without sign-in.")
    async def viewer(self, info: Info) -> User | None:
        viewer = await info.context.viewer()
        user = await info.context.loader("users", user_loader).load(viewer.user_id) if viewer else None
        return User.from_row(user, viewer) if user and viewer else None

    @query(Rule.PUBLIC, None, "What this server is and can do.")
    async def server_info(self, info: Info) -> ServerInfo:
        return ServerInfo(
            version=__version__,
            schema_hash=info.context.schema_hash,
            subscription_protocols=list(PROTOCOLS),
            event_bus="postgres",
            time=datetime.now(UTC),
        )

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

    @query(Rule.VISIBLE, TokenScope.FLEET_READ, "Providers of models that the caller's bots can use.")
    async def model_providers(self, info: Info) -> list[ModelProvider]:
        return [ModelProvider.from_row(row) for row in await models.visible(info.context.caller)]


def _owners(ids: list[strawberry.ID] | None) -> tuple[UUID, ...] | None:
    if ids is None:
        return None
    parsed = [node.parse(identity) for identity in ids]
    return tuple(item[1] for item in parsed if item and item[0] == "User")
