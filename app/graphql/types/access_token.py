"""A token, as its owner sees it: its secret never."""

from datetime import datetime

import strawberry

from app.domain.states import TokenKind, TokenScope
from app.graphql.types import node
from app.services.tokens import Token


@strawberry.type(description="A token for programs. Its secret is shown once, by the mutation that made it.")
class AccessToken(node.Node):
    name: str = strawberry.field(description="Name given by its owner.")
    hint: str = strawberry.field(description="First characters of the secret, to tell tokens apart.")
    scopes: list[TokenScope] = strawberry.field(description="What the token may do.")
    is_sign_in: bool = strawberry.field(description="It was made by signing in, not for a program.")
    created_at: datetime = strawberry.field(description="When the token was made.")
    last_used_at: datetime | None = strawberry.field(description="When the token was last used; null if never.")
    expires_at: datetime | None = strawberry.field(description="When the token stops working; null if it does not.")

    @classmethod
    def from_row(cls, row: Token) -> "AccessToken":
        return cls(
            id=node.global_id("AccessToken", row.id),
            name=row.name,
            hint=row.hint,
            scopes=list(row.scopes),
            is_sign_in=row.kind is TokenKind.SESSION,
            created_at=row.created_at,
            last_used_at=row.last_used_at,
            expires_at=row.expires_at,
        )
