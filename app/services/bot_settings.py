"""What a person sets on a bot, checked and turned into the columns that keep it."""

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from app.domain.errors import Invalid
from app.domain.ports import OverridesTried, RefusedOverrides
from app.domain.states import RestartMode
from app.services import models, words

#: Bounds of a restart policy.
MAX_RESTARTS, MAX_WINDOW, MAX_BACKOFF = 1_000, 86_400, 300.0

#: Columns that end up in the configuration; labels and the restart policy are ours alone.
CONFIGURED = frozenset({"name", "model", "system_prompt", "config_overrides"})


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """What is done after a crash: at most so many restarts in a window (s), the first after a pause (s)."""

    mode: RestartMode
    max_restarts: int
    window_seconds: int
    backoff_seconds: float

    def columns(self) -> dict[str, Any]:
        """As it is kept. Raises `Invalid` for what lies outside the bounds."""
        field = "restartPolicy"
        if not 0 <= self.max_restarts <= MAX_RESTARTS:
            raise Invalid(f"maxRestarts must lie between 0 and {MAX_RESTARTS}", field, "maxRestarts")
        if not 1 <= self.window_seconds <= MAX_WINDOW:
            raise Invalid(f"windowSeconds must lie between 1 and {MAX_WINDOW}", field, "windowSeconds")
        if not 0.1 <= self.backoff_seconds <= MAX_BACKOFF:
            raise Invalid(f"backoffSeconds must lie between 0.1 and {MAX_BACKOFF:g}", field, "backoffSeconds")
        return {
            "restart_mode": self.mode.value,
            "restart_max": self.max_restarts,
            "restart_window": self.window_seconds,
            "restart_backoff": self.backoff_seconds,
        }


DEFAULT_POLICY = RestartPolicy(RestartMode.ALWAYS, 5, 600, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A bot to be made; `settings` as `columns` takes them."""

    settings: dict[str, Any]
    agent_id: str | None = None
    start: bool = False


async def columns(owner: UUID, settings: dict[str, Any], refused: RefusedOverrides) -> dict[str, Any]:
    """The columns to write, inside the caller's transaction. Raises a `Refusal` that names the field.

    Args:
        settings: By name of the input's field: name, model, systemPrompt, description, tags, restartPolicy,
            configOverrides. None clears what can be empty.
    """
    found: dict[str, Any] = {}
    for field, value in settings.items():
        match field:
            case "name":
                found["name"] = words.line(value or "", "name", words.MAX_NAME)
            case "model":
                found["model"] = await models.require(owner, value or "")
            case "systemPrompt":
                found["system_prompt"] = value and words.prose(value, field, words.MAX_PROMPT)
            case "description":
                found["description"] = value and words.prose(value, field, words.MAX_DESCRIPTION)
            case "tags":
                found["tags"] = words.tags(value or [])
            case "configOverrides":
                found["config_overrides"] = _overrides(value, refused)
            case "restartPolicy":
                policy: RestartPolicy = value or DEFAULT_POLICY
                found |= policy.columns()
            case _:
                raise ValueError(f"no such setting: {field}")
    return found


async def try_overrides(
    who: UUID,
    value: Any,
    kept: dict[str, Any],
    agent_id: str | None,
    refused: RefusedOverrides,
    tried: OverridesTried,
) -> None:
    """Raises `Invalid` for what the installed OpenClaw would refuse. It may take seconds: outside of any transaction.

    Args:
        who: Asks.
        value: As it was given; what is there already is not asked about again.
        kept: What the bot has.
    """
    overrides: dict[str, Any] = json.loads(_overrides(value, refused))
    if overrides in ({}, kept):
        return
    for path, why in await tried(who, overrides, agent_id):
        where = ".".join(("configOverrides", *path))
        raise Invalid(f"{where}: OpenClaw refuses this: {why}", "configOverrides", *path)


def _overrides(value: Any, refused: RefusedOverrides) -> str:
    if value is None:
        return "{}"
    if not isinstance(value, dict):
        raise Invalid("configOverrides must be a JSON object", "configOverrides")
    text = words.json_text(value, "configOverrides")
    for path, why in refused(json.loads(text)):
        what = f"{path} cannot be overridden" if path else "configOverrides cannot be taken"
        raise Invalid(f"{what}: {why}", "configOverrides", *filter(None, path.split(".")))
    return text
