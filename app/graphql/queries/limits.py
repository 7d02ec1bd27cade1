"""What the caller may still ask."""

from datetime import UTC, datetime, timedelta

import strawberry

from app.graphql import cost, guard
from app.graphql.context import Info
from app.graphql.permissions import Rule, query
from app.graphql.types.limits import RateLimit


@strawberry.type
class LimitQueries:
    @query(Rule.PUBLIC, None, "The caller's allowance; null where none is kept.")
    async def rate_limit(self, info: Info) -> RateLimit | None:
        found = info.context.services.limits.allowance(await guard.payer(info.context))
        if found is None:
            return None
        return RateLimit(
            cost=cost.charged.get(),
            limit=found.limit,
            remaining=int(found.left),
            used=found.limit - int(found.left),
            reset_at=datetime.now(UTC) + timedelta(seconds=found.full_in),
        )
