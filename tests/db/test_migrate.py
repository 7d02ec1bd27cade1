"""Migrations: complete, safe to run at once, reversible, and refusing servers that are too old."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import asyncpg

from app.db import migrate
from app.db.engine import DB
from tests.conftest import administrator
from tests.harness import REPO

SCRIPT = """
import sys, anyio, json
from app.db import migrate
from app.db.engine import DB

async def main():
    await DB.open(json.loads(sys.argv[1]))
    print(await migrate.run())
    await DB.close()

anyio.run(main)
"""


def test_every_change_of_a_table_has_its_migration(tmp_path: Path) -> None:
    for name in ("app", "piccolo_migrations"):
        shutil.copytree(REPO / name, tmp_path / name)
    before = set((tmp_path / "piccolo_migrations").glob("*.py"))
    found = subprocess.run(
        [str(Path(sys.executable).parent / "piccolo"), "migrations", "new", "clawnet", "--auto"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PICCOLO_CONF": "app.db.piccolo_conf", "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert "No changes detected" in found.stdout + found.stderr, found.stdout + found.stderr
    assert set((tmp_path / "piccolo_migrations").glob("*.py")) == before


async def test_three_servers_that_migrate_at_once_apply_each_migration_once(postgres: dict[str, Any]) -> None:
    async with administrator(postgres) as admin:
        await admin.execute("CREATE DATABASE migrated_at_once")
    config = json.dumps({**postgres, "database": "migrated_at_once"})
    processes = [await anyio.open_process([sys.executable, "-c", SCRIPT, config], cwd=REPO, stderr=None) for _ in "abc"]
    applied: list[int] = []
    for process in processes:
        assert process.stdout is not None
        applied.append(int((await process.stdout.receive()).decode()))
        assert await process.wait() == 0
    assert sorted(applied) == [0, 0, len(list((REPO / "piccolo_migrations").glob("clawnet_*.py")))]
    async with administrator(postgres) as admin:
        await admin.execute("DROP DATABASE migrated_at_once WITH (FORCE)")


async def test_the_database_itself_refuses_words_that_are_no_states(database: dict[str, Any]) -> None:
    await DB.open(database)
    try:
        await DB.fetch("INSERT INTO app_user (id, name, role) VALUES (gen_random_uuid(), 'Ada', 'ADMIN')")
        for role in ("admin", "KING", ""):
            try:
                await DB.fetch("UPDATE app_user SET role = $1", role)
            except asyncpg.CheckViolationError:
                continue
            raise AssertionError(f"the role {role!r} was accepted")
        assert await migrate.run() == 0
    finally:
        await DB.close()
