"""Whoever can do something."""

import strawberry


@strawberry.interface(description="Someone or something that can own a profile: a person or a bot.")
class Actor:
    id: strawberry.ID = strawberry.field(description="Opaque identity, unique in the whole service.")
    name: str = strawberry.field(description="Name shown to people.")
