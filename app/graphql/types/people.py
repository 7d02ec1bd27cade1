"""Lists of people."""

import strawberry

from app.domain.viewer import Viewer
from app.graphql.types.page import PageInfo
from app.graphql.types.user import User
from app.services import accounts
from app.services.pages import Page


@strawberry.type(description="One of the people on a page.")
class UserEdge:
    cursor: str = strawberry.field(description="Place on the list; give it as `after` or `before`.")
    node: User = strawberry.field(description="The item.")


@strawberry.type(description="A page of people.")
class UserConnection:
    edges: list[UserEdge] = strawberry.field(description="The people with their cursors.")
    nodes: list[User] = strawberry.field(description="The people alone.")
    page_info: PageInfo = strawberry.field(description="Where the page starts and ends.")

    @strawberry.field(
        description="All people, also those on other pages; counted only when asked for. "
        "Null where counting is too dear."
    )
    async def total_count(self) -> int | None:
        return await accounts.count()

    @classmethod
    def from_page(cls, found: Page[accounts.User], viewer: Viewer) -> "UserConnection":
        edges = [UserEdge(cursor=cursor, node=User.from_row(row, viewer)) for cursor, row in found.items]
        return cls(edges=edges, nodes=[edge.node for edge in edges], page_info=PageInfo.of(found))
