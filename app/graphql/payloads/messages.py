"""What talking to a bot answers."""

import strawberry

from app.graphql.payloads import errors, text
from app.graphql.types.error import UserError
from app.graphql.types.message import TranscriptMessage


@strawberry.type(description="What `messageSend` answers.")
class MessageSendPayload:
    message: TranscriptMessage | None = strawberry.field(default=None, description="What was said.")
    reply: TranscriptMessage | None = strawberry.field(
        default=None, description="What the bot said; null without `wait`."
    )
    user_errors: list[UserError] = errors()
    client_mutation_id: str | None = text()
