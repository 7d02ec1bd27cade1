"""The four arguments of every list."""

from typing import Annotated

import strawberry

First = Annotated[int | None, strawberry.argument(description="How many from the start; at most 100.")]
After = Annotated[str | None, strawberry.argument(description="Cursor to go on from.")]
Last = Annotated[int | None, strawberry.argument(description="How many from the end; at most 100.")]
Before = Annotated[str | None, strawberry.argument(description="Cursor to end before.")]
