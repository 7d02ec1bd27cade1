"""Looks every now and then whether a gateway answers, and notes that it lives."""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from uuid import UUID

import anyio
import structlog

from app.domain.errors import ClawNetError
from app.domain.states import BotStatus
from app.gateway.process import Process
from app.services import processes
from app.services.nodes import Lease
from app.supervisor.tools import Tools

log = structlog.get_logger()

#: Seconds a health probe may take, and how many in a row may fail.
PROBE_TIMEOUT, MISSES = 3.0, 3


async def has_hung(tools: Tools, lease: Lease, bot_id: UUID, gateway: Process, is_held: Callable[[], bool]) -> bool:
    """Watches an active bot's gateway. True after several misses in a row, False once there is nothing to look at.

    Args:
        is_held: The bot's process is still this one.
    """
    misses = 0
    with suppress(ClawNetError):
        await _note_life(lease, bot_id, gateway, is_held)
    while is_held() and gateway.is_alive:
        await anyio.sleep(tools.health_interval)
        try:
            w = await processes.load(lease, bot_id)
            if w is None or w.port is None or w.status is not BotStatus.ACTIVE:
                return False
            found = await tools.prober.is_ready(w.port, PROBE_TIMEOUT, tools.kind)
            misses = 0 if found.is_ready else misses + 1
            if found.is_ready:
                await _note_life(lease, bot_id, gateway, is_held)
        except ClawNetError as error:
            log.warning("probe_not_recorded", error=str(error))
            continue
        if not found.is_ready:
            log.warning("probe_missed", misses=misses, reason=found.reason)
        if misses >= MISSES:
            return True
    return False


async def _note_life(lease: Lease, bot_id: UUID, gateway: Process, is_held: Callable[[], bool]) -> None:
    memory = await gateway.rss_bytes()
    if is_held():
        await processes.note(lease, bot_id, last_seen_at=datetime.now(UTC), memory_bytes=memory)
