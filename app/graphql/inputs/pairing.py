"""What mutations of pairings take."""

import strawberry

from app.graphql.inputs import any_text


@strawberry.input(description="What `pairingApprove` and `pairingDismiss` take.")
class PairingInput:
    channel_id: strawberry.ID = strawberry.field(description="The channel.")
    code: str = strawberry.field(description="Code that the channel showed them.")
    client_mutation_id: str | None = any_text()
