"""What OpenClaw compiles at its first start in a home, made once per installation and given to every new home.

A first start costs old OpenClaw some 40 s of CPU and new 14; with these files in its TMPDIR 4 and 9. Each home gets a
copy of its own: a cache that bots shared would be a way from one bot into another's code.
"""

import hashlib
import os
import secrets
import shutil
import signal
import socket
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL
from uuid import UUID

import anyio
import structlog
from anyio import to_thread
from anyio.abc import Process

from app.gateway import check, config, home
from app.gateway.config import BotSettings, ModelProvider
from app.gateway.install import alone
from app.gateway.openclaw import Installation

#: What is kept of a home's TMPDIR: plugins that old transpiles, and code that Node compiled.
KEPT = ("jiti", "node-compile-cache")
#: Seconds for the throw-away gateway to become ready, and to end: Node writes its cache when it ends.
READY_BUDGET, END_BUDGET = 180, 30
#: Seconds it stays up when it is ready, so that what it loads late is compiled as well.
LINGER = 3
#: Above the ports that bots have, below the end: a free one is picked at random.
PORTS = range(61_000, 65_400)

#: PR_SET_PDEATHSIG: if we are killed, nobody else would end the throw-away gateway.
_DIES_WITH_US = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"

log = structlog.get_logger()


class StartCache:
    """The start cache of one installation."""

    def __init__(self, installation: Installation, cache_dir: Path) -> None:
        self._installation = installation
        self._cache_dir = cache_dir
        self._folder = cache_dir / "start-cache" / installation.version / _fingerprint(installation)
        self._failed = False

    async def fill(self) -> bool:
        """Makes the cache if it is not there. Call it when the server starts, so that no bot waits for it.

        A failure is logged and not tried again by this object: bots start without, only slower.
        """
        if self._folder.is_dir() or self._failed:
            return not self._failed
        try:
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            async with alone(self._folder.with_suffix(".lock"), lambda: None):
                if not self._folder.is_dir():
                    await self._fill()
        except Exception as error:
            self._failed = True
            log.warning("start_cache_failed", openclaw=self._installation.version, why=str(error), exc_info=True)
        return not self._failed

    async def copy_into(self, bot_home: Path) -> None:
        """Gives a home that was made (`home.make`) its own copy of what it does not have yet."""
        if await self.fill():
            await to_thread.run_sync(_copy_into, self._folder, bot_home)

    async def _fill(self) -> None:
        prefix = f".filling-{self._folder.name}-"
        for left_behind in self._folder.parent.glob(f"{prefix}*"):
            await to_thread.run_sync(shutil.rmtree, left_behind, True)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=self._folder.parent, ignore_cleanup_errors=True) as at:
            throw_away = Path(at) / "home"
            port = _free_port()
            await to_thread.run_sync(home.make, throw_away)
            await self._configure(throw_away, port)
            await self._run(throw_away, port)
            made = Path(at) / "made"
            await to_thread.run_sync(_keep, throw_away / "tmp", made)
            made.rename(self._folder)
        log.info("start_cache_filled", openclaw=self._installation.version, folder=str(self._folder))

    async def _configure(self, throw_away: Path, port: int) -> None:
        nobody = ModelProvider("nobody", "openai-completions", "http://127.0.0.1:9/v1", None)
        token = secrets.token_urlsafe(32)
        settings = BotSettings("nobody", "Nobody", "nobody/none", "", throw_away, port, token, [nobody])
        rendered = config.render(settings, await check.dialect(self._installation, self._cache_dir))
        config.write(throw_away / "config.json5", config.to_text(rendered))

    async def _run(self, throw_away: Path, port: int) -> None:
        marked = home.environment(throw_away, self._installation, UUID(int=0), "")
        # Without a bot's marks nobody takes it for a bot that was left behind.
        environment = {name: value for name, value in marked.items() if not name.startswith("CLAWNET_")}
        argv = [sys.executable, "-I", "-c", _DIES_WITH_US, *home.argv(self._installation, port)]
        process = await anyio.open_process(
            argv, cwd=throw_away, env=environment, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, start_new_session=True
        )
        try:
            with anyio.fail_after(READY_BUDGET):
                await _until_ready(process, port)
            await anyio.sleep(LINGER)
            process.send_signal(signal.SIGTERM)
            with anyio.fail_after(END_BUDGET):
                await process.wait()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with anyio.CancelScope(shield=True):
                await process.wait()


def _fingerprint(installation: Installation) -> str:
    """Node finds its compiled code again by the paths, its own version and our user: other ones, other cache."""
    marks = [*installation.argv_prefix, str(os.geteuid())]
    for file in (installation.entry, installation.node):
        if file:
            seen = file.stat()
            marks.append(f"{seen.st_mtime_ns} {seen.st_size}")
    return hashlib.sha256("\0".join(marks).encode()).hexdigest()[:16]


def _free_port() -> int:
    for _ in range(100):
        port = secrets.choice(PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port above those of the bots")


async def _until_ready(process: Process, port: int) -> None:
    """New OpenClaw says it on `/readyz`; old answers 404 there and is ready when it listens."""
    while not await _is_ready(port):
        if process.returncode is not None:
            raise ChildProcessError(f"the throw-away gateway ended with {process.returncode}")
        await anyio.sleep(0.2)


async def _is_ready(port: int) -> bool:
    with anyio.move_on_after(3), suppress(OSError, anyio.EndOfStream, anyio.BrokenResourceError):
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(f"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
            return (await stream.receive(64)).split(b" ")[1:2] in ([b"200"], [b"404"])
    return False


def _keep(temporary: Path, made: Path) -> None:
    made.mkdir(mode=0o700)
    for name in KEPT:
        if (temporary / name).is_dir():
            with home.opened(made) as target:
                _copy_tree(temporary / name, target, name, 0o400)
    if not any(made.iterdir()):
        raise FileNotFoundError("the throw-away gateway left no compiled code")


def _copy_into(folder: Path, bot_home: Path) -> None:
    with home.opened(bot_home) as base, home.opened(Path("tmp"), base) as temporary:
        for name in KEPT:
            if (folder / name).is_dir():
                with suppress(FileExistsError):
                    _copy_tree(folder / name, temporary, name, 0o600)


def _copy_tree(source: Path, target: int, name: str, mode: int) -> None:
    """Regular files and folders only, into a folder that must not be there yet; no link is followed at either end."""
    os.mkdir(name, 0o700, dir_fd=target)
    with home.opened(Path(name), target) as within, os.scandir(source) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _copy_tree(Path(entry.path), within, entry.name, mode)
            elif entry.is_file(follow_symlinks=False):
                _copy_file(entry.path, within, entry.name, mode)


def _copy_file(source: str, target: int, name: str, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as original:
        if not stat.S_ISREG(os.fstat(original.fileno()).st_mode):
            return
        with os.fdopen(os.open(name, flags, mode, dir_fd=target), "wb") as copy:
            shutil.copyfileobj(original, copy, 1 << 18)
