"""A channel's secrets on their way in: checked by their shape, and sealed. No value goes further than this module."""

import re
from collections.abc import Iterator
from typing import Any, cast
from uuid import UUID

from app.domain.errors import Blank, Invalid, TooLong
from app.domain.ports import ChannelProvider
from app.graphql.context import Context
from app.services import keys
from app.services.channels import Credentials

#: Longest secret, in characters, and how many a channel may have.
MAX_SECRET, MAX_SECRETS = 16_384, 32
#: Longest name of a secret.
MAX_KEY = 64

_NAME = re.compile(rf"[A-Za-z][A-Za-z0-9_.-]{{0,{MAX_KEY - 1}}}\Z")
#: Somebody may have put the secret itself where its name belongs, and what is refused is told and kept.
_NO_NAME = "credentials holds a name that no secret of this provider has; `channelProviders` lists those it has"
_UNKEEPABLE = re.compile(r"[\x00\ud800-\udfff]")


def sealed(context: Context, provider_name: str, channel_id: UUID, given: Any, settings: Any = None) -> Credentials:
    """The secrets of a channel, sealed for its row. Raises a `Refusal` that names the field and holds no value."""
    if given is None or given == {}:
        return Credentials()
    service, vault = context.services.channels, context.services.vault
    provider = service.provider(provider_name)
    found = dict(_leaves(provider, given))
    if len(found) > MAX_SECRETS:
        raise TooLong(f"a channel has at most {MAX_SECRETS} secrets", "credentials")
    plain = {key: value for key, value in found.items() if value is not None}
    service.check(provider, settings, plain)
    exclusive = provider.exclusive
    return Credentials(
        sealed={
            key: None if value is None else vault.seal(value, keys.channel_place(channel_id, provider.name, key))
            for key, value in found.items()
        },
        exclusive=exclusive,
        fingerprint=vault.fingerprint(provider.name, exclusive, plain[exclusive]) if exclusive in plain else None,
    )


def _leaves(provider: ChannelProvider, given: Any) -> Iterator[tuple[str, str | None]]:
    """Name and value of each secret; nested names are joined with dots."""
    if not isinstance(given, dict):
        raise Invalid("credentials must be a JSON object of secrets by name", "credentials")
    for key, value in cast("dict[str, Any]", given).items():
        if not _NAME.match(key):
            raise Invalid(_NO_NAME, "credentials")
        if isinstance(value, dict) and value:
            nested = cast("dict[str, Any]", value)
            yield from _leaves(provider, {f"{key}.{name}": inner for name, inner in nested.items()})
        else:
            _name(provider, key)
            yield key, None if value is None else _value(key, value)


def _name(provider: ChannelProvider, key: str) -> None:
    schema = provider.credential_schema
    if key in provider.settings_schema["properties"]:
        raise Invalid(f"credentials.{key}: this is no secret: give it as a setting", "credentials", key)
    if key not in schema["properties"] and not any(
        re.fullmatch(pattern, key, re.ASCII) for pattern in schema.get("patternProperties", ())
    ):
        raise Invalid(_NO_NAME, "credentials")


def _value(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise Invalid(f"credentials.{key} must be a text", "credentials", key)
    if not value.strip():
        raise Blank(f"credentials.{key} is empty; null removes the one that is kept", "credentials", key)
    if len(value) > MAX_SECRET:
        raise TooLong(f"credentials.{key} is longer than {MAX_SECRET} characters", "credentials", key)
    if _UNKEEPABLE.search(value):
        raise Invalid(f"credentials.{key} holds characters that cannot be kept", "credentials", key)
    return value
