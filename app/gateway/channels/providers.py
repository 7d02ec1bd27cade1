"""Which channels an installed OpenClaw can open, what each needs to be told, and whether what was told fits.

`providers.json` holds what was found out about two versions of OpenClaw, `old` (2026.2) and `new` (2026.9): a provider
says what is common to both, then what differs. Settings have one vocabulary for all versions, the new one's words;
`rendering.py` says them as the installed version wants them said. Secrets are credentials and nothing else is.
Left out on purpose: everything that names a file or a program (`tokenFile`, `cliPath`, `authDir`, …).
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

from app.gateway.channels import shape

#: The first version that is spoken to as the new one.
NEW_SINCE = (2026, 9)

DATA = Path(__file__).with_name("providers.json")

#: What a credential may not look like: OpenClaw would look the secret up elsewhere instead of using it.
_REFERENCE = re.compile(r"\$\{?[A-Za-z_][A-Za-z0-9_]*\}?|secretref.*|__env__:.*", re.ASCII | re.IGNORECASE | re.DOTALL)
#: A setting of such a name points at a file or a program.
_FILES = re.compile(r".*(?:File|Dir|Path|Roots)", re.ASCII)
_ACCOUNT = re.compile(r"(?!(?:constructor|prototype)$)[a-z0-9][a-z0-9_-]{0,63}", re.ASCII)
#: Settings that say where secrets are sent, each with how the names of those secrets begin.
_DESTINATIONS = {
    **dict.fromkeys(("apiRoot", "baseUrl", "serverUrl", "homeserver", "httpUrl", "relayUrl", "url", "proxy"), ""),
    **dict.fromkeys(("host", "port", "tls"), ""),
    "nickserv.service": "nickserv.",
    "relay.url": "relay.",
    "webhookUrl": "webhookSecret",
}
#: Those linked by a code whose gateway hands that out (`web.login.start`), in both editions.
_LOGIN_OFFERED = frozenset({"whatsapp"})
_SCHEMA = "https://json-schema.org/draft/2020-12/schema"


@dataclass(frozen=True, slots=True)
class Provider:
    """A kind of channel that an installed OpenClaw can open."""

    name: str
    label: str
    credential_schema: dict[str, Any] = field(repr=False)
    settings_schema: dict[str, Any] = field(repr=False)
    exclusive: str | None
    """The credential that one process alone may use: a second one would answer twice, or take its messages."""
    package: str | None
    """The npm package that has to be installed for it, with its version; null when OpenClaw brings it."""
    pairs_by_qr: bool
    """A person links it to an account by scanning a code."""
    edition: str = "new"

    @property
    def login_unavailable(self) -> str | None:
        """Why its code cannot be had from here; None where it can, or where none is needed."""
        if not self.pairs_by_qr or self.name in _LOGIN_OFFERED:
            return None
        return f"{self.label} is linked by a code, which ClawNet does not offer yet"


@dataclass(frozen=True, slots=True)
class Facts:
    """What rendering has to know of a provider in one edition of OpenClaw."""

    dm: str
    """Where the policy of direct chats goes: `flat`, `nested` in `dm`, or as the `dialect` says."""
    accounts: bool
    switch: bool
    """`enabled` is known beside the accounts, too."""
    writes: bool
    """`configWrites` is known."""
    default_account: bool
    """`defaultAccount` is known."""
    feeds: bool
    """The account `default` lends the other accounts what they leave unsaid."""
    entry: bool
    """Needs a line in `plugins.entries`."""
    renames: Mapping[str, str]
    fixed: Mapping[str, Any]
    needs: Mapping[str, Sequence[str]]
    when: Sequence[tuple[str, str, Sequence[str]]]
    either: Sequence[str]


def edition(version: str) -> str:
    """Which of the two known ways of saying things a version is nearer to."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version.split("-", maxsplit=1)[0])[:2])
    return "new" if numbers >= NEW_SINCE else "old"


def catalogue(version: str) -> dict[str, Provider]:
    """The providers that this version of OpenClaw can open, by name."""
    return {name: _provider(name, version) for name in _data()["providers"] if why_closed(name, version) is None}


def provider_names() -> Set[str]:
    """Every name that some version has a provider of."""
    return _data()["providers"].keys()


