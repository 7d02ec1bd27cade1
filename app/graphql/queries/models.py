"""Providers of models."""

import strawberry

from app.domain.states import TokenScope
from app.graphql.context import Info
from app.graphql.permissions import Rule, query
from app.graphql.types.model_provider import ModelProvider
from app.services import models


@strawberry.type
class ModelQueries:
    @query(Rule.VISIBLE, TokenScope.FLEET_READ, "Providers of models that the caller's bots can use.")
    async def model_providers(self, info: Info) -> list[ModelProvider]:
        return [ModelProvider.from_row(row) for row in await models.visible(info.context.caller)]
