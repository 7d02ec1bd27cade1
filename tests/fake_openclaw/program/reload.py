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
OLD_ALWAYS_LISTS = ["models", "agents.list", "bindings"]


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


def apply(gateway: Gateway, after: config.Config, paths: list[str]) -> None:
    gateway.config = after
    new = gateway.era.dialect == "new"
    listed = ", ".join(paths if new else paths + [path for path in OLD_ALWAYS_LISTS if path not in paths])
    restarting = [path for path in paths if path.startswith("gateway.") and not (new and path == TOKEN)]
    if restarting:
        gateway.output.log("reload", f"config change requires gateway restart ({', '.join(restarting)})")
        gateway.restart_inside(", ".join(restarting))
    else:
        gateway.output.log("reload", f"config hot reload applied ({listed})")
        if TOKEN in paths:
            gateway.token = after.get(TOKEN)
            gateway.clients.close(4001, "gateway auth changed")
    if any(path.startswith("channels.") for path in paths):
        gateway.channels.start()
    if new:
        gateway.clients.tell("config.changed", {"paths": paths, "hash": after.hash, "ts": ids.now_ms()})
    gateway.tell_secrets()
