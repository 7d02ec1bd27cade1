"""One gateway's process: started through the shim, found again after a restart of ours, waited for and ended.

It is nobody's child here, whoever started it: a pidfd tells of its end and `run/exit.json` tells how. A pid is believed
only while its start time and the nonce in its environment agree, and signals go through a pidfd: none hits a stranger.
"""

import contextlib
import errno
import fcntl
import functools
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgspec
import psutil

from app.domain import errors
from app.gateway import files
from app.gateway.redaction import CONTROLS

#: Environment variables by which a bot's processes are known for ours.
NONCE, BOT_ID = "CLAWNET_NONCE", "CLAWNET_BOT_ID"
#: From asking the shim to its answer, in seconds.
SPAWN_BUDGET = 10.0
#: From the gateway's end to the shim's; it gives left-over descendants 3 s.
SHIM_BUDGET = 5.0
#: From SIGKILL to the end; longer only in an uninterruptible system call.
KILL_BUDGET = 5.0
#: How long a held lock may lack a readable owner: it is starting, or clearing up after its gateway.
ATTACH_BUDGET, ATTACH_LOOK = 8.0, 0.05
#: A sweep looks again until nobody is found, at most this often: its prey may fork meanwhile.
SWEEP_ROUNDS = 20
#: The shim's: last lines in an exit record, and the characters of each.
TAIL_LINES, TAIL_WIDTH = 20, 1000
#: Bytes of a record in `run/`, where the bot could have put anything; JSON takes twelve for a character at most.
RECORD_MAX = TAIL_LINES * TAIL_WIDTH * 12 + 4096

SHIM = Path(__file__).with_name("shim.py")

#: Addresses on which a listener is reached through 127.0.0.1 or ::1, as /proc/net/tcp{,6} write them.
LOCAL_ADDRESSES = {
    "00000000",
    "0100007F",
    "0" * 32,
    "0" * 24 + "01000000",
    "0000000000000000FFFF00000100007F",
}
LISTEN = "0A"

#: What an open or a read may fail with though the thing is there.
SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}

Record = TypeVar("Record")
#: What an exit record can say at most: a time, and a number that a column holds.
LATEST, MOST_KB = 4_102_444_800, 2**31 - 1
Pid = Annotated[int, msgspec.Meta(gt=0, le=1 << 22)]


@dataclass(frozen=True)
class Launch:
    """A gateway to start. The nonce is new each time and is added to the environment."""

    home: Path
    argv: Sequence[str]
    env: Mapping[str, str] = field(repr=False)
    cwd: Path
    nonce: str
    rlimits: Mapping[str, int] = field(default_factory=lambda: {"nofile": 4096})
    log_max_bytes: int = 10 * 1024 * 1024
    log_files: int = 3
    oom_score_adj: int = 500

    def spec(self) -> bytes:
        return msgspec.json.encode(
            {
                "home": str(self.home),
                "argv": list(self.argv),
                "env": {**self.env, NONCE: self.nonce},
                "cwd": str(self.cwd),
                "nonce": self.nonce,
                "rlimits": dict(self.rlimits),
                "log_max_bytes": self.log_max_bytes,
                "log_files": self.log_files,
                "oom_score_adj": self.oom_score_adj,
            }
        )


@dataclass(frozen=True)
class Exit:
    """How a gateway ended. `lost`: it is gone and nobody saw how; `rebooted`: because the machine was."""

    code: int | None = None
    signal: str | None = None
    at: float | None = None
    lost: bool = False
    rebooted: bool = False
    tail: tuple[str, ...] = ()
    max_rss_kb: int | None = None
    reaped: int = 0


@dataclass(frozen=True)
class Stray:
    """A process that carries a marker of ours."""

    pid: int
    start: int
    nonce: str | None


class _State(msgspec.Struct, frozen=True):
    nonce: str
    boot_id: str
    shim_pid: Pid
    shim_start: int
    pid: Pid
    pid_start: int
    started_at: float


