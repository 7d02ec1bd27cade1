"""Everything that can be read."""

import strawberry

from app.graphql.queries.bots import BotQueries
from app.graphql.queries.channels import ChannelQueries
from app.graphql.queries.fleet import FleetQueries
from app.graphql.queries.keys import KeyQueries
from app.graphql.queries.limits import LimitQueries
from app.graphql.queries.models import ModelQueries
from app.graphql.queries.nodes import NodeQueries
from app.graphql.queries.people import PeopleQueries
from app.graphql.queries.server import ServerQueries


@strawberry.type(description="Everything that can be read.")
class Query(
    NodeQueries,
    ServerQueries,
    BotQueries,
    FleetQueries,
    ModelQueries,
    PeopleQueries,
    LimitQueries,
    KeyQueries,
    ChannelQueries,
):
    """Put together from one class a noun."""
