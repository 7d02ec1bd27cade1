"""What mutations of keys take."""

import strawberry

from app.graphql.inputs import any_text


@strawberry.input(description="What `keyRotationStart` takes.")
class KeyRotationStartInput:
    reason: str | None = strawberry.field(default=None, description="Why, for the audit trail.")
    client_mutation_id: str | None = any_text()
