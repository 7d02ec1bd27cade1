"""GraphQL over HTTP and graphql-transport-ws: Strawberry executes, Litestar carries."""

import json
import secrets
from datetime import timedelta
from typing import Any, NoReturn, cast

import msgspec
import structlog
from cross_web import AsyncHTTPRequestAdapter, HTTPException
from litestar import MediaType, Request, Response
from litestar import exceptions as litestar
from litestar.types import Scope
from strawberry.exceptions import ConnectionRejectionError
from strawberry.http import GraphQLRequestData
from strawberry.litestar import make_graphql_controller
from strawberry.subscriptions import GRAPHQL_TRANSPORT_WS_PROTOCOL
from strawberry.types.unset import UNSET, UnsetType

from app.graphql.context import Context, Services, bearer
from app.graphql.queries import nodes
from app.graphql.schema import INTERNAL, schema, text_hash
from app.graphql.transport.socket import Socket

log = structlog.get_logger()

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
            find=nodes.load,
            schema_hash=schema_hash,
            token=bearer(headers.get(b"authorization", b"").decode("latin-1")),
            request_id=scope.get("state", {}).get("request_id") or secrets.token_hex(8),
            address=scope["client"][0] if scope["client"] else None,
            body_size=_size(headers.get(b"content-length")),
            is_socket=scope["type"] == "websocket",
        )

    made: Any = make_graphql_controller(
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
        """Signs sockets in, reads JSON warily and writes it fast."""

        graphql_transport_ws_handler_class = Socket

        async def execute_request(self, request: Request[Any, Any, Any], context: Context, root_value: None) -> Any:
            try:
                return await self.run(request, context=context, root_value=root_value)
            except HTTPException as error:
                # The reason may quote the caller, whose text need not be valid Unicode.
                reason = error.reason.encode(errors="replace")
                return Response(reason, status_code=error.status_code, media_type=MediaType.TEXT)
            except litestar.HTTPException:
                raise
            except Exception:
                log.exception("request_failed")
                error = {"message": INTERNAL, "extensions": {"code": "INTERNAL", "requestId": context.request_id}}
                return Response({"errors": [error]}, status_code=500)

        async def parse_http_body(self, request: AsyncHTTPRequestAdapter) -> Any:
            parsed = cast("GraphQLRequestData", await super().parse_http_body(request))
            if not isinstance(cast("object", parsed.operation_name), str | None):
                raise HTTPException(400, "The GraphQL operation's `operationName` must be a string or null, if given.")
            return parsed

        async def on_ws_connect(self, context: Context) -> UnsetType | dict[str, object] | None:
            given = (context.connection_params or {}).get("authorization")
            if isinstance(given, str):
                context.token = bearer(given) or given
            viewer = await context.viewer()
            if viewer is None or context.peer is None:
                raise ConnectionRejectionError
            context.services.connections.admit(context.peer, viewer)
            return UNSET

        def parse_json(self, data: str | bytes) -> Any:
            value = cast("object", super().parse_json(data))
            if isinstance(data, bytes) and not isinstance(value, dict | list):  # a parameter of GET is a text
                raise HTTPException(400, "The request's body must be a JSON object")
            return cast("Any", value)

        def decode_json(self, data: str | bytes) -> object:
            try:
                return json.loads(data, parse_constant=_refuse)
            except (ValueError, RecursionError) as error:
                # Also bytes that are no text, numbers of thousands of digits, and what is nested without an end.
                raise json.JSONDecodeError("no JSON that can be read here", "", 0) from error

        def encode_json(self, data: object) -> bytes:
            try:
                return _encode(data)
            except UnicodeEncodeError:
                # A lone surrogate in a caller's own text, which JSON can only carry as an escape.
                return json.dumps(data, default=str).encode()

    return Controller


def _size(length: bytes | None) -> int:
    """What a request says of its body; without a word about it, as much as is let in."""
    return int(length) if length is not None and length.isdigit() else 0


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
