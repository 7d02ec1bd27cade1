"""Mutations of model providers; a key is sealed before anything else happens."""

from typing import Annotated

import strawberry

from app.domain.errors import Blank, Invalid
from app.domain.ids import new_id
from app.domain.states import TokenScope
from app.graphql.context import Info
from app.graphql.inputs import models as inputs
from app.graphql.mutations.input import INPUT
from app.graphql.payloads import models as payloads
from app.graphql.permissions import Rule, mutation
from app.graphql.types import node
from app.graphql.types.model_provider import ModelProvider
from app.services import keys, models

#: Longest API key that is taken, in characters.
MAX_API_KEY = 4_096


@strawberry.type
class ModelMutations:
    @mutation(Rule.OWNED, TokenScope.FLEET_WRITE, "Keep a provider of models and its key.")
    async def model_provider_save(
        self, info: Info, input: Annotated[inputs.ModelProviderSaveInput, INPUT]
    ) -> payloads.ModelProviderSavePayload:
        identity = new_id() if input.id is None else node.require(input.id, "ModelProvider", "id")
        services, viewer = info.context.services, info.context.caller
        vault = services.vault
        key = input.api_key if input.api_key is not strawberry.UNSET else None
        # Of the same moment: the active key may be another one by the time it is written.
        key_id = vault.active_key_id
        sealed = vault.seal(_checked_key(key), keys.provider_place(identity)) if key is not None else None
        draft = models.Draft(
            id=None if input.id is None else identity,
            name=input.name,
            api=input.api,
            base_url=input.base_url,
            models=_models(input.models),
            shared=input.shared,
            keeps_key=input.api_key is strawberry.UNSET,
        )
        await models.try_models(viewer, draft, services.models_tried)
        async with keys.sealing(vault):
            await models.save(viewer, services.wake, draft, sealed, key_id, identity)
        provider = await models.get(viewer, identity)
        return payloads.ModelProviderSavePayload(model_provider=provider and ModelProvider.from_row(provider))

    @mutation(Rule.OWNED, TokenScope.FLEET_WRITE, "Forget a provider of models; refused while a bot uses it.")
    async def model_provider_delete(
        self, info: Info, input: Annotated[inputs.ModelProviderDeleteInput, INPUT]
    ) -> payloads.ModelProviderDeletePayload:
        identity = node.require(input.id, "ModelProvider", "id")
        await models.delete(info.context.caller, identity)
        return payloads.ModelProviderDeletePayload(deleted_id=input.id)


def _checked_key(key: str) -> str:
    if not key.strip():
        raise Blank("apiKey is empty; null removes the one that is kept", "apiKey")
    if key.startswith("!"):
        raise Invalid("apiKey cannot begin with an exclamation mark: OpenClaw would run it as a command", "apiKey")
    if len(key) > MAX_API_KEY or not key.isascii() or not key.isprintable():
        raise Invalid(f"apiKey must be at most {MAX_API_KEY} printable ASCII characters", "apiKey")
    return key


def _models(value: object) -> list[object]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise Invalid("models must be a list", "models")
    return list(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
