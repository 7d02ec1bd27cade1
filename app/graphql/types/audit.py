"""An entry of the audit trail, as administrators see it."""

from datetime import datetime

import strawberry
from strawberry.scalars import JSON

from app.graphql.context import Info, node_loader, user_loader
from app.graphql.types import node
from app.graphql.types.actor import Actor
from app.graphql.types.page import PageInfo
from app.graphql.types.user import User
from app.services import trail
from app.services.pages import Page
from app.services.trail import Entry


@strawberry.type(description="Something that somebody did, or was refused.")
class AuditEntry(node.Node):
    action: str = strawberry.field(description="Name of the mutation or of the server's own deed.")
    subject_id: strawberry.ID | None = strawberry.field(
        description="Identity of the object it was done to, valid also after it is gone; null if there is none."
    )
    refusal: str | None = strawberry.field(description="Code of the refusal; null where it was done.")
    detail: JSON = strawberry.field(description="What changed, without secrets.")
    address: str | None = strawberry.field(description="Where it came from; null for the server itself.")
    created_at: datetime = strawberry.field(description="When.")
    row: strawberry.Private[Entry]

    @strawberry.field(description="Who; null for the server itself and for somebody unknown.")
    async def actor(self, info: Info) -> Actor | None:
        if self.row.actor is None:
            return None
        user = await info.context.loader("users", user_loader).load(self.row.actor)
        return User.from_row(user, info.context.caller) if user else None

    @strawberry.field(description="Object it was done to; null if it is gone or hidden.")
    async def subject(self, info: Info) -> node.Node | None:
        if self.subject_id is None:
            return None
        return await node_loader(info.context).load(self.subject_id)

    @classmethod
    def from_row(cls, row: Entry) -> "AuditEntry":
        subject = row.subject
        return cls(
            id=node.global_id("AuditEntry", row.id),
            action=row.action,
            subject_id=node.global_id(subject.type, subject.key) if subject else None,
            refusal=row.refusal,
            detail=JSON(row.detail),
            address=row.address,
            created_at=row.created_at,
            row=row,
        )


@strawberry.type(description="One of the entries on a page.")
class AuditEntryEdge:
    cursor: str = strawberry.field(description="Place on the list; give it as `after` or `before`.")
    node: AuditEntry = strawberry.field(description="The item.")


@strawberry.type(description="A page of entries.")
class AuditEntryConnection:
    edges: list[AuditEntryEdge] = strawberry.field(description="The entries with their cursors.")
    nodes: list[AuditEntry] = strawberry.field(description="The entries alone.")
    page_info: PageInfo = strawberry.field(description="Where the page starts and ends.")
    query: strawberry.Private[trail.Query]

    @strawberry.field(
        description="All entries, also those on other pages; counted only when asked for. "
        "Null where counting is too dear."
    )
    async def total_count(self) -> int | None:
        return await trail.count(self.query)

    @classmethod
    def from_page(cls, found: Page[Entry], query: trail.Query) -> "AuditEntryConnection":
        edges = [AuditEntryEdge(cursor=cursor, node=AuditEntry.from_row(row)) for cursor, row in found.items]
        return cls(edges=edges, nodes=[edge.node for edge in edges], page_info=PageInfo.of(found), query=query)
