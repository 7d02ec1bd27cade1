"""Says channels the way an installed OpenClaw wants them said.

Policies, lists of people and secrets stand in each account, because what an account inherits differs between the
versions. What the installed version has no word for is left out; a policy that cannot be said becomes the closed one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from app.gateway.channels import providers, shape
from app.gateway.channels.providers import Facts, Provider
from app.gateway.config import Dialect


@dataclass(frozen=True, slots=True)
class Account:
    """An account of a provider, as its owner set it up, with its secrets unsealed."""

    provider: str
    account_id: str
    enabled: bool
    settings: Mapping[str, Any]
    credentials: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Rendered:
    """Parts of a configuration, for `BotSettings.channels` and `.plugins`."""

    channels: dict[str, Any] = field(repr=False)
    plugins: dict[str, Any]
    left_out: tuple[tuple[str, str, str], ...] = ()
    """Enabled accounts that cannot be opened: provider, account, and why (without a secret)."""


def render(accounts: Sequence[Account], dialect: Dialect, version: str) -> Rendered:
    """The accounts that are opened, and those that are switched off without anything of theirs but that.

    An account that came and went with its switch could take its provider along, and the old version restarts for that.
    Where the provider is a package, which no closed channel needs, the version takes that without a restart.
    """
    known = providers.catalogue(version)
    written: dict[str, dict[str, dict[str, Any]]] = {}
    left_out: list[tuple[str, str, str]] = []
    for account in sorted(accounts, key=lambda each: (each.provider, each.account_id)):
        if why := _why_left_out(account, known, version):
            if account.enabled:
                left_out.append((account.provider, account.account_id, why))
        elif account.enabled or known[account.provider].package is None:
            rendered = _account(known[account.provider], account, dialect)
            written.setdefault(account.provider, {})[account.account_id] = rendered
    channels = {name: _block(known[name], each) for name, each in written.items()}
    return Rendered(channels, _plugins(accounts, written, known), tuple(left_out))


def _why_left_out(account: Account, known: Mapping[str, Provider], version: str) -> str | None:
    if (provider := known.get(account.provider)) is None:
        return providers.why_closed(account.provider, version)
    if why := providers.account_refused(provider, account.account_id):
        return why
    if not account.enabled:
        return None
    settings, credentials = _fitting(provider, account)
    lacks = providers.missing(provider, settings, credentials)
    return f"{'.'.join(lacks[0][0])}: {lacks[0][1]}" if lacks else None


def _fitting(provider: Provider, account: Account) -> tuple[dict[str, Any], dict[str, str]]:
    """What of an account this version can be told: it may have been set up for another one."""
    fits = shape.fitted({**provider.settings_schema, "required": ()}, account.settings)
    settings = cast("dict[str, Any]", fits or {})
    secrets = {name: value for name, value in account.credentials.items() if not _is_refused(provider, name, value)}
    return settings, secrets


def _is_refused(provider: Provider, name: str, value: str) -> bool:
    return bool(providers.refused(provider, {}, {name: value}, complete=False))


def _block(provider: Provider, accounts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    known = providers.facts(provider.name, provider.edition)
    if not known.accounts:
        return accounts["default"]
    block: dict[str, Any] = {"enabled": True} if known.switch else {}
    if known.writes:
        block["configWrites"] = False
    opened = {name: account for name, account in accounts.items() if account["enabled"]}
    if known.default_account and "default" not in (opened or accounts):
        block["defaultAccount"] = min(opened or accounts)
    if known.feeds and "groupAllowFrom" in accounts.get("default", {}):
        for account in opened.values():
            # Unsaid it stands for the people of direct chats, and must not become another account's list.
            account.setdefault("groupAllowFrom", account["allowFrom"])
    return block | {"accounts": accounts}


def _account(provider: Provider, account: Account, dialect: Dialect) -> dict[str, Any]:
    known = providers.facts(provider.name, provider.edition)
    tree: dict[str, Any] = {"enabled": account.enabled}
    if known.writes:
        tree["configWrites"] = False
    if not account.enabled:
        return tree
    settings, credentials = _fitting(provider, account)
    said = _policies(provider, settings)
    for name, value in {**said, **credentials, **known.fixed}.items():
        _put(tree, known.renames.get(name, name), _as_text(value))
    _say_streaming(provider, tree, dialect)
    _say_direct(known, tree, dialect)
    return tree


def _policies(provider: Provider, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with every policy spelled out, so that nothing is inherited; "open" without "*" is no longer so."""
    schemas = provider.settings_schema["properties"]
    said = {name: schemas[name]["default"] for name in ("dmPolicy", "groupPolicy") if name in schemas} | settings
    if "allowFrom" in schemas:
        said.setdefault("allowFrom", [])
    if said.get("dmPolicy") == "open" and "*" not in said["allowFrom"]:
        said["dmPolicy"] = "allowlist"
    return said


def _put(tree: dict[str, Any], name: str, value: Any) -> None:
    """Puts a value under a name, whose dots are levels; objects that meet are merged."""
    *above, last = name.split(".")
    for each in above:
        tree = tree.setdefault(each, {})
    if isinstance(value, Mapping) and isinstance(tree.get(last), dict):
        for part, below in cast("Mapping[str, Any]", value).items():
            tree[last].setdefault(part, below)
    else:
        tree[last] = value


def _as_text(value: Any) -> Any:
    """Ids in lists as text: some providers refuse numbers, and none refuses text."""
    if isinstance(value, Mapping):
        return {name: _as_text(part) for name, part in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, list):
        return [str(each) for each in cast("list[Any]", value)]
    return value


def _say_streaming(provider: Provider, tree: dict[str, Any], dialect: Dialect) -> None:
    if dialect.streaming_object or "streaming" not in tree:
        return
    said = tree.pop("streaming")
    block = said.get("block", {})
    flat = {
        "streamMode": said.get("mode") if provider.name == "telegram" else None,
        "chunkMode": said.get("chunkMode"),
        "blockStreaming": block.get("enabled"),
        "blockStreamingCoalesce": block.get("coalesce"),
        "draftChunk": said.get("preview", {}).get("chunk") if provider.name == "telegram" else None,
    }
    tree.update({name: value for name, value in flat.items() if value is not None})


def _say_direct(known: Facts, tree: dict[str, Any], dialect: Dialect) -> None:
    if known.dm == "flat" or (known.dm == "dialect" and dialect.flat_dm_policy):
        return
    policy = {"policy": tree.pop("dmPolicy"), "allowFrom": tree.pop("allowFrom")}
    tree["dm"] = tree.get("dm", {}) | policy


def _plugins(accounts: Sequence[Account], written: Mapping[str, Any], known: Mapping[str, Provider]) -> dict[str, Any]:
    """Lines in `plugins.entries`.

    The old version rewrites the file when a configured channel has none, and a line that comes and goes restarts it:
    so each provider keeps its line there. The new one would go and install a package for a line alone: there only
    what is written has one.
    """
    wanted = {each.provider for each in accounts} & known.keys()
    entries = {
        name: {"enabled": True}
        for name in sorted(wanted)
        if providers.facts(name, known[name].edition).entry and (known[name].edition == "old" or name in written)
    }
    return {"entries": entries} if entries else {}
