"""What mutations of model providers answer."""

import strawberry

from app.graphql.payloads import errors, text
from app.graphql.types.error import UserError
from app.graphql.types.model_provider import ModelProvider


@strawberry.type(description="What `modelProviderSave` answers.")
class ModelProviderSavePayload:
    model_provider: ModelProvider | None = strawberry.field(
        default=None, description="The provider as it is now; null if it was refused."
    )
    user_errors: list[UserError] = errors()
    client_mutation_id: str | None = text()


@strawberry.type(description="What `modelProviderDelete` answers.")
class ModelProviderDeletePayload:
    deleted_id: strawberry.ID | None = strawberry.field(
        default=None, description="Identity of what is gone; null if it was refused."
    )
    user_errors: list[UserError] = errors()
    client_mutation_id: str | None = text()
