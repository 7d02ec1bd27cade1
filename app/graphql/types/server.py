"""What this server is."""

from datetime import datetime

import strawberry


@strawberry.type(description="What this server is and can do.")
class ServerInfo:
    version: str = strawberry.field(description="Version of ClawNet.")
    schema_hash: str = strawberry.field(
        description="SHA-256 of the schema text, to tell whether generated code still fits."
    )
    subscription_protocols: list[str] = strawberry.field(
        description="Ways a subscription can be carried here, for example `graphql-transport-ws`."
    )
    event_bus: str = strawberry.field(description="Where rooms live: `memory`, `postgres` or `redis`.")
    time: datetime = strawberry.field(description="The server's clock.")
