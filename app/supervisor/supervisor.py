"""The fleet: a runner for each bot of this machine, behind a barrier, and the bells that wake them."""

import contextvars
import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import UUID, uuid4

import anyio
import anyio.abc
import anyio.to_thread
import structlog

from app.domain.errors import ClawNetError
from app.gateway import home
from app.services import nodes, processes
from app.supervisor.runner import Runner
from app.supervisor.tools import Tools

log = structlog.get_logger()

#: Seconds between two looks for wishes whose wake-up was lost, and for bots that other servers made.
RESYNC_INTERVAL = 5.0
#: Seconds before a runner that broke is started anew.
BARRIER_PAUSE = 1.0
#: Seconds for bots that were ended by force to be reaped and written down.
KILL_BUDGET = 5.0
#: Seconds between two tries to become the one that supervises.
STANDBY_INTERVAL = 1.0


class Supervisor:
    """Supervises the bots of this machine. One process at a time does, held by a lock on the bots' folder."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._runners: dict[UUID, Runner] = {}
        self._tasks: anyio.abc.TaskGroup | None = None
        self._lock: int | None = None
        self._holder = uuid4()
        self._look = anyio.Event()
        #: Why it is not up yet; None once every bot has its runner.
        self.failing: str | None = "the supervisor is starting"
        #: Another server supervises; this one serves the API and waits.
        self.is_standby = False

    def wake(self, bot_id: UUID) -> None:
        """Somebody wrote a wish for this bot."""
        runner = self._runners.get(bot_id)
        if runner is not None:
            runner.ring()
        else:
            # Whether a bot that is not known here is this machine's is for the table to say.
            self._look.set()

    async def run(self) -> None:
        """Supervises until cancelled."""
        try:
            async with anyio.create_task_group() as tasks:
                await self._become_supervisor()
                self._tasks = tasks
                while True:
                    self._look = anyio.Event()
                    await self._resync()
                    with anyio.move_on_after(RESYNC_INTERVAL):
                        await self._look.wait()
        finally:
            self._tasks = None
            if self._lock is not None:
                os.close(self._lock)

    async def _become_supervisor(self) -> None:
        base = self._tools.base_path
        while (lock := _try_lock(base / "supervisor.lock")) is None:
            await self._stand_by("another server supervises the bots in this folder")
        self._lock = lock
        self._holder = _folder_id(base / "supervisor.id")
        while not await self._has_lease():
            await self._stand_by(f"a server with another folder supervises as the node {self._tools.node!r}")
        self.is_standby = False
        await anyio.to_thread.run_sync(_empty_trash, base)

    async def _stand_by(self, reason: str) -> None:
        if not self.is_standby:
            log.warning("standby", reason=reason, folder=str(self._tools.base_path))
        self.is_standby, self.failing = True, None
        await anyio.sleep(STANDBY_INTERVAL)

    async def _has_lease(self) -> bool:
        try:
            if not await nodes.lease(self._tools.node, self._holder):
                return False
            for name in await nodes.take_over(self._tools.node, self._holder):
                log.warning("node_renamed", before=name, now=self._tools.node)
        except ClawNetError as error:
            log.warning("lease_not_taken", error=str(error))
            return False
        return True

    async def _resync(self) -> None:
        try:
            if self._tools.is_stopping:
                return
            if not await nodes.lease(self._tools.node, self._holder):
                self.failing = f"another server supervises as the node {self._tools.node!r} by now"
                log.error("lease_lost", node=self._tools.node)
                return
            for bot_id in await processes.of_node(self._tools.node):
                if bot_id not in self._runners:
                    self._begin(bot_id)
            await self._ring_overdue()
            self.failing = None
        except ClawNetError as error:
            self.failing = f"the supervisor cannot read the bots: {error}"
            log.warning("resync_failed", error=str(error))
        except Exception:
            # Every bot's life hangs on this loop.
            self.failing = "the supervisor cannot read the bots; the server's log has the details"
            log.exception("resync_failed")

    async def _ring_overdue(self) -> None:
        """Wishes whose wake-up was lost, and rows that claim more than the processes show."""
        stale, claiming = await processes.overdue(self._tools.node)
        for bot_id in stale:
            if bot_id in self._runners:
                self._runners[bot_id].ring()
        for bot_id in claiming:
            if bot_id in self._runners and not self._runners[bot_id].has_process:
                self._runners[bot_id].ring()

    def _begin(self, bot_id: UUID) -> None:
        assert self._tasks is not None
        runner = self._runners[bot_id] = Runner(bot_id, self._tools)
        # A resolver's context may hold a transaction; a runner inherits nothing.
        contextvars.Context().run(self._tasks.start_soon, self._barrier, bot_id, runner)

    async def _barrier(self, bot_id: UUID, runner: Runner) -> None:
        """One bot's bug ends nobody else's life; its own runner is started anew and adopts what lives."""
        while True:
            try:
                await runner.run()
            except Exception:
                log.exception("runner_broke", bot_id=str(bot_id))
                await anyio.sleep(BARRIER_PAUSE)
                runner = self._runners[bot_id] = Runner(bot_id, self._tools)
            else:
                del self._runners[bot_id]
                return

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
    with suppress(FileNotFoundError, ValueError):
        return UUID(path.read_text().strip())
    made = uuid4()
    path.write_text(f"{made}\n")
    return made


def _empty_trash(base: Path) -> None:
    """What an interrupted removal left, a configuration with secrets among it."""
    try:
        home.empty_trash(base)
    except OSError as error:
        log.warning("trash_not_emptied", error=str(error))


def _try_lock(path: Path) -> int | None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return lock
    os.close(lock)
    return None