def why_closed(name: str, version: str) -> str | None:
    """Why this version cannot open a provider; null when it can."""
    said = _data()["providers"].get(name)
    return "ClawNet knows no provider of this name." if said is None else said[edition(version)].get("closed")


def account_refused(provider: Provider, account_id: str) -> str | None:
    """Why a provider cannot have an account of this name; null when it can."""
    if not _ACCOUNT.fullmatch(account_id):
        return "An account's name is up to 64 small letters, digits, dashes and underscores."
    if account_id != "default" and not facts(provider.name, provider.edition).accounts:
        return f"{provider.label} has one account for each bot, and its name is default."
    return None


def refused(
    provider: Provider, settings: Mapping[str, Any], credentials: Mapping[str, Any], *, complete: bool = True
) -> list[tuple[list[str], str]]:
    """Each path (from `settings` or `credentials`) that does not fit, with the reason, which quotes no value.

    Args:
        complete: What is missing is refused as well; else a part of the whole may be looked at.
    """
    found = [*_settings_refused(provider, settings), *_credentials_refused(provider, credentials)]
    if complete:
        found += missing(provider, settings, credentials)
    return [(list(path), why) for path, why in found]


def missing(
    provider: Provider, settings: Mapping[str, Any], credentials: Mapping[str, Any]
) -> list[tuple[shape.Path, str]]:
    """What a channel lacks to be opened, each with its path."""
    told = settings.keys() | credentials.keys()
    return [(_path(provider, name), why) for name, why in _wanted(provider, settings, told) if name not in told]


def led_elsewhere(old: Mapping[str, Any], new: Mapping[str, Any], secrets: Iterable[str]) -> str | None:
    """The setting by which a change sends one of these secrets, by name, to another place; None where none does."""
    before, after, names = _destinations(old), _destinations(new), list(secrets)
    for name, beginning in sorted(before.keys() | after.keys()):
        is_changed = before.get((name, beginning)) != after.get((name, beginning))
        if is_changed and any(each.startswith(beginning) for each in names):
            return name
    return None


