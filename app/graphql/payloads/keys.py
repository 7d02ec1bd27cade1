"""What mutations of keys answer."""

import strawberry

from app.graphql.payloads import errors, text
from app.graphql.types.error import UserError
from app.graphql.types.key import KeyRotation


@strawberry.type(description="What `keyRotationStart` answers.")
class KeyRotationStartPayload:
    key_rotation: KeyRotation | None = strawberry.field(
        default=None, description="The change of keys; null if it was refused."
    )
    user_errors: list[UserError] = errors()
    client_mutation_id: str | None = text()
