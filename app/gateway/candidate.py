"""Asks the installed OpenClaw whether it would take an owner's overrides, before they are kept."""

import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import anyio
from anyio import to_thread

from app.domain.errors import BinaryMissing, ConfigInvalid
from app.gateway import config
from app.gateway.check import REASON_LENGTH, Checker
from app.gateway.config import BotSettings, Dialect, ModelProvider

#: Seconds an answer is waited for, other people's checks included; without one the bot's start has the word.
PATIENCE = 10.0
#: Stand in for what is not looked at; no secret is opened for a question.
_NAME, _PORT, _TOKEN = "candidate", 18789, "candidate-0123456789"
_PROVIDER = ModelProvider(_NAME, "openai-completions", "http://127.0.0.1:9/v1", None)


class Candidates:
    """Renders a bot that has nothing but the overrides, so that whatever is refused is theirs."""

    def __init__(self, rules: Callable[[], Awaitable[tuple[Checker, Dialect]]], homes: Path) -> None:
        self._rules = rules
        self._homes = homes

    async def __call__(self, overrides: dict[str, Any], agent_id: str | None) -> list[tuple[list[str], str]]:
        """Each place that OpenClaw refuses, as a path into the overrides, with its own reason.

        Nothing where it accepts them, is not installed, or does not answer in time.

        Args:
            agent_id: Of the bot whose installed plugins count; None for one that is yet to be made.
        """
        with anyio.move_on_after(PATIENCE):
            try:
                return await self._refused(overrides, agent_id)
            except (BinaryMissing, ConfigInvalid, OSError):
                return []  # The start says so.
        return []

    async def _refused(self, overrides: dict[str, Any], agent_id: str | None) -> list[tuple[list[str], str]]:
        checker, dialect = await self._rules()
        home = self._homes / (agent_id or _NAME)
        async with _asked_in(home) as folder:
            found = await checker.issues(_rendered(overrides, home, dialect), folder)
            # What it says of a bot without overrides as well is not their fault.
            usual = await checker.issues(_rendered({}, home, dialect), folder) if found else ()
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


def _rendered(overrides: dict[str, Any], home: Path, dialect: Dialect) -> dict[str, Any]:
    settings = BotSettings(
        agent_id=_NAME,
        name=_NAME,
        model=f"{_NAME}/{_NAME}",
        system_prompt="",
        home=home,
        port=_PORT,
        gateway_token=_TOKEN,
        providers=[_PROVIDER],
        overrides=overrides,
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
