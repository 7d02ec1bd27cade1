"""The small process between ClawNet and one gateway: it outlives us, keeps the gateway's log and records its exit.

    python -I -S shim.py < spec.json

It answers one line of JSON, {"ok": true, …} or {"ok": false, "error": …}, and from then on takes no decisions: whoever
wants the gateway to stop signals the gateway. What the gateway prints is kept without the secrets that stand in its
configuration. Standard library only, and little of it: one runs beside each bot.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import itertools
import json
import os
import select
import signal
import sys
import time

# Behind everything else, so that nothing there stands in the place of the standard library.
sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
from app.gateway import fence
from app.gateway.redaction import Redactor

# `typing` costs half a megabyte in each shim; type checkers know this name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

#: A longer line of the gateway is cut here.
LINE_MAX = 8 * 1024
#: What is read from a pipe at once, so that neither pipe nor an exit waits long for the other.
CHUNK = 64 * 1024
#: What a dead gateway left in a pipe is read up to here; a grandchild may go on writing for ever.
DRAIN_MAX = 1024 * 1024
#: How long the gateway's left-over descendants may take to die, in seconds.
REAP_BUDGET = 3.0
#: A look round at least this often while they die, in milliseconds: one may fork while we look.
REAP_LOOK = 50
#: Last lines kept in the exit record, and the characters of each.
TAIL_LINES, TAIL_WIDTH = 20, 1000

EXIT_REFUSED = 71  # sysexits' EX_OSERR
EXIT_LOCKED = 75  # sysexits' EX_TEMPFAIL

NEW_FILE = os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
#: Everything a terminal or a reader of lines would act upon, but for the tab.
CONTROL_BYTES = bytes(code for code in (*range(32), 127) if code not in b"\t\n")
CONTROL_CHARACTERS = dict.fromkeys((*range(128, 160), 0x2028, 0x2029))


class Refused(Exception):
    """The gateway cannot be started; the message goes to whoever asked."""

    def __init__(self, error: str, exit_code: int = EXIT_REFUSED, **facts: object) -> None:
        super().__init__(error)
        self.answer = {"ok": False, "error": error, **facts}
        self.exit_code = exit_code


class Spec:
    """What to start, and where; it comes over stdin because argv is for everybody to read."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.home: str = raw["home"]
        self.argv: list[str] = raw["argv"]
        self.env: dict[str, str] = raw["env"]
        self.cwd: str = raw["cwd"]
        self.nonce: str = raw["nonce"]
        self.rlimits: dict[str, int] = raw.get("rlimits", {})
        self.log_max_bytes: int = raw.get("log_max_bytes", 10 * 1024 * 1024)
        self.log_files: int = raw.get("log_files", 3)
        self.oom_score_adj: int = raw.get("oom_score_adj", 500)


