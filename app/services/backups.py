"""An installation as one archive: what the database says and the master key that opens its secrets, never apart.

archive   (encrypted: vault/archive.py)
  u32 big-endian, then as many bytes of JSON: the manifest
  u16 big-endian, then as many bytes of text: the master key
  the rest: the dump of the database (db/dump.py)
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import anyio.to_thread
import asyncpg
import msgspec

from app import __version__
from app.db import dump
from app.db.engine import DB
from app.domain.errors import ArchiveDamaged, BackupFailed
from app.domain.states import BotStatus, Reason
from app.services import audit, nodes
from app.services.recorder import Recorder
from app.vault.archive import Reader, Writer

#: How the inside of an archive is laid out.
FORMAT = 1
#: Longest manifest that is read, in bytes; there are some hundred for each migration.
MAX_MANIFEST = 1024 * 1024
#: Added to each machine's epoch: far more than it can have grown since the backup, so that a server which slept through
#: the restore writes nothing any more.
EPOCH_LEAP = 1_000_000

Say = Callable[[str], None]


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """What an archive says of itself; no secret is among it."""

    format: int
    made_at: datetime
    clawnet: str
    installation: UUID
    #: Migrations the database had seen.
    migrations: tuple[str, ...]
    #: PostgreSQL's version, and the major version of the program that made the dump.
    postgresql: str
    dumped_by: int
    users: int
    bots: int


class Archive:
    """An archive that is read; nothing of it is believed before `verify`."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        content = _Content(reader.chunks())
        self.manifest = _manifest_in(content.take(int.from_bytes(content.take(4), "big")))
        self.key = content.take(int.from_bytes(content.take(2), "big")).decode()

    def verify(self) -> None:
        """Reads all of it once. Raises `ArchiveDamaged`."""
        self._reader.verify()

    def dump(self) -> Iterator[bytes]:
        content = _Content(self._reader.chunks())
        for size in (4, 2):
            content.take(int.from_bytes(content.take(size), "big"))
        return content.rest()


class _Content:
    """A stream of pieces, read by lengths."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._held = pieces, b""

    def take(self, length: int) -> bytes:
        if length > MAX_MANIFEST:
            raise ArchiveDamaged("the archive's manifest is longer than any")
        while len(self._held) < length:
            piece = next(self._pieces, None)
            if piece is None:
                raise ArchiveDamaged("the archive ends before its dump begins")
            self._held += piece
        taken, self._held = self._held[:length], self._held[length:]
        return taken

    def rest(self) -> Iterator[bytes]:
        yield self._held
        yield from self._pieces


def _manifest_in(text: bytes) -> Manifest:
    try:
        found: Any = msgspec.json.decode(text)
        if isinstance(found, dict) and found.get("format") != FORMAT:
            raise BackupFailed(
                f"the archive's content has the format {found.get('format')}, and this version of ClawNet knows "
                f"{FORMAT}: restore it with the version that made it ({found.get('clawnet')})"
            )
        return msgspec.convert(found, Manifest)
    except msgspec.MsgspecError as error:
        raise ArchiveDamaged(f"the archive's manifest cannot be read ({error})") from error


async def is_made() -> bool:
    """The open database holds an installation."""
    row = await DB.fetch_one("SELECT to_regclass('installation') IS NOT NULL AS found")
    return row is not None and row["found"] and await DB.fetch_one("SELECT id FROM installation") is not None


async def server(config: dict[str, Any]) -> dump.Server:
    """What the programs that dump and load need to know of the open database's server."""
    row = await DB.fetch_one(
        "SELECT current_database()::text AS database, current_setting('server_version') AS version, "
        "current_setting('server_version_num')::int / 10000 AS major, "
        "coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false) AS is_encrypted"
    )
    assert row is not None  # It is one row whatever the tables hold.
    return dump.Server(config, row["database"], row["version"].split(" ")[0], row["major"], row["is_encrypted"])


async def make(writer: Writer, on: dump.Server, key: str, say: Say) -> Manifest:
    """Writes the open database and its key, all of it as it is at one moment, while servers go on using it.

    Raises:
        BackupFailed: The database cannot be read, or not by any `pg_dump` here.
    """
    program = await anyio.to_thread.run_sync(lambda: dump.program("pg_dump", on, least=on.major))
    connection = await DB.connect()
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            snapshot = await connection.fetchval("SELECT pg_export_snapshot()")
            manifest = await _describe(connection, on, program)
            say(f"backing up {_things(manifest)}")
            text, secret = msgspec.json.encode(manifest), key.encode()
            writer.write(len(text).to_bytes(4, "big") + text + len(secret).to_bytes(2, "big") + secret)
            await dump.dump(program, on, snapshot, writer.write)
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise BackupFailed(f"the database cannot be read: {error}") from error
    finally:
        # With its transaction, which changed nothing.
        connection.terminate()
    writer.finish()
    return manifest


