"""Renders a bot's OpenClaw configuration from typed settings, and writes it.

The file is rendered whole, never edited: OpenClaw refuses unknown keys, so only what both sides know is written.
"""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from app.domain.errors import ConfigInvalid
from app.gateway import files
from app.gateway.overrides import Reserved, every_channel, merge, refused_overrides
from app.gateway.redaction import CONFIG_MAX, SHORTEST, Mask, is_secret, secrets_in, spellings_in

__all__ = [
    "BotSettings",
    "Dialect",
    "ModelProvider",
    "digest",
    "forget",
    "hide",
    "is_as_written",
    "redact",
    "refused_overrides",
    "render",
    "secrets_in",
    "split_model",
    "to_text",
    "without_secrets",
    "write",
]

#: What a model is said to hold when nobody said it: tokens in all, and tokens of one answer.
CONTEXT_WINDOW, MAX_TOKENS = 128_000, 8_192
#: The file in a home that a gateway reads.
IN_USE = "config.json5"

#: Where a maker's own models are, for a provider without an address (OpenClaw asks for one).
_HOMES = {
    "openai-completions": "https://api.openai.com/v1",
    "openai-responses": "https://api.openai.com/v1",
    "anthropic-messages": "https://api.anthropic.com",
    "google-generative-ai": "https://generativelanguage.googleapis.com/v1beta",
}
#: What may be said of a model. `baseUrl` and `headers` are left out: they would send the provider's key elsewhere.
_MODEL_KEYS = frozenset(
    ("id", "name", "reasoning", "input", "cost", "contextWindow", "contextTokens", "maxTokens", "compat", "params")
)
_PROVIDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
#: What OpenClaw replaces from its environment; a `$` before it makes it plain text (both versions).
_VARIABLE = re.compile(r"\$\{[A-Z_][A-Z0-9_]*\}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ModelProvider:
    """Where models are and how they are spoken to. `models` are entries as OpenClaw describes them."""

    name: str
    api: str
    base_url: str | None
    api_key: str | None = field(repr=False)
    models: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True)
class Dialect:
    """How an installed OpenClaw wants some things said. Found out by `check.dialect`."""

    agents_entries: bool
    """`agents.entries {id: …}`; else `agents.list [{id, …}]`."""
    catalog_refresh: bool
    """`models.catalogRefresh` exists, and is on unless it is switched off."""
    direct_peers: bool = True
    """A binding's one-to-one peer is of kind `direct`; else `dm`."""
    flat_dm_policy: bool = True
    """Discord, Slack and Google Chat have `dmPolicy` and `allowFrom`; else both are in `dm`."""
    streaming_object: bool = True
    """A channel has one object `streaming`; else `chunkMode`, `blockStreaming` and others stand by themselves."""


@dataclass(frozen=True, slots=True)
class BotSettings:
    """Everything a bot's configuration is made of. Channels come rendered (`gateway/channels` knows them)."""

    agent_id: str
    name: str
    model: str
    system_prompt: str
    home: Path
    port: int
    gateway_token: str = field(repr=False)
    providers: Sequence[ModelProvider] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict[str, Any])
    channels: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    bindings: Sequence[Mapping[str, Any]] = ()
    plugins: Mapping[str, Any] = field(default_factory=dict[str, Any])
    reserved: Reserved = every_channel
    """Which channels the overrides cannot speak of."""


def split_model(text: str) -> tuple[str, str]:
    """`provider/model` in its two parts; the model's own name may hold slashes."""
    provider, _, model = text.partition("/")
    if not _PROVIDER_NAME.fullmatch(provider) or not model or model != model.strip() or not model.isprintable():
        raise ConfigInvalid(f"model: {text!r} is not of the form provider/model.")
    return provider, model


def render(settings: BotSettings, dialect: Dialect) -> dict[str, Any]:
    """The whole configuration.

    Raises:
        ConfigInvalid: Something in the settings cannot be said safely; the message names it.
    """
    if refused := refused_overrides(settings.overrides, settings.reserved):
        raise ConfigInvalid("; ".join(f"configOverrides.{path}: {why}" for path, why in refused))
    provider, _ = split_model(settings.model)
    if provider not in {each.name for each in settings.providers}:
        raise ConfigInvalid(f"model: there is no model provider named {provider!r} that this bot may use.")
    open_part = merge(_open_part(settings, dialect), settings.overrides)
    tree = cast("dict[str, Any]", _literal(_closed_part(open_part, settings, dialect), ""))
    if len(to_text(tree)) > CONFIG_MAX:
        raise ConfigInvalid(f"the whole configuration is longer than {CONFIG_MAX // 1024} KiB.")
    return tree


