"""Empties the trash, where the homes of deleted bots lie: beside everything else, and until nothing is left."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
import structlog

from app.gateway import trash
from app.supervisor.tools import Tools

log = structlog.get_logger()

T = TypeVar("T")

#: Seconds until what could not be removed is tried again: doubled each time, up to the longest.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0


class Trash:
    """What lies in the trash goes one home after the other, in a thread that ends at once when the server does."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._bell = anyio.Event()
        self._thread = anyio.CapacityLimiter(1)
        self._pause = FIRST_PAUSE
        #: What was said of homes that could not be removed, by their place.
        self._said: dict[Path, str] = {}
        self._is_over = False

    def ring(self) -> None:
        """Something was moved there."""
        self._bell.set()

    async def run(self) -> None:
        """Removes what is there each time it rings, and again while anything is left, until cancelled."""
        pause = None
        try:
            while True:
                with anyio.move_on_after(pause):
                    await self._bell.wait()
                self._bell = anyio.Event()
                pause = self._next(await self._empty())
        finally:
            self._is_over = True

    def _next(self, errors: list[OSError]) -> float | None:
        """Seconds until the next look; None where there is nothing to look at."""
        if not errors:
            self._pause = FIRST_PAUSE
            return None
        if all(isinstance(error, trash.Unfinished) for error in errors):
            # It is on its way; others are to get at the disk as well.
            return trash.BUDGET
        pause, self._pause = self._pause, min(LONGEST_PAUSE, 2 * self._pause)
        return pause

    async def _empty(self) -> list[OSError]:
        """What stood in the way."""
        place = self._tools.base_path / trash.FOLDER
        try:
            graves = await self._aside(partial(trash.graves, self._tools.base_path, self._tools.homes))
        except OSError as error:
            self._say("trash_not_emptied", place, error)
            return [error]
        self._said = {grave: said for grave, said in self._said.items() if grave in graves}
        errors: list[OSError] = []
        # What gave no trouble yet comes first.
        for grave in sorted(graves, key=self._said.__contains__):
            try:
                await self._aside(partial(trash.remove, grave, self._goes_on))
            except OSError as error:
                self._say("home_not_removed", grave, error)
                errors.append(error)
        return errors

    async def _aside(self, act: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(act, abandon_on_cancel=True, limiter=self._thread)

    def _goes_on(self) -> bool:
        return not (self._is_over or self._tools.is_stopping)

    def _say(self, event: str, place: Path, error: OSError) -> None:
        if self._said.get(place) != str(error) and self._goes_on():
            log.warning(event, folder=str(place), error=str(error))
        self._said[place] = str(error)
