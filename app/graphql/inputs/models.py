"""What mutations of model providers take."""

import strawberry
from strawberry.scalars import JSON

from app.domain.states import ModelProviderApi
from app.graphql.inputs import any_text


@strawberry.input(description="What `modelProviderSave` takes.")
class ModelProviderSaveInput:
    id: strawberry.ID | None = strawberry.field(default=None, description="The provider; absent for a new one.")
    name: str = strawberry.field(description="First part of `provider/model`.")
    api: ModelProviderApi = strawberry.field(
        default=ModelProviderApi.OPENAI_COMPLETIONS, description="How it is spoken to."
    )
    base_url: str | None = strawberry.field(default=None, description="Its address; absent for the maker's own.")
    models: JSON | None = strawberry.field(
        default=None, description="Models it offers, as OpenClaw wants them described."
    )
    api_key: str | None = strawberry.field(
        default=strawberry.UNSET, description="The API key. Absent keeps the one that is kept, null removes it."
    )
    shared: bool | None = strawberry.field(
        default=None, description="Let every user of the installation use it; administrators only."
    )
    client_mutation_id: str | None = any_text()


@strawberry.input(description="What `modelProviderDelete` takes.")
class ModelProviderDeleteInput:
    id: strawberry.ID = strawberry.field(description="The provider.")
    client_mutation_id: str | None = any_text()
