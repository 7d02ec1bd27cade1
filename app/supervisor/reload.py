"""Changes the configuration of a bot that is running, without ending its process where that can be done."""

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

import anyio
import anyio.abc
import anyio.to_thread
import structlog

from app.domain.errors import ClawNetError, ConfigInvalid, SpawnFailed, StartFailure
from app.gateway import config, lastgood, reloads
from app.gateway.reloads import Outcome
from app.services import processes
from app.services.nodes import Lease, LeaseLost
from app.services.processes import Wanted
from app.supervisor import launch
from app.supervisor.lacks import Lacks
from app.supervisor.tools import Tools

log = structlog.get_logger()

#: Seconds without another edit after which a change is applied, and seconds after which it is in any case.
QUIET, LATEST = 0.5, 3.0
#: Seconds until a change is tried again that something on the machine stood in the way of.
HELD_UP = 5.0


@dataclass(slots=True)
class Edits:
    """When a change is applied: edits come in bursts, and ten of them are one change."""

    _revision: int | None = None
    _first: float = 0.0
    _last: float = 0.0

    def wait(self, revision: int, now: float) -> float:
        """Seconds until this revision is to be applied; 0: now."""
        if self._revision is None:
            self._first = now
        if revision != self._revision:
            self._revision, self._last = revision, now
        return max(0.0, min(self._last + QUIET, self._first + LATEST) - now)

    def forget(self) -> None:
        """They were applied, or there is no process to apply them to."""
        self._revision = None


class Reloader:
    """Brings newer revisions to one bot's process, in the background."""

    def __init__(self, bot_id: UUID, tools: Tools, lease: Lease, lacks: Lacks, ring: Callable[[], None]) -> None:
        self._bot_id = bot_id
        self._tools = tools
        self._lease = lease
        self._lacks = lacks
        self._ring = ring
        self._edits = Edits()
        self._running: anyio.CancelScope | None = None
        #: A revision that could not be applied, and when it is tried again.
        self._held_up: tuple[int, float] = (0, 0.0)
        #: The running process does not take the wanted configuration; a new one will.
        self.needs_restart = False
        #: Whose settings the process has; None where that was not seen.
        self.owner: UUID | None = None

    @property
    def is_busy(self) -> bool:
        return self._running is not None

    def cancel(self) -> None:
        """Something else is to be done with the process."""
        if self._running is not None:
            self._running.cancel()

    def forget(self) -> None:
        """There is no process any more."""
        self.needs_restart = False
        self._edits.forget()

    def begin(self, w: Wanted, tasks: anyio.abc.TaskGroup) -> float | None:
        """Begins once the edits have come to rest: seconds until then, or None where it was begun."""
        revision, until = self._held_up
        if w.revision == revision and (left := until - anyio.current_time()) > 0:
            return left
        if wait := self._edits.wait(w.revision, anyio.current_time()):
            return wait
        self._running = anyio.CancelScope()
        tasks.start_soon(self._reload, self._running)
        return None

    async def _reload(self, scope: anyio.CancelScope) -> None:
        """A change in the background, so that a stop can end the wait for the gateway's answer."""
        try:
            with scope:
                w = await processes.load(self._lease, self._bot_id)
                if w is not None:
                    await self._give(w)
        except LeaseLost:
            self._tools.doubt()
        except ClawNetError as error:
            # The database is away, say; the wanted revision is still newer, so this comes again.
            log.warning("config_held_up", error=str(error))
            await anyio.sleep(1.0)
        except Exception:
            # A bug of ours: a start has the means to deal with it.
            log.exception("reload_broke")
            self.needs_restart = True
        finally:
            self._edits.forget()
            self._running = None
            self._ring()

    async def _give(self, w: Wanted) -> None:
        """Refused changes leave the running process alone."""
        try:
            self.needs_restart = not await apply(self._tools, w, self._lacks)
            if not self.needs_restart:
                self.owner = w.owner
        except StartFailure as error:
            is_refused = isinstance(error, ConfigInvalid)
            log.warning("config_refused" if is_refused else "config_held_up", revision=w.revision, error=str(error))
            if await launch.runs_with_more(self._tools, w):
                # What it runs with was given away or taken away: rather no process than that one.
                self.needs_restart = True
            elif is_refused:
                await self._tools.recorder.config_refused(self._lease, self._bot_id, w.owner, w.revision, str(error))
            else:
                # A full disk, say, or a key that is not here yet: the change is still wanted.
                self._held_up = (w.revision, anyio.current_time() + HELD_UP)


async def apply(tools: Tools, w: Wanted, lacks: Lacks) -> bool:
    """Gives the wanted revision to the running process. False where only a new process reads it.

    Raises:
        StartFailure: It is refused, or lacks something; the process runs on with what it had, and so does the file.
    """
    assert w.port is not None  # The process is ACTIVE.
    openclaw = await tools.openclaw.get()
    folder = tools.home(w.agent_id)
    rendered = await launch.render(tools, openclaw, w, w.port)
    missing = await launch.lacking(tools, w, rendered.tree)
    # A running gateway holds the home, and loads a plugin only when it starts. Everything else it takes now.
    await lacks.note(missing)
    rendered = launch.Rendered.of(launch.without(rendered.tree, missing))
    is_same = rendered.sha256 == w.config_sha256
    # A change that was cut short may lie there, and be in force: then going back is a change as well.
    if is_same and await anyio.to_thread.run_sync(lastgood.is_in_use, folder, rendered.tree):
        await launch.note_taken(tools, w, rendered)
        return True
    await openclaw.checker.check(rendered.tree, folder)
    kept = await launch.last_taken(tools, w)
    before = kept and kept.tree
    if before is None or not await anyio.to_thread.run_sync(lastgood.is_in_use, folder, before):
        log.info("config_needs_restart", revision=w.revision, why="what the process runs with is not known")
        return False
    if paths := reloads.needing_restart(before, rendered.tree, openclaw.dialect):
        log.info("config_needs_restart", revision=w.revision, paths=paths)
        return False
    watch = await anyio.to_thread.run_sync(reloads.Watch, folder)
    await _write(tools, w, rendered.tree)
    verdict = await watch.verdict(before, rendered.tree, openclaw.dialect)
    why = config.hide(verdict.why, rendered.tree)
    if verdict.outcome is Outcome.REFUSED:
        await _write(tools, w, before)
        raise ConfigInvalid(f"OpenClaw refuses the configuration: {why}")
    if verdict.outcome is Outcome.UNSURE:
        log.warning("config_not_taken", revision=w.revision, why=why)
        return False
    await launch.note_taken(tools, w, rendered)
    log.info("config_taken", revision=w.revision)
    return True


async def _write(tools: Tools, w: Wanted, tree: dict[str, object]) -> None:
    path = tools.home(w.agent_id) / launch.CONFIG_FILE
    try:
        await anyio.to_thread.run_sync(config.write, path, config.to_text(tree))
    except OSError as error:
        raise SpawnFailed(f"the configuration cannot be written: {error.strerror or error}") from error
