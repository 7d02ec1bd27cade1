"""A connection to a gateway that runs on this machine, whichever server started it."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from app.domain.errors import GatewayFailed
from app.domain.ports import Running
from app.gateway import process, rpc
from app.gateway.rpc import Connection


@asynccontextmanager
async def connect(homes: Path, gateway: Running) -> AsyncGenerator[Connection]:
    """The gateway itself: the home says which process is the bot's.

    Args:
        homes: The folder with the bots' homes, by agentId.

    Raises:
        GatewayFailed: It does not run any more, or does not answer.
    """
    held = await process.holder(homes / gateway.agent_id)
    if held is None:
        raise GatewayFailed("the bot's gateway does not run any more")
    with held:
        if held.nonce != gateway.nonce:
            raise GatewayFailed("the bot's gateway was started anew meanwhile; try again")
        is_own = partial(process.owns_port, held, gateway.port)
        async with rpc.connect(gateway.port, gateway.token, is_own) as connection:
            yield connection
