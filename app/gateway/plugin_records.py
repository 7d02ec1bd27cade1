"""What OpenClaw itself writes of plugins into a home, whose bot may have made anything of it since."""

import json
import os
import shutil
import sqlite3
import stat
import time
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from app.domain.errors import SpawnFailed
from app.gateway import home as homes

#: Seconds for a look into OpenClaw's database.
STORE_BUDGET = 5.0
#: How the folders begin in which OpenClaw prepares an installation, before it moves it to its place.
STAGE = ".openclaw-install-stage-"
#: Larger than this, a file is not what it is read for.
MAX_FILE = 4_194_304


def read(base: int) -> list[dict[str, Any]] | None:
    """The records of what was installed in an open home; None where this version keeps them elsewhere."""
    try:
        with _store(base, "ro") as store:
            if store is None:
                return []
            rows = store.execute(
                "SELECT json_extract(value_json, '$.index.installRecords') FROM config_machine_state "
                "WHERE state_key = 'plugins.installedIndex'"
            ).fetchall()
    except sqlite3.Error:
        return None
    except (OSError, SpawnFailed):
        return []
    return [as_object(each) for each in as_object(rows[0][0] if rows else None).values()]


def version_in(package: Path) -> str | None:
    """The version of the npm package in this folder."""
    said = as_object(text(package / "package.json")).get("version")
    return said if isinstance(said, str) else None


def remove_stages(home: Path) -> None:
    """Removes what installations that were cut short had prepared."""
    with (
        suppress(SpawnFailed, OSError),
        homes.opened(home) as base,
        homes.opened(Path("npm"), base) as folder,
        homes.opened(Path("projects"), folder) as projects,
    ):
        with os.scandir(projects) as entries:
            names = [entry.name for entry in entries if entry.name.startswith(STAGE)]
        for name in names:
            shutil.rmtree(name, ignore_errors=True, dir_fd=projects)


def end_lease(home: Path) -> None:
    """A killed installation leaves its lease behind, and the next one would wait five minutes for the end of that."""
    with suppress(SpawnFailed, OSError, sqlite3.Error), homes.opened(home) as base, _store(base, "rw") as store:
        if store is not None:
            store.execute("DELETE FROM state_leases WHERE scope = 'core:plugin-lifecycle'")
            store.commit()


@contextmanager
def _store(base: int, mode: str) -> Generator[sqlite3.Connection | None]:
    """OpenClaw's database; None where there is none."""
    with homes.opened(Path("state"), base) as folder:
        try:
            is_there = stat.S_ISREG(os.stat("openclaw.sqlite", dir_fd=folder, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            is_there = False
        if not is_there:
            yield None
            return
        # By the folder that is held open, so that nothing can be put in its place.
        name = f"file:/proc/self/fd/{folder}/openclaw.sqlite?mode={mode}"
        with closing(sqlite3.connect(name, uri=True, timeout=1.0)) as store:
            deadline = time.monotonic() + STORE_BUDGET
            store.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
            for pragma in ("trusted_schema = OFF", "cell_size_check = ON"):
                store.execute(f"PRAGMA {pragma}")
            yield store


def text(path: Path, within: int | None = None) -> str:
    """A plain file's text; nothing where there is none, or a link, or a pipe, or more than there can be."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=within)
    except OSError:
        return ""
    with os.fdopen(file, "rb") as plain:
        seen = os.fstat(plain.fileno())
        is_fit = stat.S_ISREG(seen.st_mode) and seen.st_size <= MAX_FILE
        return plain.read(MAX_FILE).decode(errors="replace") if is_fit else ""


def as_object(value: object) -> dict[str, Any]:
    """The object, or the one that a text says; an empty one where that is none."""
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            return as_object(json.loads(value))
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
