"""`clawnet backup` and `clawnet restore`: the whole installation, in one file that only its passphrase opens."""

import argparse
import asyncio
import getpass
import os
import secrets
import shlex
import signal
import stat
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Any

import anyio
import anyio.to_thread
import asyncpg
import msgspec

from app import foundations, log, settings, vault
from app.db import databases, dump, embedded, migrate
from app.db.databases import Neighbour
from app.db.engine import DB
from app.domain.errors import BackupFailed, ClawNetError, KeyMismatch, SettingsError
from app.gateway import process
from app.services import audit, backups, keys, nodes
from app.services.backups import Archive, Manifest
from app.settings import Settings
from app.vault.archive import MAX_PASSPHRASE, MIN_PASSPHRASE, Reader, Writer

#: Seconds between two looks whether a machine still says that it lives.
LOOK_EVERY = 1.0


def run(arguments: argparse.Namespace) -> int:
    """Makes an archive, or restores one. Answers the exit status."""
    work = _backup if arguments.command == "backup" else _restore
    # Only these words of the settings are needed to look into an archive, which may hold the very key that is missing.
    unneeded = {"DATABASE_URL", "ENCRYPTION_KEY", "ENCRYPTION_KEY_FILE"} if _only_looks(arguments) else set[str]()
    wanted = settings.take(os.environ, unneeded)
    foundations.protect()
    log.configure("console", "warning")
    path = Path(arguments.file).resolve()
    if arguments.command == "backup":
        _require_place(path, may_replace=arguments.force)
    passphrase = _passphrase(arguments.passphrase_file or wanted.clawnet_backup_passphrase_file, work is _backup)
    return anyio.run(_until_signal, partial(work, arguments, wanted, path, passphrase))


def _only_looks(arguments: argparse.Namespace) -> bool:
    return arguments.command == "restore" and (arguments.show_manifest or arguments.write_key is not None)


# Signals


