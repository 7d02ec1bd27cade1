"""Talking to a bot."""

from datetime import UTC, datetime
from typing import Annotated

import strawberry
import structlog

from app.domain.errors import ClawNetError
from app.domain.ports import Answer
from app.domain.states import TokenScope
from app.graphql.context import Info
from app.graphql.inputs import messages as inputs
from app.graphql.mutations.input import INPUT
from app.graphql.payloads import messages as payloads
from app.graphql.permissions import Rule, mutation
from app.graphql.types import node
from app.graphql.types.enums import MessageRole
from app.graphql.types.message import TranscriptMessage

log = structlog.get_logger()


@strawberry.type
class MessageMutations:
    @mutation(
        Rule.OWNED,
        TokenScope.FLEET_WRITE,
        "Says something to a bot and, with `wait`, answers with what it says.",
    )
    async def message_send(
        self, info: Info, input: Annotated[inputs.MessageSendInput, INPUT]
    ) -> payloads.MessageSendPayload:
        service, viewer = info.context.services.messages, info.context.caller
        bot, text = await service.prepare(viewer, node.require(input.bot_id, "Bot", "botId"), input.text)
        said = TranscriptMessage(role=MessageRole.USER, text=text, model=None, created_at=datetime.now(UTC))
        if input.wait:
            return payloads.MessageSendPayload(message=said, reply=_reply(await service.send(viewer, bot, text)))

        async def send() -> None:
            try:
                await service.send(viewer, bot, text)
            except ClawNetError as error:
                log.warning("message_unanswered", bot_id=str(bot.id), error=str(error))

        info.context.services.background(send)
        return payloads.MessageSendPayload(message=said)


def _reply(answer: Answer) -> TranscriptMessage:
    return TranscriptMessage(
        role=MessageRole.ASSISTANT, text=answer.text, model=answer.model, created_at=datetime.now(UTC)
    )
