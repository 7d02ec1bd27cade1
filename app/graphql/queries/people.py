"""People, their tokens, and who did what."""

from typing import Annotated
from uuid import UUID

import strawberry

from app.domain.states import TokenScope
from app.graphql.context import Info
from app.graphql.inputs.people import AuditFilter
from app.graphql.permissions import Rule, query
from app.graphql.types import node, page
from app.graphql.types.access_token import AccessTokenConnection
from app.graphql.types.audit import AuditEntryConnection
from app.graphql.types.page import After, Before, First, Last
from app.graphql.types.people import UserConnection
from app.services import accounts, tokens, trail


@strawberry.type
class PeopleQueries:
    @query(Rule.SELF, None, "The caller's tokens that work, the newest first.")
    async def access_tokens(
        self, info: Info, first: First = None, after: After = None, last: Last = None, before: Before = None
    ) -> AccessTokenConnection:
        viewer = info.context.caller
        found = await tokens.page(viewer, page.stretch(first, after, last, before))
        return AccessTokenConnection.from_page(found, viewer)

    @query(Rule.OWNED, TokenScope.ADMIN, "Everyone with an account.")
    async def users(
        self, info: Info, first: First = None, after: After = None, last: Last = None, before: Before = None
    ) -> UserConnection:
        found = await accounts.page(page.stretch(first, after, last, before))
        return UserConnection.from_page(found, info.context.caller)

    @query(Rule.OWNED, TokenScope.ADMIN, "Who did what, the latest first.")
    async def audit_entries(
        self,
        info: Info,
        first: First = None,
        after: After = None,
        last: Last = None,
        before: Before = None,
        filter: Annotated[AuditFilter | None, strawberry.argument(description="Which ones.")] = None,
    ) -> AuditEntryConnection:
        which = filter or AuditFilter()
        wanted = trail.Query(
            actors=_keys(which.actor_id),
            subjects=_keys(which.subject_id),
            actions=None if which.action is None else tuple(which.action),
            stretch=page.stretch(first, after, last, before),
        )
        return AuditEntryConnection.from_page(await trail.page(wanted), wanted)


def _keys(ids: list[strawberry.ID] | None) -> tuple[UUID, ...] | None:
    """The keys of identities; what is none finds nothing."""
    return None if ids is None else tuple(parsed[1] for one in ids if (parsed := node.parse(one)))
