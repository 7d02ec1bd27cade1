"""What a gateway may answer to a message, and what it may not do to the server that asked."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from app.domain.errors import GatewayFailed
from app.gateway.chat import Chat

Write = Callable[[asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def gateway(answer: Write) -> AsyncGenerator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n")
            await answer(writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def ask(answer: Write, folder: Path, timeout: float = 5.0) -> str:
    chat = Chat(folder)
    try:
        async with gateway(answer) as port:
            return (await chat(port, "a-token", "hana", "Hello", "ada", timeout)).text
    finally:
        await chat.close()


async def test_an_answer_is_the_first_choice_s_text(tmp_path: Path) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b'{"choices": [{"message": {"content": "Good morning"}}]}')

    assert await ask(answer, tmp_path) == "Good morning"


async def test_an_answer_without_an_end_is_cut_off(tmp_path: Path) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b" " * 65_536)
            await writer.drain()

    with pytest.raises(GatewayFailed, match="longer than 4 MiB"):
        await ask(answer, tmp_path)


async def test_an_answer_that_trickles_has_one_deadline(tmp_path: Path) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.05)

    with pytest.raises(GatewayFailed, match=r"within 0\.5 s"):
        await ask(answer, tmp_path, timeout=0.5)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"choices": []}', b'{"choices": [{"message": {"content": ""}}]}'])
async def test_what_is_no_answer_is_a_failure(body: bytes, tmp_path: Path) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(body)

    with pytest.raises(GatewayFailed):
        await ask(answer, tmp_path)
