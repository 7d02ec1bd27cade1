"""`plugins install npm:<package>@<version>`: npm in a folder aside, then the folder's move, then the record of it."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from . import ids
from .errors import Planned
from .lock import HomeLock

if TYPE_CHECKING:
    from collections.abc import Iterator

TABLES = """
CREATE TABLE IF NOT EXISTS config_machine_state (state_key TEXT PRIMARY KEY NOT NULL, value_json TEXT NOT NULL,
  updated_at_ms INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS state_leases (scope TEXT NOT NULL, lease_key TEXT NOT NULL, owner TEXT NOT NULL,
  expires_at INTEGER, PRIMARY KEY (scope, lease_key)) STRICT;
"""
LEASE, LEASE_MS = "core:plugin-lifecycle", 300_000
#: Of a running gateway the command asks that it installs, and would need its token.
NO_TOKEN = (
    "gateway plugins.install requires credentials before opening a websocket\n"
    "Fix: configure gateway.auth token/password, pair this device, or pass --token/--password."
)


class Failed(Planned):
    """It was not installed."""


def install(home: Path, config: Path, spec: str) -> str:
    """What is said at the end. Raises: Failed."""
    if HomeLock(home / "config.json5").owner() is not None:
        raise Failed(NO_TOKEN)
    name, _, version = spec.removeprefix("npm:").rpartition("@")
    with leased(home):
        put_in_place(home, name, version)
    enable(config, name.rpartition("/")[2])
    return f"Installed plugin: {name}\nSaved for the next Gateway start."


@contextmanager
def leased(home: Path) -> Iterator[None]:
    """One at a time; whoever is killed keeps the others waiting until the lease runs out."""
    (home / "state").mkdir(exist_ok=True)
    with closing(sqlite3.connect(home / "state" / "openclaw.sqlite", isolation_level=None)) as store:
        store.execute("PRAGMA journal_mode = WAL")
        store.executescript(TABLES)
        while not store.execute(
            "INSERT INTO state_leases VALUES (?, 'global', ?, ?) ON CONFLICT DO UPDATE SET owner = excluded.owner, "
            "expires_at = excluded.expires_at WHERE state_leases.expires_at < ? RETURNING 1",
            (LEASE, str(os.getpid()), ids.now_ms() + LEASE_MS, ids.now_ms()),
        ).fetchall():
            time.sleep(0.1)
        try:
            yield
        finally:
            store.execute("DELETE FROM state_leases WHERE scope = ?", (LEASE,))


def put_in_place(home: Path, name: str, version: str) -> None:
    npm(["view", f"{name}@{version}", "version", "--json"], Path.cwd())
    projects = home / "npm" / "projects"
    stage = projects / f".openclaw-install-stage-{os.getpid()}"
    stage.mkdir(parents=True)
    (stage / "package.json").write_text(json.dumps({"private": True, "dependencies": {name: version}}))
    npm(["install", "--ignore-scripts"], stage)
    project = projects / name.rpartition("/")[2]
    shutil.rmtree(project, ignore_errors=True)
    stage.rename(project)
    record(home, name.rpartition("/")[2], name, version, project / "node_modules" / name)


def npm(words: list[str], folder: Path) -> None:
    program = shutil.which("npm")
    if program is None:
        raise Failed("spawn npm ENOENT")
    done = subprocess.run([program, *words], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"npm {words[0]} failed: {done.stderr}")


def record(home: Path, plugin: str, name: str, version: str, path: Path) -> None:
    entry = {"source": "npm", "spec": f"{name}@{version}", "resolvedName": name, "version": version}
    with closing(sqlite3.connect(home / "state" / "openclaw.sqlite")) as store, store:
        row = store.execute("SELECT value_json FROM config_machine_state WHERE state_key = 'plugins.installedIndex'")
        index = json.loads((row.fetchone() or ['{"index": {"installRecords": {}}}'])[0])
        index["index"]["installRecords"][plugin] = entry | {"installPath": str(path)}
        store.execute(
            "INSERT OR REPLACE INTO config_machine_state VALUES ('plugins.installedIndex', ?, ?)",
            (json.dumps(index), ids.now_ms()),
        )


def enable(config: Path, plugin: str) -> None:
    """It writes into the configuration that it was given."""
    data = json.loads(config.read_text())
    data.setdefault("plugins", {}).setdefault("entries", {})[plugin] = {"enabled": True}
    config.write_text(json.dumps(data))
