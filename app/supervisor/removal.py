"""How a bot goes: its home and its rows, and processes that no row speaks of."""

from uuid import UUID

import anyio
import anyio.to_thread
import structlog

from app.domain.states import BotStatus, Reason
from app.gateway import config, process, trash
from app.services.nodes import Lease
from app.services.processes import Wanted
from app.supervisor.tools import Tools

log = structlog.get_logger()

#: Seconds until a home that cannot be moved is tried again: doubled each time, up to the longest.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0


class Removal:
    """The removal of one bot, tried until it is done."""

    def __init__(self) -> None:
        self._pause = FIRST_PAUSE
        self._due = 0.0
        #: What stood in its way the last time, as it was told.
        self._why: str | None = None

    async def turn(self, tools: Tools, lease: Lease, w: Wanted) -> float | None:
        """The home is moved aside and the rows go; None once they are gone, else the seconds until the next try.

        In this order a kill at any step leaves something to go on from: a row as long as the home is in its place, and
        then what lies in the trash. While the server goes down there is no next try.
        """
        if (left := self._due - anyio.current_time()) <= 0:
            await end_strays(w.bot_id)
            why_not = await _move(tools, w)
            if why_not is None:
                await _delete(tools, lease, w)
                return None
            left = self._pause
            await self._hold_up(tools, lease, w, why_not)
        return None if tools.is_stopping else left

    async def _hold_up(self, tools: Tools, lease: Lease, w: Wanted, error: OSError) -> None:
        self._due = anyio.current_time() + self._pause
        self._pause = min(LONGEST_PAUSE, 2 * self._pause)
        why = f"its home cannot be moved: {error.strerror}"
        if why == self._why:
            return
        log.warning("home_not_moved", error=str(error))
        if w.status is not BotStatus.INACTIVE:
            # Why it failed once is no reason why it is still there.
            await tools.recorder.transition(
                lease, w.bot_id, w.status_seq, BotStatus.INACTIVE, Reason.STOPPED, error=None, next_retry_at=None
            )
        await tools.recorder.removal_held_up(lease, w.bot_id, why)
        self._why = why


async def _move(tools: Tools, w: Wanted) -> OSError | None:
    """Why it cannot be moved, if so."""
    try:
        await anyio.to_thread.run_sync(trash.take, tools.base_path, tools.home(w.agent_id))
    except OSError as error:
        return error
    finally:
        # Whatever becomes of the rows.
        tools.empty_trash()
    config.forget(tools.home(w.agent_id))
    return None


async def _delete(tools: Tools, lease: Lease, w: Wanted) -> None:
    await tools.recorder.delete(lease, w.bot_id)
    log.info("bot_deleted", agent_id=w.agent_id)


async def end_strays(bot_id: UUID) -> None:
    """Ends what an incarnation that no row of ours speaks of left on this machine; it would be a second copy."""
    for nonce in {stray.nonce for stray in await process.strays(str(bot_id)) if stray.nonce is not None}:
        log.warning("strays_ended", bot_id=str(bot_id), count=await process.sweep(nonce))