async def _describe(connection: Any, on: dump.Server, program: dump.Program) -> Manifest:
    row = await connection.fetchrow(
        "SELECT now() AS made_at, (SELECT id FROM installation) AS installation, "
        "(SELECT array_agg(name::text ORDER BY name) FROM migration WHERE app_name = 'clawnet') AS migrations, "
        "(SELECT count(*) FROM app_user) AS users, (SELECT count(*) FROM bot) AS bots"
    )
    return Manifest(
        format=FORMAT, clawnet=__version__, postgresql=on.version, dumped_by=program.major,
        made_at=row["made_at"], installation=row["installation"], migrations=tuple(row["migrations"]),
        users=row["users"], bots=row["bots"],
    )  # fmt: skip


def _things(manifest: Manifest) -> str:
    return f"installation {manifest.installation}: {manifest.users} user(s), {manifest.bots} bot(s)"


async def noted(manifest: Manifest, action: str, **detail: Any) -> None:
    """Keeps in the audit trail that there is a backup, or was a restore."""
    await audit.note(
        action, madeAt=manifest.made_at.isoformat(), clawnet=manifest.clawnet, users=manifest.users,
        bots=manifest.bots, **detail,
    )  # fmt: skip


async def require_whole(manifest: Manifest) -> None:
    """Raises `BackupFailed` where what was loaded is not what the manifest counted."""
    row = await DB.fetch_one("SELECT (SELECT count(*) FROM app_user) AS users, (SELECT count(*) FROM bot) AS bots")
    if row != {"users": manifest.users, "bots": manifest.bots}:
        raise BackupFailed(f"the database was not loaded whole: expected {_things(manifest)}, found {row}")


async def settle(manifest: Manifest, node: str, *, stopped: bool) -> list[str]:
    """Makes a loaded database the present: what clients and servers remember of its future counts no more.

    Args:
        node: The name of this machine.
        stopped: Let no bot run, because the living original's run elsewhere.

    Returns:
        What a person should know, one sentence each.
    """
    async with DB.transaction():
        await _end_processes()
        await _forget_places()
        said = await _move_bots(node)
        await DB.fetch("UPDATE access_token SET revoked_at = now() WHERE kind = 's' AND revoked_at IS NULL")
        if stopped:
            rows = await DB.fetch(
                "UPDATE bot SET desired = 'STOPPED', generation = generation + 1 WHERE desired = 'RUNNING' RETURNING id"
            )
            said.append(f"{len(rows)} bot(s) that ran are wished to be stopped")
        await noted(manifest, "restore", node=node, stopped=stopped)
    return said


async def _forget_places() -> None:
    """A room's new epoch, surely another one, tells each client that its cursor is of another past."""
    await DB.fetch("UPDATE room SET epoch = (epoch::bigint + 1 + floor(random() * 2147483647)::bigint) % 2147483648")


async def _move_bots(node: str) -> list[str]:
    """Where the backup knows one machine, this is it now; several are left to servers of their names."""
    rows = await DB.fetch("SELECT name, holder FROM node ORDER BY heartbeat_at DESC")
    places = await DB.fetch("SELECT DISTINCT node_id FROM bot_process")
    names = {row["name"] for row in rows}
    strange = {row["node_id"] for row in places} - names
    # A machine that was called something else at times is one, by the folder of its bots.
    machines = {row["holder"] or row["name"] for row in rows} | strange
    await DB.fetch("UPDATE node SET holder = NULL, epoch = epoch + $1", EPOCH_LEAP)
    if len(machines) > 1:
        waiting = sorted(row["node_id"] for row in places if row["node_id"] != node)
        return [f"the bots of {name!r} wait for a server with CLAWNET_NODE={name}" for name in waiting]
    if rows and node not in names:
        await DB.fetch("UPDATE node SET name = $2 WHERE name = $1", rows[0]["name"], node)
    await DB.fetch("UPDATE bot_process SET node_id = $1 WHERE node_id <> $1", node)
    return [f"the bots of {row['node_id']!r} are this machine's, {node!r}" for row in places if row["node_id"] != node]


async def _end_processes() -> None:
    """Says of each bot that it is down, so that the next start begins it like any other, whatever its restart policy.

    Nothing is left by which the old process could be looked for: those marks are also the living original's, where this
    is a copy beside it, and the next start would end that one's bots.
    """
    recorder = Recorder(_nobody_listens)
    rows = await DB.fetch("SELECT bot, status, status_seq, node_id, lease_epoch FROM bot_process")
    for row in rows:
        if BotStatus(row["status"]).has_process:
            lease = nodes.Lease(row["node_id"], UUID(int=0), row["lease_epoch"], seconds=0)
            await recorder.transition(
                lease, row["bot"], row["status_seq"], BotStatus.INACTIVE, Reason.STOPPED, phase=None, error=None,
                ended_at=datetime.now(UTC),
            )  # fmt: skip
    await DB.fetch("UPDATE bot_run SET ended_at = now(), reason = 'STOPPED' WHERE ended_at IS NULL")
    await DB.fetch("UPDATE bot_process SET nonce = NULL, pid = NULL")


def _nobody_listens(names: Iterable[str]) -> None:
    """No server runs on a database that is being restored."""
