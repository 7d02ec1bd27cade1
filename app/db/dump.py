"""Runs PostgreSQL's own `pg_dump` and `pg_restore`, so that nobody else reads the password, and no word of the caller's
environment (PGOPTIONS, PGCLIENTENCODING …) changes what they do.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import anyio
import anyio.abc

from app.db import embedded
from app.domain.errors import BackupFailed, SettingsError

#: How long a dump waits for a table that a migration holds.
LOCK_TIMEOUT = "60s"
#: Seconds a program has to end when it is asked to.
STOP_BUDGET = 5.0
#: Lines of what a program said that an error carries.
TAIL = 6
#: PostgreSQL's major version that has `transaction_timeout`, which newer programs set without asking.
HAS_TRANSACTION_TIMEOUT = 17

#: Whoever may connect to the outside server by these words of the environment does so here as well.
_CONNECTION = (
    "PGHOST", "PGPORT", "PGUSER", "PGPASSFILE", "PGSERVICE", "PGSERVICEFILE", "PGSSLMODE", "PGSSLCERT", "PGSSLKEY",
    "PGSSLROOTCERT", "PGSSLCRL", "PGSSLMINPROTOCOLVERSION", "PGSSLMAXPROTOCOLVERSION", "PGTARGETSESSIONATTRS",
    "PGKRBSRVNAME", "HOME",
)  # fmt: skip
#: Words of a DATABASE_URL that both drivers know. The database is named by us, the password goes another way.
_WORDS = frozenset({
    "host", "port", "user", "passfile", "service", "sslmode", "sslcert", "sslkey", "sslrootcert", "sslcrl",
    "ssl_min_protocol_version", "ssl_max_protocol_version", "target_session_attrs", "krbsrvname", "gsslib",
})  # fmt: skip
#: Values of `sslmode` that may end in plain text.
_LAX = (None, "disable", "allow", "prefer")

_VERSION = re.compile(r"\(PostgreSQL\) (\d+)")


@dataclass(frozen=True, slots=True)
class Server:
    """An open server, as far as choosing a program for it goes."""

    #: Arguments of `asyncpg.connect`.
    config: Mapping[str, Any]
    database: str
    #: `18.6`, and its first number.
    version: str
    major: int
    #: Our own connections to it are TLS.
    is_encrypted: bool


@dataclass(frozen=True, slots=True)
class Program:
    """One of PostgreSQL's programs."""

    path: str
    major: int


def program(name: str, server: Server, *, least: int) -> Program:
    """The first that will do: the wheel's, else the one on PATH. Blocks for a moment.

    Args:
        least: The oldest major version that will do.

    Raises:
        SettingsError: There is none; the message says what there is.
    """
    refused: list[str] = []
    for path in _candidates(name):
        found = _VERSION.search(_said([path, "--version"]))
        if found is None:
            refused.append(f"{path} does not say its version")
        elif int(found[1]) < least:
            refused.append(f"{path} is version {found[1]}")
        elif server.is_encrypted and not _has_tls(path):
            refused.append(f"{path} cannot speak TLS")
        else:
            return Program(path, int(found[1]))
    raise SettingsError(
        f"no {name} will do ({', '.join(refused) or 'there is none'}); expected version {least} or newer"
        f"{' with TLS' if server.is_encrypted else ''}: install clawnet[embedded], or your distribution's "
        f"PostgreSQL client, and have it on PATH"
    )


def _candidates(name: str) -> list[str]:
    try:
        ours = [str(embedded.programs() / name)]
    except SettingsError:
        ours = []
    theirs = shutil.which(name)
    return [*ours, *([theirs] if theirs else [])]


def _said(command: Sequence[str]) -> str:
    try:
        found = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False, env=_environment({}), timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (found.stdout + found.stderr).decode(errors="replace")


def _has_tls(path: str) -> bool:
    # There is no server at that address: a program without TLS says so before it looks. `pg_restore` would first want
    # a dump to read, but lies beside a `pg_dump` with the same library.
    program = str(Path(path).with_name("pg_dump"))
    return "not compiled in" not in _said([program, "--dbname=host=/nowhere sslmode=require"])


async def dump(with_: Program, server: Server, snapshot: str, take: Callable[[bytes], None]) -> None:
    """Hands the database over as it is in the snapshot, in PostgreSQL's custom format.

    Raises:
        BackupFailed: The program failed; what was taken so far is worth nothing.
    """
    options = (
        "--format=custom", f"--snapshot={snapshot}", f"--lock-wait-timeout={LOCK_TIMEOUT}", "--no-password",
        "--no-owner", "--no-privileges", "--no-comments", "--no-publications", "--no-subscriptions",
        "--no-security-labels", "--no-tablespaces",
    )  # fmt: skip

    async def work(process: anyio.abc.Process) -> None:
        assert process.stdout is not None
        async for piece in process.stdout:
            take(piece)

    code, said = await _run(with_, server, server.database, options, work)
    if code != 0:
        raise BackupFailed(f"pg_dump failed: {_end_of(said)}")


