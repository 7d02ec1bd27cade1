"""Health can be asked from the first moment, while everything behind it still starts."""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import websockets

from tests.harness import PATIENCE, REPO, environ


def a_slow_openclaw(folder: Path) -> Path:
    """A program that takes its time to say its version, as an installation on a cold disk does."""
    folder.mkdir()
    wrapper = folder / "openclaw"
    wrapper.write_text('#!/bin/sh\nwhile [ ! -e "$(dirname "$0")/go" ]; do sleep 0.05; done\necho 2026.9.6\n')
    wrapper.chmod(0o755)
    return wrapper


async def answer(client: httpx.AsyncClient, path: str) -> httpx.Response:
    with anyio.fail_after(PATIENCE):
        while True:
            try:
                return await client.get(path)
            except httpx.ConnectError:
                await asyncio.sleep(0.02)


async def test_a_server_that_starts_says_so(database: dict[str, Any], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    wrapper = a_slow_openclaw(tmp_path / "openclaw")
    wanted = environ(tmp_path, database, wrapper, CLAWNET_PORT=str(port), PATH=os.environ["PATH"], HOME=str(tmp_path))
    process = await anyio.open_process([sys.executable, "-m", "app", "serve"], cwd=REPO, env=wanted)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=5) as client:
            assert (await answer(client, "/healthz")).json() == {"status": "live"}
            early = await answer(client, "/readyz")
            assert early.status_code == 503
            assert "the server is starting" in early.json()["failing"]["server"]
            assert str(tmp_path) not in early.text
            assert (await answer(client, "/graphql")).status_code == 503
            with pytest.raises(websockets.InvalidStatus):
                await websockets.connect(f"ws://127.0.0.1:{port}/graphql", proxy=None)
            (wrapper.parent / "go").touch()
            with anyio.fail_after(PATIENCE):
                while (await answer(client, "/readyz")).status_code != 200:
                    await asyncio.sleep(0.02)
            assert (await client.get("/playground")).status_code == 200
    finally:
        process.send_signal(signal.SIGTERM)
        with anyio.fail_after(PATIENCE):
            assert await process.wait() == 0
        await process.aclose()
