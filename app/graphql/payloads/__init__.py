"""What mutations answer: the changed object, what the caller can mend, and the caller's own text back."""

import strawberry

from app.graphql.types.error import UserError


def errors() -> list[UserError]:
    """`userErrors`, which every payload has."""
    return strawberry.field(
        default_factory=list[UserError], description="What the caller can mend; empty when all went well."
    )


def text() -> str | None:
    """`clientMutationId`, as it came."""
    return strawberry.field(default=None, description="The text the caller sent.")
