"""What a caller may still use."""

from datetime import datetime

import strawberry


@strawberry.type(description="How much of the minute's allowance this caller has used.")
class RateLimit:
    cost: int = strawberry.field(description="Units this operation costs.")
    limit: int = strawberry.field(description="Units a caller has a minute.")
    remaining: int = strawberry.field(description="Units left.")
    used: int = strawberry.field(description="Units used.")
    reset_at: datetime = strawberry.field(description="When the allowance is full again.")
