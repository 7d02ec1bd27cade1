"""What talking to a bot takes."""

import strawberry

from app.graphql.inputs import any_text


@strawberry.input(description="What `messageSend` takes.")
class MessageSendInput:
    bot_id: strawberry.ID = strawberry.field(description="The bot.")
    text: str = strawberry.field(description="What to say.")
    wait: bool = strawberry.field(default=True, description="Answer only when the bot has answered.")
    client_mutation_id: str | None = any_text()
