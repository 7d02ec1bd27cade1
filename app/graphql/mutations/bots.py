"""Mutations of bots: each writes a wish, wakes the supervisor, and answers with how things are."""

import secrets
from typing import Annotated, Any
from uuid import UUID

import strawberry

from app.domain.errors import Blank, GatewayFailed, NotFound, Refusal, TooLong
from app.domain.ids import new_id
from app.domain.states import BotStatus, TokenScope
from app.graphql.context import Context, Info
from app.graphql.inputs import bots as inputs
from app.graphql.mutations.input import INPUT
from app.graphql.payloads import bots as payloads
from app.graphql.permissions import Rule, mutation
from app.graphql.types import node
from app.graphql.types.bot import Bot
from app.graphql.types.enums import BotControlAction
from app.graphql.types.error import UserError
from app.services import audit, bots, keys, roster
from app.services.bot_settings import Draft

#: Bots that one `botsControl` may name.
MAX_BOTS = 100


@strawberry.type
class BotMutations:
    @mutation(Rule.OWNED, TokenScope.FLEET_WRITE, "Makes a bot. Its process stays down unless `start` is set.")
    async def bot_create(self, info: Info, input: Annotated[inputs.BotCreateInput, INPUT]) -> payloads.BotCreatePayload:
        vault, viewer, row_id = info.context.services.vault, info.context.caller, new_id()
        token = vault.seal(secrets.token_urlsafe(32), keys.gateway_token_place(row_id))
        draft = Draft(settings=_settings(input), agent_id=input.agent_id, start=input.start)
        async with keys.sealing(vault):
            bot = await info.context.services.bots.create(viewer, draft, token, row_id, vault.active_key_id)
        return payloads.BotCreatePayload(bot=Bot.from_row(bot, viewer))

    @mutation(
        Rule.OWNED,
        TokenScope.FLEET_WRITE,
        "Changes settings; what is absent stays. A running process is restarted if it has to read them.",
    )
    async def bot_update(self, info: Info, input: Annotated[inputs.BotUpdateInput, INPUT]) -> payloads.BotUpdatePayload:
        bot_id = node.require(input.bot_id, "Bot", "botId")
        changes = {name: value for name, value in _settings(input).items() if value is not strawberry.UNSET}
        bot = await info.context.services.bots.update(info.context.caller, bot_id, changes, input.expected_revision)
        return payloads.BotUpdatePayload(bot=Bot.from_row(bot, info.context.caller))

    @mutation(
        Rule.OWNED,
        TokenScope.FLEET_WRITE,
        "Stops the process and deletes the bot with its sessions, channels and bindings.",
    )
    async def bot_delete(self, info: Info, input: Annotated[inputs.BotDeleteInput, INPUT]) -> payloads.BotDeletePayload:
        bot_id = node.require(input.bot_id, "Bot", "botId")
        gone = await info.context.services.bots.delete(info.context.caller, bot_id)
        if why := await info.context.services.bots.gone(bot_id):
            raise GatewayFailed(f"the bot is not deleted yet, and this goes on by itself: {why}", "botId")
        return payloads.BotDeletePayload(
            deleted_bot_id=input.bot_id, deleted_channel_count=gone.channels, deleted_binding_count=gone.bindings
        )

    @mutation(Rule.OWNED, TokenScope.FLEET_WRITE, "Starts the process and, with `wait`, answers once it listens.")
    async def bot_start(self, info: Info, input: Annotated[inputs.BotStartInput, INPUT]) -> payloads.BotStartPayload:
        bot_id = node.require(input.bot_id, "Bot", "botId")
        generation = await info.context.services.bots.start(info.context.caller, bot_id)
        bot, errors = await _started(info.context, bot_id, generation, input.wait)
        return payloads.BotStartPayload(bot=bot, user_errors=errors)

    @mutation(Rule.OWNED, TokenScope.FLEET_WRITE, "Asks the process to end, then ends it.")
    async def bot_stop(self, info: Info, input: Annotated[inputs.BotStopInput, INPUT]) -> payloads.BotStopPayload:
        bot_id = node.require(input.bot_id, "Bot", "botId")
        service, viewer = info.context.services.bots, info.context.caller
        generation = await service.stop(viewer, bot_id, input.grace_seconds)
        if input.wait:
            await service.settled(viewer, bot_id, bots.has_stopped(generation))
            viewer = await info.context.renewed()
        return payloads.BotStopPayload(bot=Bot.from_row(await roster.require(viewer, bot_id), viewer))

    @mutation(Rule.OWNED, TokenScope.FLEET_WRITE, "Ends the process and starts it again.")
    async def bot_restart(
        self, info: Info, input: Annotated[inputs.BotRestartInput, INPUT]
    ) -> payloads.BotRestartPayload:
        bot_id = node.require(input.bot_id, "Bot", "botId")
        generation = await info.context.services.bots.restart(info.context.caller, bot_id)
        bot, errors = await _started(info.context, bot_id, generation, input.wait)
        return payloads.BotRestartPayload(bot=bot, user_errors=errors)

    @mutation(
        Rule.OWNED,
        TokenScope.ADMIN,
        "Gives a bot to somebody else. A running process is restarted if its model's key is another one then.",
    )
    async def bot_transfer(
        self, info: Info, input: Annotated[inputs.BotTransferInput, INPUT]
    ) -> payloads.BotTransferPayload:
        bot_id = node.require(input.bot_id, "Bot", "botId")
        owner = node.require(input.owner_id, "User", "ownerId")
        bot = await info.context.services.bots.transfer(info.context.caller, bot_id, owner)
        return payloads.BotTransferPayload(bot=Bot.from_row(bot, info.context.caller))

    @mutation(
        Rule.OWNED,
        TokenScope.FLEET_WRITE,
        "Starts, stops or restarts many bots at once, each on its own: what is refused for one is done for the others. "
        "Answers without waiting for the processes.",
    )
    async def bots_control(
        self, info: Info, input: Annotated[inputs.BotsControlInput, INPUT]
    ) -> payloads.BotsControlPayload:
        if not input.bot_ids:
            raise Blank("botIds is empty", "botIds")
        if len(input.bot_ids) > MAX_BOTS:
            raise TooLong(f"botIds names {len(input.bot_ids)} bots; at most {MAX_BOTS} are allowed", "botIds")
        results = await _control(info.context, list(input.bot_ids), input.action)
        return payloads.BotsControlPayload(
            bots=[result.bot for result in results if result.bot],
            results=results,
            user_errors=[result.user_error for result in results if result.user_error],
        )


