"""What mutations of pairings answer."""

import strawberry

from app.graphql.payloads import errors, text
from app.graphql.types.channel import Channel
from app.graphql.types.error import UserError


@strawberry.type(description="What `pairingApprove` and `pairingDismiss` answer.")
class PairingPayload:
    channel: Channel | None = strawberry.field(
        default=None, description="The channel as it is now; null if it was refused."
    )
    user_errors: list[UserError] = errors()
    client_mutation_id: str | None = text()
