"""A person, as the API shows one."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import strawberry

from app.domain.errors import Forbidden
from app.domain.states import TokenScope, UserRole
from app.domain.viewer import Viewer
from app.graphql.context import Info
from app.graphql.cost import Cost
from app.graphql.permissions import Requires
from app.graphql.types import node, page
from app.graphql.types.actor import Actor
from app.graphql.types.page import After, Before, First, Last
from app.services import accounts, roster

if TYPE_CHECKING:
    from app.graphql.types.bot import BotConnection


@strawberry.type(description="A person with an account.")
class User(node.Node, Actor):
    name: str = strawberry.field(description="Name shown to people.")
    email: str | None = strawberry.field(
        description="Address for signing in; null for everyone but the person and administrators."
    )
    role: UserRole = strawberry.field(description="What the person may do.")
    created_at: datetime = strawberry.field(description="When the account was made.")
    disabled_at: datetime | None = strawberry.field(
        description="Since when the person is shut out; null if not, and for everyone but administrators."
    )
    key: strawberry.Private[UUID]

    @strawberry.field(
        description="Bots the person owns.",
        directives=[Cost(weight=1, multipliers=["first", "last"]), Requires(scope=TokenScope.FLEET_READ)],
    )
    async def bots(
        self, info: Info, first: First = None, after: After = None, last: Last = None, before: Before = None
    ) -> Annotated["BotConnection", strawberry.lazy("app.graphql.types.bot")]:
        # Here, because a bot's type in its turn needs its owner's.
        from app.graphql.types.bot import BotConnection  # noqa: PLC0415

        viewer = info.context.caller
        if not viewer.may(TokenScope.FLEET_READ):
            raise Forbidden(f"this needs a token with the scope {TokenScope.FLEET_READ}")
        wanted = roster.Query(owners=(self.key,), stretch=page.stretch(first, after, last, before))
        return await BotConnection.read(viewer, wanted)

    @classmethod
    def from_row(cls, row: accounts.User, viewer: Viewer) -> "User":
        is_open = viewer.may(TokenScope.ADMIN)
        return cls(
            id=node.global_id("User", row.id),
            name=row.name,
            email=row.email if is_open or viewer.user_id == row.id else None,
            role=row.role,
            created_at=row.created_at,
            disabled_at=row.disabled_at if is_open else None,
            key=row.id,
        )
