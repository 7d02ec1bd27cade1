"""What mutations and lists take, one file a noun. Where absent and null differ, absent is `UNSET`."""

import strawberry


def any_text() -> str | None:
    """`clientMutationId`, which every input has."""
    return strawberry.field(default=None, description="Any text; it comes back in the payload.")
