"""A person, as the API shows one."""

from datetime import datetime

import strawberry

from app.domain.states import UserRole
from app.domain.viewer import Viewer
from app.graphql.types import node
from app.services import accounts


@strawberry.type(description="A person with an account.")
class User(node.Node):
    name: str = strawberry.field(description="Name shown to people.")
    email: str | None = strawberry.field(
        description="Address for signing in; null for everyone but the person and administrators."
    )
    role: UserRole = strawberry.field(description="What the person may do.")
    created_at: datetime = strawberry.field(description="When the account was made.")

    @classmethod
    def from_row(cls, row: accounts.User, viewer: Viewer) -> "User":
        return cls(
            id=node.global_id("User", row.id),
            name=row.name,
            email=row.email if viewer.owns(row.id) else None,
            role=row.role,
            created_at=row.created_at,
        )
