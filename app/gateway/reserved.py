"""Which ids of channels are no owner's to configure: ClawNet has rows for them, or OpenClaw has a plugin of that name.

A channel that neither knows comes with a plugin, and overrides switch that on by the channel's id. They must switch on
nothing else, so the plugins of the installed OpenClaw are listed: those in the package, and those of its own catalogue,
which it would go and install for being named.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, cast

from app.gateway.channels import edition, provider_names, why_closed
from app.gateway.openclaw import Installation

#: Old names that OpenClaw still takes for a plugin of today.
_RENAMED = frozenset(
    (
        *("codex-supervisor", "google-antigravity-auth", "google-gemini-cli", "google-gemini-cli-auth"),
        *("minimax-portal", "minimax-portal-auth", "openai-codex", "skill-workshop"),
    )
)
#: What of a manifest names its plugin, or something that a line in `plugins.entries` could be taken for.
_NAMING = ("channels", "providers", "legacyPluginIds", "autoEnableWhenConfiguredProviders")
#: The catalogue is a script in the package; names in it stand so.
_CATALOGUED = re.compile(r'\b(?:id"?: ?"([^"]+)"|legacyPluginIds"?: ?\[([^\]]*)\])')
_TEXT = re.compile(r'"([^"]+)"')


def why(installation: Installation | None, name: str) -> str | None:
    """Why overrides cannot open a channel of this id; None where they can.

    Without an installation only ClawNet's own channels are known; whoever renders for a gateway has one.
    Reads the package at the first question, which blocks for a moment (`learn`).
    """
    if name in provider_names():
        closed = why_closed(name, installation.version) if installation else None
        return (
            f"this kind of channel is closed: {closed}" if closed else "channels of this kind belong in channelCreate"
        )
    if installation is None:
        return None
    ids = _ids(installation)
    if ids is None:
        return "which plugins the installed OpenClaw brings cannot be told, so it is given no other channels"
    return "this is a plugin of OpenClaw's own, and no channel" if name in ids | _RENAMED else None


def learn(installation: Installation) -> None:
    """Reads the package, so that later questions need not."""
    _ids(installation)


@cache
def _ids(installation: Installation) -> frozenset[str] | None:
    """None where one of the two lists is not where it should be."""
    root = installation.package_root
    if root is None:
        return None
    own = frozenset(_bundled(root))
    other = frozenset(_catalogued(root))
    is_whole = own and (other or edition(installation.version) == "old")
    return frozenset(each.lower() for each in own | other) if is_whole else None


def _bundled(root: Path) -> Iterator[str]:
    for path in (*root.glob("extensions/*/openclaw.plugin.json"), *root.glob("dist/extensions/*/openclaw.plugin.json")):
        yield path.parent.name
        try:
            read: Any = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue  # OpenClaw cannot load it either.
        if isinstance(read, dict):
            manifest = cast("dict[str, Any]", read)
            named: list[Any] = [manifest.get("id"), *(each for part in _NAMING for each in manifest.get(part) or ())]
            yield from (each for each in named if isinstance(each, str))


def _catalogued(root: Path) -> Iterator[str]:
    for path in (*root.glob("dist/official-external-*catalog*.mjs"), *root.glob("dist/channel-catalog.json")):
        for found in _CATALOGUED.finditer(path.read_text(errors="replace")):
            yield from (found[1],) if found[1] else _TEXT.findall(found[2])
