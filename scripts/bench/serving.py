"""A server process for a benchmark, in a throw-away folder that its PostgreSQL can pass through."""

import tempfile
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
from anyio import to_thread

from tests.harness import Api, ServerProcess, environ, serve

#: Seconds a server may take to become ready.
PATIENCE = 60


@contextmanager
def folder() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="clawnet-bench-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@asynccontextmanager
async def serving(where: Path, openclaw: Path | None, **more: str) -> AsyncGenerator[tuple[ServerProcess, Api]]:
    """A ready server with the embedded database, and its administrator's client."""
    with await to_thread.run_sync(serve, environ(where, None, openclaw, **more)) as server:
        api = Api(server.url, server.token)
        async with api.http:
            with anyio.fail_after(PATIENCE):
                while (await api.http.get(f"{api.url}/readyz")).status_code != 200:  # noqa: ASYNC110
                    await anyio.sleep(0.02)
            yield server, api
            await to_thread.run_sync(server.stop)
