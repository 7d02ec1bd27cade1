"""One bot's life: compares what is wanted with what is, does one thing, and waits to be woken.

Boot, start, stop, restart, crash, changed settings and adoption are all the same road: a step that reads the row.
Only this task writes the bot's status, so a step never races another.
"""

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import anyio
import anyio.abc
import anyio.to_thread
import structlog

from app.domain.errors import (
    AlreadyRunning,
    ClawNetError,
    SpawnFailed,
    StartFailure,
    StartTimeout,
)
from app.domain.states import BotStatus, DesiredState, Phase, Reason
from app.gateway import process
from app.gateway.plugins import Plugin
from app.gateway.process import Exit, Process
from app.services import processes
from app.services.nodes import Lease, LeaseLost
from app.services.processes import Wanted
from app.services.recorder import LostRace
from app.supervisor import exits, launch, probes, removal, restarts
from app.supervisor.channels import Watcher
from app.supervisor.lacks import Lacks
from app.supervisor.reload import Reloader
from app.supervisor.tools import Tools

log = structlog.get_logger()

#: Seconds between two looks at the row when nobody rang; the supervisor looks at all rows at once far more often.
LOOK_INTERVAL = 30.0
#: Seconds until a change is tried again that something on the machine stood in the way of.
HELD_UP = 5.0
#: Seconds until a start that was overtaken is waited for again.
OVERTAKEN = 0.5
#: What the new owner of a bot is told of a process that had the old one's settings.
GIVEN_AWAY = "the bot's process ended while it had the settings of its former owner"
#: Ends of a start that a changed configuration may be the reason of; a taken port, say, is none of its doing.
BLAMED_ON_CONFIG = frozenset({Reason.CONFIG_INVALID, Reason.EXITED, Reason.START_TIMEOUT})


