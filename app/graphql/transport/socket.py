"""graphql-transport-ws as its protocol wants it: a faulty message is told apart from a faulty document.

A message that breaks the protocol closes the socket with 4400; a document that cannot run ends just its operation.
"""

from collections.abc import Mapping
from typing import Any, cast

import anyio
from graphql import GraphQLError
from strawberry.subscriptions.protocols.graphql_transport_ws.handlers import BaseGraphQLTransportWSHandler

from app.domain.errors import RateLimited, Unavailable
from app.domain.ports import ABORT
from app.graphql.context import Context

#: Close code for "try again later".
TRY_AGAIN = 1013
#: Seconds a client has to take the last frame of a socket that is closed from outside.
LAST_WORDS = 1.0


class Socket(BaseGraphQLTransportWSHandler[Context, None]):
    """One client's socket."""

    async def handle_message(self, message: Any) -> None:
        if fault := _fault(message):
            await self.handle_invalid_message(fault)
        else:
            await super().handle_message(message)

    async def handle(self) -> None:
        self.context.peer = self
        await super().handle()

    async def handle_connection_init(self, message: Any) -> None:
        try:
            await super().handle_connection_init(message)
        except (RateLimited, Unavailable) as error:
            # "Try again later": clients come back, where 4403 and 4500 would send them away.
            await self.websocket.close(code=TRY_AGAIN, reason=error.message)

    async def shut(self, code: int, reason: str) -> None:
        """Closes the socket from outside; what it still does ends at once, so that nothing more is heard."""
        self.connection_acknowledged = False
        for operation_id in list(self.operations):
            await self.cleanup_operation(operation_id)
        with anyio.move_on_after(LAST_WORDS) as patience:
            await self.websocket.close(code, reason)
        if patience.cancelled_caught:
            # The client reads nothing, so it will not read this either.
            self._abort()

    def _abort(self) -> None:
        websocket: Any = self.websocket
        extensions = cast("dict[str, Any]", websocket.ws.scope.get("extensions") or {})
        if ABORT in extensions:
            extensions[ABORT]()

    async def shutdown(self) -> None:
        self.context.services.connections.release(self)
        await super().shutdown()

    @staticmethod
    def _get_pre_execution_close_reason(error: GraphQLError) -> str | None:
        # Strawberry would close the socket, and with it the client's other operations.
        return None


def _fault(message: object) -> str | None:
    """Why the protocol does not allow the message; None for one that it does."""
    if not isinstance(message, Mapping):
        return "a message must be a JSON object"
    fields = cast("Mapping[str, object]", message)
    kind = fields.get("type")
    if not isinstance(kind, str):
        return "a message must have a `type`"
    if kind in ("subscribe", "complete") and not (isinstance(fields.get("id"), str) and fields["id"]):
        return f"`{kind}` must have an `id` that is a text"
    return _payload_fault(fields.get("payload")) if kind == "subscribe" else None


def _payload_fault(payload: object) -> str | None:
    if not isinstance(payload, Mapping):
        return "`subscribe` must have a `payload`"
    fields = cast("Mapping[str, object]", payload)
    if not isinstance(fields.get("query"), str):
        return "`payload.query` must be a text"
    if not isinstance(fields.get("operationName"), str | None):
        return "`payload.operationName` must be a text"
    if not isinstance(fields.get("variables"), Mapping | None):
        return "`payload.variables` must be an object"
    return None
