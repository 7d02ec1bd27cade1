"""Whole databases of a server, side by side: made, put in each other's place by name, and dropped."""

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import asyncpg

from app.db.engine import CONNECTION_TIMEOUT
from app.domain.errors import BackupFailed, SettingsError

#: Databases from which others can be renamed; every server has them.
PLACES = ("postgres", "template1")
#: Seconds that making, renaming or dropping one may take; a checkpoint is among it.
PATIENCE = 600.0
#: A session ends a moment after its client has: looks for that, and seconds between them.
GOODBYE_LOOKS, GOODBYE_LOOK = 30, 0.1
#: Longest name that PostgreSQL keeps whole, in bytes.
LONGEST_NAME = 63

_connect: Any = asyncpg.connect  # pyright: ignore[reportUnknownVariableType]


class Neighbour:
    """Works on databases from beside them, because nobody may be in one that is renamed."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def has_reservation(self, name: str) -> bool:
        """Nobody else works on this name from here on, until this connection ends."""
        return await self._connection.fetchval("SELECT pg_try_advisory_lock(hashtext($1), 1)", f"clawnet {name}")

    async def sessions(self, name: str) -> list[str]:
        """What is connected to it, as far as we may know."""
        rows = await self._connection.fetch(
            "SELECT coalesce(nullif(application_name, ''), usename, 'somebody') AS who FROM pg_stat_activity "
            "WHERE datname = $1 AND usesysid IS NOT NULL AND pid <> pg_backend_pid()",
            name,
        )
        return [row["who"] for row in rows]

    async def lasting_sessions(self, name: str) -> list[str]:
        """The same, but for those that just said good-bye and are about to go."""
        for _ in range(GOODBYE_LOOKS):
            if not await self.sessions(name):
                return []
            await anyio.sleep(GOODBYE_LOOK)
        return await self.sessions(name)

    async def require_rights(self, name: str) -> None:
        """Raises `SettingsError` where we may not make a database and rename this one."""
        row = await self._connection.fetchrow(
            "SELECT r.rolname, r.rolsuper, r.rolcreatedb, pg_has_role(d.datdba, 'USAGE') AS is_owner "
            "FROM pg_roles r, pg_database d WHERE r.rolname = current_user AND d.datname = $1",
            name,
        )
        if row is None or row["rolsuper"] or (row["rolcreatedb"] and row["is_owner"]):
            return
        user = row["rolname"].replace('"', '""')
        wanted = [] if row["rolcreatedb"] else [f'ALTER ROLE "{user}" CREATEDB']
        wanted += [] if row["is_owner"] else [f'ALTER DATABASE "{name}" OWNER TO "{user}"']
        raise SettingsError(
            f"DATABASE_URL: a restore makes a database beside {name!r} and then renames both, and the user "
            f"{row['rolname']!r} may not; an administrator of the server can allow it: {'; '.join(wanted)}"
        )

    async def exists(self, name: str) -> bool:
        return await self._connection.fetchval("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name)

    async def create(self, name: str, like: str) -> None:
        """An empty one, which reads and sorts text as the other does."""
        row = await self._connection.fetchval(
            "SELECT to_jsonb(d) || jsonb_build_object('charset', pg_encoding_to_char(d.encoding)) FROM pg_database d "
            "WHERE d.datname = $1",
            like,
        )
        await self._execute(f"CREATE DATABASE {quoted(name)} TEMPLATE template0 {_locale(row)}")

    async def drop(self, name: str) -> None:
        await self._execute(f"DROP DATABASE IF EXISTS {quoted(name)} WITH (FORCE)")

    async def swap(self, name: str, fresh: str, kept: str) -> None:
        """The fresh one takes the name; what had it is kept under another. Both happen, or neither."""
        try:
            async with self._connection.transaction():
                await self._execute(f"ALTER DATABASE {quoted(name)} RENAME TO {quoted(kept)}")
                await self._execute(f"ALTER DATABASE {quoted(fresh)} RENAME TO {quoted(name)}")
        except asyncpg.ObjectInUseError as error:
            raise BackupFailed(
                f"somebody connected to the database {name!r} during the restore; nothing was changed. "
                "Stop every server that uses it, and restore again"
            ) from error

    async def _execute(self, sql: str) -> None:
        await self._connection.execute(sql, timeout=PATIENCE)


@asynccontextmanager
async def neighbour(config: Mapping[str, Any], name: str) -> AsyncGenerator[Neighbour]:
    """A connection to the server that is not in the database of this name.

    Raises:
        SettingsError: The server lets us into none.
    """
    connection = await _connection(config, [place for place in PLACES if place != name])
    try:
        yield Neighbour(connection)
    finally:
        with anyio.CancelScope(shield=True):
            await connection.close(timeout=5)


async def _connection(config: Mapping[str, Any], places: Sequence[str]) -> Any:
    refusal: Exception | None = None
    for place in places:
        try:
            return await _connect(
                **{**config, "database": place},
                timeout=CONNECTION_TIMEOUT,
                server_settings={"application_name": "clawnet"},
            )
        except (asyncpg.PostgresError, OSError) as error:
            refusal = error
    raise SettingsError(
        f"DATABASE_URL: a restore works from beside the database, and the server lets this user into none of "
        f"{', '.join(places)} ({refusal})"
    ) from refusal


def free_name(name: str, suffix: str) -> str:
    """The name with something after it, no longer than PostgreSQL keeps."""
    room = LONGEST_NAME - len(suffix.encode())
    return name.encode()[:room].decode(errors="ignore") + suffix


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _locale(row: str) -> str:
    """The words of CREATE DATABASE for what the server's row says; versions name the columns differently."""
    like: dict[str, Any] = json.loads(row)
    words: dict[str, str] = {
        "ENCODING": like["charset"],
        "LC_COLLATE": like["datcollate"],
        "LC_CTYPE": like["datctype"],
    }
    locale = like.get("datlocale") or like.get("daticulocale")
    match like.get("datlocprovider"):
        case "b":
            words |= {"LOCALE_PROVIDER": "builtin", "BUILTIN_LOCALE": str(locale)}
        case "i":
            words |= {"LOCALE_PROVIDER": "icu", "ICU_LOCALE": str(locale)}
        case "c":
            words |= {"LOCALE_PROVIDER": "libc"}
        case _:
            pass
    return " ".join(f"{word} = '{value}'" for word, value in words.items())
