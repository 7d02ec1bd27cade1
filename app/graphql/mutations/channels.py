"""Mutations of channels and bindings; a channel's secrets are sealed before anything else happens."""

from typing import Annotated
from uuid import UUID

import strawberry

from app.domain.errors import Forbidden
from app.domain.ids import new_id
from app.domain.states import TokenScope
from app.graphql.context import Context, Info
from app.graphql.inputs import channels as inputs
from app.graphql.mutations import credentials
from app.graphql.mutations.input import INPUT
from app.graphql.payloads import channels as payloads
from app.graphql.permissions import Rule, mutation
from app.graphql.types import node
from app.graphql.types.binding import Binding
from app.graphql.types.bot import Bot
from app.graphql.types.channel import Channel
from app.services import audit, bindings, channels, keys, roster


@strawberry.type
class ChannelMutations:
    @mutation(
        Rule.OWNED, TokenScope.FLEET_WRITE, "Opens a channel on a bot. Secrets are encrypted before they are stored."
    )
    async def channel_create(
        self, info: Info, input: Annotated[inputs.ChannelCreateInput, INPUT]
    ) -> payloads.ChannelCreatePayload:
        identity, viewer, service = new_id(), info.context.caller, info.context.services.channels
        if input.credentials:
            await _require_scope(info.context, input.bot_id)
        sealed = credentials.sealed(info.context, input.provider, identity, input.credentials, input.settings)
        draft = channels.Draft(
            id=identity,
            bot=node.require(input.bot_id, "Bot", "botId"),
            provider=input.provider,
            account_id=input.account_id,
            name=input.name,
            enabled=input.enabled,
            settings=input.settings,
        )
        async with keys.sealing(info.context.services.vault):
            row = await service.create(viewer, draft, sealed)
        return payloads.ChannelCreatePayload(channel=Channel.from_row(row, info.context.services))

    @mutation(Rule.OWNED, TokenScope.FLEET_WRITE, "Changes a channel; what is absent stays. The process connects anew.")
    async def channel_update(
        self, info: Info, input: Annotated[inputs.ChannelUpdateInput, INPUT]
    ) -> payloads.ChannelUpdatePayload:
        channel_id = node.require(input.channel_id, "Channel", "channelId")
        given = {"name": input.name, "enabled": input.enabled, "settings": input.settings}
        changes = {name: value for name, value in given.items() if value is not strawberry.UNSET}
        row = await info.context.services.channels.update(info.context.caller, channel_id, changes)
        return payloads.ChannelUpdatePayload(channel=Channel.from_row(row, info.context.services))

    @mutation(Rule.OWNED, TokenScope.CREDENTIALS_WRITE, "Sets or removes the secrets of a channel that are named.")
    async def channel_credentials_set(
        self, info: Info, input: Annotated[inputs.ChannelCredentialsSetInput, INPUT]
    ) -> payloads.ChannelCredentialsSetPayload:
        channel_id, viewer = node.require(input.channel_id, "Channel", "channelId"), info.context.caller
        service = info.context.services.channels
        # What a secret is sealed for has the provider's name in it.
        provider = await service.provider_of(viewer, channel_id)
        sealed = credentials.sealed(info.context, provider, channel_id, input.credentials)
        async with keys.sealing(info.context.services.vault):
            row = await service.set_credentials(viewer, channel_id, sealed)
        return payloads.ChannelCredentialsSetPayload(channel=Channel.from_row(row, info.context.services))

    @mutation(Rule.OWNED, TokenScope.FLEET_WRITE, "Closes and deletes a channel with its bindings.")
    async def channel_delete(
        self, info: Info, input: Annotated[inputs.ChannelDeleteInput, INPUT]
    ) -> payloads.ChannelDeletePayload:
        channel_id = node.require(input.channel_id, "Channel", "channelId")
        bot_id = await info.context.services.channels.delete(info.context.caller, channel_id)
        return payloads.ChannelDeletePayload(deleted_channel_id=input.channel_id, bot=await _bot(info.context, bot_id))

    @mutation(Rule.OWNED, TokenScope.FLEET_WRITE, "Adds a rule that leads a peer to a bot.")
    async def binding_create(
        self, info: Info, input: Annotated[inputs.BindingCreateInput, INPUT]
    ) -> payloads.BindingCreatePayload:
        bot_id = node.require(input.bot_id, "Bot", "botId")
        row = await info.context.services.bindings.create(info.context.caller, bot_id, _match(input))
        return payloads.BindingCreatePayload(binding=Binding.from_row(row))

    @mutation(Rule.OWNED, TokenScope.FLEET_WRITE, "Replaces a rule.")
    async def binding_update(
        self, info: Info, input: Annotated[inputs.BindingUpdateInput, INPUT]
    ) -> payloads.BindingUpdatePayload:
        binding_id = node.require(input.binding_id, "Binding", "bindingId")
        row = await info.context.services.bindings.update(info.context.caller, binding_id, _match(input))
        return payloads.BindingUpdatePayload(binding=Binding.from_row(row))

    @mutation(Rule.OWNED, TokenScope.FLEET_WRITE, "Deletes a rule.")
    async def binding_delete(
        self, info: Info, input: Annotated[inputs.BindingDeleteInput, INPUT]
    ) -> payloads.BindingDeletePayload:
        binding_id = node.require(input.binding_id, "Binding", "bindingId")
        bot_id = await info.context.services.bindings.delete(info.context.caller, binding_id)
        return payloads.BindingDeletePayload(deleted_binding_id=input.binding_id, bot=await _bot(info.context, bot_id))


def _match(input: inputs.BindingCreateInput | inputs.BindingUpdateInput) -> bindings.Match:
    return bindings.Match(
        channel=None if input.channel_id is None else node.require(input.channel_id, "Channel", "channelId"),
        peer_kind=input.peer_kind,
        peer_id=input.peer_id,
        account_id=input.account_id,
        priority=input.priority,
    )


async def _bot(context: Context, bot_id: UUID) -> Bot | None:
    """What it hung on; None where that was deleted meanwhile, which takes nothing from what was done."""
    row = await roster.get(context.caller, bot_id)
    return Bot.from_row(row, context.caller) if row else None


async def _require_scope(context: Context, bot_id: str) -> None:
    """A channel can be made without secrets by who may not write any."""
    if context.caller.may(TokenScope.CREDENTIALS_WRITE):
        return
    parsed = node.parse(bot_id)
    subject = audit.Subject("Bot", parsed[1]) if parsed and parsed[0] == "Bot" else None
    await audit.note("channelCreate", subject, refusal=Forbidden.code, field=["credentials"])
    raise Forbidden(f"secrets need a token with the scope {TokenScope.CREDENTIALS_WRITE}")