def _open_part(settings: BotSettings, dialect: Dialect) -> dict[str, Any]:
    """What an owner may lay overrides over: a bot that is idle until somebody speaks to it."""
    agent = {
        "name": settings.name,
        "workspace": str(settings.home / "workspace"),
        "model": settings.model,
    }
    agents: dict[str, Any] = {
        "defaults": {
            "skipBootstrap": True,
            "heartbeat": {"every": "0m"},
            "thinkingDefault": "off",
            "model": {"primary": settings.model},
        }
    }
    if dialect.agents_entries:
        agents["entries"] = {settings.agent_id: agent}
    else:
        agents["list"] = [{"id": settings.agent_id, "default": True, **agent}]
    return {
        "agents": agents,
        "browser": {"enabled": False},
        "cron": {"enabled": False},
        "plugins": dict(settings.plugins),
    }


def _closed_part(tree: dict[str, Any], settings: BotSettings, dialect: Dialect) -> dict[str, Any]:
    """Adds what only we decide, after the overrides, so that nothing of theirs can stand in its place."""
    models: dict[str, Any] = {"providers": {each.name: _provider(each, settings) for each in settings.providers}}
    if dialect.catalog_refresh:
        models["catalogRefresh"] = {"enabled": False}
    closed: dict[str, Any] = {
        "gateway": {
            "mode": "local",
            "port": settings.port,
            "bind": "loopback",
            "auth": {"mode": "token", "token": settings.gateway_token},
            "http": {"endpoints": {"chatCompletions": {"enabled": True}}},
            "controlUi": {"enabled": False},
        },
        "logging": {"file": str(settings.home / "logs" / "gateway.log")},
        "update": {"checkOnStart": False},
        "discovery": {"mdns": {"mode": "off"}},
        "models": models,
    }
    if settings.channels:
        closed["channels"] = {**tree.get("channels", {}), **settings.channels}
    if settings.bindings:
        closed["bindings"] = list(settings.bindings)
    return {name: part for name, part in tree.items() if part} | closed


def _provider(provider: ModelProvider, settings: BotSettings) -> dict[str, Any]:
    where = f"models.providers.{provider.name}"
    if not _PROVIDER_NAME.fullmatch(provider.name):
        raise ConfigInvalid(f"{where}: a provider's name is letters, digits, dot, dash and underscore.")
    rendered: dict[str, Any] = {"api": provider.api, "baseUrl": provider.base_url or _HOMES.get(provider.api, "")}
    if provider.api_key:
        # OpenClaw runs a key that begins with "!" as a shell command, outside the agent and its rules.
        if provider.api_key.startswith("!"):
            raise ConfigInvalid(f"{where}.apiKey: a key cannot begin with an exclamation mark.")
        rendered["apiKey"] = provider.api_key
    models = [_model(dict(each), f"{where}.models.{number}") for number, each in enumerate(provider.models)]
    wanted_from, wanted = split_model(settings.model)
    if provider.name == wanted_from and wanted not in {each["id"] for each in models}:
        models.append(_model({"id": wanted}, where))
    return rendered | {"models": models}


