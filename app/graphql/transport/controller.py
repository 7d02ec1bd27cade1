"""GraphQL over HTTP and graphql-transport-ws: Strawberry executes, Litestar carries."""

import secrets
from datetime import timedelta
from typing import Any

import msgspec
from litestar.types import Scope
from strawberry.exceptions import ConnectionRejectionError
from strawberry.litestar import make_graphql_controller
from strawberry.subscriptions import GRAPHQL_TRANSPORT_WS_PROTOCOL
from strawberry.types.unset import UNSET, UnsetType

from app.graphql.context import Context, Services, bearer
from app.graphql.schema import schema, text_hash

#: Seconds a socket has to send `connection_init`.
INIT_WAIT = timedelta(seconds=5)
#: Subscriptions one socket may carry.
MAX_SUBSCRIPTIONS = 50

_encode = msgspec.json.Encoder().encode


def controller(path: str, allowed_origins: tuple[str, ...] = ()) -> type[Any]:
    """The controller class that serves the schema at a path."""
    schema_hash = text_hash()

    async def make_context(scope: Scope) -> Context:
        headers = {key: value for key, value in scope["headers"]}  # noqa: C416
        services: Services = scope["litestar_app"].state.services
        return Context(
            services=services,
            schema_hash=schema_hash,
            token=bearer(headers.get(b"authorization", b"").decode("latin-1")),
            request_id=scope.get("state", {}).get("request_id") or secrets.token_hex(8),
            is_socket=scope["type"] == "websocket",
        )

    made = make_graphql_controller(
        schema,
        path=path,
        graphql_ide=None,
        context_getter=make_context,
        subscription_protocols=(GRAPHQL_TRANSPORT_WS_PROTOCOL,),
        connection_init_wait_timeout=INIT_WAIT,
        max_subscriptions_per_connection=MAX_SUBSCRIPTIONS,
        allowed_origins=allowed_origins,
    )

    class Controller(made):
        """Signs sockets in, and writes JSON fast."""

        async def on_ws_connect(self, context: Context) -> UnsetType | dict[str, object] | None:
            given = (context.connection_params or {}).get("authorization")
            if isinstance(given, str):
                context.token = bearer(given) or given
            if await context.viewer() is None:
                raise ConnectionRejectionError
            return UNSET

        def encode_json(self, data: object) -> bytes:
            return _encode(data)

    return Controller
