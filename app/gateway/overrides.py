"""What an owner may lay over a bot's rendered configuration, and what is refused.

OpenClaw's configuration can start programs, open ports, move files and send keys elsewhere, and each version adds
to it. So the sections an owner may write are listed, and everything else is closed; within an open section some
paths stay ours, and some names are refused wherever they stand.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from app.gateway.redaction import is_secret

#: Deeper or larger than this is no configuration anybody wrote.
MAX_DEPTH, MAX_VALUES = 16, 2_000

#: Sections an owner may write in; what is said of how the bot thinks, speaks and remembers. `*` is any name.
_OPEN = [
    tuple(path.split("."))
    for path in (
        *("agents.defaults", "approvals", "attachments", "broadcast", "messages", "session", "tools", "tts", "web"),
        *("browser.enabled", "browser.headless", "browser.evaluateEnabled", "browser.snapshotDefaults"),
        "channels.*",
        *("commands.native", "commands.nativeSkills", "commands.text"),
        *("commands.allowFrom", "commands.ownerAllowFrom", "commands.useAccessGroups"),
        *("cron.enabled", "cron.maxConcurrentRuns", "cron.sessionRetention", "cron.skipMissedJobs"),
        *("cron.failureAlert", "memory.citations", "memory.search"),
        *("plugins.enabled", "plugins.allow", "plugins.deny", "plugins.slots", "plugins.entries.*.enabled"),
        *("skills.allowBundled", "skills.limits", "skills.entries.*.enabled"),
    )
]

_OURS = "this is set by ClawNet"
_RUNS = "this could run a program or reach files outside the bot's home"

#: Paths within open sections that stay closed, and why.
_CLOSED = {
    tuple(path.split(".")): why
    for path, why in {
        "agents.defaults.skipBootstrap": _OURS,
        "agents.defaults.model.primary": "set the bot's model instead",
        "agents.defaults.workspace": _RUNS,
        "agents.defaults.cliBackends": _RUNS,
        "agents.defaults.models.*.agentRuntime": _RUNS,
        "agents.defaults.models.*.pickerRuntimes": _RUNS,
        "agents.defaults.sandbox.docker": _RUNS,
        "agents.defaults.sandbox.ssh": _RUNS,
        "agents.defaults.sandbox.browser": _RUNS,
        "agents.defaults.embeddedAgent": _RUNS,
        "agents.defaults.sessionStore": _RUNS,
        "agents.defaults.authInheritance": _RUNS,
        "agents.defaults.memorySearch.store": _RUNS,
        "memory.search.store": _RUNS,
        "session.store": "conversations are kept where ClawNet reads them",
        "session.mainKey": "conversations are kept where ClawNet reads them",
        "session.scope": "conversations are kept where ClawNet reads them",
        "tools.exec.safeBins": _RUNS,
        "tools.exec.safeBinProfiles": _RUNS,
        "tools.github": _RUNS,
        "tts.providers": _RUNS,
    }.items()
}

#: Names with a meaning of their own, in OpenClaw's files or in JavaScript.
_NAMES = re.compile(r"\$.*|__proto__|prototype|constructor", re.DOTALL)
#: A value under a name that ends in such a word is a program, a place on disk, or where a key would be sent.
_PLACES = frozenset(
    (
        *("command", "commands", "cmd", "argv", "script", "scripts", "executable", "binary", "cwd", "env", "prepend"),
        *("path", "paths", "dir", "dirs", "directory", "root", "roots", "file", "files", "bind", "binds", "volumes"),
        *("url", "urls", "uri", "uris", "endpoint", "endpoints", "proxy", "headers", "request", "socket", "hosts"),
        *("module", "modules", "extension", "extensions", "transform", "transforms", "server", "servers"),
        *("args", "load", "install", "installs", "hooks", "mcp", "docker", "ssh"),
    )
)
_WORD = re.compile(r"[A-Z]*[a-z0-9]+|[A-Z]+")
#: The id of a channel that somebody else's plugin brings. OpenClaw folds capitals and spaces, and could mean another.
_CHANNEL = re.compile(r"(?!defaults$)[a-z0-9][a-z0-9-]{0,63}", re.ASCII)
_NO_SECTION = "this section cannot be overridden"

#: Why a channel of this id is not an owner's to configure; None where it is.
Reserved = Callable[[str], str | None]


def every_channel(_: str) -> str | None:
    """Reserves all, for where nobody knows which channels and plugins OpenClaw has."""
    return _NO_SECTION


def refused_overrides(overrides: Mapping[str, Any], reserved: Reserved = every_channel) -> list[tuple[str, str]]:
    """Each path that is refused, with the reason; empty when all may be laid over the configuration.

    Args:
        reserved: Is asked about each channel. One that is not reserved is taken together with the switch of the plugin
            that has the same id, and which else stays closed.
    """
    if sum(1 for _ in _walk(overrides)) > MAX_VALUES:
        return [("", f"more than {MAX_VALUES:,} values")]
    closed = _closed_channels(overrides, reserved)
    return [(".".join(path), why) for path, value in _walk(overrides) if (why := _why_refused(path, value, closed))]


def _closed_channels(overrides: Mapping[str, Any], reserved: Reserved) -> dict[str, str | None]:
    """Each channel that is named, with the reason why it is refused; None for those that are taken."""
    entries = _part(_part(overrides, "plugins"), "entries")
    return {
        name: _why_channel_refused(name, block, _part(entries, name), reserved)
        for name, block in _part(overrides, "channels").items()
    }


def _why_channel_refused(name: str, block: Any, entry: Mapping[str, Any], reserved: Reserved) -> str | None:
    if not _CHANNEL.fullmatch(name):
        return _NO_SECTION
    if why := reserved(name):
        return why
    if not isinstance(block, Mapping):
        return "what is said of a channel is an object"
    if entry.get("enabled") is not True:
        return f"say plugins.entries.{name}.enabled: true as well; the channel is its plugin's"
    return None


def _part(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = tree.get(name)
    return cast("Mapping[str, Any]", found) if isinstance(found, Mapping) else {}


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Objects are merged, anything else replaces what was there, null takes it away."""
    merged = dict(base)
    for name, value in over.items():
        below = merged.get(name)
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, Mapping):
            known: Mapping[str, Any] = cast("Mapping[str, Any]", below) if isinstance(below, Mapping) else {}
            merged[name] = merge(known, cast("Mapping[str, Any]", value))
        else:
            merged[name] = value
    return merged


