"""Probing small real servers that answer as gateways of either era, or not at all."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response

from app.gateway.probe import Kind, Prober

CHALLENGE = json.dumps({"type": "event", "event": "connect.challenge", "payload": {"nonce": "n", "ts": 1}})
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(talk: Talk) -> AsyncIterator[int]:
    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@asynccontextmanager
async def answering(status: str, body: str = "", asked: list[str] | None = None) -> AsyncIterator[int]:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        if asked is not None:
            asked.append(request.decode())
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        await writer.drain()

    async with listening(talk) as port:
        yield port


@asynccontextmanager
async def old_gateway(
    *frames: str | bytes, asked: list[str] | None = None, stays: bool = True
) -> AsyncIterator[tuple[Server, int]]:
    """A WebSocket server without health endpoint, which says `frames` to whoever comes."""

    def refuse_http(connection: ServerConnection, request: Request) -> Response | None:
        if asked is not None:
            asked.append(f"{request.path} {dict(request.headers.raw_items())}")
        return None if "Upgrade" in request.headers else connection.respond(404, "not found")

    async def greet(connection: ServerConnection) -> None:
        for frame in frames:
            await connection.send(frame)
        if stays:
            await connection.wait_closed()

    async with serve(greet, "127.0.0.1", 0, process_request=refuse_http) as server:
        yield server, next(iter(server.sockets)).getsockname()[1]


async def test_a_ready_gateway_is_ready() -> None:
    async with Prober() as prober, answering("200 OK", '{"ready":true,"failing":[]}') as port:
        found = await prober.is_ready(port)
    assert (found.is_ready, found.kind) == (True, Kind.HTTP)


async def test_a_gateway_that_is_not_ready_says_what_fails() -> None:
    async with Prober() as prober, answering("503 Unavailable", '{"ready":false,"failing":["channels"]}') as port:
        found = await prober.is_ready(port)
    assert (found.is_ready, found.kind, found.reason) == (False, Kind.HTTP, 'not ready: ["channels"]')


@pytest.mark.parametrize("body", ["", "[1]", '"\\ud800"', "[" * 100_000, "x" * 1_000_000, "a\x00\x1b[31m\nb"])
async def test_a_reason_is_short_and_printable_whatever_the_bot_writes(body: str) -> None:
    async with Prober() as prober, answering("503 Unavailable", body) as port:
        found = await prober.is_ready(port)
    assert (found.is_ready, found.kind) == (False, Kind.HTTP)
    assert found.reason.isprintable()
    assert 0 < len(found.reason) <= 200


@pytest.mark.parametrize(
    ("started", "failing", "is_ready"),
    [
        (200, ["telegram"], True),
        (503, ["telegram"], False),
        (404, ["telegram"], False),
        (200, ["state-database"], False),
        (200, ["telegram", "agent-database:hana"], False),
        (200, [], False),
    ],
)
async def test_a_channel_that_is_down_does_not_make_the_gateway_unready(
    started: int, failing: list[str], is_ready: bool
) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = (await reader.readuntil(b"\r\n\r\n")).split()[1]
        body = json.dumps({"ready": False, "failing": failing}) if asked == b"/readyz" else ""
        status = 503 if asked == b"/readyz" else started
        writer.write(f"HTTP/1.1 {status} Some\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        await writer.drain()

    async with Prober() as prober, listening(talk) as port:
        found = await prober.is_ready(port)
    assert (found.is_ready, found.kind) == (is_ready, Kind.HTTP)


async def test_another_status_teaches_nothing() -> None:
    async with Prober() as prober, answering("302 Found\r\nLocation: http://127.0.0.1:1/") as port:
        found = await prober.is_ready(port)
    assert (found.is_ready, found.kind, found.reason) == (False, Kind.UNKNOWN, "/readyz answered 302")


async def test_a_closed_port_is_not_ready_yet(unused_port: int) -> None:
    async with Prober() as prober:
        for kind in Kind:
            found = await prober.is_ready(unused_port, kind=kind)
            assert (found.is_ready, bool(found.reason)) == (False, True)


async def test_without_a_health_endpoint_the_challenge_decides() -> None:
    asked: list[str] = []
    async with (
        Prober() as prober,
        old_gateway('{"event":"tick"}', "noise", b"\xff", CHALLENGE, asked=asked) as (_, port),
    ):
        found = await prober.is_ready(port)
        assert (found.is_ready, found.kind, len(asked)) == (True, Kind.WEBSOCKET, 2)
        assert (await prober.is_ready(port, kind=found.kind)).is_ready
        assert len(asked) == 3


async def test_a_websocket_without_challenge_is_not_ready() -> None:
    async with Prober() as prober, old_gateway('{"event":"tick"}') as (_, port):
        found = await prober.is_ready(port, timeout=0.3)
    assert (found.is_ready, found.reason) == (False, "no answer within 0.3 s")


async def test_a_websocket_that_closes_is_not_ready() -> None:
    async with Prober() as prober, old_gateway(stays=False) as (_, port):
        found = await prober.is_ready(port)
    assert (found.is_ready, found.reason) == (False, "closed before connect.challenge")


async def test_a_huge_frame_is_not_ready() -> None:
    async with Prober() as prober, old_gateway("x" * 1_000_000, CHALLENGE) as (_, port):
        assert not (await prober.is_ready(port)).is_ready


async def test_a_silent_server_costs_the_timeout_and_no_more() -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with Prober() as prober, listening(say_nothing) as port:
        for kind in Kind:
            with anyio.fail_after(10):
                assert (await prober.is_ready(port, 0.2, kind)).reason == "no answer within 0.2 s"


async def test_a_server_that_dribbles_costs_the_timeout_and_no_more() -> None:
    async def dribble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n")
        while True:
            writer.write(b".")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with Prober() as prober, listening(dribble) as port:
        with anyio.fail_after(10):
            assert not (await prober.is_ready(port, 0.3)).is_ready


async def test_garbage_is_not_ready() -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH\r\n")
        await writer.drain()

    async with Prober() as prober, listening(babble) as port:
        for kind in Kind:
            assert not (await prober.is_ready(port, kind=kind)).is_ready


async def test_nothing_secret_and_no_proxy_is_used(monkeypatch: pytest.MonkeyPatch, unused_port: int) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY", "WS_PROXY"):
        monkeypatch.setenv(name, f"http://user:pass@127.0.0.1:{unused_port}")
        monkeypatch.setenv(name.lower(), f"http://user:pass@127.0.0.1:{unused_port}")
    asked: list[str] = []
    async with Prober() as prober:
        async with answering("200 OK", asked=asked) as port:
            assert (await prober.is_ready(port)).is_ready
        async with old_gateway(CHALLENGE, asked=asked) as (_, port):
            assert (await prober.is_ready(port)).is_ready
    assert len(asked) == 3
    assert not [word for word in ("authorization", "cookie", "token") if word in str(asked).lower()]


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as held:
        return held.getsockname()[1]
