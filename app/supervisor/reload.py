"""Changes the configuration of a bot that is running, without ending its process where that can be done."""

from collections.abc import Callable
from dataclasses import dataclass

import anyio
import anyio.to_thread
import structlog

from app.domain.errors import ConfigInvalid, SpawnFailed
from app.gateway import config, lastgood, reloads
from app.gateway.plugins import Plugin
from app.gateway.reloads import Outcome
from app.services.processes import Wanted
from app.supervisor import launch
from app.supervisor.tools import Tools

log = structlog.get_logger()

#: Seconds without another edit after which a change is applied, and seconds after which it is in any case.
QUIET, LATEST = 0.5, 3.0
#: Seconds for the last word on something that was cut short.
CLEAN_UP = 5.0


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


async def apply(tools: Tools, w: Wanted, lacks: Callable[[list[Plugin]], None]) -> bool:
    """Gives the wanted revision to the running process. False where only a new process reads it.

    Args:
        lacks: Is told which plugins have to be fetched for it, before that is done.

    Raises:
        StartFailure: It is refused, or lacks something; the process runs on with what it had, and so does the file.
    """
    assert w.port is not None  # The process is ACTIVE.
    openclaw = await tools.openclaw.get()
    folder = tools.home(w.agent_id)
    rendered = await launch.render(tools, openclaw, w, w.port)
    is_same = rendered.sha256 == w.config_sha256
    # A change that was cut short may lie there, and be in force: then going back is a change as well.
    if is_same and await anyio.to_thread.run_sync(lastgood.is_in_use, folder, rendered.tree):
        lacks([])
        await launch.note_taken(tools, w, rendered)
        return True
    missing = await openclaw.plugins.missing(folder, rendered.tree)
    if all(plugin.is_official for plugin in missing):
        await openclaw.checker.check(rendered.tree, folder)
    lacks(missing)
    if missing:
        # A running gateway holds the home, and loads a plugin only when it starts.
        await _download(tools, w, missing)
        log.info("config_needs_restart", revision=w.revision, plugins=[plugin.spec for plugin in missing])
        return False
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


async def _download(tools: Tools, w: Wanted, plugins: list[Plugin]) -> None:
    try:
        await launch.prepare(tools, w, plugins, is_running=True)
    finally:
        with anyio.move_on_after(CLEAN_UP, shield=True):
            await tools.recorder.phase(w.lease, w.bot_id, None, is_running=True)


async def _write(tools: Tools, w: Wanted, tree: dict[str, object]) -> None:
    path = tools.home(w.agent_id) / launch.CONFIG_FILE
    try:
        await anyio.to_thread.run_sync(config.write, path, config.to_text(tree))
    except OSError as error:
        raise SpawnFailed(f"the configuration cannot be written: {error.strerror or error}") from error
