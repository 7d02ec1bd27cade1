"""A person, as the API shows one."""

from datetime import datetime

import strawberry

from app.domain.states import TokenScope, UserRole
from app.domain.viewer import Viewer
from app.graphql.types import node
from app.graphql.types.actor import Actor
from app.services import accounts


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
        )
