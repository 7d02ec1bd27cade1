"""What keeps a program of a bot's in its place: no privileges, limits, and an end together with whoever started it.

    python -I -S fence.py nofile=4096 -- /absolute/program argument…

The shim puts gateways behind this fence. By itself it is for commands that read what a bot wrote, and so may run the
bot's code: it waits for the program, ends everything that came of it, and exits as the program did. SIGTERM ends it
sooner. Standard library only, and little of it: the shim uses it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import time

# `typing` costs half a megabyte in each shim; type checkers know this name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

#: How long the left-over descendants may take to die, in seconds.
REAP_BUDGET = 3.0
#: A look round at least this often while they die, in seconds: one may fork while we look.
REAP_LOOK = 0.05
#: Whom the kernel ends first when memory is short.
OOM_SCORE_ADJ = 500

PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 1, 24, 36, 38, 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
CAPABILITY_VERSION_3 = 0x20080522

#: What the program could not be started with, as a shell says it.
EXIT_NOT_RUN = 127

libc = ctypes.CDLL(None, use_errno=True)


def default_signals() -> None:
    """What is ignored or blocked here, or was in ClawNet, would stay so across exec."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def set_limits(rlimits: Mapping[str, int], oom_score_adj: int = OOM_SCORE_ADJ) -> None:
    """Never more than the limits that are there already."""
    for name, wanted in {**rlimits, "core": 0}.items():
        kind: int = getattr(resource, f"RLIMIT_{name.upper()}")
        _, hard = resource.getrlimit(kind)
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (limit, limit))
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(str(oom_score_adj))
    except OSError:
        pass  # it says who should die first; nothing depends on it


def drop_privileges() -> None:
    """No capability, now or after any exec. Where we have no privileges each of these calls fails, which is as good."""
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs was refused")
    for capability in range(64):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    libc.capset(header, (ctypes.c_uint32 * 6)())


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)


def stat(pid: int | str) -> list[str]:
    """The fields of /proc/<pid>/stat from the third on; the name before them may hold anything."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()


def children() -> list[int]:
    # Not /proc/self/task/*/children: some kernels are built without it.
    me = str(os.getpid())
    found: list[int] = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            state, parent = stat(name)[:2]
        except OSError:
            continue
        if parent == me and state != "Z":
            found.append(int(name))
    return found


def main() -> NoReturn:
    number = sys.argv.index("--")
    limits = {name: int(value) for name, _, value in (each.partition("=") for each in sys.argv[1:number])}
    heard = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, heard)
    drop_privileges()
    set_limits(limits)
    die_with_parent(signal.SIGTERM)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    pid = os.fork()
    if not pid:
        become(sys.argv[number + 1 :])
    status = None
    while status is None and signal.sigwait(heard) == signal.SIGCHLD:
        status = collect(pid)[0]
    end_descendants()
    os._exit(128 + signal.SIGTERM if status is None else exit_code(status))


def become(argv: list[str]) -> NoReturn:
    fence = os.getppid()
    try:
        os.setsid()  # what the program does to its group does not reach us
        die_with_parent()
        default_signals()
        if os.getppid() == fence:
            os.execv(argv[0], argv)  # noqa: S606
    except OSError as error:
        os.write(2, f"{argv[0]} does not run: {error.strerror}\n".encode(errors="replace"))
    os._exit(EXIT_NOT_RUN)


def collect(pid: int) -> tuple[int | None, bool]:
    """Reaps whoever ended: how this one did, if it did now, and whether anybody is left."""
    status = None
    while True:
        try:
            ended, how = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status, False
        if ended == 0:
            return status, True
        if ended == pid:
            status = how


def end_descendants() -> None:
    # Only direct children are signalled: nobody but us can reap those, so their pids cannot have been reused. When one
    # dies its own children become ours, whatever sessions and double forks stand between.
    deadline = time.monotonic() + REAP_BUDGET
    while collect(0)[1] and time.monotonic() < deadline:
        for child in children():
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGKILL)
        signal.sigtimedwait({signal.SIGCHLD}, REAP_LOOK)


def exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    main()
