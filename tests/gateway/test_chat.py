"""What a gateway may answer to a message, and what it may not do to the server that asked."""

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import pytest

from app.domain.errors import GatewayFailed
from app.gateway import config
from app.gateway.chat import Chat

Write = Callable[[asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def gateway(answer: Write, status: str = "200 OK") -> AsyncGenerator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n\r\n".encode())
            await answer(writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def ask(answer: Write, folder: Path, timeout: float = 5.0, status: str = "200 OK") -> str:
    chat = Chat(folder)
    try:
        async with gateway(answer, status) as port:
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


async def refusal(tmp_path: Path) -> str:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b'{"error": {"message": "no such key: tok-0123456789"}}')

    with pytest.raises(GatewayFailed) as refused:
        await ask(answer, tmp_path, status="500 No")
    return str(refused.value)


async def test_a_refusal_is_told_without_secrets_and_not_at_all_where_the_bot_says_which_there_are(
    tmp_path: Path,
) -> None:
    (tmp_path / "hana").mkdir()
    file = tmp_path / "hana" / config.IN_USE
    assert (await refusal(tmp_path)).endswith("answered with status 500")
    config.write(file, config.to_text({"gateway": {"auth": {"token": "tok-0123456789"}}}))
    assert (await refusal(tmp_path)).endswith("answered with status 500: no such key: ***")
    file.write_text('{"gateway": {"auth": {"token": "tok-of-its-own"}}}')
    assert (await refusal(tmp_path)).endswith("answered with status 500")
    file.unlink()
    os.mkfifo(file)
    with anyio.fail_after(10):
        assert (await refusal(tmp_path)).endswith("answered with status 500")
