"""A token, as its owner sees it: its secret never."""

from datetime import datetime

import strawberry

from app.domain.states import TokenKind, TokenScope
from app.domain.viewer import Viewer
from app.graphql.types import node
from app.graphql.types.page import PageInfo
from app.services import tokens
from app.services.pages import Page
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


@strawberry.type(description="One of the tokens on a page.")
class AccessTokenEdge:
    cursor: str = strawberry.field(description="Place on the list; give it as `after` or `before`.")
    node: AccessToken = strawberry.field(description="The item.")


@strawberry.type(description="A page of tokens.")
class AccessTokenConnection:
    edges: list[AccessTokenEdge] = strawberry.field(description="The tokens with their cursors.")
    nodes: list[AccessToken] = strawberry.field(description="The tokens alone.")
    page_info: PageInfo = strawberry.field(description="Where the page starts and ends.")
    viewer: strawberry.Private[Viewer]

    @strawberry.field(
        description="All tokens, also those on other pages; counted only when asked for. "
        "Null where counting is too dear."
    )
    async def total_count(self) -> int | None:
        return await tokens.count(self.viewer)

    @classmethod
    def from_page(cls, found: Page[Token], viewer: Viewer) -> "AccessTokenConnection":
        edges = [AccessTokenEdge(cursor=cursor, node=AccessToken.from_row(row)) for cursor, row in found.items]
        return cls(edges=edges, nodes=[edge.node for edge in edges], page_info=PageInfo.of(found), viewer=viewer)