async def _control(
    context: Context, asked: list[strawberry.ID], what: BotControlAction
) -> list[payloads.BotControlResult]:
    """One answer a bot, in the order asked for; identities that are no bot's are answered as missing ones."""
    viewer, service = context.caller, context.services.bots
    action, wish = {
        BotControlAction.START: ("botStart", service.start),
        BotControlAction.STOP: ("botStop", service.stop),
        BotControlAction.RESTART: ("botRestart", service.restart),
    }[what]
    parsed = {text: node.parse(text) for text in dict.fromkeys(asked)}
    keys = {text: found[1] for text, found in parsed.items() if found and found[0] == "Bot"}
    refusals = await bots.for_each(list(keys.values()), lambda key: wish(viewer, key))
    rows = await roster.by_ids(viewer, [key for key in keys.values() if key not in refusals])
    results: list[payloads.BotControlResult] = []
    for text in parsed:
        key = keys.get(text)
        row = key and rows.get(key)
        refusal = None if row else (key and refusals.get(key)) or NotFound("there is no such bot")
        if refusal:
            refusal.field = ["botIds", str(asked.index(text))]
            await audit.note(action, key and audit.Subject("Bot", key), refusal=refusal.code, field=refusal.field)
        results.append(
            payloads.BotControlResult(
                bot_id=text,
                bot=Bot.from_row(row, viewer) if row else None,
                user_error=UserError.of(refusal) if refusal else None,
            )
        )
    return results


def _settings(input: inputs.BotCreateInput | inputs.BotUpdateInput) -> dict[str, Any]:
    """What is set on a bot, by name of the input's field."""
    return {
        "name": input.name,
        "model": input.model,
        "systemPrompt": input.system_prompt,
        "description": input.description,
        "tags": input.tags,
        "configOverrides": input.config_overrides,
        "restartPolicy": input.restart_policy.policy() if input.restart_policy else input.restart_policy,
    }


async def _started(context: Context, bot_id: UUID, generation: int, wait: bool) -> tuple[Bot | None, list[UserError]]:
    """The bot as it is once the wish is settled, and why it failed where it did."""
    service, viewer = context.services.bots, context.caller
    if wait:
        await service.settled(viewer, bot_id, bots.has_started(generation))
        viewer = await context.renewed()
    bot = await roster.require(viewer, bot_id)
    has_failed = wait and bot.seen_generation >= generation and bot.status in (BotStatus.ERROR, BotStatus.BACKOFF)
    errors: list[Refusal] = [GatewayFailed(bot.error or "the process failed", "botId")] if has_failed else []
    return Bot.from_row(bot, viewer), [UserError.of(error) for error in errors]
