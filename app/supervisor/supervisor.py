"""The fleet: a runner for each bot of this machine, behind a barrier, and the bells that wake them."""

import contextvars
import fcntl
import os
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from uuid import UUID, uuid4, uuid5

import anyio
import anyio.abc
import anyio.to_thread
import structlog

from app.domain.errors import ClawNetError
from app.services import nodes, processes
from app.services.nodes import Lease, Renewal
from app.supervisor import load, removal
from app.supervisor.runner import Runner
from app.supervisor.tools import Tools
from app.supervisor.trash import Trash

log = structlog.get_logger()

#: Seconds between two looks for wishes that came through other servers, or whose wake-up was lost.
LOOK_INTERVAL = 1.0
#: Seconds between two looks at everything: bots that are not known, rows that claim more than there is.
RESYNC_INTERVAL = 5.0
#: Seconds before a runner that broke is started anew.
BARRIER_PAUSE = 1.0
#: Seconds for bots that were ended by force to be reaped and written down.
KILL_BUDGET = 5.0
#: Seconds between two tries to become the one that supervises.
STANDBY_INTERVAL = 1.0
#: Renewals that fit into a lease, and tries at one that fails.
RENEWALS, TRIES = 3, 5


class Supervisor:
    """Supervises the bots of this machine. One process at a time does.

    A lock on the bots' folder keeps out servers on the same folder; the lease keeps out servers of the same name with
    another folder. Who finds its lease taken ends the processes it holds, for they may run a second time elsewhere.
    """

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        tools.doubt = self._doubt
        self._trash = Trash(tools)
        tools.empty_trash = self._trash.ring
        self._runners: dict[UUID, Runner] = {}
        self._tasks: anyio.abc.TaskGroup | None = None
        self._lock: int | None = None
        self._look = anyio.Event()
        self._check = anyio.Event()
        self._is_prepared = False
        self._trouble: str | None = "the supervisor is starting"
        self._lease_trouble: str | None = None
        #: Why another server supervises, while this one serves the API and waits.
        self.standby: str | None = None

    @property
    def failing(self) -> str | None:
        """Why it cannot do its work; None once every bot has its runner."""
        return self._lease_trouble or self._trouble

    def wake(self, bot_id: UUID) -> None:
        """Somebody wrote a wish for this bot."""
        runner = self._runners.get(bot_id)
        if runner is not None:
            runner.ring()
        else:
            # Whether a bot that is not known here is this machine's is for the table to say.
            self._look.set()

    async def is_here(self, bot_id: UUID) -> bool:
        """The bot's process runs on this machine: its node is supervised from this folder, by whichever server."""
        folder = await anyio.to_thread.run_sync(_read_folder_id, self._tools.base_path / "supervisor.id")
        return folder is not None and await nodes.holder_of(bot_id) == folder

    async def run(self) -> None:
        """Supervises, or waits until it may, until cancelled."""
        try:
            async with anyio.create_task_group() as tasks:
                # Beside what a lost lease ends: nothing waits for what lies in the trash.
                tasks.start_soon(self._trash.run)
                while True:
                    await self._supervise(await self._become_supervisor())
        finally:
            if self._lock is not None:
                os.close(self._lock)

    # Becoming the one.

    async def _become_supervisor(self) -> Lease:
        base = self._tools.base_path
        while self._lock is None:
            self._lock = _try_lock(base / "supervisor.lock")
            if self._lock is None:
                self._stand_by("another server supervises the bots in this folder")
                await anyio.sleep(STANDBY_INTERVAL)
        # What earlier servers left; the lock keeps others from it.
        self._trash.ring()
        lease = await self._take(_folder_id(base / "supervisor.id"))
        log.info("supervising", node=lease.node, epoch=lease.epoch)
        self.standby = None
        return lease

    async def _take(self, holder: UUID) -> Lease:
        node = self._tools.node
        while True:
            try:
                lease = None if self._tools.is_stopping else await nodes.take(node, holder, self._tools.lease)
            except ClawNetError as error:
                self._fail("lease_not_taken", f"the supervisor cannot take its lease: {error}")
            else:
                if lease is not None:
                    return lease
                self._stand_by(f"a server with another folder supervises as the node {node!r}")
            await anyio.sleep(STANDBY_INTERVAL)

    def _stand_by(self, reason: str) -> None:
        if self.standby != reason:
            log.warning("standby", reason=reason, folder=str(self._tools.base_path))
        self.standby, self._trouble = reason, None

    # Being the one.

    async def _supervise(self, lease: Lease) -> None:
        """Returns once the lease is somebody else's, and nothing runs here any more."""
        self._is_prepared = False
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                tasks.start_soon(self._look_after, lease)
                await self._until_lost(lease)
                log.error("lease_lost", node=lease.node, epoch=lease.epoch, bots=len(self._runners))
                for runner in self._runners.values():
                    runner.kill()
                tasks.cancel_scope.cancel()
            # By now starts that could not be cut short have come to their end, too.
            with anyio.CancelScope(shield=True):
                for runner in self._runners.values():
                    await runner.sweep()
        finally:
            self._tasks = self._lease_trouble = None
            self._runners.clear()

    async def _until_lost(self, lease: Lease) -> None:
        """Renews the lease, whatever else is slow here. While the database is away nobody can take it either."""
        pause = lease.seconds / RENEWALS
        with closing(Renewal(lease)) as renewal:
            while True:
                self._check = anyio.Event()
                wait = pause / TRIES
                try:
                    if not await renewal.once(self._load(), pause):
                        return
                    wait, self._lease_trouble = pause, None
                except ClawNetError as error:
                    if self._lease_trouble is None:
                        log.warning("lease_not_renewed", error=str(error))
                    self._lease_trouble = f"the supervisor cannot renew its lease: {error}"
                except Exception:
                    # Every bot's life hangs on this loop.
                    self._lease_trouble = "the supervisor cannot renew its lease; the server's log has the details"
                    log.exception("lease_not_renewed")
                with anyio.move_on_after(wait):
                    await self._check.wait()

    def _load(self) -> nodes.Load:
        return load.look(self._tools.capacity, int(self._tools.slots.total_tokens))

    def _doubt(self) -> None:
        """Somebody met a row that is another server's: see whether the lease is."""
        self._check.set()

    async def _look_after(self, lease: Lease) -> None:
        due = anyio.current_time()
        while True:
            self._look = anyio.Event()
            is_due = anyio.current_time() >= due
            if await self._resync(lease, is_full=is_due) and is_due:
                due = anyio.current_time() + RESYNC_INTERVAL
            with anyio.move_on_after(LOOK_INTERVAL):
                await self._look.wait()

    async def _resync(self, lease: Lease, *, is_full: bool) -> bool:
        """Looks at the rows; False where that was not possible."""
        if self._tools.is_stopping:
            return False
        try:
            if not self._is_prepared:
                await self._prepare(lease)
            await self._look_at_wishes(lease)
            if is_full:
                await self._look_at_all(lease)
            self._trouble = None
        except ClawNetError as error:
            self._fail("resync_failed", f"the supervisor cannot read the bots: {error}")
            return False
        except Exception:
            # Every bot's life hangs on this loop.
            self._trouble = "the supervisor cannot read the bots; the server's log has the details"
            log.exception("resync_failed")
            return False
        return True

    def _fail(self, event: str, reason: str) -> None:
        if self._trouble != reason:
            log.warning(event, error=reason)
        self._trouble = reason

    async def _prepare(self, lease: Lease) -> None:
        """Before the first look: what another folder's server left running here must be gone before ours starts."""
        if lease.is_inherited:
            for bot_id in await processes.of_lease(lease):
                await removal.end_strays(bot_id)
        for name in await nodes.take_over(lease):
            log.warning("node_renamed", before=name, now=lease.node)
        self._is_prepared = True

    async def _look_at_wishes(self, lease: Lease) -> None:
        found = await processes.overdue(lease)
        for bot_id in await processes.claim(lease) if found.is_anybody_new else []:
            self._begin(lease, bot_id)
        for bot_id in found.stale:
            if bot_id in self._runners:
                self._runners[bot_id].ring()

    async def _look_at_all(self, lease: Lease) -> None:
        """Bots without a runner, and rows that claim more than the processes show."""
        for bot_id in await processes.of_lease(lease):
            self._begin(lease, bot_id)
        for bot_id in await processes.claiming(lease):
            if bot_id in self._runners and not self._runners[bot_id].has_process:
                self._runners[bot_id].ring()

    def _begin(self, lease: Lease, bot_id: UUID) -> None:
        if bot_id in self._runners:
            return
        assert self._tasks is not None
        runner = self._runners[bot_id] = Runner(bot_id, self._tools, lease)
        # A resolver's context may hold a transaction; a runner inherits nothing.
        contextvars.Context().run(self._tasks.start_soon, self._barrier, bot_id, runner, lease)

    async def _barrier(self, bot_id: UUID, runner: Runner, lease: Lease) -> None:
        """One bot's bug ends nobody else's life; its own runner is started anew and adopts what lives."""
        while True:
            try:
                await runner.run()
            except Exception:
                log.exception("runner_broke", bot_id=str(bot_id))
                await anyio.sleep(BARRIER_PAUSE)
                runner = self._runners[bot_id] = Runner(bot_id, self._tools, lease)
            else:
                del self._runners[bot_id]
                return

    # Going down.

    async def stop(self, budget: float) -> None:
        """Takes every bot down; *desired* stays, so they start again next time. Bounded by the budget (s)."""
        self._tools.is_stopping = True
        self._tools.last_grace = budget
        for runner in list(self._runners.values()):
            runner.ring()
        # The grace, then time to kill, reap and write it down.
        with anyio.move_on_after(budget + 5.0):
            await self._until(lambda: not self._runners)
        if self._runners:
            self.kill()
            with anyio.move_on_after(KILL_BUDGET):
                await self._until(lambda: not self._runners)
        if self._runners:
            log.error("bots_left_running", count=len(self._runners))

    def kill(self) -> None:
        """Ends every process at once."""
        self._tools.last_grace = 0.0
        for runner in list(self._runners.values()):
            runner.kill()

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            await anyio.sleep(0.02)
            for runner in self._runners.values():
                if not runner.has_process:
                    runner.ring()


def _folder_id(path: Path) -> UUID:
    """Which folder of bots this is, whatever the machine is called; made when it is missing."""
    found = _read_folder_id(path)
    if found is None:
        path.write_text(f"{uuid4()}\n")
        found = _read_folder_id(path)
    assert found is not None  # It was just written.
    return found


def _read_folder_id(path: Path) -> UUID | None:
    """What the file says, at its place on its machine: a copy of the folder is another folder."""
    with suppress(FileNotFoundError, ValueError):
        said, place = UUID(path.read_text().strip()), path.stat().st_ino
        return uuid5(said, f"{place} {_machine()}")
    return None


def _machine() -> str:
    """What tells machines apart also when their names do not; nothing where there is no such thing."""
    with suppress(OSError):
        return Path("/etc/machine-id").read_text().strip()
    return ""


def _try_lock(path: Path) -> int | None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return lock
    os.close(lock)
    return None
