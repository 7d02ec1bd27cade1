"""Data keys."""

import strawberry

from app.domain.states import TokenScope
from app.graphql.context import Info
from app.graphql.permissions import Rule, query
from app.graphql.types.key import EncryptionKey
from app.services import data_keys


@strawberry.type
class KeyQueries:
    @query(Rule.VISIBLE, TokenScope.ADMIN, "Versions of the credential key.")
    async def encryption_keys(self, info: Info) -> list[EncryptionKey]:
        return [EncryptionKey.from_row(row) for row in await data_keys.versions()]
