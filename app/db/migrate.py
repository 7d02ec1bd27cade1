"""Brings the database's tables to what this version of ClawNet expects; one server at a time does."""

import io
import re
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, redirect_stdout, suppress
from pathlib import Path

import anyio
import anyio.to_thread
import asyncpg

from app.db.engine import DB, patience
from app.domain.errors import SettingsError

#: PostgreSQL's `server_version_num` of the oldest version that is tested.
OLDEST_VERSION = 140_000
#: Seconds one statement of a migration may take, and seconds another server is waited for.
MIGRATION_TIMEOUT = 3600.0
#: The number of the advisory lock; any that other users of the server are unlikely to choose.
LOCK = 0x636C6177

FOLDER = Path(__file__).resolve().parents[2] / "piccolo_migrations"


async def check_version() -> None:
    """Refuse a server that is too old, before it refuses us in the middle of something.

    Raises:
        SettingsError: It is older than `OLDEST_VERSION`.
    """
    row = await DB.fetch_one(
        "SELECT current_setting('server_version') AS name, current_setting('server_version_num')::int AS number"
    )
    if row is None or row["number"] < OLDEST_VERSION:
        found = "unknown" if row is None else row["name"]
        raise SettingsError(
            f"DATABASE_URL: the server is PostgreSQL {found}; expected {OLDEST_VERSION // 10_000} or newer"
        )


async def run() -> int:
    """Apply the migrations that are pending, and say how many these were."""
    if not await _pending():
        return 0
    async with _alone():
        pending = await _pending()  # another server may have been faster
        with patience(MIGRATION_TIMEOUT):
            for _ in pending:
                await _apply_next()
        return len(pending)


async def _pending() -> set[str]:
    return await anyio.to_thread.run_sync(known) - await applied()


def known() -> set[str]:
    """Names of the migrations this version has."""
    # Read, not imported: Piccolo's modules take longer to load than a server that has nothing to do should.
    texts = (path.read_text() for path in FOLDER.glob("*.py"))
    return {found[1] for text in texts if (found := re.search(r"""^ID = ["'](.+)["']""", text, re.MULTILINE))}


async def applied() -> set[str]:
    """Names of the migrations the database has seen."""
    with suppress(asyncpg.UndefinedTableError):
        rows = await DB.fetch("SELECT name FROM migration WHERE app_name = 'clawnet'")
        return {row["name"] for row in rows}
    return set()


@asynccontextmanager
async def _alone() -> AsyncGenerator[None, None]:
    # On a connection of its own: the lock belongs to a connection, and ends with it.
    connection = await DB.connect()
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", LOCK, timeout=MIGRATION_TIMEOUT)
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await connection.close(timeout=5)


async def _apply_next() -> None:
    from piccolo.apps.migrations.commands.forwards import ForwardsMigrationManager  # noqa: PLC0415 (0.2 s)

    manager = ForwardsMigrationManager(app_name="clawnet", migration_id="1")
    path = sys.path.copy()
    try:
        # Piccolo notes a migration after the transaction of its own: a kill in between would leave it half-known.
        async with DB.transaction():
            with redirect_stdout(io.StringIO()):
                await manager.run()
    finally:
        sys.path[:] = path  # Piccolo puts the folder in front, once a run