class _Signals:
    """Ctrl-C and SIGTERM end the work in order, and not between two steps that belong together."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._task = asyncio.current_task()
        self._holds = False

    def arrive(self, number: int) -> None:
        is_first, self.number = self.number is None, number
        if is_first and not self._holds and self._task is not None:
            self._task.cancel()

    @contextmanager
    def held(self) -> Generator[None]:
        self._holds = True
        try:
            yield
        finally:
            self._holds = False


async def _until_signal(work: Callable[[_Signals], Coroutine[Any, Any, int]]) -> int:
    signals, loop = _Signals(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signals.arrive, number)
    try:
        with audit.acting(audit.Actor(address=f"command line, uid {os.geteuid()}")):
            return await work(signals)
    except asyncio.CancelledError:
        if signals.number is None:
            raise
        print("stopped; nothing was changed", file=sys.stderr)
        return 128 + signals.number


# The passphrase


def _passphrase(file: Path | str | None, is_new: bool) -> str:
    if file is not None:
        return _acceptable(_read_passphrase(Path(file)))
    if not sys.stdin.isatty():
        raise SettingsError(
            "a backup is encrypted, and there is no passphrase: set CLAWNET_BACKUP_PASSPHRASE_FILE or give "
            "--passphrase-file, a file with the passphrase in its first line"
        )
    try:
        passphrase = _acceptable(getpass.getpass("Passphrase of the backup: "))
        if is_new and getpass.getpass("Again: ") != passphrase:
            raise BackupFailed("the two passphrases differ; nothing was written")
    except EOFError:
        raise BackupFailed("no passphrase was given; nothing was written") from None
    return passphrase


def _read_passphrase(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            text = opened.readline(4 * MAX_PASSPHRASE + 2).decode()
    except OSError as error:
        raise SettingsError(f"the passphrase's file {file} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError:
        raise SettingsError(f"the passphrase's file {file} is not text") from None
    if stat.S_ISREG(mode) and mode & 0o007:
        _say(f"warning: every user of this machine can reach {file}; `chmod 600` would end that.")
    return text.rstrip("\r\n")


def _acceptable(passphrase: str) -> str:
    if not MIN_PASSPHRASE <= len(passphrase) <= MAX_PASSPHRASE:
        raise SettingsError(
            f"the passphrase has {len(passphrase)} characters; expected {MIN_PASSPHRASE} to {MAX_PASSPHRASE}"
        )
    return passphrase


# Backup


async def _backup(
    arguments: argparse.Namespace, wanted: Settings, path: Path, passphrase: str, signals: _Signals
) -> int:
    async with foundations.database_server(wanted, _say) as config, foundations.opened_database(wanted, config):
        if not await backups.is_made():
            raise BackupFailed("the database holds no installation of ClawNet yet: there is nothing to back up")
        key = await foundations.encryption_key(wanted, _say)
        # A key that opens nothing would be found out on the day it is needed.
        await keys.check(key)
        with _draft(path, may_replace=arguments.force) as (file, keep):
            writer = await anyio.to_thread.run_sync(Writer, file, passphrase)
            manifest = await backups.make(writer, await backups.server(config), key, _say)
            size = file.tell()
            with signals.held():
                keep()
                _say(f"written: {path} ({size:,} bytes)")
                await _note_backup(manifest, path, size)
    return 0


async def _note_backup(manifest: Manifest, path: Path, size: int) -> None:
    try:
        await backups.noted(manifest, "backup", file=path.name, bytes=size)
    except (ClawNetError, asyncpg.PostgresError) as error:
        # The backup is as good; a database that only reads, or an older one without a trail, cannot keep the note.
        _say(f"warning: the audit trail does not tell of it ({error})")


def _require_place(path: Path, *, may_replace: bool) -> None:
    """Raises `BackupFailed` where the archive may not be put."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise BackupFailed(f"{path.parent} is no folder; nothing was written") from None
        return
    except OSError as error:
        raise BackupFailed(f"{path} cannot be used: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise BackupFailed(f"{path} is no regular file; nothing was written")
    if not may_replace:
        raise BackupFailed(f"{path} exists; --force replaces it")


@contextmanager
def _draft(path: Path, *, may_replace: bool) -> Generator[tuple[IO[bytes], Callable[[], None]]]:
    """A file beside the path, and what puts it there once it is whole; otherwise nothing of it is left."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    try:
        with ExitStack() as stack:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            stack.callback(draft.unlink, missing_ok=True)
            file = stack.enter_context(os.fdopen(descriptor, "wb"))

            def keep() -> None:
                file.flush()
                os.fsync(file.fileno())
                _put(draft, path, may_replace=may_replace)
                _sync_folder(path.parent)

            yield file, keep
    except OSError as error:
        raise BackupFailed(f"{path} cannot be written: {error.strerror or error}") from error


def _put(draft: Path, path: Path, *, may_replace: bool) -> None:
    if may_replace:
        draft.replace(path)
        return
    try:
        path.hardlink_to(draft)  # which, unlike a rename, never replaces what somebody put there meanwhile
    except FileExistsError:
        raise BackupFailed(f"{path} exists by now; --force replaces it") from None
    except OSError:
        # A stick's file system knows no links; nobody else writes there under this name.
        draft.replace(path)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Restore


async def _restore(
    arguments: argparse.Namespace, wanted: Settings, path: Path, passphrase: str, signals: _Signals
) -> int:
    with _opened(path) as file:
        archive = Archive(await anyio.to_thread.run_sync(Reader, file, passphrase))
        if not _only_looks(arguments):
            _say(f"reading {path}")
        # To its end, before anything of it is used.
        await anyio.to_thread.run_sync(archive.verify)
        if arguments.write_key is not None:
            return _write_key(archive, arguments.write_key)
        if arguments.show_manifest:
            _show(archive.manifest)
            return 0
        await _require_known(archive.manifest)
        await _require_nobody(wanted)
        async with foundations.database_server(wanted, _say) as config:
            await _Restore(wanted, config, archive, signals).run(arguments.replace, arguments.stopped)
    return 0


@contextmanager
def _opened(path: Path) -> Generator[IO[bytes]]:
    try:
        # A pipe would be waited for, and could not be read twice.
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise BackupFailed(f"{path} cannot be read: {error.strerror or error}") from error
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise BackupFailed(f"{path} is no regular file")
        yield file


def _write_key(archive: Archive, name: str) -> int:
    path = Path(name).resolve()
    try:
        vault.write_key_file(path, archive.key)
    except OSError as error:
        raise BackupFailed(f"the key cannot be written to {path}: {error.strerror}") from error
    _say(f"the archive's master key is in {path}; ENCRYPTION_KEY_FILE can name it")
    return 0


def _show(manifest: Manifest) -> None:
    print(msgspec.json.format(msgspec.json.encode(manifest)).decode())


async def _require_known(manifest: Manifest) -> None:
    unknown = set(manifest.migrations) - await anyio.to_thread.run_sync(migrate.known)
    if unknown:
        raise BackupFailed(
            f"the archive was made by a newer ClawNet ({manifest.clawnet}) and holds tables this one does not know "
            f"({', '.join(sorted(unknown))}): install that version or a later one; nothing was changed"
        )


async def _require_nobody(wanted: Settings) -> None:
    """Raises `BackupFailed` while a server or a bot lives in the target's folders."""
    if wanted.database_url is None and embedded.is_used(wanted.clawnet_data_dir):
        raise BackupFailed(f"a server uses {wanted.clawnet_data_dir}: stop it first; nothing was changed")
    homes = wanted.openclaw_base_path / "bots"
    if alive := [home.name for home in sorted(homes.glob("*")) if await process.is_held(home)]:
        raise BackupFailed(
            f"these bots still run in {homes}: {', '.join(alive)}. Start the server and stop it with "
            "CLAWNET_SHUTDOWN=stop, or end their processes; nothing was changed"
        )


class _Restore:
    """Loads an archive beside the target, makes it ready there, and puts it in the target's place at once."""

    def __init__(self, wanted: Settings, config: dict[str, Any], archive: Archive, signals: _Signals) -> None:
        self._wanted, self._config, self._archive, self._signals = wanted, config, archive, signals
        self._stamp = datetime.now(UTC).strftime("%Y%m%d_%H%M%S")

    async def run(self, may_replace: bool, stopped: bool) -> None:
        async with foundations.opened_database(self._wanted, self._config):
            on = await backups.server(self._config)
            is_empty = await _require_room(on.database, may_replace=may_replace)
        name = on.database
        program = await anyio.to_thread.run_sync(
            lambda: dump.program("pg_restore", on, least=self._archive.manifest.dumped_by)
        )
        async with databases.neighbour(self._config, name) as beside:
            await self._require_alone(beside, name)
            async with _fresh(beside, name) as fresh:
                await self._load(program, on, fresh)
                said = await self._make_ready(fresh, stopped)
                await self._finish(beside, name, fresh, said, is_empty=is_empty)

    async def _require_alone(self, beside: Neighbour, name: str) -> None:
        """Raises `BackupFailed` while anybody else uses the database, and `SettingsError` where we may not do this."""
        if not await beside.has_reservation(name):
            raise BackupFailed(f"another restore into {name!r} is under way; nothing was changed")
        await beside.require_rights(name)
        if there := await beside.lasting_sessions(name):
            raise BackupFailed(
                f"the database {name!r} is in use ({', '.join(there)}): stop every server first; nothing was changed"
            )
        # An embedded server's users hold its lock, which tells more.
        if self._wanted.database_url is not None:
            async with foundations.opened_database(self._wanted, self._config):
                await _require_silence()

    async def _finish(self, beside: Neighbour, name: str, fresh: str, said: list[str], *, is_empty: bool) -> None:
        kept = databases.free_name(name, f"_before_{self._stamp}")
        with self._signals.held():
            moved = await self._swap(beside, name, fresh, kept)
            for line in said:
                _say(line)
            if moved is not None:
                _say(f"the key that was here before is kept in {moved}")
            await self._leave(beside, kept, is_empty)
            _say("restored; start the server")

    async def _load(self, program: dump.Program, on: dump.Server, fresh: str) -> None:
        manifest = self._archive.manifest
        _say(f"loading {manifest.users} user(s) and {manifest.bots} bot(s) of {manifest.made_at:%Y-%m-%d %H:%M} UTC")
        await dump.restore(program, on, fresh, self._archive.dump())

    async def _make_ready(self, fresh: str, stopped: bool) -> list[str]:
        async with foundations.opened_database(self._wanted, {**self._config, "database": fresh}):
            await backups.require_whole(self._archive.manifest)
            if applied := await migrate.run():
                _say(f"database: {applied} migration(s) applied")
            await self._require_key()
            return await backups.settle(self._archive.manifest, self._wanted.clawnet_node, stopped=stopped)

    async def _require_key(self) -> None:
        given = self._wanted.encryption_key
        try:
            await keys.open_vault(self._archive.key if given is None else given.reveal())
        except KeyMismatch as error:
            raise KeyMismatch(
                f"{error}; nothing was changed. The archive holds its key: `clawnet restore --write-key PATH FILE` "
                "writes it to a file for ENCRYPTION_KEY_FILE"
            ) from error

    async def _swap(self, beside: Neighbour, name: str, fresh: str, kept: str) -> Path | None:
        """Database and key change together; where the earlier key is now, if there was another one."""
        place = self._wanted.clawnet_data_dir / foundations.KEY_FILE
        if self._wanted.encryption_key is not None or _holds(place, self._archive.key):
            await beside.swap(name, fresh, kept)
            return None
        try:
            draft = place.with_name(f".{place.name}.{secrets.token_hex(6)}")
            vault.write_key_file(draft, self._archive.key)
            try:
                await beside.swap(name, fresh, kept)
                try:
                    return _put_key(draft, place, self._stamp)
                except OSError:
                    await beside.swap(name, kept, fresh)
                    raise
            finally:
                draft.unlink(missing_ok=True)
        except OSError as error:
            raise BackupFailed(
                f"the key file {place} cannot be written ({error.strerror}); `clawnet restore --write-key` can put "
                "the archive's key elsewhere"
            ) from error

    async def _leave(self, beside: Neighbour, kept: str, is_empty: bool) -> None:
        """Says where the earlier database is, or drops one that was empty and still is."""
        if is_empty:
            async with foundations.opened_database(self._wanted, {**self._config, "database": kept}):
                is_empty = await _tables() == 0
        if is_empty:
            await beside.drop(kept)
            return
        _say(f"the database that was here before is kept as {kept!r}. To drop it, while the server runs:")
        _say(f"    {self._psql()} -c 'DROP DATABASE {databases.quoted(kept)}'")

    def _psql(self) -> str:
        if "dsn" in self._config:
            return 'psql "$DATABASE_URL"'
        where = {"-h": self._config["host"], "-p": self._config["port"], "-U": self._config["user"], "-d": "postgres"}
        return shlex.join([str(embedded.programs() / "psql"), *(str(word) for pair in where.items() for word in pair)])


@asynccontextmanager
async def _fresh(beside: Neighbour, name: str) -> AsyncGenerator[str]:
    """An empty database beside the target, gone again unless it took the target's place."""
    fresh = databases.free_name(name, "_restoring")
    await beside.drop(fresh)  # what a restore left that was killed
    try:
        await beside.create(fresh, name)
        yield fresh
    finally:
        with anyio.CancelScope(shield=True):
            await beside.drop(fresh)


async def _require_room(name: str, *, may_replace: bool) -> bool:
    """Whether the target is empty. Raises `BackupFailed` where something is there that may not be replaced."""
    tables = await _tables()
    if tables and not may_replace:
        what = "an installation of ClawNet" if await backups.is_made() else f"{tables} table(s)"
        raise BackupFailed(
            f"the database {name!r} holds {what}; --replace puts the archive in its place and keeps it under "
            "another name; nothing was changed"
        )
    return tables == 0


async def _tables() -> int:
    row = await DB.fetch_one(
        "SELECT count(*) AS n FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN "
        "('r', 'p', 'v', 'm', 'f', 'S') AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%'"
    )
    assert row is not None
    return row["n"]


async def _require_silence() -> None:
    """Raises `BackupFailed` where a machine goes on saying that it lives; one that was just stopped is waited for."""
    first = await _pulse()
    if not first:
        return
    _say(f"waiting whether {', '.join(first)} still live(s)")
    while now := await _pulse():
        if alive := [name for name, beat in now.items() if first.get(name) != beat]:
            raise BackupFailed(
                f"a server supervises as the node {alive[0]!r} on this database: stop it first; nothing was changed"
            )
        await anyio.sleep(LOOK_EVERY)


async def _pulse() -> dict[str, datetime]:
    """The machines whose lease has not run out, with their last sign of life."""
    with suppress(asyncpg.UndefinedTableError):
        rows = await DB.fetch(
            "SELECT name, heartbeat_at FROM node WHERE heartbeat_at > now() - make_interval(secs => $1)", nodes.LEASE
        )
        return {row["name"]: row["heartbeat_at"] for row in rows}
    return {}


def _holds(place: Path, key: str) -> bool:
    try:
        return place.read_text("utf-8", errors="replace").strip() == key.strip()
    except OSError:
        return False


def _put_key(draft: Path, place: Path, stamp: str) -> Path | None:
    moved = place.with_name(f"{place.name}.before-{stamp}") if place.exists() else None
    if moved is not None:
        moved.hardlink_to(place)
    draft.replace(place)
    _sync_folder(place.parent)
    return moved


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)
