"""Pages of a list."""

from typing import Annotated, Any

import strawberry

from app.domain.errors import BadInput
from app.services.pages import Page, Stretch

#: Items on a page where the caller names no number, and at most.
DEFAULT_SIZE, MAX_SIZE = 20, 100

#: The four arguments of every list.
First = Annotated[int | None, strawberry.argument(description="How many from the start; at most 100.")]
After = Annotated[str | None, strawberry.argument(description="Cursor to go on from.")]
Last = Annotated[int | None, strawberry.argument(description="How many from the end; at most 100.")]
Before = Annotated[str | None, strawberry.argument(description="Cursor to end before.")]


@strawberry.type(description="Where a page of a connection starts and ends.")
class PageInfo:
    has_next_page: bool = strawberry.field(description="More items follow `endCursor`.")
    has_previous_page: bool = strawberry.field(description="Items come before `startCursor`.")
    start_cursor: str | None = strawberry.field(description="Cursor of the first item; null on an empty page.")
    end_cursor: str | None = strawberry.field(description="Cursor of the last item; null on an empty page.")

    @classmethod
    def of(cls, page: Page[Any]) -> "PageInfo":
        cursors = [cursor for cursor, _ in page.items]
        return cls(
            has_next_page=page.has_next,
            has_previous_page=page.has_previous,
            start_cursor=cursors[0] if cursors else None,
            end_cursor=cursors[-1] if cursors else None,
        )


def stretch(
    first: int | None = None, after: str | None = None, last: int | None = None, before: str | None = None
) -> Stretch:
    """The part of a list that the four arguments mean. Raises `BadInput`."""
    first, last = sizes(first, last)
    return Stretch(first=first, after=after, last=last, before=before)


def sizes(first: int | None, last: int | None) -> tuple[int | None, int | None]:
    """`first` and `last`, exactly one of them given. Raises `BadInput`."""
    if first is not None and last is not None:
        raise BadInput("give `first` or `last`, not both")
    for name, value in (("first", first), ("last", last)):
        if value is not None and not 0 <= value <= MAX_SIZE:
            raise BadInput(f"`{name}` must lie between 0 and {MAX_SIZE}")
    return (DEFAULT_SIZE if first is None and last is None else first), last
