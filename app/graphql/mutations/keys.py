"""Mutations of data keys."""

from typing import Annotated

import strawberry

from app.domain.states import TokenScope
from app.graphql.context import Info
from app.graphql.inputs import keys as inputs
from app.graphql.mutations.input import INPUT
from app.graphql.payloads import keys as payloads
from app.graphql.permissions import Rule, mutation
from app.graphql.types.key import KeyRotation


@strawberry.type
class KeyMutations:
    @mutation(
        Rule.OWNED,
        TokenScope.ADMIN,
        "Starts encrypting every stored secret with a new key. Follow it with the `keyRotation` subscription.",
    )
    async def key_rotation_start(
        self, info: Info, input: Annotated[inputs.KeyRotationStartInput, INPUT]
    ) -> payloads.KeyRotationStartPayload:
        rotation = await info.context.services.rotations.start(input.reason)
        return payloads.KeyRotationStartPayload(key_rotation=KeyRotation.from_row(rotation))