class _Record(msgspec.Struct, frozen=True):
    nonce: str
    at: Annotated[float, msgspec.Meta(ge=0, le=LATEST)]
    code: Annotated[int, msgspec.Meta(ge=0, le=255)] | None = None
    signal: Annotated[str, msgspec.Meta(max_length=32, pattern=r"^SIG[A-Z0-9+]+$")] | None = None
    tail: tuple[str, ...] = ()
    max_rss_kb: Annotated[int, msgspec.Meta(ge=0, le=MOST_KB)] = 0
    reaped: Annotated[int, msgspec.Meta(ge=0, le=MOST_KB)] = 0


class _Refusal(msgspec.Struct, frozen=True):
    error: str
    step: str = ""
    errno: int = 0
    message: str = ""


class Pidfd:
    """A hold on one process, through which no other can be hit."""

    def __init__(self, fd: int = -1) -> None:
        self._fd = fd

    @classmethod
    def open(cls, pid: int, start: int) -> Self:
        """Open first, compare after: what the descriptor holds cannot change any more. Someone else counts as ended."""
        with _absent(), contextlib.ExitStack() as stack:
            hold = cls(os.pidfd_open(pid))
            stack.callback(hold.close)
            if _start(pid) == start:
                stack.pop_all()
                return hold
        return cls()

    @property
    def has_ended(self) -> bool:
        if self._fd < 0:
            return True
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(0))

    async def ended(self) -> None:
        if self._fd < 0:
            return
        # A copy each time, because a descriptor can be waited for by one task only.
        copy = os.dup(self._fd)
        try:
            await anyio.wait_readable(copy)
        finally:
            os.close(copy)
        self._reap()

    def send(self, number: signal.Signals) -> None:
        if self._fd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, number)

    def end(self, seconds: float) -> None:
        """SIGKILL and wait, blocking."""
        self.send(signal.SIGKILL)
        if self._fd >= 0:
            poll = select.poll()
            poll.register(self._fd, select.POLLIN)
            poll.poll(seconds * 1000)
            self._reap()

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _reap(self) -> None:
        # Orphans are ours to bury where we are process 1, as in a container. Elsewhere whoever is a child of ours has
        # somebody here who waits for its exit code.
        if os.getpid() == 1:
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, self._fd, os.WEXITED | os.WNOHANG)


@dataclass(frozen=True, eq=False)
class Process:
    """A running gateway and its shim. Close it when done; that ends nobody."""

    home: Path
    nonce: str
    boot_id: str
    pid: int
    pid_start: int
    shim_pid: int
    shim_start: int
    started_at: float
    _gateway: Pidfd = field(repr=False)
    _shim: Pidfd = field(repr=False)

    @property
    def is_alive(self) -> bool:
        return not self._gateway.has_ended

    @property
    def is_kept(self) -> bool:
        """Its shim is alive as well."""
        return self.is_alive and not self._shim.has_ended

    async def wait(self) -> Exit:
        """How it ended; returns when nothing of it is left."""
        await self._gateway.ended()
        return await self._conclude()

    async def terminate(self, grace: float) -> Exit:
        """Ask it to end, and end it when it has not after `grace` seconds.

        Only a process the kernel itself cannot end is left when this returns: see `is_clear`.
        """
        self._gateway.send(signal.SIGTERM)
        with anyio.move_on_after(grace):
            await self._gateway.ended()
        self.kill()
        with anyio.move_on_after(KILL_BUDGET):
            await self._gateway.ended()
        exit_ = await self._conclude()
        await sweep(self.nonce)
        return exit_

    def kill(self) -> None:
        self._gateway.send(signal.SIGKILL)

    async def rss_bytes(self) -> int:
        """Resident memory of everything under the shim."""
        return await anyio.to_thread.run_sync(self._rss_bytes)

    def close(self) -> None:
        self._gateway.close()
        self._shim.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def tree(self) -> list[psutil.Process]:
        """The shim's descendants; it is their subreaper, so a double fork does not lead out. Blocks for a scan."""
        try:
            found = psutil.Process(self.shim_pid).children(recursive=True)
        except psutil.Error:
            return []
        # Alive after the scan means that the pid was its own all along.
        return [] if self._shim.has_ended else found

    async def _conclude(self) -> Exit:
        with anyio.move_on_after(SHIM_BUDGET) as patience:
            await self._shim.ended()
        if patience.cancelled_caught:
            await anyio.to_thread.run_sync(self._shim.end, KILL_BUDGET)
        if exit_ := await anyio.to_thread.run_sync(_read_exit, self.home, self.nonce):
            return exit_
        # Without its shim's clean-up some of it may be alive.
        await sweep(self.nonce)
        return Exit(lost=True)

    def _rss_bytes(self) -> int:
        total = 0
        for member in self.tree():
            with contextlib.suppress(psutil.Error):
                total += member.memory_info().rss
        return total


