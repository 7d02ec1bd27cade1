"""What a server and every command stand on: a closed process, the database, and the key to its secrets.

It knows nothing of the API, so that a command starts in a fraction of a server's time.
"""

import ctypes
import os
import resource
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from app import vault
from app.db import embedded, migrate
from app.db.engine import DB
from app.domain.errors import KeyMismatch, SettingsError, Unavailable
from app.services import keys
from app.settings import Settings

#: Name of the file with the master key in the data folder, where no other key is given.
KEY_FILE = "encryption.key"

#: Is told each step in one line.
Say = Callable[[str], None]


def protect() -> None:
    """Keeps other processes of this user out of our memory, and our files from everybody else."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pr_set_dumpable = 4
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_dumpable, 0, 0, 0, 0)


@asynccontextmanager
async def database(settings: Settings, say: Say) -> AsyncGenerator[None, None]:
    """The database, open and up to date."""
    async with database_server(settings, say) as config, opened_database(settings, config):
        if applied := await migrate.run():
            say(f"database: {applied} migration(s) applied")
        yield


@asynccontextmanager
async def database_server(settings: Settings, say: Say) -> AsyncGenerator[dict[str, Any], None]:
    """The server of the settings, started or joined; yields how to connect to it."""
    if settings.database_url is not None:
        say("database: the one DATABASE_URL names")
        yield {"dsn": settings.database_url.reveal()}
        return
    _make_data_folder(settings.clawnet_data_dir)
    async with embedded.server(settings.clawnet_data_dir, say=say) as config:
        yield config


@asynccontextmanager
async def opened_database(settings: Settings, config: dict[str, Any]) -> AsyncGenerator[None, None]:
    """`DB`, open, whichever migrations it has seen."""
    try:
        await DB.open(config)
    except Unavailable as error:
        if settings.database_url is None:
            raise
        raise SettingsError(
            f"DATABASE_URL names a server that does not answer ({error.__cause__ or error}); "
            "expected a PostgreSQL, 14 or newer, that is up"
        ) from error
    try:
        await migrate.check_version()
        yield
    finally:
        await DB.close()


def _make_data_folder(folder: Path) -> None:
    """Root's database server runs as `nobody`, who must be able to pass through; what lies inside is closed."""
    if not folder.exists():
        make_folder(folder, "CLAWNET_DATA_DIR")
        folder.chmod(0o711 if os.geteuid() == 0 else 0o700)


def make_folder(folder: Path, variable: str) -> None:
    """Raises `SettingsError` where it cannot be made, by the name of the setting."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"{variable} is {folder}, which cannot be made ({error.strerror}); expected a folder to write in"
        ) from error


async def encryption_key(settings: Settings, say: Say) -> str:
    """The key as given, or the one in the file beside the data, made together with an empty database."""
    if settings.encryption_key is not None:
        return settings.encryption_key.reveal()
    path = settings.clawnet_data_dir / KEY_FILE
    if not path.exists():
        if await keys.are_made():
            raise KeyMismatch(
                f"the key file {path} is gone, and this database's secrets need it: put it back from a backup, "
                "or set ENCRYPTION_KEY to what stood in it"
            )
        say(f"encryption: no ENCRYPTION_KEY given; a new key is kept in {path} (back it up with the database)")
    return vault.key_file(path)
