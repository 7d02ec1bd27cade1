"""Hot reload: the config file is watched, and each change is applied, skipped or answered with a restart inside."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from . import config, ids

if TYPE_CHECKING:
    from .gateway import Gateway

#: Seconds between two looks at the file.
POLL_S = 0.2
TOKEN = "gateway.auth.token"
#: Paths that merely have defaults, listed by old with every reload.
OLD_ALWAYS_LISTS = ["models.providers.local.models", "agents.list"]
#: Read at their next use. New says nothing of them after it has seen them change, old calls them dynamic reads.
NEW_QUIET = ("audio", "bindings", "logging", "messages", "session", "skills", "talk", "ui")
OLD_QUIET = (*NEW_QUIET, "agents", "models", "tools")
#: Taken only by a restart inside the process; old also restarts for every path it has no rule for.
NEW_RESTARTS = ("gateway", "discovery")
OLD_HOT = (*OLD_QUIET, "agents.defaults.heartbeat", "browser", "channels", "cron", "hooks")
NEW_HOT = ("gateway.http.endpoints", "gateway.remote", "gateway.reload", "discovery.mdns.mode")


def watch(gateway: Gateway) -> None:
    seen = stamp(gateway)
    look(gateway)  # whatever changed while we were starting
    while True:
        time.sleep(POLL_S)
        now = stamp(gateway)
        if now != seen and now is not None:
            seen = now
            look(gateway)


def stamp(gateway: Gateway) -> tuple | None:
    try:
        facts = gateway.config_path.stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_mtime_ns, facts.st_size


def look(gateway: Gateway) -> None:
    before = gateway.config
    if before.get("gateway.reload.mode") == "off":
        return
    try:
        after = config.load(gateway.config_path, gateway.era)
    except config.Missing:
        return
    except config.Refused as refused:
        why = "; ".join(f"{path}: {text}" for path, text in refused.issues)
        gateway.output.log("reload", f"config reload skipped (invalid config): {why}")
        return
    paths = config.changed(before.data, after.data)
    if paths:
        apply(gateway, after, paths)


def lies_in(path: str, prefixes: tuple[str, ...]) -> bool:
    return any(path == prefix or path.startswith(f"{prefix}.") for prefix in prefixes)


def restarts(path: str, before: config.Config, new: bool) -> bool:
    if new:
        return lies_in(path, NEW_RESTARTS) and path != TOKEN and not lies_in(path, NEW_HOT)
    if path.startswith("channels."):
        # Old loads a channel's plugin when it starts.
        return before.get(".".join(path.split(".")[:2])) is None
    return not lies_in(path, OLD_HOT)


def apply(gateway: Gateway, after: config.Config, paths: list[str]) -> None:
    before, gateway.config = gateway.config, after
    new = gateway.era.dialect == "new"
    listed = paths if new else paths + [path for path in OLD_ALWAYS_LISTS if path not in paths]
    gateway.output.log("reload", f"config change detected; evaluating reload ({', '.join(listed)})")
    restarting = [path for path in paths if restarts(path, before, new)]
    if restarting:
        gateway.output.log("reload", f"config change requires gateway restart ({', '.join(restarting)})")
        gateway.restart_inside(", ".join(restarting))
    else:
        hot = [path for path in paths if not lies_in(path, NEW_QUIET if new else OLD_QUIET) or "heartbeat" in path]
        if hot:
            gateway.output.log("reload", f"config hot reload applied ({', '.join(hot)})")
        elif not new:
            gateway.output.log("reload", f"config change applied (dynamic reads: {', '.join(listed)})")
        if TOKEN in paths:
            gateway.token = after.get(TOKEN)
            gateway.clients.close(4001, "gateway auth changed")
    if any(path.startswith("channels.") for path in paths):
        gateway.channels.start()
    if new:
        gateway.clients.tell("config.changed", {"paths": paths, "hash": after.hash, "ts": ids.now_ms()})
    gateway.tell_secrets()