async def spawn(launch: Launch) -> Process:
    """Start a gateway; it outlives us. Not cancelled half-way: after some 50 ms there is a process, or none.

    Raises:
        AlreadyRunning: The home's lock is held.
        BinaryMissing: The program is not there or may not be run.
        SpawnFailed: Anything else that kept it from running.
    """
    await anyio.lowlevel.checkpoint()
    with anyio.move_on_after(SPAWN_BUDGET, shield=True):
        try:
            return _hold(launch.home, await _ask_shim(launch))
        except errors.AlreadyRunning:
            raise
        except OSError as error:
            await sweep(launch.nonce)
            raise errors.SpawnFailed(f"the gateway runs and cannot be watched: {error}") from error
        except BaseException:
            with anyio.CancelScope(shield=True):
                await sweep(launch.nonce)
            raise
    raise errors.SpawnFailed(f"the shim did not answer within {SPAWN_BUDGET:g} s")


async def attach(home: Path, nonce: str) -> Process | Exit | None:
    """Find a gateway again: the living process, how it ended meanwhile, or None when it was never started."""
    deadline = anyio.current_time() + ATTACH_BUDGET
    while anyio.current_time() < deadline:
        found = await anyio.to_thread.run_sync(_look, home, nonce)
        if not isinstance(found, _Unclear):
            return found
        await anyio.sleep(ATTACH_LOOK)
    # The lock is held and its owner cannot be told. What carries the nonce is ended, so that the bot can start again.
    await sweep(nonce)
    return await anyio.to_thread.run_sync(_read_exit, home, nonce) or Exit(lost=True)


async def holder(home: Path) -> Process | None:
    """The process that holds the home, whatever its nonce; for homes no row speaks of."""
    return await anyio.to_thread.run_sync(_holder, home)


async def is_held(home: Path) -> bool:
    """A shim keeps a process of this home, whatever any row says."""

    def look() -> bool:
        with _locked(home) as is_ours:
            return not is_ours

    return await anyio.to_thread.run_sync(look)


async def forget(home: Path, nonce: str) -> None:
    """Remove what `run/` says of an ended gateway, once its exit is in the database."""
    await anyio.to_thread.run_sync(_forget, home, nonce)


async def sweep(nonce: str) -> int:
    """SIGKILL everything that carries the nonce, its shim as well. Returns how many there were."""
    return await anyio.to_thread.run_sync(_sweep, nonce)


async def strays(bot_id: str) -> list[Stray]:
    """Every process started for this bot, by whichever incarnation."""
    return await anyio.to_thread.run_sync(_scan, f"{BOT_ID}={bot_id}")


async def is_clear(home: Path, nonce: str) -> bool:
    """Nothing of this incarnation is left: no process with its nonce, no lock in its name."""
    return await anyio.to_thread.run_sync(_is_clear, home, nonce)


async def owns_port(process: Process, port: int) -> bool:
    """Everyone who listens on the port here is of this process. Before this is true no token may be sent to it."""
    return await anyio.to_thread.run_sync(_owns_port, process, port)


def socket_owner_pids(port: int) -> set[int]:
    """Who listens on the port here, as far as we may see. Blocks for a scan of /proc."""
    inodes = _listeners(port)
    return {pid for pid in _pids() if inodes & _sockets(pid)} if inodes else set()


