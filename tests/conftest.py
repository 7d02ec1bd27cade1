"""One PostgreSQL for the whole run, migrated once; each test gets a copy of its own."""

import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import asyncpg
import pytest

from app.db import embedded, migrate
from app.db.engine import DB

Connect = dict[str, Any]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run side by side, each file stays in one process.

    All that run real OpenClaw stay in one together, and begin first: two of them at a time would take every core there
    is, and each other's patience.
    """
    items.sort(key=lambda item: item.get_closest_marker("openclaw") is None)
    for item in items:
        is_real = item.get_closest_marker("openclaw") is not None
        item.add_marker(pytest.mark.xdist_group("openclaw" if is_real else str(item.path)))


@asynccontextmanager
async def administrator(postgres: Connect) -> AsyncGenerator[Any, None]:
    connection = await asyncpg.connect(**{**postgres, "database": "postgres"})
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture(scope="session")
async def postgres() -> AsyncGenerator[Connect, None]:
    """How to connect to the run's server."""
    # Not pytest's folder: that one is closed to others, and root's PostgreSQL runs as nobody.
    with tempfile.TemporaryDirectory(prefix="clawnet-tests-") as folder:
        await anyio.Path(folder).chmod(0o711)
        async with embedded.server(Path(folder), durable=False) as connect:
            yield connect


@pytest.fixture(scope="session")
async def template_database(postgres: Connect) -> str:
    """The name of a migrated database that nobody is connected to."""
    async with administrator(postgres) as admin:
        await admin.execute("CREATE DATABASE template_database")
    await DB.open({**postgres, "database": "template_database"})
    try:
        await migrate.run()
    finally:
        await DB.close()
    return "template_database"


@pytest.fixture
async def database(postgres: Connect, template_database: str) -> AsyncGenerator[Connect, None]:
    """How to connect to a migrated, empty database of the test's own."""
    name = f"test_{uuid4().hex}"
    async with administrator(postgres) as admin:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE {template_database} STRATEGY FILE_COPY")
    yield {**postgres, "database": name}
    async with administrator(postgres) as admin:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
