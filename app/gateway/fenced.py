"""Commands that read what a bot wrote, and so may run its code: behind the fence that its gateway has."""

import stat
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from subprocess import DEVNULL
from typing import IO

import anyio
from anyio.abc import Process

from app.domain.errors import SpawnFailed

FENCE = Path(__file__).with_name("fence.py")
#: What a gateway may open at a time, too.
LIMITS = {"nofile": 4096}
#: Where OpenClaw finds variables for its environment, within a home.
ENVIRONMENTS = (".env", "home/.env", "home/.openclaw/.env", "workspace/.env")
#: Seconds for the fence to end what is in it; it gives them 3 s.
END_BUDGET = 5.0


def check_environment(home: Path) -> None:
    """A pipe where OpenClaw looks for a bot's own environment would keep it, and whoever waits for it, for ever.

    Raises:
        SpawnFailed: Something else than a file stands there.
    """
    for name in ENVIRONMENTS:
        with suppress(OSError):
            if not stat.S_ISREG((home / name).stat().st_mode):
                raise SpawnFailed(f"{name} in the bot's home is no plain file.")


@asynccontextmanager
async def started(
    argv: Sequence[str],
    environment: Mapping[str, str],
    *,
    folder: Path | None = None,
    stdin: int = DEVNULL,
    stdout: int | IO[bytes] = DEVNULL,
    stderr: int = DEVNULL,
) -> AsyncGenerator[Process]:
    """Runs a command without privileges; nothing of it is left afterwards, nor when we die. What ended it: its code.

    Raises:
        OSError: It cannot be started.
    """
    limits = [f"{name}={value}" for name, value in LIMITS.items()]
    process = await anyio.open_process(
        [sys.executable, "-I", "-S", str(FENCE), *limits, "--", *argv],
        cwd=folder, env=environment, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        with anyio.CancelScope(shield=True):
            await _end(process)


async def _end(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    with anyio.move_on_after(END_BUDGET):
        await process.wait()
    with suppress(ProcessLookupError):
        process.kill()
    await process.aclose()