async def restore(with_: Program, server: Server, database: str, pieces: Iterable[bytes]) -> None:
    """Loads a dump into an empty database of the server.

    Raises:
        BackupFailed: The program failed; the database may hold a part.
    """
    options = ["--format=custom", "--no-password", "--no-owner", "--no-privileges"]
    if server.major >= HAS_TRANSACTION_TIMEOUT:
        options.append("--exit-on-error")

    async def work(process: anyio.abc.Process) -> None:
        assert process.stdin is not None
        try:
            for piece in pieces:
                await process.stdin.send(piece)
            await process.stdin.aclose()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return  # It ended early, and its last words say why.

    code, said = await _run(with_, server, database, options, work)
    if code != 0 and not _only_missed_timeout(server, said):
        raise BackupFailed(f"pg_restore failed: {_end_of(said)}")


def _only_missed_timeout(server: Server, said: str) -> bool:
    """An older server does not know the one setting, and everything else went well."""
    return (
        server.major < HAS_TRANSACTION_TIMEOUT
        and said.count("error:") == 1
        and "Command was: SET transaction_timeout = 0;" in said
    )


async def _run(
    with_: Program,
    server: Server,
    database: str,
    options: Sequence[str],
    work: Callable[[anyio.abc.Process], Any],
) -> tuple[int, str]:
    # What it says goes into memory: nobody need listen while it works, and it never waits for a listener.
    with os.fdopen(os.memfd_create("said", os.MFD_CLOEXEC), "w+b") as said:
        with _connected(server, database) as (target, environment, descriptors):
            async with await anyio.open_process(
                [with_.path, *options, f"--dbname={target}"],
                stderr=said,
                cwd="/",
                env=environment,
                pass_fds=descriptors,
                # Ctrl-C is for us: we end it.
                start_new_session=True,
            ) as process:
                try:
                    await work(process)
                    code = await process.wait()
                except BaseException:
                    await _end(process)
                    raise
        said.seek(0)
        return code, said.read().decode(errors="replace")


async def _end(process: anyio.abc.Process) -> None:
    # Asked to end it takes its statement back, which the server would otherwise go on with, waiting for a lock say.
    with anyio.CancelScope(shield=True):
        with suppress(ProcessLookupError):
            process.terminate()
        with anyio.move_on_after(STOP_BUDGET):
            await process.wait()
        if process.returncode is None:
            process.kill()


def _end_of(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return " / ".join(lines[-TAIL:]) or "it said nothing"


@contextmanager
def _connected(server: Server, database: str) -> Generator[tuple[str, dict[str, str], tuple[int, ...]]]:
    """Where to connect, the program's whole environment, and the descriptors it inherits."""
    with ExitStack() as stack:
        if "dsn" in server.config:
            url, password = _url(server.config["dsn"], database, is_encrypted=server.is_encrypted)
            environment = _environment({name: os.environ[name] for name in _CONNECTION if name in os.environ})
            if password is None:
                yield url, environment, ()
                return
            passfile = stack.enter_context(_closing(_passfile(password)))
            yield f"{url}&passfile={quote(_path(passfile), safe='')}", environment, (passfile,)
            return
        # By its descriptor, because a path may hold a comma, which would be a second host, or be too long.
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        folder = stack.enter_context(_closing(os.open(server.config["host"], flags)))
        words = {
            "host": _path(folder),
            "port": str(server.config["port"]),
            "user": server.config["user"],
            "dbname": database,
            "sslmode": "disable",
        }
        yield " ".join(f"{name}={_quoted(value)}" for name, value in words.items()), _environment({}), (folder,)


def _url(dsn: str, database: str, *, is_encrypted: bool) -> tuple[str, str | None]:
    """The URL for the other driver, and the password, which is not in it."""
    parts = urlsplit(dsn)
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    if "sslpassword" in given:
        raise SettingsError(
            "DATABASE_URL holds sslpassword, which others could read in the arguments of pg_dump; "
            "expected a key file without a passphrase, and mode 0600"
        )
    login, _, hosts = parts.netloc.rpartition("@")
    user, colon, password = login.partition(":")
    words = {name: value for name, value in given.items() if name in _WORDS}
    # What our own connection did by itself, the program must do as well.
    if is_encrypted and words.get("sslmode", os.environ.get("PGSSLMODE")) in _LAX:
        words["sslmode"] = "require"
    words["dbname"] = database
    found = unquote(password) if colon else given.get("password", os.environ.get("PGPASSWORD"))
    return f"postgresql://{user}{'@' if user else ''}{hosts}/?{urlencode(words, quote_via=quote)}", found


def _passfile(password: str) -> int:
    """A file that exists in memory only, of the kind `.pgpass` is, with this password for every server."""
    if "\n" in password:
        raise SettingsError("the database's password holds a line break, which no password file can")
    descriptor = os.memfd_create("passfile", os.MFD_CLOEXEC)
    os.fchmod(descriptor, 0o600)  # others' would be ignored
    escaped = password.replace("\\", "\\\\").replace(":", "\\:")
    os.write(descriptor, f"*:*:*:*:{escaped}\n".encode())
    return descriptor


@contextmanager
def _closing(descriptor: int) -> Generator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _path(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", **more}
