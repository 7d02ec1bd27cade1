"""The last configuration that a bot's gateway really took, kept in its home beside the one that is in use.

It is what a refused change is taken back to. It holds secrets as the configuration itself does, so it lies where that
lies, as closed to others, and never in the database: a row holds its digest, by which a changed file is told.
Whose keys are in it is kept as well: a bot that was given away does not go back to those of its former owner.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from app.domain.errors import SpawnFailed
from app.gateway import channels, config, files
from app.gateway.home import opened
from app.gateway.redaction import CONFIG_MAX, secrets_in

IN_USE, GOOD = "config.json5", "config.good.json5"
#: Bytes; more is no configuration of ours. What is kept stands deeper, and behind more spaces.
SIZE_MAX = 2 * CONFIG_MAX


@dataclass(frozen=True, slots=True)
class Kept:
    """A configuration, and whose bot it was when its gateway took it."""

    owner: UUID
    tree: dict[str, Any] = field(repr=False)


def keep(home: Path, tree: Mapping[str, Any], owner: UUID) -> None:
    """The gateway has taken this one.

    Raises:
        OSError: The disk is full, or the home is no folder any more; the one that was kept stays.
    """
    config.write(home / GOOD, config.to_text({"owner": str(owner), "config": tree}))


def keep_in_use(home: Path, owner: UUID) -> str | None:
    """The gateway is ready, so it has taken what lies there; its digest, or nothing where it cannot be kept."""
    tree = _read(home, IN_USE)
    if tree is None:
        return None
    try:
        keep(home, tree, owner)
        return config.digest(tree)
    except (OSError, ValueError, RecursionError):
        # The bot wrote it anew meanwhile: numbers that are none, say, which can be read and not written.
        return None


def read(home: Path, sha256: str | None) -> Kept | None:
    """What was kept, if it is still the one with this digest: the agent can write in its home."""
    found = _read(home, GOOD) or {}
    try:
        kept = Kept(UUID(found["owner"]), found["config"])
        return kept if config.digest(kept.tree) == sha256 else None
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def is_in_use(home: Path, tree: Mapping[str, Any]) -> bool:
    """Nothing else lies where the gateway reads: no change that was cut short, none that the agent made."""
    found = _read(home, IN_USE)
    try:
        return found is not None and config.digest(found) == config.digest(tree)
    except (ValueError, RecursionError):
        return False


def holds_more(kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """It has a secret of a channel or a model provider, or an open channel, that the wanted one has no more."""
    had, has = ({name: tree.get(name) for name in ("channels", "models")} for tree in (kept, wanted))
    try:
        return not (set(secrets_in(had)) <= set(secrets_in(has)) and _opened(kept) <= _opened(wanted))
    except RecursionError:
        return True  # No configuration of ours is so deep; the bot wrote it.


def _opened(tree: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Provider and account of each channel of ours that is not switched off; overrides are no matter of rights."""
    found = set[tuple[str, str]]()
    for provider, block in _mapping(tree.get("channels")).items():
        if provider not in channels.provider_names():
            continue
        accounts = _mapping(_mapping(block).get("accounts")) or {"default": block}
        found |= {(provider, name) for name, each in accounts.items() if _mapping(each).get("enabled") is not False}
    return found


def providers_in(tree: Mapping[str, Any]) -> list[str]:
    """Names of the model providers it speaks of."""
    names = _mapping(_mapping(tree.get("models")).get("providers"))
    return [name for name in names if name.isprintable()]


def _mapping(value: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def drop_in_use(home: Path) -> None:
    """No process reads it: the next start writes it anew."""
    _drop(home, IN_USE)


def drop(home: Path) -> None:
    """Nothing goes back to it any more."""
    _drop(home, GOOD)


def drop_foreign(home: Path, owner: UUID) -> None:
    """Removes what was kept unless this owner's keys are in it."""
    if (_read(home, GOOD) or {}).get("owner") != str(owner):
        _drop(home, GOOD)


def _drop(home: Path, name: str) -> None:
    with opened(home) as folder, suppress(FileNotFoundError, IsADirectoryError):
        os.unlink(name, dir_fd=folder)


def _read(home: Path, name: str) -> dict[str, Any] | None:
    try:
        with opened(home) as folder:
            tree: Any = json.loads(files.read(name, SIZE_MAX, folder) or b"null")
    except (OSError, SpawnFailed, ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", tree) if isinstance(tree, dict) else None
