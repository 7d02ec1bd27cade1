"""The fleet in one look."""

import strawberry

from app.domain.states import TokenScope
from app.graphql.context import Info
from app.graphql.permissions import Rule, query
from app.graphql.types.fleet import Fleet


@strawberry.type
class FleetQueries:
    @query(Rule.VISIBLE, TokenScope.FLEET_READ, "The fleet in one look.")
    async def fleet(self, info: Info) -> Fleet:
        return Fleet.from_row(await info.context.services.fleet.summary(info.context.caller))