class Log:
    """`bot.log` and its older parts. When the disk is full lines are lost and counted: the bot never waits for us."""

    def __init__(self, folder: int, max_bytes: int, files: int) -> None:
        self._folder, self._max, self._files = folder, max_bytes, files
        self._fd = -1
        self._size = 0
        self._dropped = 0

    def write(self, lines: list[bytes]) -> None:
        block = b"".join(lines)
        try:
            if self._fd < 0:
                self._open()
            if self._size and self._size + len(block) > self._max:
                self._rotate()
            self._append(self._confession() + block)
            self._dropped = 0
        except OSError:
            self._dropped += len(lines)
            self._close()

    def forget_oldest(self) -> None:
        for number in range(self._files, 0, -1):
            try:
                return os.unlink(f"bot.log.{number}", dir_fd=self._folder)
            except FileNotFoundError:
                continue
        return None

    def _confession(self) -> bytes:
        if not self._dropped:
            return b""
        return stamp("E") + f"[clawnet] {self._dropped} lines could not be written and are lost\n".encode()

    def _open(self) -> None:
        # Not blocking, because a bot could have put a FIFO here.
        flags = NEW_FILE | os.O_RDWR | os.O_APPEND | os.O_NONBLOCK
        self._fd = os.open("bot.log", flags, 0o600, dir_fd=self._folder)
        self._size = os.fstat(self._fd).st_size
        if self._size and os.pread(self._fd, 1, self._size - 1) != b"\n":
            self._append(b"\n")  # a full disk, or the death of an earlier shim, tore the last line

    def _append(self, block: bytes) -> None:
        while block:
            written = os.write(self._fd, block)
            self._size += written
            block = block[written:]

    def _rotate(self) -> None:
        self._close()
        names = ["bot.log", *(f"bot.log.{number}" for number in range(1, self._files + 1))]
        for newer, older in reversed(list(itertools.pairwise(names))):
            try:
                os.replace(newer, older, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            except FileNotFoundError:
                continue
        self._open()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


class Stream:
    """One of the gateway's two output pipes, cut into lines, without its secrets."""

    def __init__(self, fd: int, letter: str, redactor: Redactor) -> None:
        self.fd, self._letter, self._redactor = fd, letter, redactor
        self._partial = b""
        #: The rest of the present line is not kept.
        self._is_cut = False
        os.set_blocking(fd, False)

    def read(self) -> list[bytes]:
        """The lines that are complete by now.

        Raises:
            BlockingIOError: Nothing is there now.
            EOFError: Nothing will come.
        """
        data = os.read(self.fd, CHUNK)
        if not data:
            raise EOFError
        # After the read: what the gateway took its words from lies there by now.
        self._redactor.learn()
        data = data.translate(None, CONTROL_BYTES)
        if self._is_cut:
            _, end, data = data.partition(b"\n")
            if not end:
                return []
            self._is_cut = False
        whole, end, self._partial = (self._partial + data).rpartition(b"\n")
        return (self._format(whole) if end else []) + self._cut_overlong()

    def rest(self) -> list[bytes]:
        """The last line, when it had no end."""
        partial, self._partial = self._partial, b""
        return self._format(partial) if partial else []

    def _cut_overlong(self) -> list[bytes]:
        """The end of a line that is too long already is not waited for."""
        longest = self._redactor.longest
        if len(self._partial) <= LINE_MAX + longest:
            return []
        line = self._redactor.clean(clean(self._partial[: LINE_MAX + longest]))
        self._partial, self._is_cut = b"", True
        # Its last bytes may be the beginning of a secret.
        return [stamp(self._letter) + cut(line[: max(0, len(line) - longest)]) + b"\n"]

    def _format(self, block: bytes) -> list[bytes]:
        prefix = stamp(self._letter)
        lines = self._redactor.clean(clean(block)).split(b"\n")
        return [b"%s%s\n" % (prefix, line if len(line) <= LINE_MAX else cut(line)) for line in lines]


class Keeper:
    """Watches one gateway until it has ended and nothing of it is left."""

    def __init__(self, pid: int, streams: list[Stream], log: Log, wake: int) -> None:
        self.pid = pid
        self.status: int | None = None
        self.max_rss_kb = 0
        self.killed: set[int] = set()
        self.tail: list[bytes] = []
        self._streams = streams
        self._log = log
        self._wake = wake

    def watch(self) -> None:
        """Pump output until the gateway's exit is known."""
        poll = select.poll()
        streams = {stream.fd: stream for stream in self._streams}
        for fd in (self._wake, *streams):
            poll.register(fd, select.POLLIN)
        while self.status is None:
            for fd, _ in poll.poll():
                if fd == self._wake:
                    self._collect_children()
                elif not self._pump(streams[fd]):
                    poll.unregister(fd)

    def finish(self) -> None:
        """End all descendants and keep their last words; never wait for an end of file, which may never come."""
        self._drain()
        self._kill_descendants()
        self._drain()
        for stream in self._streams:
            self._keep(stream.rest())

    def _collect_children(self) -> bool:
        """Reap whoever ended (orphans come to us as well). Says whether anybody is left."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, CHUNK)
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.pid:
                self.status, self.max_rss_kb = status, usage.ru_maxrss

    def _kill_descendants(self) -> None:
        # Only direct children are signalled: nobody but us can reap those, so their pids cannot have been reused. When
        # one dies its own children become ours, whatever sessions and double forks stand between.
        deadline = time.monotonic() + REAP_BUDGET
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        while self._collect_children() and time.monotonic() < deadline:
            for pid in fence.children():
                try:
                    os.kill(pid, signal.SIGKILL)
                    self.killed.add(pid)
                except OSError:
                    continue
            poll.poll(REAP_LOOK)

    def _pump(self, stream: Stream) -> bool:
        """Keep what is there. Says whether more can come."""
        try:
            self._keep(stream.read())
        except BlockingIOError:
            return True
        except EOFError:
            return False
        return True

    def _drain(self) -> None:
        for stream in self._streams:
            try:
                for _ in range(DRAIN_MAX // CHUNK):
                    self._keep(stream.read())
            except (BlockingIOError, EOFError):
                continue

    def _keep(self, lines: list[bytes]) -> None:
        if lines:
            self._log.write(lines)
            self.tail = (self.tail + lines[-TAIL_LINES:])[-TAIL_LINES:]


def main() -> None:
    try:
        keeper, log, run, nonce = begin()
    except Refused as refused:
        answer(refused.answer)
        os._exit(refused.exit_code)
    except Exception as error:
        answer({"ok": False, "error": "shim", "message": repr(error)})
        os._exit(EXIT_REFUSED)
    keeper.watch()
    keeper.finish()
    record_exit(run, log, nonce, keeper)


def begin() -> tuple[Keeper, Log, int, str]:
    """Everything up to the answer: the lock, the gateway, and the note of who they are."""
    spec = Spec(json.load(sys.stdin))
    os.umask(0o077)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    run, logs = open_folder(spec.home, "run"), open_folder(spec.home, "logs")
    redactor = Redactor(open_folder(spec.home))
    take_lock(run)
    leave_parent()
    if fence.libc.prctl(fence.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise Refused("subreaper", errno=ctypes.get_errno())
    wake = wake_on_children()
    redactor.learn()
    pid, streams = launch(spec, redactor)
    about = identity(spec.nonce, pid)
    try:
        write_json(run, "state.json", about)
    except OSError as error:
        # Without the note nobody could adopt it later.
        os.kill(pid, signal.SIGKILL)
        raise Refused("state", errno=error.errno, message=str(error)) from error
    answer({"ok": True, **about})
    detach_stdio()
    log = Log(logs, spec.log_max_bytes, spec.log_files)
    return Keeper(pid, streams, log, wake), log, run, spec.nonce


def open_folder(home: str, name: str = "") -> int:
    path = f"{home}/{name}".rstrip("/")
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def take_lock(run: int) -> None:
    """The kernel's "no double start": it goes when we go, however that happens, and knows no pid."""
    fd = os.open("lock", NEW_FILE | os.O_RDWR, 0o600, dir_fd=run)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Refused("locked", EXIT_LOCKED) from None


def leave_parent() -> None:
    """Go on as nobody's child: ClawNet then keeps no watcher, and one that ends cannot take us along."""
    with contextlib.suppress(PermissionError):  # we may lead a session already
        os.setsid()
    if os.fork():
        os._exit(0)  # the lock stays with its other holder


def wake_on_children() -> int:
    """A descriptor that becomes readable when a child ends."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, wake_only)
    return read


def wake_only(number: int, frame: object) -> None:
    """Without a handler of ours a signal writes nothing to the wake-up descriptor."""


def launch(spec: Spec, redactor: Redactor) -> tuple[int, list[Stream]]:
    """Fork the gateway and wait until it runs its own program."""
    pipes = [os.pipe() for _ in range(3)]  # all close on exec, so the third one's end of file says "it runs"
    shim = os.getpid()
    pid = os.fork()
    if not pid:
        become_gateway(spec, shim, *(write for _, write in pipes))
    for _, write in pipes:
        os.close(write)
    (out, _), (err, _), (trouble, _) = pipes
    with os.fdopen(trouble, "rb") as report:
        if failure := report.read():
            os.waitpid(pid, 0)
            raise Refused("exec", **json.loads(failure))
    return pid, [Stream(out, "O", redactor), Stream(err, "E", redactor)]


def become_gateway(spec: Spec, shim: int, out: int, err: int, trouble: int) -> NoReturn:
    step = "prepare"
    try:
        os.setsid()
        fence.die_with_parent()
        if os.getppid() != shim:
            os._exit(1)  # it died before the line above
        fence.default_signals()
        connect_stdio(out, err)
        fence.set_limits(spec.rlimits, spec.oom_score_adj)
        fence.drop_privileges()
        step = "chdir"
        os.chdir(spec.cwd)
        step = "execve"
        os.execve(spec.argv[0], spec.argv, spec.env)  # noqa: S606
    except OSError as error:
        report = {"step": step, "errno": error.errno, "message": error.strerror}
    except Exception as error:
        report = {"step": step, "errno": 0, "message": repr(error)}
    os.write(trouble, json.dumps(report).encode())
    os._exit(127)


def connect_stdio(out: int, err: int) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)


def identity(nonce: str, pid: int) -> dict[str, object]:
    shim = os.getpid()
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot_id = file.read().strip()
    return {
        "nonce": nonce,
        "boot_id": boot_id,
        "shim_pid": shim,
        "shim_start": int(fence.stat(shim)[19]),
        "pid": pid,
        "pid_start": int(fence.stat(pid)[19]),
        "started_at": time.time(),
    }


def stamp(letter: str) -> bytes:
    return b"%d %s " % (time.time() * 1000, letter.encode())


def clean(block: bytes) -> bytes:
    """Lines that are text, whatever they were; their control bytes are gone already."""
    if block.isascii():
        return block
    return block.decode("utf-8", "replace").translate(CONTROL_CHARACTERS).encode()


def cut(line: bytes) -> bytes:
    """As much of it as is kept, in whole characters."""
    return line[:LINE_MAX].decode("utf-8", "ignore").encode()


def answer(value: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # who asked may be gone; its successor finds state.json
        os.write(1, json.dumps(value).encode() + b"\n")


def detach_stdio() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    os.chdir("/")


def record_exit(run: int, log: Log, nonce: str, keeper: Keeper) -> None:
    code = os.waitstatus_to_exitcode(keeper.status or 0)
    exit_: dict[str, object] = {
        "nonce": nonce,
        "pid": keeper.pid,
        "code": code if code >= 0 else None,
        "signal": signal_name(-code) if code < 0 else None,
        "at": time.time(),
        "reaped": len(keeper.killed),
        "max_rss_kb": keeper.max_rss_kb,
        "tail": [line.split(b" ", 2)[2].decode("utf-8", "replace").rstrip("\n")[:TAIL_WIDTH] for line in keeper.tail],
    }
    try:
        write_json(run, "exit.json", exit_)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        log.forget_oldest()  # how it ended is worth more than what it said long ago
        write_json(run, "exit.json", {**exit_, "tail": []})


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"


def write_json(folder: int, name: str, value: dict[str, object]) -> None:
    """Whole or not at all, and on the disk before we go on."""
    draft = f"{name}.tmp"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(draft, dir_fd=folder)
    fd = os.open(draft, NEW_FILE | os.O_WRONLY | os.O_EXCL, 0o600, dir_fd=folder)
    with os.fdopen(fd, "wb") as file:
        file.write(json.dumps(value).encode())
        file.flush()
        os.fsync(fd)
    os.replace(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)


if __name__ == "__main__":
    main()