def _destinations(settings: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """What is set of destinations, by the setting's name and how the names of the secrets that go there begin."""
    found: dict[tuple[str, str], Any] = {}
    for name, beginning in _DESTINATIONS.items():
        value: Any = settings
        for part in name.split("."):
            value = cast("Mapping[str, Any]", value).get(part) if isinstance(value, Mapping) else None
        found[name, beginning] = value
    peers = settings.get("peers")
    if isinstance(peers, Mapping):
        for peer, place in cast("Mapping[str, Any]", peers).items():
            found[f"peers.{peer}", f"peers.{peer}."] = place
    return found


def _wanted(provider: Provider, settings: Mapping[str, Any], told: set[str]) -> Iterator[tuple[str, str]]:
    known = facts(provider.name, provider.edition)
    for name in (*provider.credential_schema["required"], *provider.settings_schema["required"]):
        yield name, "this is missing"
    for name, others in known.needs.items():
        if name in told:
            yield from ((other, f"this is needed with {name}") for other in others)
    for name, value, others in known.when:
        if settings.get(name, provider.settings_schema["properties"][name]["default"]) == value:
            yield from ((other, f"this is needed when {name} is {value}") for other in others)
    if known.either and not told & set(known.either):
        yield known.either[0], f"one of these is needed: {', '.join(known.either)}"
    peers = settings.get("peers")
    if "patternProperties" in provider.credential_schema and isinstance(peers, Mapping):
        yield from ((f"peers.{peer}.token", "this is missing") for peer in cast("Mapping[str, Any]", peers))


def _path(provider: Provider, name: str) -> shape.Path:
    is_setting = name in provider.settings_schema["properties"]
    return ("settings", name) if is_setting else shape.shown(("credentials",), name)


def _settings_refused(provider: Provider, settings: Mapping[str, Any]) -> Iterator[tuple[shape.Path, str]]:
    schema = {**provider.settings_schema, "required": ()}
    for path, why in shape.problems(schema, settings, ("settings",)):
        yield path, _setting_hint(provider, settings, path) or why
    people = settings.get("allowFrom")
    if settings.get("dmPolicy") == "open" and (not isinstance(people, list) or "*" not in people):
        yield ("settings", "allowFrom"), 'the policy "open" lets everybody in, and says so with "*" in this list'


def _setting_hint(provider: Provider, settings: Mapping[str, Any], path: shape.Path) -> str | None:
    """A better reason than "not known", for what was put here by mistake."""
    if len(path) != 2:
        return None
    name, value = path[1], settings.get(path[1])
    if name in provider.credential_schema["properties"]:
        return "this is a secret: give it as a credential"
    if isinstance(value, Mapping) and {"source", "id"} <= cast("Mapping[str, Any]", value).keys():
        return "a reference to a secret cannot be made here"
    if name not in provider.settings_schema["properties"] and _FILES.fullmatch(name):
        return "files and programs of the server cannot be named: give the secret itself as a credential"
    return None


def _credentials_refused(provider: Provider, credentials: Mapping[str, Any]) -> Iterator[tuple[shape.Path, str]]:
    schema = {**provider.credential_schema, "required": ()}
    found = dict(shape.problems(schema, credentials, ("credentials",)))
    for name, value in credentials.items():
        path = shape.shown(("credentials",), name)
        if name in provider.settings_schema["properties"]:
            found[path] = "this is no secret: give it as a setting"
        elif path not in found and isinstance(value, str) and _REFERENCE.fullmatch(value):
            found[path] = "give the secret itself, not a reference to it"
    yield from found.items()


@cache
def facts(name: str, edition: str) -> Facts:
    """What rendering has to know."""
    said = _said(name, edition)
    is_new = edition == "new"
    return Facts(
        dm=said.get("dm", "flat"),
        accounts=said.get("accounts", True),
        switch=said.get("switch", True),
        writes=said.get("writes", True),
        default_account=said.get("defaultAccount", is_new),
        feeds=said.get("feeds", False),
        entry=not is_new or "package" in said,
        renames={"allowPrivateNetwork": "network.dangerouslyAllowPrivateNetwork", **said.get("renames", {})},
        fixed=said.get("fixed", {}),
        needs=said.get("needs", {}),
        when=[(name, value, others) for name, value, others in said.get("when", ())],
        either=said.get("either", ()),
    )


@cache
def _provider(name: str, version: str) -> Provider:
    said = _said(name, edition(version))
    package: str | None = said.get("package")
    return Provider(
        name=name,
        label=said["label"],
        credential_schema=_credential_schema(said),
        settings_schema=_whole(said["settings"], said.get("required", ())),
        exclusive=said.get("exclusive"),
        package=f"{package}@{version}" if package and package.startswith("@openclaw/") else package,
        pairs_by_qr=said.get("qr", False),
        edition=edition(version),
    )


def _credential_schema(said: Mapping[str, Any]) -> dict[str, Any]:
    schema = _whole(said["credentials"], said.get("required", ()))
    if secrets := said.get("peers"):
        secret = {"type": "string", "pattern": r"^\S+$", "maxLength": 2_000, "description": "a token without spaces"}
        pattern = rf"^peers\.(?!constructor\.|prototype\.)[A-Za-z0-9][A-Za-z0-9-]{{0,63}}\.(?:{'|'.join(secrets)})$"
        schema["patternProperties"] = {pattern: secret}
    return schema


def _whole(parts: Mapping[str, Any], required: Sequence[str]) -> dict[str, Any]:
    schema = _expanded({"properties": parts, "required": [name for name in required if name in parts]})
    return {"$schema": _SCHEMA, **cast("dict[str, Any]", schema)}


def _expanded(said: Any) -> Any:
    """The JSON Schema that the data's short form stands for."""
    if isinstance(said, str):
        return _expanded(_data()["definitions"][said])
    if "values" in said:
        values = {"type": "object", "additionalProperties": _expanded(said["values"]), "maxProperties": 1_000}
        return {**values, "propertyNames": said["names"]} if "names" in said else values
    if "properties" in said:
        parts = {name: _expanded(part) for name, part in said["properties"].items()}
        return {"type": "object", **said, "properties": parts, "additionalProperties": False}
    return {**said, "items": _expanded(said["items"])} if "items" in said else said


def _said(name: str, edition: str) -> dict[str, Any]:
    """What is common to both editions, changed as this one says; null takes something away."""
    common = _data()["providers"][name]
    own = common[edition]
    said = {**common, **own}
    for part in ("settings", "credentials"):
        both = {**common[part], **own.get(part, {})}
        said[part] = {key: value for key, value in both.items() if value is not None}
    return said


@cache
def _data() -> dict[str, Any]:
    return json.loads(DATA.read_text())