def _walk(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value with its path, an object before what is in it. What is too deep is given, not entered."""
    if path:
        yield path, value
    if len(path) > MAX_DEPTH:
        return
    if isinstance(value, Mapping):
        for name, part in cast("Mapping[str, Any]", value).items():
            yield from _walk(part, (*path, name))
    elif isinstance(value, list):
        for number, part in enumerate(cast("list[Any]", value)):
            yield from _walk(part, (*path, str(number)))


def _why_refused(path: tuple[str, ...], value: Any, channels: Mapping[str, str | None]) -> str | None:
    if len(path) > MAX_DEPTH:
        return "nested too deeply"
    if _NAMES.fullmatch(path[-1]):
        return "this name means something else to OpenClaw"
    if not _is_open(path):
        # Said once, at the section's own path; what is in it would only repeat it.
        return _NO_SECTION if len(path) == 1 or _is_open(path[:-1]) else None
    if path[0] == "channels" and len(path) > 1 and (reason := channels.get(path[1], _NO_SECTION)):
        return reason if len(path) == 2 else None
    if closed := next((why for each, why in _CLOSED.items() if _agree(path, each) and len(path) >= len(each)), None):
        return closed
    if not isinstance(value, Mapping) and _holds_others(path):
        return "this is an object of several settings: name the ones to change"
    if _agree(path, ("plugins", "entries", "*", "enabled")) and len(path) == 4:
        is_ones_own = value is True and channels.get(path[2], _NO_SECTION) is None
        return None if value is False or is_ones_own else "plugins can only be switched off here"
    return _why_value_refused(path, value)


def _why_value_refused(path: tuple[str, ...], value: Any) -> str | None:
    name = path[-1]
    if value is None or isinstance(value, bool | int) or _holds_others(path):
        return "this weakens a fence" if value is True and name.lower().startswith("dangerously") else None
    if isinstance(value, float):
        return None if abs(value) < float("inf") else "not a number"
    if isinstance(value, Mapping) and {"source", "id"} <= set(cast("Mapping[str, Any]", value)):
        return "a reference to a secret cannot be made here"
    if is_secret(name, cast("object", value)):
        return "a secret cannot be kept here: use the bot's model provider or its channels"
    return _RUNS if _last_word(name) in _PLACES else None


def _last_word(name: str) -> str:
    """`path` of `modelPath`. Names that are no identifiers, as ids of models are, have none."""
    return _WORD.findall(name)[-1].lower() if re.fullmatch(r"\w*[A-Za-z]\w*", name, re.ASCII) else ""


def _is_open(path: tuple[str, ...]) -> bool:
    return any(_agree(path, each) for each in _OPEN)


def _agree(path: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """One of the two lies within the other."""
    return all(ours in ("*", theirs) for theirs, ours in zip(path, pattern, strict=False))


def _holds_others(path: tuple[str, ...]) -> bool:
    """Settings with rules of their own lie under this path, so it cannot be replaced as a whole."""
    return any(len(each) > len(path) and _agree(path, each) for each in (*_OPEN, *_CLOSED))
