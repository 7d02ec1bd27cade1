"""The one argument every mutation has."""

import strawberry

INPUT = strawberry.argument(description="What to do.")
