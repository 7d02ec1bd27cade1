"""From `accessTokenRevoke` to the closed socket that the token had opened, here and at another server.

The peer is the least that a front end could do by itself: asking `{ viewer { id } }` until it answers null.
"""

import random
import time
from typing import Any

import anyio
import websockets
from rows import Row, quantile
from serving import folder, serving

from tests.harness import Api, environ, serve

SAMPLES = 40
#: Seconds.
HERE, ELSEWHERE = 1.0, 3.0

CREATE = """mutation { accessTokenCreate(input: {name: "bench", scopes: [FLEET_READ]})
{ secret accessToken { id } userErrors { message } } }"""
REVOKE = "mutation($id: ID!) { accessTokenRevoke(input: {accessTokenId: $id}) { userErrors { message } } }"


async def measure() -> list[Row]:
    with folder() as where:
        off = {"CLAWNET_RATE_CONNECT": "0", "CLAWNET_RATE_MUTATION": "0", "CLAWNET_SOCKETS_PER_USER": "0"}
        async with serving(where, None, CLAWNET_LOG_LEVEL="warning", **off) as (_, api):
            wanted = environ(where, None, None, CLAWNET_NODE="other", CLAWNET_LOG_LEVEL="warning", **off)
            wanted |= {"OPENCLAW_BASE_PATH": str(where / "other")}
            with await anyio.to_thread.run_sync(serve, wanted) as server:
                there = Api(server.url)
                async with there.http:
                    near = [await closing(api, api) for _ in range(SAMPLES)]
                    far = [await closing(api, there, at_random=True) for _ in range(SAMPLES)]
                    asked = [await asking(api) for _ in range(SAMPLES)]
    return [
        row("here", near, asked, HERE),
        row("at another server", far, asked, ELSEWHERE),
    ]


def row(name: str, found: list[float], asked: list[float], most: float) -> Row:
    peer = quantile(asked, 0.5)
    middle, worst = quantile(found, 0.5), max(found)
    return Row(
        f"revocation {name}",
        f"p50 {middle * 1000:.0f} ms, max {worst * 1000:.0f} ms",
        f"<= {most * 1000:.0f} ms",
        f"{middle / peer:.1f} x asking without a pause ({peer * 1000:.0f} ms)",
    )


async def a_token(api: Api) -> tuple[str, str]:
    made = await api.run(CREATE)
    return made["secret"], made["accessToken"]["id"]


async def closing(api: Api, at: Api, *, at_random: bool = False) -> float:
    """Seconds from the mutation's start to the close of a socket at a server."""
    if at_random:
        # The other server looks once a second, and closing what it found would set this loop's beat to the same.
        await anyio.sleep(random.random())
    secret, identity = await a_token(api)
    async with at.signed_in(secret).listen("subscription { botStatus { kind } }") as heard:
        began = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: api.run(REVOKE, id=identity))
            await closed(heard.socket)
            return time.perf_counter() - began
    raise AssertionError("it was never closed")


async def closed(socket: Any) -> None:
    try:
        while True:
            await socket.recv()
    except websockets.ConnectionClosed:
        assert socket.close_code == 4401, socket.close_code


async def asking(api: Api) -> float:
    secret, identity = await a_token(api)
    began = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: api.run(REVOKE, id=identity))
        while await api.signed_in(secret).run("{ viewer { id } }") is not None:
            pass
    return time.perf_counter() - began