class Runner:
    """Owns one bot's process from wish to end."""

    def __init__(self, bot_id: UUID, tools: Tools, lease: Lease) -> None:
        self.bot_id = bot_id
        self._tools = tools
        self._lease = lease
        self._bell = anyio.Event()
        self._tasks: anyio.abc.TaskGroup | None = None
        self._gateway: Process | None = None
        self._channels: Watcher | None = None
        #: Of the incarnation that the row speaks of; its processes may be there before they are held.
        self._nonce: UUID | None = None
        self._exit: Exit | None = None
        self._launching: anyio.CancelScope | None = None
        self._lacks = Lacks(bot_id, tools, lease, self.ring)
        self._reloader = Reloader(bot_id, tools, lease, self._lacks, self.ring)
        #: It was taken down for a plugin that a start will install.
        self._has_more = False
        self._removal = removal.Removal()
        #: The revision for which the home of the bot without a process was tidied.
        self._tidied: int | None = None
        self._was_cancelled = False
        self._failure: StartFailure | None = None
        self._is_unhealthy = False
        self._is_first = True
        self._active_since: float | None = None
        self._retry_at: float | None = None
        #: It was said that another server has the bot by now.
        self._is_fenced = False

    def ring(self) -> None:
        """Somebody wrote a wish, or something happened to the process."""
        self._bell.set()
        self._lacks.ring()
        if self._channels is not None:
            self._channels.ring()

    @property
    def has_process(self) -> bool:
        return self._gateway is not None or self._launching is not None

    def kill(self) -> None:
        """Ends the process at once; the runner notices as it does any exit."""
        if self._gateway is not None:
            self._gateway.kill()

    async def sweep(self) -> None:
        """Leaves nothing of the last incarnation; for bots that another server may run by now, once `run` has ended."""
        if self._nonce is not None:
            await process.sweep(str(self._nonce))

    async def run(self) -> None:
        """Returns when the bot is gone, or when the server stops and the bot is down."""
        with structlog.contextvars.bound_contextvars(bot_id=str(self.bot_id)):
            try:
                async with anyio.create_task_group() as tasks:
                    self._tasks = tasks
                    while (pause := await self._turn()) is not None:
                        with anyio.move_on_after(pause):
                            await self._bell.wait()
                        self._bell = anyio.Event()
                    tasks.cancel_scope.cancel()
            finally:
                if self._gateway is not None:
                    self._gateway.close()

    async def _turn(self) -> float | None:
        """One step, and how long to wait for the next; None to end."""
        try:
            return await self._step()
        except LostRace:
            return 0.0
        except LeaseLost as error:
            if not self._is_fenced:
                log.warning("runner_fenced", error=str(error))
            self._is_fenced = True
            self._tools.doubt()
            return 1.0
        except ClawNetError as error:
            # The database is away, say: the process lives on, and the next look is soon.
            log.warning("runner_held_up", error=str(error))
            return 1.0

    async def _step(self) -> float | None:
        w = await processes.load(self._lease, self.bot_id)
        if w is None:
            return None
        wants_down = w.desired is not DesiredState.RUNNING or self._tools.is_stopping
        if self._launching is not None:
            if wants_down or w.restart_generation > w.seen_generation or self._exit is not None:
                self._was_cancelled = True
                self._launching.cancel()
            return LOOK_INTERVAL
        if self._reloader.is_busy:
            if wants_down or w.restart_generation > w.seen_generation or self._exit is not None or self._is_unhealthy:
                self._reloader.cancel()
            return LOOK_INTERVAL
        if self._exit is not None:
            return await self._ended(w, self._exit)
        if self._failure is not None:
            return await self._failed(w, self._failure)
        if self._gateway is not None:
            return await self._tend(w, self._gateway, wants_down=wants_down)
        if self._was_cancelled and w.status is BotStatus.STARTING:
            return await self._stopped(Exit())
        if w.status.has_process:
            return await self._adopt(w)
        if wants_down:
            return await self._rest(w)
        return await self._begin_when_due(w)

    # A bot without a process.

    async def _rest(self, w: Wanted) -> float | None:
        if w.desired is DesiredState.DELETED:
            return await self._removal.turn(self._tools, self._lease, w)
        if self._tools.is_stopping:
            return None
        if w.status is not BotStatus.INACTIVE:
            await self._to(w, BotStatus.INACTIVE, Reason.STOPPED, error=None, failures=0, next_retry_at=None, port=None)
        if w.seen_generation != w.generation:
            await processes.note(self._lease, self.bot_id, generation=w.generation)
        await self._tidy(w)
        return LOOK_INTERVAL

    async def _tidy(self, w: Wanted) -> None:
        """Without a process nothing lies in the home that was taken away from the bot."""
        if self._tidied != w.revision and await launch.tidy(self._tools, w):
            self._tidied = w.revision

    async def _begin_when_due(self, w: Wanted) -> float:
        wait = self._seconds_until_due(w)
        if wait is None:
            await self._tidy(w)
            return LOOK_INTERVAL
        if wait > 0:
            return min(wait, LOOK_INTERVAL)
        if self._lease.may_be_taken:
            # Nothing is started while another server may do the same.
            self._tools.doubt()
            return 1.0
        await self._begin(w)
        return LOOK_INTERVAL

    def _seconds_until_due(self, w: Wanted) -> float | None:
        """0: now; None: not until somebody changes something."""
        if w.status is BotStatus.INACTIVE or w.generation > w.seen_generation or w.revision > w.applied_revision:
            return 0.0
        if self._retry_at is not None:
            return max(0.0, self._retry_at - anyio.current_time())
        if w.next_retry_at is not None:
            left = (w.next_retry_at - datetime.now(UTC)).total_seconds()
            # The wall clock may have jumped; a pause is never longer than the longest one.
            return min(max(0.0, left), restarts.MAX_DELAY * (1 + restarts.JITTER))
        # It failed for good under the version it ran with; another one may do better.
        version = self._tools.openclaw.version
        return 0.0 if version is not None and version != w.openclaw_version and self._is_first else None

    async def _begin(self, w: Wanted) -> None:
        reason = launch.why_started(w, is_first=self._is_first, has_more=self._has_more)
        self._is_first = self._has_more = False
        self._retry_at = None
        self._tidied = None
        nonce = self._nonce = launch.new_nonce()
        is_by_hand = w.generation > w.seen_generation
        if is_by_hand:
            self._lacks.hurry()
        await self._to(
            w,
            BotStatus.STARTING,
            reason,
            phase=Phase.WAITING.value,
            error=None,
            nonce=nonce,
            pid=None,
            memory_bytes=None,
            generation=w.generation,
            started_at=datetime.now(UTC),
            ready_at=None,
            exit_code=None,
            exit_signal=None,
            next_retry_at=None,
            failures=0 if is_by_hand else w.failures,
            restart_count=0 if is_by_hand else w.restart_count + (reason is Reason.RETRY),
            # A start by hand gives a configuration that was taken back another try.
            **({"config_error": None} if is_by_hand else {}),
        )
        await processes.begin_run(self._lease, self.bot_id, nonce)
        self._spawn_task()

    def _spawn_task(self) -> None:
        assert self._tasks is not None
        self._was_cancelled = False
        self._launching = anyio.CancelScope()
        self._tasks.start_soon(self._launch, self._launching)

    async def _launch(self, scope: anyio.CancelScope) -> None:
        await self._in_background(scope, self._start)

    async def _start(self) -> None:
        tried = set[Plugin]()

        async def note(missing: Sequence[Plugin]) -> list[Plugin]:
            return [plugin for plugin in await self._lacks.note(missing) if plugin not in tried]

        while True:
            async with self._tools.slots:
                w = await processes.load(self._lease, self.bot_id)
                if w is None:
                    return
                self._reloader.owner = w.owner
                try:
                    await launch.spawn(self._tools, w, self._attach, note)
                    await self._until_ready()
                    return
                except launch.Unprepared as unprepared:
                    to_try = unprepared.plugins
            tried.update(to_try)
            await self._lacks.install(w, to_try)

    async def _in_background(self, scope: anyio.CancelScope, start: Callable[[], Awaitable[None]]) -> None:
        """A start in the background, so that a stop can end it at any step."""
        try:
            with scope:
                await start()
        except StartFailure as error:
            self._failure = error
        except OSError as error:
            self._failure = SpawnFailed(f"the bot's home cannot be prepared: {error.strerror or error}")
        except LostRace:
            log.warning("start_overtaken")
        except LeaseLost:
            # The supervisor ends what there is of it.
            self._tools.doubt()
        except ClawNetError as error:
            self._failure = SpawnFailed(f"the start was cut short: {error}")
        except Exception:
            # A bug of ours ends this start, by the policy like any other, and never the bot's whole life.
            log.exception("start_broke")
            self._failure = SpawnFailed("the start broke inside ClawNet; the server's log has the details")
        finally:
            self._launching = None
            self.ring()

    async def _until_ready(self) -> None:
        w = await processes.load(self._lease, self.bot_id)
        if w is None or w.port is None or self._gateway is None:
            return
        await launch.ready(self._tools, self._gateway, w.port, self._tools.start_budget)
        now = datetime.now(UTC)
        owner = self._reloader.owner
        if owner is None and w.revision == w.applied_revision:
            # Another server began the start, and nothing was changed since, its owner neither.
            owner = w.owner
        # Where nobody knows whose settings it has, only a new process is sure to have the wanted ones.
        self._reloader.needs_restart = owner is None
        taken = await launch.note_ready(self._tools, w, owner)
        await self._to(
            w, BotStatus.ACTIVE, Reason.READY, phase=None, error=None, ready_at=now, last_seen_at=now, **taken
        )
        await processes.ready_run(self._lease, self.bot_id)
        self._became_active()

    def _became_active(self) -> None:
        self._active_since = anyio.current_time()
        self._is_unhealthy = False
        assert self._tasks is not None
        if self._gateway is not None:
            self._tasks.start_soon(self._probe, self._gateway)
            self._channels = Watcher(self._tools, self._lease, self.bot_id, self._gateway, self._lacks.reasons)
            self._tasks.start_soon(self._channels.run)

    # A bot with a process.

    def _attach(self, gateway: Process) -> None:
        self._gateway = gateway
        self._exit = None
        assert self._tasks is not None
        self._tasks.start_soon(self._watch, gateway)

    async def _watch(self, gateway: Process) -> None:
        exit_ = await gateway.wait()
        if self._gateway is gateway:
            self._exit = exit_
            self.ring()

    async def _probe(self, gateway: Process) -> None:
        if await probes.has_hung(self._tools, self._lease, self.bot_id, gateway, lambda: self._gateway is gateway):
            self._is_unhealthy = True
            self.ring()

    async def _tend(self, w: Wanted, gateway: Process, *, wants_down: bool) -> float | None:
        if wants_down or w.restart_generation > w.seen_generation:
            return await self._stop(w, gateway, self._why_stopped(w))
        if w.status is BotStatus.STOPPING:
            # A stop that a kill of the server interrupted.
            return await self._stop(w, gateway, Reason(w.reason or Reason.STOPPED))
        if self._is_unhealthy:
            exit_ = await gateway.terminate(0.0)
            return await self._ended(w, exit_, Reason.UNHEALTHY)
        if w.status is BotStatus.STARTING and w.port is not None:
            # Somebody moved its row, so nobody waits until it is ready.
            self._wait_again(OVERTAKEN)
            return LOOK_INTERVAL
        if w.status is BotStatus.ACTIVE and w.revision > w.applied_revision:
            if self._reloader.needs_restart:
                return await self._stop(w, gateway, Reason.RECONFIGURE)
            assert self._tasks is not None
            wait = self._reloader.begin(w, self._tasks)
            return LOOK_INTERVAL if wait is None else wait
        if w.generation != w.seen_generation:
            await processes.note(self._lease, self.bot_id, generation=w.generation)
        if w.status is BotStatus.ACTIVE and not self._lacks.is_busy:
            return await self._see_to_plugins(w, gateway)
        return LOOK_INTERVAL

    async def _see_to_plugins(self, w: Wanted, gateway: Process) -> float:
        """What a running bot lacks is downloaded while it runs; then it is started anew, once for all of them."""
        if self._lacks.is_fetched:
            self._has_more = True
            return await self._stop(w, gateway, Reason.RECONFIGURE)
        if wait := self._lacks.wait():
            return min(wait, LOOK_INTERVAL)
        assert self._tasks is not None
        self._lacks.begin(self._tasks)
        return LOOK_INTERVAL

    def _why_stopped(self, w: Wanted) -> Reason:
        if w.desired is DesiredState.DELETED:
            return Reason.DELETED
        return Reason.USER if w.generation > w.seen_generation else Reason.SHUTDOWN

    async def _stop(self, w: Wanted, gateway: Process, reason: Reason) -> float:
        self._lacks.cancel()
        if w.status is not BotStatus.STOPPING:
            await self._to(w, BotStatus.STOPPING, reason, phase=None)
        exit_ = await gateway.terminate(self._grace(w))
        return await self._stopped(exit_)

    def _grace(self, w: Wanted) -> float:
        grace = self._tools.stop_grace if w.stop_grace is None else w.stop_grace
        return grace if self._tools.last_grace is None else min(grace, self._tools.last_grace)

    async def _stopped(self, exit_: Exit) -> float:
        """INACTIVE, once no process with the nonce is left."""
        self._detach()
        w = await processes.load(self._lease, self.bot_id)
        if w is None:
            return 0.0
        exit_ = await self._fit_to_show(w, exit_)
        reason = Reason.KILLED if exit_.signal == "SIGKILL" else Reason.STOPPED
        await self._close_run(w, exit_, reason, is_failure=False)
        await self._to(
            w, BotStatus.INACTIVE, reason, phase=None, error=None, pid=None, memory_bytes=None, failures=0,
            next_retry_at=None, ended_at=datetime.now(UTC), exit_code=exit_.code, exit_signal=exit_.signal,
            port=w.port if w.desired is DesiredState.RUNNING else None,
        )  # fmt: skip
        await self._forget(w)
        return 0.0

    # How it ends.

    async def _ended(self, w: Wanted, exit_: Exit, reason: Reason | None = None) -> float:
        """An exit that nobody asked for, or one that came while the server was away."""
        self._detach()
        self._failure = None
        if w.status is BotStatus.STOPPING or w.desired is not DesiredState.RUNNING:
            return await self._stopped(exit_)
        exit_ = await self._fit_to_show(w, exit_)
        reason, sentence = exits.classify(w.status, exit_, reason)
        log.warning("gateway_ended", reason=reason, code=exit_.code, signal=exit_.signal)
        await self._close_run(w, exit_, reason, is_failure=True)
        if not await self._gone_back(w, reason, sentence, exit_):
            await self._settle(w, reason, sentence, exit_)
        await self._forget(w)
        return 0.0

    async def _failed(self, w: Wanted, failure: StartFailure) -> float:
        """A start that went wrong on our side, or took too long."""
        exit_ = Exit()
        if self._gateway is not None:
            exit_ = await self._fit_to_show(w, await self._gateway.terminate(0.0))
            self._detach()
        if isinstance(failure, AlreadyRunning):
            await removal.end_strays(self.bot_id)
        if w.desired is not DesiredState.RUNNING:
            self._failure = None
            return await self._stopped(exit_)
        log.warning("start_failed", reason=failure.reason, error=str(failure))
        await self._close_run(w, exit_, failure.reason, is_failure=True)
        is_silent = isinstance(failure, StartTimeout) and bool(exit_.tail)
        sentence = f"{failure} ({exit_.tail[-1].strip()})" if is_silent else str(failure)
        if not await self._gone_back(w, failure.reason, sentence, exit_):
            # This revision was tried; another one would be a reason to start at once, this one waits for its turn.
            # What was said of an earlier revision is not said of this one. What was read is never written back: it may
            # have been taken away with the bot meanwhile.
            is_another = w.revision != w.applied_revision
            told = {"config_error": None} if is_another else {}
            await processes.note(self._lease, self.bot_id, config_revision=w.revision, **told)
            await self._settle(w, failure.reason, sentence, exit_)
        self._failure = None
        return 0.0

    async def _gone_back(self, w: Wanted, reason: Reason, sentence: str, exit_: Exit) -> bool:
        """Takes back a configuration with which no process got ready, once; the next start has the last good one."""
        is_tried = w.status is BotStatus.STARTING and w.good_revision < w.applied_revision and w.config_error is None
        if not is_tried or reason not in BLAMED_ON_CONFIG or await launch.last_good(self._tools, w) is None:
            return False
        log.warning("config_taken_back", revision=w.applied_revision, good=w.good_revision, reason=reason)
        await self._tools.recorder.config_refused(self._lease, self.bot_id, w.owner, w.applied_revision, sentence)
        await self._to(
            w, BotStatus.INACTIVE, reason, phase=None, error=None, pid=None, memory_bytes=None, next_retry_at=None,
            ended_at=datetime.now(UTC), exit_code=exit_.code, exit_signal=exit_.signal,
        )  # fmt: skip
        return True

    async def _settle(self, w: Wanted, reason: Reason, sentence: str, exit_: Exit) -> None:
        """Decides by the policy, and writes BACKOFF or ERROR."""
        well_for = 0.0 if self._active_since is None else anyio.current_time() - self._active_since
        self._active_since = None
        in_a_row = 1 if well_for >= restarts.FORGET_AFTER else w.failures + 1
        in_window = await processes.recent_failures(self.bot_id, timedelta(seconds=w.restart_window))
        policy = restarts.Policy(w.restart_mode, w.restart_max, w.restart_backoff)
        verdict = restarts.after_failure(
            policy,
            reason,
            is_clean=exit_.code == 0,
            in_a_row=in_a_row,
            # Failures before the last start by hand are water under the bridge.
            in_window=min(in_window, w.restart_count + 1),
            chance=random.uniform(-1, 1),  # noqa: S311 -- spreads retries, protects nothing
        )
        delay = None if verdict.delay is None else verdict.delay * self._tools.backoff_scale
        self._retry_at = None if delay is None else anyio.current_time() + delay
        now = datetime.now(UTC)
        if self._is_foreign(w):
            # What it says may quote them.
            sentence = GIVEN_AWAY
        await self._tools.recorder.transition(
            self._lease, self.bot_id, w.status_seq, verdict.status, verdict.reason, owner=w.owner,
            phase=None, error=sentence, pid=None, memory_bytes=None,
            failures=in_a_row, ended_at=now, exit_code=exit_.code, exit_signal=exit_.signal,
            next_retry_at=None if delay is None else now + timedelta(seconds=delay),
            # Whoever took the port may have it; the next try looks for another.
            port=None if reason is Reason.PORT_IN_USE else w.port,
        )  # fmt: skip

    # What was there before us.

    async def _adopt(self, w: Wanted) -> float:
        """A row that speaks of a process we do not hold: take it over, or record how it ended."""
        self._nonce = w.nonce
        found = None if w.nonce is None else await process.attach(self._tools.home(w.agent_id), str(w.nonce))
        if isinstance(found, Process):
            return await self._take_over(w, found)
        self._is_first = False
        if found is None and w.status is BotStatus.STARTING:
            # The server went before it had started anything: no failure of the bot's. It may have been installing.
            await removal.end_strays(self.bot_id)
            return await self._stopped(Exit())
        if isinstance(found, Exit):
            return await self._ended(w, found)
        return await self._ended(w, Exit(lost=True))

    async def _take_over(self, w: Wanted, gateway: Process) -> float:
        log.info("gateway_adopted", pid=gateway.pid)
        self._attach(gateway)
        self._is_first = False
        is_active = w.status is BotStatus.ACTIVE
        await self._tools.recorder.adopted(self._lease, self.bot_id, gateway.pid, is_active=is_active)
        self._reloader.owner = None
        self._lacks.forget()
        if is_active:
            self._became_active()
        elif w.status is BotStatus.STARTING:
            self._wait_again()
        return 0.0

    def _wait_again(self, pause: float = 0.0) -> None:
        """Goes on waiting for a start that another server began, or whose wait was cut short."""
        assert self._tasks is not None
        self._launching = anyio.CancelScope()
        self._tasks.start_soon(self._wait_on, self._launching, pause)

    async def _wait_on(self, scope: anyio.CancelScope, pause: float) -> None:
        async def ready() -> None:
            await anyio.sleep(pause)
            await self._until_ready()

        await self._in_background(scope, ready)

    # Small things.

    def _is_foreign(self, w: Wanted) -> bool:
        """The process has, or was to have, the settings of somebody who gave the bot away."""
        return self._reloader.owner not in (None, w.owner)

    async def _fit_to_show(self, w: Wanted, exit_: Exit) -> Exit:
        folder = self._tools.home(w.agent_id)
        return replace(exit_, tail=await anyio.to_thread.run_sync(launch.without_secrets, folder, exit_.tail))

    def _detach(self) -> None:
        if self._channels is not None:
            self._channels.end()
            self._channels = None
        if self._gateway is not None:
            self._gateway.close()
        self._gateway = None
        self._exit = None
        self._is_unhealthy = False
        self._reloader.forget()
        self._lacks.cancel()

    async def _to(self, w: Wanted, status: BotStatus, reason: Reason, **facts: Any) -> None:
        await self._tools.recorder.transition(self._lease, self.bot_id, w.status_seq, status, reason, **facts)

    async def _close_run(self, w: Wanted, exit_: Exit, reason: Reason, *, is_failure: bool) -> None:
        if w.nonce is not None:
            tail = "\n".join(exit_.tail) or None
            await processes.end_run(
                self._lease, w.nonce, reason, is_failure, exit_.code, exit_.signal, tail, exit_.max_rss_kb
            )

    async def _forget(self, w: Wanted) -> None:
        """The exit is in the database, so the home need not remember it."""
        if w.nonce is not None:
            await process.forget(self._tools.home(w.agent_id), str(w.nonce))
