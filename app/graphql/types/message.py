"""What is said between a person and a bot."""

from datetime import datetime

import strawberry

from app.graphql.types.enums import MessageRole


@strawberry.type(description="One message of a conversation.")
class TranscriptMessage:
    role: MessageRole = strawberry.field(description="Who said it.")
    text: str = strawberry.field(description="The text; empty where the message carries none.")
    model: str | None = strawberry.field(description="Model that wrote it; null where none did.")
    created_at: datetime = strawberry.field(description="When it was said.")