def _model(said: dict[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(said.get("id"), str) or not said["id"]:
        raise ConfigInvalid(f"{where}.id: a model needs an id.")
    if foreign := sorted(said.keys() - _MODEL_KEYS):
        raise ConfigInvalid(f"{where}.{foreign[0]}: known of a model are {', '.join(sorted(_MODEL_KEYS))}.")
    return {"name": said["id"], "contextWindow": CONTEXT_WINDOW, "maxTokens": MAX_TOKENS} | said


def _literal(value: Any, path: str) -> Any:
    """The same value, meaning itself: no variable is filled in, no other file is read in."""
    if isinstance(value, str):
        return _VARIABLE.sub(lambda found: "$" + found[0], value)
    if isinstance(value, Mapping):
        tree = cast("Mapping[str, Any]", value)
        for name in tree:
            if name in ("$include", "__proto__"):
                raise ConfigInvalid(f"{path}{name}: this name means something else to OpenClaw.")
        return {name: _literal(part, f"{path}{name}.") for name, part in tree.items()}
    if isinstance(value, list | tuple):
        return [_literal(part, f"{path}{number}.") for number, part in enumerate(cast("Sequence[Any]", value))]
    if isinstance(value, float) and not abs(value) < float("inf"):
        raise ConfigInvalid(f"{path[:-1]}: not a number.")
    return value


def to_text(config: Mapping[str, Any]) -> str:
    """JSON, which is JSON5 as well."""
    return json.dumps(config, indent=2, allow_nan=False) + "\n"


def digest(config: Mapping[str, Any]) -> str:
    """The same for the same meaning: order and white space do not count."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def redact(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with every secret replaced by `***`, also where it turns up inside another text."""
    return cast("dict[str, Any]", _redacted(config, _hider(config)))


def _redacted(value: Any, hidden: Callable[[str], str], above: str = "") -> Any:
    if isinstance(value, Mapping):
        tree = cast("Mapping[str, Any]", value)
        return {
            hidden(name): "***" if is_secret(name, part, above) else _redacted(part, hidden, name)
            for name, part in tree.items()
        }
    if isinstance(value, list):
        return [_redacted(part, hidden) for part in cast("list[Any]", value)]
    return hidden(value) if isinstance(value, str) else value


def hide(text: str, config: Mapping[str, Any]) -> str:
    """A text from outside (OpenClaw quotes refused values) without the configuration's secrets."""
    return _hider(config)(text)


def _hider(config: Mapping[str, Any]) -> Callable[[str], str]:
    """Takes the configuration's secrets out of any number of texts."""
    mask = Mask(spellings_in(config))
    several = [words for secret in secrets_in(config) if len(words := secret.split()) > 1 and len(secret) >= SHORTEST]

    def hidden(text: str) -> str:
        collapsed = " ".join(text.split())
        for words in several:
            # Whoever wrote the text may have wrapped its lines, or collapsed its white space.
            if words[0] in text and " ".join(words) in collapsed:
                text = re.sub(r"\s+".join(map(re.escape, words)), "***", text)
        return mask.clean(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")

    return hidden


def without_secrets(home: Path, lines: Sequence[str]) -> tuple[str, ...]:
    """What a gateway said, fit for rows and clients: the secrets it was configured with are taken out.

    Nothing is handed on where the configuration cannot be read, or is not the one that was written (the bot can write
    there): then nobody knows what to take out. Blocks for a look into the home.
    """
    path = home / IN_USE
    try:
        tree = json.loads(files.read(path, CONFIG_MAX) or b"null")
        if not is_as_written(path, tree):
            return ()
        return tuple(map(_hider(tree), lines))
    except (OSError, ValueError, AttributeError, RecursionError):
        return ()


#: Digests of what this server wrote for gateways to read, by the file.
_written: dict[Path, str] = {}


def is_as_written(path: Path, tree: Mapping[str, Any]) -> bool:
    """Whether that is what was written there to be read by a gateway, not what its bot made of it.

    What another server wrote, or this one before it came back, is known by the gateway's token alone.
    """
    known = _written.get(path)
    if known is None:
        return bool(tree.get("gateway", {}).get("auth", {}).get("token"))
    return digest(tree) == known


def forget(home: Path) -> None:
    """The home is gone, and so is what was written there."""
    _written.pop(home / IN_USE, None)


def write(path: Path, text: str) -> None:
    """Puts the text in the file's place at once, readable by us alone; a link planted there is replaced, not followed.

    Raises:
        OSError: The folder is missing, is a link, or the disk is full; the old file stays as it was.
    """
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        write_in(folder, path.name, text)
        if path.name == IN_USE:
            _written[path] = digest(json.loads(text))
    finally:
        os.close(folder)


def write_in(folder: int, name: str, text: str) -> None:
    """`write` in a folder that is open already."""
    temporary = f".{name}.{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=folder), "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
        raise
    os.fsync(folder)
