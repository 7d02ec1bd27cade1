"""The bot's config file: read, checked as strictly as the era does, compared and redacted."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from . import ids, rules
from .errors import Planned

if TYPE_CHECKING:
    from pathlib import Path

    from .eras import Era

SECRET_NAME = re.compile(r"token$|secret|password|api_?key|private_?key|auth_?tag", re.IGNORECASE)
#: A second dollar in front means the text itself.
VARIABLE = re.compile(r"\$?\$\{([A-Z_][A-Z0-9_]*)\}")
REDACTED = "__OPENCLAW_REDACTED__"
#: Channels the new package brings along; every other one is a package to install.
BUNDLED_ON_NEW = {"telegram", "reef", "a2a"}


class Missing(Planned):
    """There is no config file."""


class Refused(Planned):
    """The config breaks the era's rules.

    `issues` are (path, why); `plain` is a message that is no list of issues, with an exit code of its own.
    """

    def __init__(self, issues: list[tuple[str, str]], plain: str = "", code: int | None = None) -> None:
        super().__init__(plain or "; ".join(f"{path}: {why}" for path, why in issues))
        self.issues, self.plain, self.code = issues, plain, code


class Config:
    """One accepted revision of the file."""

    def __init__(self, data: dict, raw: bytes, warnings: list[tuple[str, str]], written: dict) -> None:
        self.data, self.warnings, self.written = data, warnings, written
        self.hash = hashlib.sha256(raw).hexdigest()

    def get(self, path: str, default: Any = None) -> Any:
        value: Any = self.data
        for key in path.split("."):
            if not isinstance(value, dict) or key not in value:
                return default
            value = value[key]
        return value

    @property
    def agent_id(self) -> str:
        return agent_id(self.data) or "main"

    def agent(self, wanted: str) -> dict:
        listed = {agent["id"]: agent for agent in self.get("agents.list", [])}
        return (listed | self.get("agents.entries", {})).get(wanted, {})

    def echoes(self) -> list[str]:
        """Every text of the config as careless programs pass it on."""
        found: list[str] = []
        for text in texts([self.data.get("channels", {}), self.data]):
            found += [text, json.dumps(text), json.dumps(json.dumps(text)), quote(text, safe="")]
            found += [base64.b64encode(f"{before}{text}:".encode()).decode() for before in ("", "u:", "me:")]
            found.append(base64.urlsafe_b64encode(text.encode()).decode())
        return found

    def secrets(self) -> list[str]:
        return [value for path, value in leaves(self.data) if is_secret(path) and isinstance(value, str)]


def agent_id(data: Any) -> str | None:
    """The default agent of a config that need not be valid."""
    try:
        listed = data["agents"].get("list") or [{"id": name} for name in data["agents"]["entries"]]
        return next((agent["id"] for agent in listed if agent.get("default")), listed[0]["id"])
    except (KeyError, TypeError, AttributeError, IndexError):
        return None


def peek(path: Path) -> Any:
    """Whatever the file holds, for the ledger, which wants a name even for a config that will be refused."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def load(path: Path, era: Era) -> Config:
    """Raises: Missing, Refused."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise Missing from None
    try:
        written = json.loads(raw)
    except ValueError as error:
        raise Refused([("", f"JSON5 parse failed: {error}")]) from None
    new = era.dialect == "new"
    found = rules.issues(written, rules.every(new))
    data, unset = replace_variables(written)
    if unset and not new:
        found += [("", f'Missing env var "{name}"') for name in unset]
    stale: list[tuple[str, str]] = []
    if isinstance(data, dict):
        found = reworded(found) + unknown_channels(found) + cross_checks(data, new)
        stale = stale_channels(found, data) if new else []
        found = [issue for issue in found if issue not in stale]
    if found:
        raise Refused(found)
    check_gateway(data, era)
    return Config(data, raw, warnings(data, new) + stale, written)


def unknown_channels(found: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """A strange channel is refused by its id; `reworded` drops the plain words about it."""
    names = [name for path, why in found if path == "channels" for name in re.findall(r'"([^"]+)"', why)]
    return [(f"channels.{name}", f"unknown channel id: {name}") for name in names]


def stale_channels(found: list[tuple[str, str]], data: dict) -> list[tuple[str, str]]:
    """New only warns of a strange channel where a plugin that is not there is named as well."""
    entries = (data.get("plugins") or {}).get("entries") or {}
    named = set(entries) - BUNDLED_ON_NEW
    return [issue for issue in found if issue[1].startswith("unknown channel id: ") and issue[0][9:] in named]


def reworded(found: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(path, why) for path, why in found if path != "channels" or not why.startswith("Unrecognized")]


def cross_checks(data: dict, new: bool) -> list[tuple[str, str]]:
    """What spans several keys."""
    found = []
    for path, account in accounts(data):
        open_to_all = account.get("dmPolicy") == "open" and "*" not in (account.get("allowFrom") or [])
        if open_to_all and not new:
            why = f'{path}.dmPolicy="open" requires {path}.allowFrom to include "*"'
            found.append((f"{path}.allowFrom", why))
    if new and isinstance(data.get("bindings"), list):
        known = set(data.get("agents", {}).get("entries", {}))
        known |= {agent.get("id") for agent in data.get("agents", {}).get("list", []) if isinstance(agent, dict)}
        for at, binding in enumerate(data["bindings"]):
            if isinstance(binding, dict) and binding.get("agentId") not in known:
                found.append((f"bindings.{at}.agentId", f'unknown agent "{binding.get("agentId")}"'))
    return found


def check_gateway(data: dict, era: Era) -> None:
    """What OpenClaw refuses in its own words after the keys were found right."""
    gateway = data.get("gateway", {})
    if gateway.get("mode") != "local":
        why = f"Gateway start blocked: set gateway.mode=local (current: {gateway.get('mode', 'unset')})"
        raise Refused([("gateway.mode", why)], f"{why} or pass --allow-unconfigured.")
    auth = gateway.get("auth", {})
    if not (auth.get("token") or auth.get("password")) and era.dialect == "old":
        why = "Gateway auth is set to token, but no token is configured."
        raise Refused([("gateway.auth.token", why)], f"{why} Set gateway.auth.token (or OPENCLAW_GATEWAY_TOKEN).")


def warnings(data: dict, new: bool) -> list[tuple[str, str]]:
    if not new:
        return []
    found = []
    if "list" in data.get("agents", {}):
        found.append(("agents.entries", "Moved agents.list to keyed agents.entries."))
        if any("default" in agent for agent in data["agents"]["list"]):
            found.append(("agents.entries", "Removed retired agents.entries.*.default markers."))
    for path, account in accounts(data):
        if account.get("dmPolicy") == "open" and "*" not in (account.get("allowFrom") or []):
            found.append((f"{path}.allowFrom", 'dmPolicy "open" without "*": every direct message is dropped'))
    return found


def accounts(data: dict) -> list[tuple[str, dict]]:
    """Each channel block and each account in it, with its path."""
    found = []
    channels = data.get("channels")
    for name, block in channels.items() if isinstance(channels, dict) else ():
        if not isinstance(block, dict) or name == "defaults":
            continue
        found.append((f"channels.{name}", block))
        below = block.get("accounts")
        for account, settings in below.items() if isinstance(below, dict) else ():
            if isinstance(settings, dict):
                found.append((f"channels.{name}.accounts.{account}", settings))
    return found


def replace_variables(value: Any) -> tuple[Any, list[str]]:
    """`${NAME}` from the environment, and the names that are not set."""
    unset: list[str] = []

    def text(match: re.Match) -> str:
        if match[0].startswith("$$"):
            return match[0][1:]
        if match[1] not in os.environ:
            unset.append(match[1])
        return os.environ.get(match[1], match[0])

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: walk(item) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item) for item in value]
        return VARIABLE.sub(text, value) if isinstance(value, str) else value

    return walk(value), unset


def add_entries(path: Path, config: Config, version: str) -> list[str]:
    """Old writes the file anew when a configured channel has no plugins.entries line, with secrets in clear."""
    entries = config.get("plugins.entries", {})
    missing = [name for name in config.data.get("channels", {}) if name != "defaults" and name not in entries]
    if missing:
        entries = config.data.setdefault("plugins", {}).setdefault("entries", {})
        entries.update({name: {"enabled": True} for name in missing})
        config.data["meta"] = {"lastTouchedVersion": version, "lastTouchedAt": ids.iso()}
        draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        draft.write_text(json.dumps(config.data, indent=2, ensure_ascii=False))
        draft.chmod(0o600)
        draft.replace(path)
    return missing


def texts(value: Any) -> list[str]:
    """Every text that is long enough to be a secret, also those in a text that is JSON."""
    if isinstance(value, (dict, list)):
        parts = value.values() if isinstance(value, dict) else value
        return [text for part in parts for text in texts(part)]
    if not isinstance(value, str) or len(value) < 12:
        return []
    return [value, *(texts(json.loads(value)) if value.startswith("{") else [])]


def is_secret(path: str) -> bool:
    return bool(SECRET_NAME.search(path.rpartition(".")[2]))


def redact(value: Any, path: str = "") -> Any:
    if isinstance(value, dict):
        return {key: redact(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [redact(item, path) for item in value]
    return REDACTED if isinstance(value, str) and is_secret(path) else value


def leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """Every value with its path; a list counts as one value, as OpenClaw's reload lines do."""
    if isinstance(value, dict) and value:
        return [leaf for key, item in value.items() for leaf in leaves(item, rules.join(path, key))]
    return [(path, value)]


def changed(before: dict, after: dict) -> list[str]:
    old, new = dict(leaves(before)), dict(leaves(after))
    return sorted(path for path in old.keys() | new.keys() if old.get(path) != new.get(path))
