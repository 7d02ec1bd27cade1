"""Gateways as the supervisor handles them: started, lost, found again, ended; with small programs in their place."""

import asyncio
import fcntl
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import psutil
import pytest

from app.domain import errors
from app.gateway import process, shim
from app.gateway.process import BOT_ID, NONCE, Exit, Launch, Process

#: Nothing here takes longer, on a busy machine as well.
PATIENCE = 30.0
FOREVER = ("/bin/sleep", "600")
#: Speaks once it ignores SIGTERM.
STUBBORN = "import os, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', file=open('fifo', 'w')); "
LISTENER = (
    "import os, socket, signal; s = socket.create_server(('{host}', 0), family={family}); "
    "{then}; print(s.getsockname()[1], file=open('fifo', 'w')); signal.pause()"
)


def sh(script: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", script)


def python(script: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-S", "-c", script)


def a_launch(home: Path, argv: tuple[str, ...], **more: Any) -> Launch:
    if not (home / "fifo").exists():
        os.mkfifo(home / "fifo")
    launch = {"env": {"PATH": "/usr/bin:/bin"}, "cwd": home, "nonce": uuid4().hex, **more}
    return Launch(home=home, argv=argv, **launch)


@asynccontextmanager
async def running(home: Path, argv: tuple[str, ...] = FOREVER, **more: Any) -> AsyncIterator[Process]:
    launch = a_launch(home, argv, **more)
    try:
        with await process.spawn(launch) as gateway:
            yield gateway
    finally:
        await process.sweep(launch.nonce)


async def hear(home: Path) -> str:
    """What a process writes into the home's FIFO; waits for it."""
    fd = os.open(home / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with anyio.fail_after(PATIENCE):
            await anyio.wait_readable(fd)
        return os.read(fd, 4096).decode().strip()
    finally:
        os.close(fd)


async def in_time(awaitable: Any) -> Any:
    with anyio.fail_after(PATIENCE):
        return await awaitable


def stop(pid: int) -> None:
    """SIGSTOP, and wait until it has: of two pending signals the kernel delivers the lower number first."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + PATIENCE
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < deadline


def popen(argv: tuple[str, ...], **env: str) -> subprocess.Popen[bytes]:
    """A process that did not come through a shim."""
    return subprocess.Popen(argv, stdin=subprocess.PIPE, env=env)


def start_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def own_children() -> list[psutil.Process]:
    return psutil.Process().children()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def record(home: Path, name: str) -> dict[str, Any]:
    return json.loads((home / "run" / name).read_text())


def forge(home: Path, **lies: object) -> None:
    (home / "run" / "state.json").write_text(json.dumps(record(home, "state.json") | lies))


@asynccontextmanager
async def a_stranger() -> AsyncIterator[subprocess.Popen[bytes]]:
    """A process that is none of ours, and must be alive at the end."""
    stranger = popen(FOREVER)
    try:
        yield stranger
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.communicate()


async def test_an_exit_is_told_with_its_code_and_last_words(tmp_path: Path) -> None:
    async with running(tmp_path, sh("echo so long; exit 3")) as gateway:
        seen = await in_time(gateway.wait())
    assert (seen.code, seen.signal, seen.lost, seen.tail) == (3, None, False, ("so long",))
    assert seen.at >= gateway.started_at
    assert not gateway.is_alive


async def test_the_environment_carries_the_nonce_and_nothing_of_ours(tmp_path: Path) -> None:
    env = {BOT_ID: "b1", "PATH": "/usr/bin:/bin"}
    async with running(tmp_path, ("/usr/bin/env",), env=env) as gateway:
        seen = await in_time(gateway.wait())
    assert sorted(seen.tail) == sorted(f"{name}={value}" for name, value in {**env, NONCE: gateway.nonce}.items())


async def test_a_killed_gateway_is_told_with_its_signal(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        assert gateway.is_alive
        os.kill(gateway.pid, signal.SIGKILL)
        seen = await in_time(gateway.wait())
    assert (seen.code, seen.signal, seen.lost) == (None, "SIGKILL", False)


async def test_several_may_wait_for_one_gateway(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway, anyio.create_task_group() as tasks:
        seen: list[Exit] = []

        async def watch() -> None:
            seen.append(await gateway.wait())

        for _ in range(3):
            tasks.start_soon(watch)
        await anyio.wait_all_tasks_blocked()
        seen.append(await in_time(gateway.terminate(PATIENCE)))
        tasks.start_soon(watch)
    assert len(seen) == 5
    assert set(seen) == {seen[0]}


async def test_a_killed_shim_leaves_nothing_behind(tmp_path: Path) -> None:
    script = "(setsid sh -c 'sleep 600 & echo $! >fifo; wait' &) ; exec sleep 600"
    async with running(tmp_path, sh(script)) as gateway:
        grandchild = int(await hear(tmp_path))
        os.kill(gateway.shim_pid, signal.SIGKILL)
        seen = await in_time(gateway.wait())
        assert seen == Exit(lost=True)
        assert not any(map(is_running, (gateway.pid, grandchild)))
        assert await process.is_clear(tmp_path, gateway.nonce)
        assert await process.attach(tmp_path, gateway.nonce) == Exit(lost=True)


async def test_a_stopped_shim_does_not_hold_up_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "SHIM_BUDGET", 0.2)
    async with running(tmp_path) as gateway:
        stop(gateway.shim_pid)
        seen = await in_time(gateway.terminate(grace=PATIENCE))
        assert seen.lost
        assert not is_running(gateway.shim_pid)


async def test_a_polite_gateway_ends_within_its_grace(tmp_path: Path) -> None:
    script = (
        "import signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [15]); "
        "open('fifo', 'w').write('up'); signal.sigwait([15]); sys.exit(4)"
    )
    async with running(tmp_path, python(script)) as gateway:
        await hear(tmp_path)
        assert (await in_time(gateway.terminate(grace=PATIENCE))).code == 4
        assert await process.is_clear(tmp_path, gateway.nonce)


async def test_a_gateway_deaf_to_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    async with running(tmp_path, python(STUBBORN + "signal.pause()")) as gateway:
        await hear(tmp_path)
        begun = anyio.current_time()
        assert (await in_time(gateway.terminate(grace=0.3))).signal == "SIGKILL"
        assert anyio.current_time() - begun >= 0.3


async def test_a_stopped_gateway_is_killed_after_its_grace(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        stop(gateway.pid)
        assert (await in_time(gateway.terminate(grace=0.1))).signal == "SIGKILL"


async def test_escaped_and_deaf_descendants_end_with_their_gateway(tmp_path: Path) -> None:
    deaf = STUBBORN.replace("'deaf'", "os.getpid()")
    script = f"import os\nif os.fork():\n os.wait()\n while 1: signal.pause()\nos.setsid()\nif not os.fork():\n {deaf}"
    script = "import signal\n" + script + "signal.pause()"
    async with running(tmp_path, python(script)) as gateway:
        escaped = int(await hear(tmp_path))
        assert is_running(escaped)
        seen = await in_time(gateway.terminate(grace=PATIENCE))
        assert (seen.signal, is_running(escaped)) == ("SIGTERM", False)
        assert seen.reaped >= 1
        assert await process.is_clear(tmp_path, gateway.nonce)


@pytest.mark.parametrize(
    ("argv", "cwd", "failure"),
    [
        ("/no/such/node", "/", errors.BinaryMissing),
        ("/etc/passwd", "/", errors.BinaryMissing),
        ("/bin/true", "/no/such/folder", errors.SpawnFailed),
    ],
)
async def test_a_start_that_cannot_be_is_refused(
    tmp_path: Path, argv: str, cwd: str, failure: type[errors.StartFailure]
) -> None:
    launch = a_launch(tmp_path, (argv,), cwd=Path(cwd))
    with pytest.raises(failure):
        await process.spawn(launch)
    assert await process.attach(tmp_path, launch.nonce) is None


async def test_a_home_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.SpawnFailed, match="No such file"):
        await process.spawn(Launch(tmp_path / "nowhere", FOREVER, {}, tmp_path, "n"))


async def test_a_shim_that_does_not_answer_in_time_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "SPAWN_BUDGET", 0.001)
    launch = a_launch(tmp_path, FOREVER)
    with pytest.raises(errors.SpawnFailed, match="did not answer"):
        await process.spawn(launch)
    assert await process.is_clear(tmp_path, launch.nonce)


async def test_two_hundred_starts_of_one_home_give_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "SPAWN_BUDGET", PATIENCE)
    started: list[Process] = []
    refused: list[errors.AlreadyRunning] = []

    async def start() -> None:
        try:
            started.append(await process.spawn(a_launch(tmp_path, FOREVER)))
        except errors.AlreadyRunning as error:
            refused.append(error)

    async with anyio.create_task_group() as tasks:
        for _ in range(200):
            tasks.start_soon(start)
    (winner,) = started
    with winner:
        assert (len(refused), winner.is_alive) == (199, True)
        assert record(tmp_path, "state.json")["nonce"] == winner.nonce
        await in_time(winner.terminate(grace=PATIENCE))


async def test_a_start_cancelled_halfway_is_finished_and_handed_over(tmp_path: Path) -> None:
    launch = a_launch(tmp_path, FOREVER)
    started: list[Process] = []
    async with anyio.create_task_group() as tasks:

        async def start() -> None:
            started.append(await process.spawn(launch))
            await anyio.sleep_forever()

        tasks.start_soon(start)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    with started[0] as gateway:
        assert gateway.is_alive
        await in_time(gateway.terminate(grace=PATIENCE))


@pytest.mark.parametrize("turns", [1, 2, 5, 20, 100])
async def test_a_start_torn_down_by_asyncio_leaves_no_process(tmp_path: Path, turns: int) -> None:
    launch = a_launch(tmp_path, FOREVER)
    task = asyncio.create_task(process.spawn(launch))
    for _ in range(turns):
        await anyio.lowlevel.checkpoint()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await process.is_clear(tmp_path, launch.nonce)


async def test_twenty_lives_leave_no_descriptor_and_no_thread(tmp_path: Path) -> None:
    async def live() -> None:
        async with running(tmp_path, ("/bin/true",)) as gateway:
            await in_time(gateway.wait())

    await live()
    children = own_children()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 -- counting needs no paths
    for _ in range(20):
        await live()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    async with running(tmp_path):
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("waitpid")]
        assert own_children() == children


async def a_dead_control_plane(home: Path, argv: tuple[str, ...], nonce: str) -> int:
    """Start a gateway from another process, which is then killed; returns the gateway's pid."""
    script = (
        "import anyio, sys, json, pathlib\n"
        "from app.gateway.process import Launch, spawn\n"
        "async def main():\n"
        "    home, nonce, *argv = sys.argv[1:]\n"
        "    home = pathlib.Path(home)\n"
        "    gateway = await spawn(Launch(home, argv, {}, home, nonce))\n"
        "    print(gateway.pid, flush=True)\n"
        "    await anyio.sleep_forever()\n"
        "anyio.run(main)\n"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", script, str(home), nonce, *argv]
    async with await anyio.open_process(command, cwd=root, stderr=None) as plane:
        assert plane.stdout
        pid = int(await in_time(plane.stdout.receive()))
        plane.kill()
        await in_time(plane.wait())
    return pid


async def test_a_gateway_outlives_its_control_plane_and_is_found_again(tmp_path: Path) -> None:
    pid = await a_dead_control_plane(tmp_path, FOREVER, nonce := uuid4().hex)
    found = await process.attach(tmp_path, nonce)
    assert isinstance(found, Process)
    with found:
        assert (found.pid, found.is_alive) == (pid, True)
        assert (await in_time(found.terminate(grace=PATIENCE))).signal == "SIGTERM"


async def test_an_exit_while_nobody_watched_is_found(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    await a_dead_control_plane(tmp_path, sh("read line <fifo; exit 9"), nonce := uuid4().hex)
    (tmp_path / "fifo").write_text("go\n")
    found = await process.attach(tmp_path, nonce)
    if isinstance(found, Process):  # still at it
        with found:
            found = await in_time(found.wait())
    assert isinstance(found, Exit)
    assert (found.code, found.lost) == (9, False)
    assert await process.attach(tmp_path, nonce) == found
    await process.forget(tmp_path, nonce)
    assert await process.attach(tmp_path, nonce) is None


async def test_the_end_is_seen_by_those_who_attached(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        found = await process.attach(tmp_path, gateway.nonce)
        assert isinstance(found, Process)
        with found:
            gateway.kill()
            assert await in_time(found.wait()) == await in_time(gateway.wait())


async def test_a_nonce_never_started_has_no_trace(tmp_path: Path) -> None:
    assert await process.attach(tmp_path, "n1") is None
    async with running(tmp_path) as gateway:
        assert await process.attach(tmp_path, "n1") is None
        assert gateway.is_alive


async def test_a_start_that_has_not_reached_the_lock_is_ended(tmp_path: Path) -> None:
    # A control plane that died at once leaves a shim that waits for its spec.
    shim = popen((sys.executable, "-I", "-S", str(process.SHIM)), **{NONCE: "n1"})
    assert await process.attach(tmp_path, "n1") == Exit(lost=True)
    assert shim.wait() == -signal.SIGKILL
    shim.communicate()


async def test_what_the_nonce_marks_is_swept_when_the_record_is_missing(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        left_over = popen(FOREVER, **{NONCE: gateway.nonce, BOT_ID: "b1"})
        assert [(one.pid, one.nonce) for one in await process.strays("b1")] == [(left_over.pid, gateway.nonce)]
        os.kill(gateway.shim_pid, signal.SIGKILL)
        await in_time(gateway.wait())
        assert left_over.wait() == -signal.SIGKILL
        left_over.communicate()
        assert await process.strays("b1") == []


async def test_a_reboot_is_told_from_a_loss(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        os.kill(gateway.shim_pid, signal.SIGKILL)
        await in_time(gateway.wait())
        forge(tmp_path, boot_id="another")
        assert await process.attach(tmp_path, gateway.nonce) == Exit(lost=True, rebooted=True)


@pytest.mark.parametrize("whose", ["pid", "shim_pid"])
@pytest.mark.parametrize("is_start_right", [True, False])
async def test_a_forged_record_never_harms_a_stranger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str, is_start_right: bool
) -> None:
    monkeypatch.setattr(process, "ATTACH_BUDGET", 0.3)
    async with a_stranger() as stranger, running(tmp_path) as gateway:
        start = start_of(stranger.pid)
        field = "pid_start" if whose == "pid" else "shim_start"
        forge(tmp_path, **{whose: stranger.pid, field: start if is_start_right else start - 1})
        assert await process.attach(tmp_path, gateway.nonce) == Exit(lost=True)
        assert await process.is_clear(tmp_path, gateway.nonce)


@pytest.mark.parametrize("pid", [0, -1, 2**40, "1", None])
async def test_a_record_that_makes_no_sense_counts_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pid: object
) -> None:
    monkeypatch.setattr(process, "ATTACH_BUDGET", 0.1)
    async with running(tmp_path) as gateway:
        forge(tmp_path, pid=pid)
        assert await process.attach(tmp_path, gateway.nonce) == Exit(lost=True)


async def test_a_reused_pid_is_nobody_of_ours(tmp_path: Path) -> None:
    async with a_stranger() as stranger:
        hold = process.Pidfd.open(stranger.pid, start=1)
        assert hold.has_ended
        hold.send(signal.SIGKILL)
        hold.end(1.0)


async def test_a_shortage_of_descriptors_is_not_taken_for_an_end(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                await process.attach(tmp_path, gateway.nonce)
            with pytest.raises(OSError, match="Too many open files"):
                process.Pidfd.open(gateway.pid, gateway.pid_start)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert gateway.is_kept


async def test_a_gateway_that_cannot_be_noted_is_not_left_running(tmp_path: Path) -> None:
    (tmp_path / "run" / "state.json").mkdir(parents=True)
    launch = a_launch(tmp_path, sh("setsid sleep 600 & exec sleep 600"))
    with pytest.raises(errors.SpawnFailed, match="state"):
        await process.spawn(launch)
    assert await process.is_clear(tmp_path, launch.nonce)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/etc/passwd")])
async def test_only_a_plain_file_is_read_as_a_record(tmp_path: Path, make: Callable[[Path], None]) -> None:
    (tmp_path / "run").mkdir()
    make(tmp_path / "run" / "exit.json")
    assert await in_time(process.attach(tmp_path, "n1")) is None


async def test_a_forged_exit_is_no_longer_than_a_shim_s(tmp_path: Path, shim_tail: tuple[int, int]) -> None:
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / "exit.json"
    forged = {"nonce": "n1", "at": 1.5, "code": 3, "tail": ["a\0\x1b[1m\n" + "x" * 1_500] * 90}
    file.write_text(json.dumps(forged))
    seen = await in_time(process.attach(tmp_path, "n1"))
    assert isinstance(seen, Exit)
    assert (len(seen.tail), max(map(len, seen.tail))) == (20, 998)
    assert seen.tail[0].startswith("a[1m\nxxx")
    assert shim_tail == (process.TAIL_LINES, process.TAIL_WIDTH)
    for lie in (
        {"code": 1 << 40},
        {"max_rss_kb": 1 << 40},
        {"signal": "x\0"},
        {"at": 1e300},
        {"tail": ["x"] * 100_000},
    ):
        file.write_text(json.dumps(forged | lie))
        assert await in_time(process.attach(tmp_path, "n1")) is None


@pytest.fixture
def shim_tail() -> tuple[int, int]:
    """How many last lines a shim records, and how many characters of each, from the longest that it can."""
    longest = "\U0001f600" * shim.TAIL_WIDTH
    assert len(json.dumps([longest] * shim.TAIL_LINES)) < process.RECORD_MAX - 1_000
    return shim.TAIL_LINES, shim.TAIL_WIDTH


async def test_a_lock_held_by_nobody_we_know_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "ATTACH_BUDGET", 0.2)
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert await process.attach(tmp_path, "n1") == Exit(lost=True)
        assert await process.holder(tmp_path) is None


async def test_the_holder_of_a_home_is_found_without_its_nonce(tmp_path: Path) -> None:
    assert await process.holder(tmp_path) is None
    async with running(tmp_path) as gateway:
        found = await process.holder(tmp_path)
        assert found
        with found:
            assert (found.nonce, found.pid) == (gateway.nonce, gateway.pid)
            await in_time(found.terminate(grace=PATIENCE))
        assert await process.holder(tmp_path) is None


async def test_memory_is_counted_over_the_tree(tmp_path: Path) -> None:
    hog = "x = bytearray(50_000_000); open('fifo', 'w').write('up'); import signal; signal.pause()"
    async with running(tmp_path, sh(f'(setsid {sys.executable} -I -S -c "{hog}" &) ; exec sleep 600')) as gateway:
        await hear(tmp_path)
        assert await gateway.rss_bytes() > 50_000_000
        await in_time(gateway.terminate(grace=PATIENCE))
        assert await gateway.rss_bytes() == 0


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", "2"), ("0.0.0.0", "2"), ("::1", "10"), ("::", "10")])
async def test_a_port_is_owned_by_the_process_that_listens(tmp_path: Path, host: str, family: str) -> None:
    script = LISTENER.format(host=host, family=family, then="os.getpid()")
    async with running(tmp_path, python(script)) as gateway:
        port = int(await hear(tmp_path))
        assert await process.owns_port(gateway, port)
        assert process.socket_owner_pids(port) == {gateway.pid}
        await in_time(gateway.terminate(grace=PATIENCE))
        assert not await process.owns_port(gateway, port)


async def test_a_port_of_a_descendant_is_owned(tmp_path: Path) -> None:
    script = LISTENER.format(host="127.0.0.1", family=2, then="os.fork() and (s.close(), os.wait()); os.setsid()")
    async with running(tmp_path, python(script)) as gateway:
        assert await process.owns_port(gateway, int(await hear(tmp_path)))


async def test_a_strangers_port_is_not_owned(tmp_path: Path) -> None:
    async with running(tmp_path) as gateway:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            assert not await process.owns_port(gateway, port)
            assert process.socket_owner_pids(port) == {os.getpid()}
        assert not await process.owns_port(gateway, port)


async def test_a_port_shared_with_a_stranger_is_not_owned(tmp_path: Path) -> None:
    script = LISTENER.format(host="127.0.0.1", family=2, then="os.getpid()")
    async with running(tmp_path, python(script)) as gateway:
        port = int(await hear(tmp_path))
        with socket.create_server(("::1", port), family=socket.AF_INET6):
            assert not await process.owns_port(gateway, port)
        assert await process.owns_port(gateway, port)
