"""Who asks, and what answers."""

from datetime import UTC, datetime

import strawberry

from app import __version__
from app.graphql.context import Info, user_loader
from app.graphql.permissions import Rule, query
from app.graphql.types.server import ServerInfo
from app.graphql.types.user import User

#: Ways a subscription can be carried here.
PROTOCOLS = ("graphql-transport-ws",)


@strawberry.type
class ServerQueries:
    @query(Rule.PUBLIC, None, "The person or token that asks; null without sign-in.")
    async def viewer(self, info: Info) -> User | None:
        viewer = await info.context.viewer()
        user = await info.context.loader("users", user_loader).load(viewer.user_id) if viewer else None
        return User.from_row(user, viewer) if user and viewer else None

    @query(Rule.PUBLIC, None, "What this server is and can do.")
    async def server_info(self, info: Info) -> ServerInfo:
        return ServerInfo(
            version=__version__,
            schema_hash=info.context.schema_hash,
            subscription_protocols=list(PROTOCOLS),
            event_bus="postgres",
            time=datetime.now(UTC),
        )
