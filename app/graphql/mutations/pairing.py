"""Mutations that decide who may talk to a bot; the gateway is asked at once, because it alone keeps who waits."""

from typing import Annotated

import strawberry

from app.domain.states import TokenScope
from app.graphql.context import Info
from app.graphql.inputs.pairing import PairingInput
from app.graphql.mutations.input import INPUT
from app.graphql.payloads.pairing import PairingPayload
from app.graphql.permissions import Rule, mutation
from app.graphql.types import node
from app.graphql.types.channel import Channel


@strawberry.type
class PairingMutations:
    @mutation(Rule.OWNED, TokenScope.FLEET_WRITE, "Let somebody in who waits.")
    async def pairing_approve(self, info: Info, input: Annotated[PairingInput, INPUT]) -> PairingPayload:
        return await _resolve(info, input, is_let_in=True)

    @mutation(Rule.OWNED, TokenScope.FLEET_WRITE, "Send somebody away who waits.")
    async def pairing_dismiss(self, info: Info, input: Annotated[PairingInput, INPUT]) -> PairingPayload:
        return await _resolve(info, input, is_let_in=False)


async def _resolve(info: Info, input: PairingInput, *, is_let_in: bool) -> PairingPayload:
    channel_id, services = node.require(input.channel_id, "Channel", "channelId"), info.context.services
    row = await services.pairings.resolve(info.context.caller, channel_id, input.code, is_let_in=is_let_in)
    return PairingPayload(channel=Channel.from_row(row, services))
