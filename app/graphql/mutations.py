"""Everything that can be changed: each writes a wish, wakes whoever carries it out, and answers with how things are."""

import secrets
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import strawberry
import structlog

from app.domain.errors import Blank, ClawNetError, GatewayFailed, Invalid, Refusal
from app.domain.ids import new_id
from app.domain.ports import Answer
from app.domain.states import BotStatus, TokenScope
from app.graphql import inputs, payloads
from app.graphql.context import Context, Info
from app.graphql.permissions import Rule, mutation
from app.graphql.types import node
from app.graphql.types.bot import Bot
from app.graphql.types.enums import MessageRole
from app.graphql.types.error import UserError
from app.graphql.types.message import TranscriptMessage
from app.graphql.types.model_provider import ModelProvider
from app.services import bots, keys, models

log = structlog.get_logger()

_INPUT = strawberry.argument(description="What to do.")

#: Longest API key that is taken, in characters.
MAX_API_KEY = 4_096


@strawberry.type(
    description="Everything that can be changed. Each mutation takes one `input` and answers with one payload."
)
class Mutation:
    @mutation(Rule.OWNED, TokenScope.FLEET_WRITE, "Makes a bot. Its process stays down unless `start` is set.")
    async def bot_create(
        self, info: Info, input: Annotated[inputs.BotCreateInput, _INPUT]
    ) -> payloads.BotCreatePayload:
        vault, viewer, row_id = info.context.services.vault, info.context.caller, new_id()
        token = vault.seal(secrets.token_urlsafe(32), keys.gateway_token_place(row_id))
        policy = input.restart_policy.policy() if input.restart_policy else bots.DEFAULT_POLICY
        draft = bots.Draft(
            name=input.name,
            model=input.model,
            agent_id=input.agent_id,
            description=input.description,
            system_prompt=input.system_prompt,
            tags=tuple(input.tags or ()),
            restart_policy=policy,
            overrides=input.config_overrides,
            start=input.start,
        )
        bot = await info.context.services.bots.create(viewer, draft, token, row_id, vault.active_key_id)
        return payloads.BotCreatePayload(bot=Bot.from_row(bot, viewer))

    @mutation(
        Rule.OWNED,
        TokenScope.FLEET_WRITE,
        "Changes settings; what is absent stays. A running process is restarted if it has to read them.",
    )
    async def bot_update(
        self, info: Info, input: Annotated[inputs.BotUpdateInput, _INPUT]
    ) -> payloads.BotUpdatePayload:
        bot_id = node.require(input.bot_id, "Bot", "botId")
        given = {
            "name": input.name,
            "model": input.model,
            "systemPrompt": input.system_prompt,
            "description": input.description,
            "tags": input.tags,
            "configOverrides": input.config_overrides,
            "restartPolicy": input.restart_policy.policy() if input.restart_policy else input.restart_policy,
        }
        changes = {name: value for name, value in given.items() if value is not strawberry.UNSET}
        bot = await info.context.services.bots.update(info.context.caller, bot_id, changes, input.expected_revision)
        return payloads.BotUpdatePayload(bot=Bot.from_row(bot, info.context.caller))

    @mutation(
        Rule.OWNED,
        TokenScope.FLEET_WRITE,
        "Stops the process and deletes the bot with its sessions, channels and bindings.",
    )
    async def bot_delete(
        self, info: Info, input: Annotated[inputs.BotDeleteInput, _INPUT]
    ) -> payloads.BotDeletePayload:
        bot_id = node.require(input.bot_id, "Bot", "botId")
        await info.context.services.bots.delete(info.context.caller, bot_id)
        if not await info.context.services.bots.gone(bot_id):
            raise GatewayFailed("the bot's process has not ended yet; the bot is deleted as soon as it has", "botId")
        return payloads.BotDeletePayload(deleted_bot_id=input.bot_id)

    @mutation(Rule.OWNED, TokenScope.FLEET_WRITE, "Starts the process and, with `wait`, answers once it listens.")
    async def bot_start(self, info: Info, input: Annotated[inputs.BotStartInput, _INPUT]) -> payloads.BotStartPayload:
        bot_id = node.require(input.bot_id, "Bot", "botId")
        generation = await info.context.services.bots.start(info.context.caller, bot_id)
        bot, errors = await _started(info.context, bot_id, generation, input.wait)
        return payloads.BotStartPayload(bot=bot, user_errors=errors)

    @mutation(Rule.OWNED, TokenScope.FLEET_WRITE, "Asks the process to end, then ends it.")
    async def bot_stop(self, info: Info, input: Annotated[inputs.BotStopInput, _INPUT]) -> payloads.BotStopPayload:
        bot_id = node.require(input.bot_id, "Bot", "botId")
        service, viewer = info.context.services.bots, info.context.caller
        generation = await service.stop(viewer, bot_id, input.grace_seconds)
        if input.wait:
            await service.settled(viewer, bot_id, bots.has_stopped(generation))
        return payloads.BotStopPayload(bot=Bot.from_row(await service.require(viewer, bot_id), viewer))

    @mutation(Rule.OWNED, TokenScope.FLEET_WRITE, "Ends the process and starts it again.")
    async def bot_restart(
        self, info: Info, input: Annotated[inputs.BotRestartInput, _INPUT]
    ) -> payloads.BotRestartPayload:
        bot_id = node.require(input.bot_id, "Bot", "botId")
        generation = await info.context.services.bots.restart(info.context.caller, bot_id)
        bot, errors = await _started(info.context, bot_id, generation, input.wait)
        return payloads.BotRestartPayload(bot=bot, user_errors=errors)

    @mutation(
        Rule.OWNED,
        TokenScope.FLEET_WRITE,
        "Says something to a bot and, with `wait`, answers with what it says.",
    )
    async def message_send(
        self, info: Info, input: Annotated[inputs.MessageSendInput, _INPUT]
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

    @mutation(Rule.OWNED, TokenScope.FLEET_WRITE, "Keep a provider of models and its key.")
    async def model_provider_save(
        self, info: Info, input: Annotated[inputs.ModelProviderSaveInput, _INPUT]
    ) -> payloads.ModelProviderSavePayload:
        identity = new_id() if input.id is None else node.require(input.id, "ModelProvider", "id")
        vault, viewer = info.context.services.vault, info.context.caller
        key = input.api_key if input.api_key is not strawberry.UNSET else None
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
        await models.save(viewer, info.context.services.wake, draft, sealed, vault.active_key_id, identity)
        provider = await models.get(viewer, identity)
        return payloads.ModelProviderSavePayload(model_provider=provider and ModelProvider.from_row(provider))

    @mutation(Rule.OWNED, TokenScope.FLEET_WRITE, "Forget a provider of models; refused while a bot uses it.")
    async def model_provider_delete(
        self, info: Info, input: Annotated[inputs.ModelProviderDeleteInput, _INPUT]
    ) -> payloads.ModelProviderDeletePayload:
        identity = node.require(input.id, "ModelProvider", "id")
        await models.delete(info.context.caller, identity)
        return payloads.ModelProviderDeletePayload(deleted_id=input.id)


async def _started(context: Context, bot_id: UUID, generation: int, wait: bool) -> tuple[Bot | None, list[UserError]]:
    """The bot as it is once the wish is settled, and why it failed where it did."""
    service, viewer = context.services.bots, context.caller
    if wait:
        await service.settled(viewer, bot_id, bots.has_started(generation))
    bot = await service.require(viewer, bot_id)
    has_failed = wait and bot.seen_generation >= generation and bot.status in (BotStatus.ERROR, BotStatus.BACKOFF)
    errors: list[Refusal] = [GatewayFailed(bot.error or "the process failed", "botId")] if has_failed else []
    return Bot.from_row(bot, viewer), [UserError.of(error) for error in errors]


def _reply(answer: Answer) -> TranscriptMessage:
    return TranscriptMessage(
        role=MessageRole.ASSISTANT, text=answer.text, model=answer.model, created_at=datetime.now(UTC)
    )


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
