"""Data keys and their changes, as administrators see them; a key itself never leaves the server."""

from datetime import datetime

import strawberry

from app.domain.states import KeyRotationState
from app.graphql.types import node
from app.services import data_keys, rotation


@strawberry.type(
    description="A version of the key credentials are encrypted with. The key itself never leaves the server."
)
class EncryptionKey:
    version: int = strawberry.field(description="Version, from 1.")
    active: bool = strawberry.field(description="New secrets use it.")
    credential_count: int = strawberry.field(description="Credentials of channels that use it.")
    created_at: datetime = strawberry.field(description="When it was first used.")

    @classmethod
    def from_row(cls, row: data_keys.Key) -> "EncryptionKey":
        return cls(
            version=row.key_id,
            active=row.state == "active",
            credential_count=row.counts.get("channel", 0),
            created_at=row.created_at,
        )


@strawberry.type(description="A change of keys under way or done: every stored secret is encrypted anew.")
class KeyRotation(node.Node):
    state: KeyRotationState = strawberry.field(description="Where it stands.")
    from_version: int = strawberry.field(description="Version before.")
    to_version: int = strawberry.field(description="Version after.")
    total: int = strawberry.field(description="Secrets to encrypt.")
    done: int = strawberry.field(description="Secrets encrypted.")
    failed: int = strawberry.field(description="Secrets that could not be read.")
    started_at: datetime = strawberry.field(description="When it began.")
    finished_at: datetime | None = strawberry.field(description="When it ended; null until then.")

    @classmethod
    def from_row(cls, row: rotation.Rotation) -> "KeyRotation":
        return cls(
            id=node.global_id("KeyRotation", row.id),
            state=row.state,
            from_version=row.from_key,
            to_version=row.to_key,
            total=row.total,
            done=row.done,
            failed=row.failed,
            started_at=row.started_at,
            finished_at=row.finished_at,
        )
