"""A provider of models, as the API shows one: its key never."""

from datetime import datetime

import strawberry
from strawberry.scalars import JSON

from app.domain.states import ModelProviderApi
from app.graphql.context import Info, user_loader
from app.graphql.types import node
from app.graphql.types.user import User
from app.services.models import ModelProvider as Row


@strawberry.type(description="Where a bot's models are and how they are spoken to.")
class ModelProvider(node.Node):
    name: str = strawberry.field(description="First part of `provider/model`.")
    api: ModelProviderApi = strawberry.field(description="How it is spoken to.")
    base_url: str | None = strawberry.field(description="Its address; null for the maker's own.")
    models: JSON = strawberry.field(description="Models it offers, as OpenClaw wants them described.")
    has_api_key: bool = strawberry.field(description="An API key is kept. The key itself is never shown.")
    api_key_updated_at: datetime | None = strawberry.field(
        description="When the key was last changed; null if there is none."
    )
    shared: bool = strawberry.field(description="Every user of the installation may use it.")
    row: strawberry.Private[Row]

    @strawberry.field(description="Whose it is; null for one of the installation.")
    async def owner(self, info: Info) -> User | None:
        if self.row.owner is None:
            return None
        user = await info.context.loader("users", user_loader).load(self.row.owner)
        return User.from_row(user, info.context.caller) if user else None

    @classmethod
    def from_row(cls, row: Row) -> "ModelProvider":
        return cls(
            id=node.global_id("ModelProvider", row.id),
            name=row.name,
            api=row.api,
            base_url=row.base_url,
            models=JSON(row.models),
            has_api_key=row.api_key is not None,
            api_key_updated_at=row.api_key_updated_at,
            shared=row.owner is None,
            row=row,
        )
