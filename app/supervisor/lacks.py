"""The plugins that one bot's home lacks: gets them, and remembers why one cannot be had and when it is tried again.

Nothing waits for a plugin but the channel that needs it: that is left out of the bot's configuration meanwhile.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import inf
from uuid import UUID

import anyio
import anyio.abc
import structlog

from app.domain.errors import AlreadyRunning, ClawNetError, PluginMissing, StartFailure
from app.domain.events import PhaseProgress
from app.domain.states import BotStatus, Phase, PluginStep
from app.gateway import process
from app.gateway.plugins import Plugin, Tell
from app.services import channel_states, processes
from app.services.nodes import Lease, LeaseLost
from app.services.processes import Wanted
from app.services.recorder import LostRace
from app.supervisor import launch
from app.supervisor.tools import Tools

log = structlog.get_logger()

#: Seconds until a plugin that cannot be had is tried again; they double from the first to the last.
FIRST_PAUSE, LAST_PAUSE = 60.0, 1800.0
#: Seconds until a running bot is looked at again whose configuration cannot be told for now.
BLIND_PAUSE = 30.0
#: Restarts of a running bot for a plugin whose installation then fails, until somebody changes its channel.
RESTARTS = 3

#: What of a provider's channels people changed last.
Edited = frozenset[tuple[UUID, datetime]]


@dataclass(slots=True)
class _Lack:
    """One plugin that is not there."""

    plugin: Plugin
    edited: Edited
    tries: int = 0
    next_at: float = -inf
    #: It is in the cache, for the next start to install.
    is_fetched: bool = False
    restarts: int = 0


@dataclass(slots=True)
class _Try:
    """How trying to get one plugin ended."""

    is_done: bool = False
    #: Why it cannot be had.
    why: str | None = None
    lost: LeaseLost | LostRace | None = None
    #: By which it was wanted last.
    revision: int | None = None


class Lacks:
    """What one bot lacks, from its first start to its end."""

    def __init__(self, bot_id: UUID, tools: Tools, lease: Lease, ring: Callable[[], None]) -> None:
        self._bot_id = bot_id
        self._tools = tools
        self._lease = lease
        self._ring = ring
        self._fetching: anyio.CancelScope | None = None
        self._lacks: dict[str, _Lack] = {}
        #: By provider, why its plugin is not there; None while that is not known yet.
        self.reasons: dict[str, str | None] = {}
        self._bell = anyio.Event()
        self._is_known = False
        self._look_at = -inf
        self._has_told = False

    def ring(self) -> None:
        """Somebody may have changed something: what is being fetched may not be wanted any more."""
        self._bell.set()

    def hurry(self) -> None:
        """A person wants the bot started: everything is tried once more."""
        for lack in self._lacks.values():
            lack.tries, lack.next_at, lack.restarts = 0, -inf, 0

    def forget(self) -> None:
        """Nobody knows what the process that was taken over lacks."""
        self._is_known = False

    def wait(self) -> float:
        """Seconds until `begin` has something to do for a running bot; 0: now."""
        now = anyio.current_time()
        if not self._is_known:
            return max(0.0, self._look_at - now)
        return max(0.0, min((lack.next_at - now for lack in self._waited_for()), default=inf))

    @property
    def is_fetched(self) -> bool:
        """Something is there for a running bot, which a start installs."""
        return any(lack.is_fetched for lack in self._lacks.values())

    def _waited_for(self) -> list[_Lack]:
        return [lack for lack in self._lacks.values() if not lack.is_fetched and lack.restarts < RESTARTS]

    async def note(self, missing: Sequence[Plugin]) -> list[Plugin]:
        """This is all that the bot lacks; those of it that it is time to try."""
        rows = await channel_states.of_bot(self._bot_id) if missing else []
        found: dict[str, _Lack] = {}
        for plugin in missing:
            edited = frozenset((row.channel_id, row.updated_at) for row in rows if row.provider == plugin.provider)
            lack = self._lacks.get(plugin.provider)
            is_new = lack is None or (lack.plugin, lack.edited) != (plugin, edited)
            found[plugin.provider] = _Lack(plugin, edited) if lack is None or is_new else lack
        self._lacks, self._is_known = found, True
        reasons = {name: self.reasons.get(name) for name in found}
        # A watcher holds the same mapping.
        self.reasons.clear()
        self.reasons.update(reasons)
        now = anyio.current_time()
        return [lack.plugin for lack in found.values() if lack.is_fetched or lack.next_at <= now]

    async def install(self, w: Wanted, plugins: Sequence[Plugin]) -> None:
        """Installs what a start needs, visibly. What cannot be had is told at its channel, and noted.

        Raises:
            AlreadyRunning: There is a process that no row speaks of, and it would be asked to install.
        """
        home = self._tools.home(w.agent_id)
        if await process.is_held(home):
            raise AlreadyRunning(f"a process of this bot is alive: {home}/run/lock is held")
        openclaw = await self._tools.openclaw.get()
        for number, plugin in enumerate(plugins, 1):
            progress = PhaseProgress(plugin.provider, number, len(plugins), PluginStep.WAITING, 0)

            async def install(tell: Tell, plugin: Plugin = plugin) -> None:
                await openclaw.plugins.install(plugin, home, w.bot_id, tell)

            is_fetched = (lack := self._lacks.get(plugin.provider)) is not None and lack.is_fetched
            if await self._get(plugin, progress, install, is_running=False):
                # What was said of an earlier try is true no more.
                await self._say(plugin, None)
            elif lack is not None:
                lack.is_fetched = False
                lack.restarts += is_fetched
        await self._tell(Phase.WAITING, None, is_running=False)

    @property
    def is_busy(self) -> bool:
        return self._fetching is not None

    def begin(self, tasks: anyio.abc.TaskGroup) -> None:
        """Fetches in the background what the running bot lacks; `is_fetched` says whether to start it anew."""
        self._fetching = anyio.CancelScope()
        tasks.start_soon(self._in_background, self._fetching)

    def cancel(self) -> None:
        """The process is to end, or has; nothing is told of what it lacked any more."""
        if self._fetching is not None:
            self._fetching.cancel()
            self._fetching = None

    async def _in_background(self, scope: anyio.CancelScope) -> None:
        try:
            with scope:
                await self._fetch()
        except LeaseLost:
            self._tools.doubt()
        except ClawNetError as error:
            log.warning("plugins_not_fetched", error=str(error))
            await anyio.sleep(1.0)
        except Exception:
            # The bot runs well without them, and goes on so.
            log.exception("fetch_broke")
            await anyio.sleep(BLIND_PAUSE)
        finally:
            if self._fetching is scope:
                self._fetching = None
            self._ring()

    async def _fetch(self) -> None:
        """Downloads what a running bot lacks, where it is time to try."""
        self._has_told = False
        if not await self._look():
            return
        now = anyio.current_time()
        due = [lack for lack in self._waited_for() if lack.next_at <= now]
        openclaw = await self._tools.openclaw.get()
        for number, lack in enumerate(due, 1):
            progress = PhaseProgress(lack.plugin.provider, number, len(due), PluginStep.WAITING, 0)

            async def download(tell: Tell, lack: _Lack = lack) -> None:
                await openclaw.plugins.download(lack.plugin, tell)

            # Tries that fail again and again are no news; what is being downloaded is.
            lack.is_fetched = await self._get(lack.plugin, progress, download, is_running=True, is_quiet=lack.tries > 0)
        if self._has_told:
            await self._tell(None, None, is_running=True)
        if due:
            # What nobody wants any more is no reason for a restart.
            await self._look()

    async def _look(self) -> bool:
        """Finds out what the running bot lacks; False where that cannot be told for now."""
        w = await processes.load(self._lease, self._bot_id)
        if w is None or w.status is not BotStatus.ACTIVE:
            return False
        try:
            await self.note(await launch.lacking(self._tools, w))
        except (StartFailure, OSError) as error:
            log.info("plugins_not_looked_at", why=str(error))
            self._is_known, self._look_at = False, anyio.current_time() + BLIND_PAUSE
            return False
        return True

    async def _get(
        self,
        plugin: Plugin,
        progress: PhaseProgress,
        work: Callable[[Tell], Awaitable[None]],
        *,
        is_running: bool,
        is_quiet: bool = False,
    ) -> bool:
        """Whether it was got. Ends at once where nobody wants it any more, and then it is no failure.

        Raises:
            LeaseLost: The bot is another server's by now.
        """
        end = _Try()
        async with anyio.create_task_group() as tasks:

            async def tell(step: PluginStep, megabytes: int) -> None:
                if is_quiet and step in (PluginStep.WAITING, PluginStep.ASKING):
                    return
                said = PhaseProgress(progress.provider, progress.number, progress.total, step, megabytes)
                try:
                    await self._tell(Phase.PLUGIN, said, is_running=is_running)
                except (LeaseLost, LostRace) as error:
                    end.lost = error
                    tasks.cancel_scope.cancel()

            self._bell = anyio.Event()
            is_wanted = await self._is_wanted(plugin, end)
            if is_wanted:
                tasks.start_soon(self._watch, plugin, end, tasks.cancel_scope)
                end.why = await self._why_not(plugin, work, tell)
                end.is_done = end.why is None
            tasks.cancel_scope.cancel()
        if end.lost is not None:
            raise end.lost
        if end.why is not None:
            self._put_off(plugin)
            await self._say(plugin, end.why)
        return end.is_done

    async def _why_not(self, plugin: Plugin, work: Callable[[Tell], Awaitable[None]], tell: Tell) -> str | None:
        """Does it; None once it is done."""
        await tell(PluginStep.WAITING, 0)
        try:
            async with self._tools.plugin_slots:
                await work(tell)
        except PluginMissing as error:
            return str(error)
        except (OSError, ClawNetError) as error:
            log.warning("plugin_not_prepared", plugin=plugin.spec, error=str(error))
            why = (error.strerror or "a file cannot be written") if isinstance(error, OSError) else str(error)
            return f"{plugin.label}'s plugin ({plugin.spec}) cannot be installed: {why.rstrip('.')}."
        return None

    async def _watch(self, plugin: Plugin, end: _Try, scope: anyio.CancelScope) -> None:
        while True:
            await self._bell.wait()
            self._bell = anyio.Event()
            if not await self._is_wanted(plugin, end):
                scope.cancel()

    async def _is_wanted(self, plugin: Plugin, end: _Try) -> bool:
        """By the row as it is now; where nobody can tell, it was wanted a moment ago."""
        try:
            w = await processes.load(self._lease, self._bot_id)
            if w is None or w.revision == end.revision:
                return w is not None
            end.revision = w.revision
            return plugin in await launch.wanted(self._tools, w)
        except (LeaseLost, LostRace) as error:
            end.lost = error
            return False
        except (ClawNetError, OSError) as error:
            log.info("plugins_not_looked_at", why=str(error))
            return True

    def _put_off(self, plugin: Plugin) -> None:
        lack = self._lacks.get(plugin.provider)
        if lack is None or lack.plugin != plugin:
            return
        pause = min(LAST_PAUSE, FIRST_PAUSE * 2 ** min(lack.tries, 16)) * self._tools.backoff_scale
        lack.tries += 1
        lack.next_at = anyio.current_time() + pause

    async def _say(self, plugin: Plugin, why: str | None) -> None:
        """At its channels, at once; a watcher of a bot that runs goes on saying so."""
        if plugin.provider in self._lacks:
            self.reasons[plugin.provider] = why
        try:
            await self._tools.recorder.channels_closed(self._lease, self._bot_id, plugin.provider, why)
        except LeaseLost:
            raise
        except ClawNetError as error:
            log.warning("plugin_not_told", error=str(error))

    async def _tell(self, phase: Phase | None, progress: PhaseProgress | None, *, is_running: bool) -> None:
        """Shows what is being done; where the database is away for a moment, that goes on all the same."""
        try:
            await self._tools.recorder.phase(self._lease, self._bot_id, phase, progress, is_running=is_running)
            self._has_told = True
        except (LeaseLost, LostRace):
            raise
        except ClawNetError as error:
            log.warning("phase_not_told", error=str(error))
