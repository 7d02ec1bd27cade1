"""What OpenClaw itself writes of plugins into a home, whose bot may have made anything of it since."""

import json
import os
import sys
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any, cast

import anyio
import msgspec
from anyio.abc import Process

from app.domain.errors import SpawnFailed
from app.gateway import files, trash
from app.gateway import home as homes

STORE = Path(__file__).with_name("plugin_store.py")
#: Seconds for a look into OpenClaw's database.
STORE_BUDGET = 5.0
#: How the folders begin in which OpenClaw prepares an installation, before it moves it to its place.
STAGE = ".openclaw-install-stage-"
#: Seconds for the removal of those.
REMOVE_BUDGET = 60.0
#: Larger than this, a file or an answer is not what it is read for.
MAX_FILE = 4_194_304
#: Folders of installations that are looked through.
MOST = 1_000


async def read(home: Path) -> list[tuple[str, str]] | None:
    """Which packages were installed, and where; None where this version keeps its record elsewhere.

    It is only a hint. Who does not answer in time has nothing installed.
    """
    said = await _ask_store(home, "read")
    if said == b"null\n":
        return None
    with suppress(msgspec.MsgspecError, ValueError):
        return msgspec.json.decode(said, type=list[tuple[str, str]])
    return []


async def end_lease(home: Path) -> None:
    """A killed installation leaves its lease behind, and the next one would wait five minutes for the end of that."""
    await _ask_store(home, "end-lease")


async def _ask_store(home: Path, what: str) -> bytes:
    """The answer of a process that looks into OpenClaw's database; nothing where there is none."""
    with suppress(SpawnFailed, OSError), homes.opened(home) as base, homes.opened(Path("state"), base) as folder:
        argv = [sys.executable, "-I", "-S", str(STORE), what, str(folder)]
        process = await anyio.open_process(
            argv, cwd="/", env={"LANG": "C.UTF-8"}, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL, pass_fds=(folder,),
            start_new_session=True,
        )  # fmt: skip
        try:
            with anyio.move_on_after(STORE_BUDGET):
                return await _whole_answer(process)
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            with anyio.CancelScope(shield=True):
                await process.aclose()
    return b""


async def _whole_answer(process: Process) -> bytes:
    assert process.stdout is not None
    output = bytearray()
    async for part in process.stdout:
        output += part
        if len(output) > MAX_FILE:
            return b""
    return bytes(output) if await process.wait() == 0 else b""


def version_at(home: Path, place: Path) -> str | None:
    """The version of the npm package in this folder; nothing where that is not in the home."""
    try:
        package = place.resolve()
        is_inside = package.is_relative_to(home.resolve())
    except (OSError, ValueError, RuntimeError):
        return None  # A path that there cannot be, or links in a circle.
    said = as_object(text(package / "package.json")).get("version") if is_inside else None
    return said if isinstance(said, str) else None


def places(home: Path, package: str) -> list[Path]:
    """Where this version of OpenClaw may have put a package."""
    projects = home / "npm" / "projects"
    with suppress(OSError), os.scandir(projects) as entries:
        return [projects / entry.name / "node_modules" / package for entry in islice(entries, MOST)]
    return []


def check_folders(home: Path) -> None:
    """Where OpenClaw would install is the bot's own.

    Raises:
        SpawnFailed: A link or a file stands in the place of a folder.
    """
    with homes.opened(home) as base:
        _check_folder(base, "state")
        if _check_folder(base, "npm"):
            with homes.opened(Path("npm"), base) as folder:
                _check_folder(folder, "projects")


def _check_folder(within: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=within, follow_symlinks=False)
    except FileNotFoundError:
        return False
    with homes.opened(Path(name), within):
        return True


def remove_stages(home: Path) -> None:
    """Removes what installations that were cut short had prepared."""
    until = time.monotonic() + REMOVE_BUDGET
    with (
        suppress(SpawnFailed, OSError),
        homes.opened(home) as base,
        homes.opened(Path("npm"), base) as folder,
        homes.opened(Path("projects"), folder) as projects,
    ):
        with os.scandir(projects) as entries:
            names = [entry.name for entry in entries if entry.name.startswith(STAGE)]
        for name in names:
            trash.remove_at(projects, name, lambda: time.monotonic() < until)


def text(path: Path, within: int | None = None) -> str:
    """A plain file's text; nothing where there is none, or a link, or a pipe, or more than there can be."""
    try:
        return (files.read(path, MAX_FILE, within) or b"").decode(errors="replace")
    except OSError:
        return ""


def as_object(value: object) -> dict[str, Any]:
    """The object, or the one that a text says; an empty one where that is none."""
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            return as_object(json.loads(value))
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