async def _ask_shim(launch: Launch) -> _State:
    command = [sys.executable, "-I", "-S", str(SHIM)]
    # The nonce lets a sweep find the shim itself, even before it has taken the lock.
    env = {"LANG": "C.UTF-8", NONCE: launch.nonce}
    try:
        shim = await anyio.run_process(
            command,
            input=launch.spec(),
            stderr=subprocess.DEVNULL,
            check=False,
            env=env,
            cwd="/",
            start_new_session=True,
        )
    except (OSError, ExceptionGroup) as error:
        raise errors.SpawnFailed(f"the shim could not be started: {error}") from error
    return _understand(launch, shim.stdout)


def _understand(launch: Launch, answer: bytes) -> _State:
    with contextlib.suppress(msgspec.MsgspecError):
        return msgspec.json.decode(answer, type=_State)
    try:
        refusal = msgspec.json.decode(answer, type=_Refusal)
    except msgspec.MsgspecError as error:
        raise errors.SpawnFailed(f"the shim ended without an answer ({answer[:200]!r})") from error
    if refusal.error == "locked":
        raise errors.AlreadyRunning(f"a process of this bot is alive: {launch.home}/run/lock is held")
    if refusal.step == "execve" and refusal.errno in (errno.ENOENT, errno.EACCES):
        raise errors.BinaryMissing(f"{launch.argv[0]} cannot be run: {refusal.message}")
    raise errors.SpawnFailed(f"{refusal.error} {refusal.step}: {refusal.message or os.strerror(refusal.errno)}")


class _Unclear(Enum):
    """The lock is held, and for now nobody says by whom."""

    YET = 0


def _look(home: Path, nonce: str) -> Process | Exit | _Unclear | None:
    with _locked(home) as is_ours:
        if is_ours:
            return _settle(home, nonce)
    process = _holder(home)
    if process is None:
        return _Unclear.YET
    if process.nonce == nonce:
        return process
    process.close()
    return _settle(home, nonce)


def _settle(home: Path, nonce: str) -> Exit | None:
    """How an incarnation went that is surely over."""
    if exit_ := _read_exit(home, nonce):
        return exit_
    found = _sweep(nonce)
    state = _read(home, "state.json", _State)
    if state and state.nonce == nonce:
        return Exit(lost=True, rebooted=state.boot_id != boot_id())
    return Exit(lost=True) if found else None


