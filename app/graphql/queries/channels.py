"""Kinds of channels."""

import strawberry

from app.graphql.context import Info
from app.graphql.permissions import Rule, query
from app.graphql.types.channel import ChannelProvider


@strawberry.type
class ChannelQueries:
    @query(Rule.VISIBLE, None, "Kinds of channels that the installed OpenClaw can open.")
    async def channel_providers(self, info: Info) -> list[ChannelProvider]:
        return [ChannelProvider.of(kind) for kind in info.context.services.channels.catalogue().values()]
