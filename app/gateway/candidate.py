"""Asks the installed OpenClaw whether it would take an owner's overrides or models, before they are kept."""

import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import anyio
from anyio import to_thread

from app.domain.errors import BinaryMissing, ConfigInvalid, RateLimited
from app.gateway import config
from app.gateway.check import REASON_LENGTH, Checker
from app.gateway.config import BotSettings, Dialect, ModelProvider
from app.gateway.overrides import Reserved

#: Seconds somebody waits for a turn, and then for the answer; without an answer the bot's start has the word.
TURN, PATIENCE = 10.0, 20.0
#: Stand in for what is not looked at; no secret is opened for a question.
_NAME, _PORT, _TOKEN = "candidate", 18789, "candidate-0123456789"
_MODELS = f"models.providers.{_NAME}.models."
_PROVIDER = ModelProvider(_NAME, "openai-completions", "http://127.0.0.1:9/v1", None)


class Candidates:
    """Renders a bot that has nothing but what is asked about, so that whatever is refused is in that.

    One question is asked at a time, which leaves a place for starts, and one of each person's waits for it: whoever
    asks a hundred keeps nobody else waiting but for one. What got no turn is refused, or many questions would be a way
    around the answer.
    """

    def __init__(self, rules: Callable[[], Awaitable[tuple[Checker, Dialect, Reserved]]], homes: Path) -> None:
        self._rules = rules
        self._homes = homes
        self._place = anyio.CapacityLimiter(1)
        self._turns: dict[UUID, anyio.Lock] = {}

    async def __call__(self, who: UUID, overrides: dict[str, Any], agent_id: str | None) -> list[tuple[list[str], str]]:
        """Each place that OpenClaw refuses, as a path into the overrides, with its own reason.

        Nothing where it accepts them, is not installed, or does not answer in time.

        Args:
            who: Asks.
            agent_id: Of the bot whose installed plugins count; None for one that is yet to be made.

        Raises:
            RateLimited: It got no turn in time.
        """
        async with self._turn(who):
            with anyio.move_on_after(PATIENCE), suppress(BinaryMissing, ConfigInvalid, OSError):
                return await self._refused(overrides, agent_id)
        return []  # The start says so.

    async def models(self, who: UUID, models: list[Any]) -> list[tuple[list[str], str]]:
        """Each place of a model provider's models that is refused, as a path into them, with the reason.

        Nothing where OpenClaw accepts them, is not installed, or does not answer in time.

        Raises:
            RateLimited: It got no turn in time.
        """
        async with self._turn(who):
            with anyio.move_on_after(PATIENCE), suppress(BinaryMissing, OSError):
                return [(_place(models, path), why[:REASON_LENGTH]) for path, why in await self._refused_models(models)]
        return []  # The start says so.

    @asynccontextmanager
    async def _turn(self, who: UUID) -> AsyncGenerator[None]:
        mine = self._turns.setdefault(who, anyio.Lock())
        try:
            with anyio.move_on_after(TURN) as waiting:
                await mine.acquire()
                try:
                    await self._place.acquire()
                except BaseException:
                    mine.release()
                    raise
            if waiting.cancelled_caught:
                raise RateLimited("OpenClaw is being asked about too many settings; try again", TURN)
            try:
                yield
            finally:
                self._place.release()
                mine.release()
        finally:
            if not mine.locked() and not mine.statistics().tasks_waiting:
                self._turns.pop(who, None)

    async def _refused_models(self, models: list[Any]) -> list[tuple[str, str]]:
        checker, dialect, reserved = await self._rules()
        home = self._homes / _NAME
        try:
            rendered = _rendered({}, home, dialect, reserved, models)
        except ConfigInvalid as error:  # What we ourselves let nobody say of a model.
            path, _, why = str(error).partition(": ")
            return [(path.removeprefix(_MODELS), why)]
        async with _asked_in(home) as folder:
            found = await checker.issues(rendered, folder)
        return [(path.removeprefix(_MODELS), why) for path, why in found if path.startswith(_MODELS)]

    async def _refused(self, overrides: dict[str, Any], agent_id: str | None) -> list[tuple[list[str], str]]:
        checker, dialect, reserved = await self._rules()
        home = self._homes / (agent_id or _NAME)
        async with _asked_in(home) as folder:
            found = await checker.issues(_rendered(overrides, home, dialect, reserved), folder)
            # What it says of a bot without overrides as well is not their fault.
            usual = await checker.issues(_rendered({}, home, dialect, reserved), folder) if found else ()
        return [(_place(overrides, path), why[:REASON_LENGTH]) for path, why in found if (path, why) not in usual]


@asynccontextmanager
async def _asked_in(home: Path) -> AsyncGenerator[Path]:
    """The bot's home, or an empty one where it has none yet."""
    if await anyio.Path(home / "run").is_dir():
        yield home
        return
    scratch = await to_thread.run_sync(lambda: tempfile.TemporaryDirectory(prefix="clawnet-"))
    try:
        for name in ("run", "home", "tmp"):
            await anyio.Path(scratch.name, name).mkdir()
        yield Path(scratch.name)
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(scratch.cleanup)


def _rendered(
    overrides: dict[str, Any], home: Path, dialect: Dialect, reserved: Reserved, models: Sequence[Any] = ()
) -> dict[str, Any]:
    settings = BotSettings(
        agent_id=_NAME,
        name=_NAME,
        model=f"{_NAME}/{_NAME}",
        system_prompt="",
        home=home,
        port=_PORT,
        gateway_token=_TOKEN,
        providers=[replace(_PROVIDER, models=models)],
        overrides=overrides,
        reserved=reserved,
    )
    return config.render(settings, dialect)


def _place(tree: Any, path: str) -> list[str]:
    """The path as far as it leads into the tree. Names may hold dots, so it is read along the tree."""
    found: list[str] = []
    while path:
        names = _names(tree)
        name = max((each for each in names if path == each or path.startswith(f"{each}.")), key=len, default=None)
        if name is None:
            break
        found.append(name)
        tree, path = names[name], path[len(name) + 1 :]
    return found


def _names(tree: Any) -> Mapping[str, Any]:
    if isinstance(tree, Mapping):
        return cast("Mapping[str, Any]", tree)
    if isinstance(tree, list):
        return {str(number): each for number, each in enumerate(cast("list[Any]", tree))}
    return {}