@contextlib.contextmanager
def _locked(home: Path) -> Generator[bool]:
    """Hold the home's lock if it is free, so that nobody starts while we look."""
    try:
        fd = os.open(home / "run" / "lock", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in SHORTAGES:
            raise
        yield True  # there never was a shim
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_ours = True
    except BlockingIOError:
        is_ours = False
    try:
        yield is_ours
    finally:
        os.close(fd)


def _holder(home: Path) -> Process | None:
    """The process of `run/state.json`, if it is what the file says. The bot could have written the file."""
    state = _read(home, "state.json", _State)
    if state is None or state.boot_id != boot_id():
        return None
    # Held first and compared after, so that the pids cannot change hands in between.
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(_hold(home, state))
        is_known = all(_carries(pid, f"{NONCE}={state.nonce}") for pid in (state.pid, state.shim_pid))
        if is_known and process.is_kept:
            stack.pop_all()
            return process
    return None


def _hold(home: Path, state: _State) -> Process:
    gateway = Pidfd.open(state.pid, state.pid_start)
    try:
        shim = Pidfd.open(state.shim_pid, state.shim_start)
    except OSError:
        gateway.close()
        raise
    return Process(
        home=home,
        nonce=state.nonce,
        boot_id=state.boot_id,
        pid=state.pid,
        pid_start=state.pid_start,
        shim_pid=state.shim_pid,
        shim_start=state.shim_start,
        started_at=state.started_at,
        _gateway=gateway,
        _shim=shim,
    )


def _read_exit(home: Path, nonce: str) -> Exit | None:
    record = _read(home, "exit.json", _Record)
    if record is None or record.nonce != nonce:
        return None
    return Exit(
        code=record.code,
        signal=record.signal,
        at=record.at,
        tail=tuple(line[:TAIL_WIDTH].translate(CONTROLS) for line in record.tail[-TAIL_LINES:]),
        max_rss_kb=record.max_rss_kb,
        reaped=record.reaped,
    )


def _read(home: Path, name: str, kind: type[Record]) -> Record | None:
    """A record of `run/`, or None for whatever else lies there."""
    with _absent(), contextlib.suppress(msgspec.MsgspecError):
        return msgspec.json.decode(files.read(home / "run" / name, RECORD_MAX) or b"", type=kind)
    return None


@contextlib.contextmanager
def _absent() -> Generator[None]:
    """What cannot be opened or read is not there; but when we lack the means, nothing may follow from that."""
    try:
        yield
    except OSError as error:
        if error.errno in SHORTAGES:
            raise


def _forget(home: Path, nonce: str) -> None:
    for name, kind in (("state.json", _State), ("exit.json", _Record)):
        record = _read(home, name, kind)
        if record and record.nonce == nonce:
            (home / "run" / name).unlink(missing_ok=True)


def _is_clear(home: Path, nonce: str) -> bool:
    if _scan(f"{NONCE}={nonce}"):
        return False
    with _locked(home) as is_ours:
        if is_ours:
            return True
    state = _read(home, "state.json", _State)
    return state is not None and state.nonce != nonce


def _sweep(nonce: str) -> int:
    marker = f"{NONCE}={nonce}"
    ended: set[tuple[int, int]] = set()
    deadline = time.monotonic() + KILL_BUDGET
    for _ in range(SWEEP_ROUNDS):
        found = _scan(marker)
        if not found or time.monotonic() > deadline:
            break
        held = [(stray, Pidfd.open(stray.pid, stray.start)) for stray in found]
        # All are signalled before any is waited for.
        for _, hold in held:
            hold.send(signal.SIGKILL)
        for stray, hold in held:
            hold.end(max(0.0, deadline - time.monotonic()))
            hold.close()
            ended.add((stray.pid, stray.start))
    return len(ended)


def _scan(marker: str) -> list[Stray]:
    """Processes with this entry in their environment. Zombies have none, and we are not our own prey."""
    found: list[Stray] = []
    for pid in _pids():
        start = _start(pid)
        environ = _environ(pid)
        if start is not None and marker.encode() in environ and pid != os.getpid():
            found.append(Stray(pid, start, _value(environ, NONCE)))
    return found


def _value(environ: Collection[bytes], name: str) -> str | None:
    prefix = f"{name}=".encode()
    return next((entry[len(prefix) :].decode() for entry in environ if entry.startswith(prefix)), None)


def _carries(pid: int, marker: str) -> bool:
    return marker.encode() in _environ(pid)


def _environ(pid: int) -> Collection[bytes]:
    with _absent():
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return ()


def _start(pid: int) -> int | None:
    """Start time in clock ticks since boot: the field 22, counted from behind the name, which may hold anything."""
    with _absent():
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    return None


def _pids() -> list[int]:
    with os.scandir("/proc") as entries:
        return [int(entry.name) for entry in entries if entry.name.isdigit()]


@functools.cache
def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _owns_port(process: Process, port: int) -> bool:
    inodes = _listeners(port)
    foreign = set(inodes)
    for member in process.tree():
        foreign -= _sockets(member.pid)
    if foreign:
        for stray in _scan(f"{NONCE}={process.nonce}"):
            foreign -= _sockets(stray.pid)
    return bool(inodes) and not foreign


def _listeners(port: int) -> set[str]:
    """Inodes of the sockets that listen on the port where 127.0.0.1 or ::1 would reach them."""
    inodes: set[str] = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                address, _, hex_port = fields[1].rpartition(":")
                if fields[3] == LISTEN and int(hex_port, 16) == port and address in LOCAL_ADDRESSES:
                    inodes.add(fields[9])
    return inodes


def _sockets(pid: int) -> set[str]:
    inodes: set[str] = set()
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                kind, _, inode = str(entry.readlink()).partition(":")
                if kind == "socket":
                    inodes.add(inode.strip("[]"))
    return inodes
