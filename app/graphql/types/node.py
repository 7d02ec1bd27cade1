"""Identities: opaque outside, a type's name and a UUID inside."""

import re
from uuid import UUID

import strawberry
from strawberry.relay.utils import from_base64, to_base64

from app.domain.errors import NotFound

#: What a type of ours is called.
_TYPE = re.compile(r"[A-Z][A-Za-z]{0,31}", re.ASCII)


@strawberry.interface(description="An object with an identity that can be fetched again through `node`.")
class Node:
    id: strawberry.ID = strawberry.field(description="Opaque identity, unique in the whole service.")


def global_id(type_name: str, key: UUID) -> strawberry.ID:
    return strawberry.ID(to_base64(type_name, str(key)))


def parse(text: str) -> tuple[str, UUID] | None:
    """The type's name and the key of an identity; None for what is no identity of ours."""
    try:
        name, key = from_base64(text)
        parsed = name, UUID(key)
    except ValueError:
        return None
    if not _TYPE.fullmatch(name):
        return None
    # One object has one identity: base64 and UUIDs can be written in many ways.
    return parsed if global_id(*parsed) == text else None


def require(text: str, type_name: str, *field: str) -> UUID:
    """The key of an identity of this type; `NotFound` for any other text."""
    parsed = parse(text)
    if parsed is None or parsed[0] != type_name:
        # In the words of the services, so that a mistyped identity reads as a missing one.
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type_name).lower()
        raise NotFound(f"there is no such {words}", *field)
    return parsed[1]
