"""Objects by their identity, whatever their type."""

from collections.abc import Awaitable, Callable
from typing import Annotated
from uuid import UUID

import strawberry

from app.domain.errors import BadInput
from app.domain.states import TokenScope
from app.graphql.context import Context, Info
from app.graphql.permissions import Rule, query
from app.graphql.types import node, page
from app.graphql.types.access_token import AccessToken
from app.graphql.types.audit import AuditEntry
from app.graphql.types.binding import Binding
from app.graphql.types.bot import Bot
from app.graphql.types.channel import Channel
from app.graphql.types.fleet import FleetHost
from app.graphql.types.key import KeyRotation
from app.graphql.types.model_provider import ModelProvider
from app.graphql.types.node import Node
from app.graphql.types.user import User
from app.services import accounts, bindings, channels, models, roster, rotation, tokens, trail

#: Reads objects of one type that the caller may see; whatever it may not see is left out.
Load = Callable[[Context, list[UUID]], Awaitable[dict[UUID, Node]]]


async def _bots(context: Context, keys: list[UUID]) -> dict[UUID, Node]:
    viewer = context.caller
    if not viewer.may(TokenScope.FLEET_READ):
        return {}
    rows = await roster.by_ids(viewer, keys)
    return {key: Bot.from_row(row, viewer) for key, row in rows.items()}


async def _channels(context: Context, keys: list[UUID]) -> dict[UUID, Node]:
    viewer, services = context.caller, context.services
    if not viewer.may(TokenScope.FLEET_READ):
        return {}
    return {key: Channel.from_row(row, services) for key, row in (await channels.READ.by_ids(viewer, keys)).items()}


async def _bindings(context: Context, keys: list[UUID]) -> dict[UUID, Node]:
    viewer = context.caller
    if not viewer.may(TokenScope.FLEET_READ):
        return {}
    return {key: Binding.from_row(row) for key, row in (await bindings.READ.by_ids(viewer, keys)).items()}


async def _providers(context: Context, keys: list[UUID]) -> dict[UUID, Node]:
    viewer = context.caller
    if not viewer.may(TokenScope.FLEET_READ):
        return {}
    return {key: ModelProvider.from_row(row) for key, row in (await models.by_ids(viewer, keys)).items()}


async def _users(context: Context, keys: list[UUID]) -> dict[UUID, Node]:
    viewer = context.caller
    people = [key for key in keys if viewer.may(TokenScope.ADMIN) or key == viewer.user_id]
    return {key: User.from_row(row, viewer) for key, row in (await accounts.users(people)).items()}


async def _tokens(context: Context, keys: list[UUID]) -> dict[UUID, Node]:
    return {key: AccessToken.from_row(row) for key, row in (await tokens.by_ids(context.caller, keys)).items()}


async def _entries(context: Context, keys: list[UUID]) -> dict[UUID, Node]:
    return {key: AuditEntry.from_row(row) for key, row in (await trail.by_ids(context.caller, keys)).items()}


async def _hosts(context: Context, keys: list[UUID]) -> dict[UUID, Node]:
    viewer = context.caller
    if not viewer.may(TokenScope.FLEET_READ):
        return {}
    rows = await context.services.fleet.hosts_by_ids(viewer, keys)
    return {key: FleetHost.from_row(row) for key, row in rows.items()}


async def _rotations(context: Context, keys: list[UUID]) -> dict[UUID, Node]:
    if not context.caller.may(TokenScope.ADMIN):
        return {}
    return {key: KeyRotation.from_row(row) for key, row in (await rotation.by_ids(keys)).items()}


#: One entry for each type that implements `Node`; a test holds it equal to the schema.
LOADS: dict[str, Load] = {
    "Bot": _bots,
    "Channel": _channels,
    "Binding": _bindings,
    "ModelProvider": _providers,
    "User": _users,
    "AccessToken": _tokens,
    "AuditEntry": _entries,
    "FleetHost": _hosts,
    "KeyRotation": _rotations,
}


async def load(context: Context, ids: list[str]) -> list[Node | None]:
    """Objects by identity, read a type at a time; null for whatever the caller may not see."""
    wanted = [node.parse(identity) for identity in ids]
    keys: dict[str, list[UUID]] = {}
    for parsed in wanted:
        if parsed:
            keys.setdefault(parsed[0], []).append(parsed[1])
    found = {
        (name, key): it
        for name in keys
        if name in LOADS
        for key, it in (await LOADS[name](context, keys[name])).items()
    }
    return [found.get(parsed) if parsed else None for parsed in wanted]


@strawberry.type
class NodeQueries:
    @query(Rule.VISIBLE, None, "Any object by its identity; null if there is none or the caller may not see it.")
    async def node(
        self, info: Info, id: Annotated[strawberry.ID, strawberry.argument(description="Identity.")]
    ) -> Node | None:
        return (await load(info.context, [id]))[0]

    @query(Rule.VISIBLE, None, "Objects by their identities, in the same order, null where there is none.")
    async def nodes(
        self,
        info: Info,
        ids: Annotated[list[strawberry.ID], strawberry.argument(description="Identities, at most 100.")],
    ) -> list[Node | None]:
        if len(ids) > page.MAX_SIZE:
            raise BadInput(f"`ids` holds {len(ids)} identities; at most {page.MAX_SIZE} are allowed")
        return await load(info.context, list(ids))
