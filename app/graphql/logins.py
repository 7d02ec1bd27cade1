"""What a listener to `channelLogin` hears, for as long as they may link the channel."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from uuid import UUID

from app.domain.errors import Forbidden, NotFound, Refusal
from app.domain.states import TokenScope
from app.graphql.context import Context
from app.graphql.types.channel import Channel
from app.graphql.types.login import ChannelLogin
from app.services import audit, channels, rooms
from app.services.logins import Login


async def follow(context: Context, channel_id: UUID) -> AsyncGenerator[ChannelLogin, None]:
    """Every step, the last one LINKED or FAILED.

    Raises:
        NotFound: There is no such channel, or it is not the caller's to change any more.
        Forbidden: The caller may not write credentials any more.
    """
    try:
        steps = context.services.logins.follow(await _begin(context, channel_id))
        async with aclosing(steps):
            async for step in steps:
                yield ChannelLogin.of(step, await _channel(context, channel_id))
    except NotFound:
        raise
    except Refusal as refusal:
        yield ChannelLogin.failed(refusal, await _channel(context, channel_id))


async def _begin(context: Context, channel_id: UUID) -> Login:
    """Notes it, or its refusal: who gets the code can link an account."""
    with audit.acting(context.actor):
        try:
            return await context.services.logins.begin(context.caller, channel_id)
        except Refusal as refusal:
            subject = audit.Subject("Channel", channel_id)
            await audit.note("channelLogin", subject, refusal=refusal.code, field=refusal.field)
            raise


async def _channel(context: Context, channel_id: UUID) -> Channel:
    """The channel as it is now, for who may hear more of it."""
    viewer = await rooms.patiently(context.signed_in)
    if not viewer.may(TokenScope.CREDENTIALS_WRITE):
        raise Forbidden(f"this needs a token with the scope {TokenScope.CREDENTIALS_WRITE}")
    await context.services.channels.provider_of(viewer, channel_id)
    return Channel.from_row(await channels.READ.require(viewer, channel_id), context.services)
