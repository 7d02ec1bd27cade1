"""Values that fit a schema of the catalogue, so that every choice it offers turns up in one of them."""

import json
from collections.abc import Iterator
from itertools import cycle, islice, product
from typing import Any

from app.gateway import channels
from app.gateway.channels import Account, Provider

OLD, NEW = "2026.2.1", "2026.9.6"
PROVIDERS = [provider for version in (OLD, NEW) for provider in channels.catalogue(version).values()]
#: Settings whose choices are tried in every combination.
CROSSED = ("dmPolicy", "groupPolicy", "replyToMode", "mode", "connectionMode", "chatmode")


def accounts(provider: Provider) -> Iterator[Account]:
    """Accounts with every choice in them; a provider without accounts of its own has them all named `default`."""
    fields = provider.settings_schema["properties"]
    crossed = [name for name in CROSSED if name in fields]
    turns = {name: cycle(values(schema)) for name, schema in fields.items()}
    combinations = list(product(*(values(fields[name]) for name in crossed)))
    count = max(len(combinations), *(len(values(schema)) for schema in fields.values()), 1) if fields else 1
    for number, combination in enumerate(islice(cycle(combinations), count)):
        settings = {name: next(turn) for name, turn in turns.items()} | dict(zip(crossed, combination, strict=True))
        if settings.get("dmPolicy") == "open":
            settings["allowFrom"] = ["*"]
        name = f"a{number}" if number and channels.account_refused(provider, "a0") is None else "default"
        yield Account(provider.name, name, True, settings, credentials(provider, f"s{number}"))


def few(provider: Provider) -> Iterator[Account]:
    """Enough of `accounts` to have every choice once, where each costs a question of its own."""
    seen: set[tuple[str, str]] = set()
    for account in accounts(provider):
        choices = {(name, json.dumps(each)) for name, each in account.settings.items()}
        if not choices <= seen or not seen:
            yield account
        seen |= choices


def credentials(provider: Provider, mark: str = "") -> dict[str, str]:
    known = {name: value(schema) for name, schema in provider.credential_schema["properties"].items()}
    if "patternProperties" in provider.credential_schema:
        known = {"peers.some-name.token": "example-value"}
    marked = {name: text + mark for name, text in known.items() if not text.startswith("{")}
    return known | marked


def minimal(provider: Provider) -> Account:
    """Just what it cannot do without."""
    whole = next(accounts(provider))
    lacks = {path[-1] for path, _ in channels.refused(provider, {}, {})}
    settings = {name: each for name, each in whole.settings.items() if name in lacks}
    secrets = {name: each for name, each in whole.credentials.items() if name in lacks or provider.name == "a2a"}
    return Account(provider.name, "default", True, settings, secrets)


def value(schema: dict[str, Any]) -> Any:
    return values(schema)[0]


def values(schema: dict[str, Any]) -> list[Any]:
    if "enum" in schema:
        return list(schema["enum"])
    kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    return [each for kind in kinds for each in _of_kind(kind, schema)]


def _of_kind(kind: str, schema: dict[str, Any]) -> list[Any]:
    match kind:
        case "boolean":
            return [True, False]
        case "integer":
            return sorted({schema.get("minimum", 1), schema.get("maximum", 500)})
        case "string":
            return schema.get("examples", ["example-value"])
        case "array":
            return [values(schema["items"]), values(schema["items"])[:1]]
        case _:
            return _objects(schema)


def _objects(schema: dict[str, Any]) -> list[Any]:
    if isinstance(schema["additionalProperties"], dict):
        name = schema.get("propertyNames", {}).get("examples", ["some-name"])[0]
        return [{name: each} for each in values(schema["additionalProperties"])]
    turns = {name: cycle(values(below)) for name, below in schema["properties"].items()}
    count = max((len(values(below)) for below in schema["properties"].values()), default=1)
    return [{name: next(turn) for name, turn in turns.items()} for _ in range(count)]
