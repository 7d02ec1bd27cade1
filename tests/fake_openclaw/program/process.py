"""What OpenClaw is to the kernel: its title, its helpers, its signals, and the ways it goes wrong."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import Planned

if TYPE_CHECKING:
    from .eras import Era
    from .faults import Faults
    from .output import Output

TITLE = b"openclaw-gateway"
PR_SET_NAME = 15
#: Signals the main thread waits for; blocked in every other thread.
ASKED = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}


class Stopped(Planned):
    """Somebody asked for the end while we were starting."""


def take_title() -> None:
    """Overwrite the command line and the name, as libuv does for process.title."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_NAME, TITLE, 0, 0, 0)
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    if end > start:
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, TITLE, min(len(TITLE), end - start - 1))


def mind_signals(era: Era) -> None:
    """SIGHUP and SIGQUIT kill; SIGUSR2 kills old and is nothing to new."""
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, minded(era))


def minded(era: Era) -> set[signal.Signals]:
    """New takes SIGUSR2 and forgets it."""
    return ASKED | ({signal.SIGUSR2} if era.is_new else set())


def wait(seconds: float | None, era: Era, output: Output) -> int | None:
    """Sleep in the main thread; the signal that asks for the end, or None when the time is over."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        left = 3600.0 if deadline is None else deadline - time.monotonic()
        if left < 0:
            return None
        asked = signal.sigtimedwait(minded(era), left)
        if asked is None:
            continue
        if asked.si_signo in {signal.SIGTERM, signal.SIGINT}:
            return asked.si_signo
        if asked.si_signo == signal.SIGUSR1:
            answer_usr1(era, output)


def answer_usr1(era: Era, output: Output) -> None:
    if not era.is_new:
        output.log("gateway", "SIGUSR1 restart ignored (not authorized; commands.restart is off)")
        return
    import socket

    debugger = socket.socket()
    debugger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        debugger.bind(("127.0.0.1", 9229))
        debugger.listen()
        output.error("Debugger listening on ws://127.0.0.1:9229/")
        output.debugger = debugger
    except OSError as error:
        output.error(f"Starting inspector on 127.0.0.1:9229 failed: {error.strerror}")


def spawn(argv: list[str], **options) -> int:
    """Start a child with signals as a fresh process has them."""
    fresh = ASKED | {signal.SIGUSR2, signal.SIGPIPE}
    return os.posix_spawn(argv[0], argv, os.environ, setsigmask=[], setsigdef=fresh, **options)


def start_broker() -> tuple[int, int]:
    """A helper in a session of its own that ends when its end of our pipe does: (pid, our end)."""
    theirs, ours = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, theirs, 0), (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)]
    actions.append((os.POSIX_SPAWN_DUP2, 1, 2))
    argv = ["/bin/sh", "-c", "read _", "spawn-broker/worker.js"]
    pid = spawn(argv, setsid=True, file_actions=actions)
    os.close(theirs)
    return pid, ours


def fork_grandchildren(faults: Faults) -> None:
    """Processes that the kernel no longer calls ours: forked twice, each in a session of its own."""
    for _ in range(faults.fork_grandchildren):
        quiet = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1, 2)]
        argv = ["/bin/sh", "-c", f"sleep {faults.grandchild_life_s} &"]
        os.waitpid(spawn(argv, setsid=True, file_actions=quiet[: 1 if faults.grandchildren_hold_output else 3]), 0)


def later(seconds: float, act, *arguments) -> None:
    timer = threading.Timer(seconds, act, arguments)
    timer.daemon = True
    timer.start()


def leak(faults: Faults) -> None:
    """Take memory and touch it, ten times a second."""
    kept, step = [], max(1, int(faults.leak_mb_per_s * 1024 * 1024 / 10))
    while len(kept) * step < faults.leak_limit_mb * 1024 * 1024:
        kept.append(b"\x01" * step)
        time.sleep(0.1)
    threading.Event().wait()


def flood(faults: Faults, output: Output) -> None:
    if faults.flood_every_byte:
        output.raw(bytes(range(256)) + b"\n")
    line = b"flood " + b"x" * 121 + b"\n"
    for _ in range(faults.flood_bytes // len(line)):
        output.raw(line)
    output.raw(b"x" * (faults.flood_bytes % len(line)))
    began, printed = time.monotonic(), 0
    while faults.flood_lines_per_s:
        while printed < (time.monotonic() - began) * faults.flood_lines_per_s:
            output.log("flood", f"line {printed}")
            printed += 1
        time.sleep(0.02)


def rerun_as_child(argv: list[str]) -> int:
    """Old without OPENCLAW_NO_RESPAWN=1: the process that was started only waits for the one that works."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})
    os.environ["OPENCLAW_NO_RESPAWN"] = "1"
    child = spawn(argv)
    while True:
        seen = signal.sigwait({signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})
        if seen != signal.SIGCHLD:
            os.kill(child, seen)
            continue
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) % 256
