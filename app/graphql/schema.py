"""The schema, its text, and what clients are told of errors."""

import hashlib
import re
from collections.abc import Iterator

import strawberry
import structlog
from graphql import GraphQLError, GraphQLSyntaxError
from strawberry.exceptions import MissingQueryError
from strawberry.extensions import MaxTokensLimiter, SchemaExtension
from strawberry.printer import print_schema
from strawberry.schema.config import StrawberryConfig
from strawberry.schema.exceptions import CannotGetOperationTypeError, InvalidOperationTypeError
from strawberry.types import ExecutionContext
from strawberry.types.graphql import OperationType

from app.domain.errors import ClawNetError, Denied, Refusal
from app.graphql import permissions
from app.graphql.guard import QueryGuard
from app.graphql.mutations import Mutation
from app.graphql.queries import Query
from app.graphql.subscriptions import Subscription
from app.graphql.types.room import BigInt

log = structlog.get_logger()

#: Lexical tokens a document may have.
MAX_TOKENS = 1_000

INTERNAL = "Something went wrong on the server; the request id finds it in its log."

# graphql-core quotes the value it refuses, and an input can hold an API key.
_QUOTED = re.compile(
    r"(?:[,;.]? (?:found: |but encountered error )|, found (?:Block)?String |(?<!invalid value)(?<=value): ).*"
    r"|(?<=Value) '.*'(?= does not exist)",
    re.DOTALL | re.IGNORECASE,
)

_NO_OPERATION = (CannotGetOperationTypeError, InvalidOperationTypeError, MissingQueryError)


class NeedsStream(SchemaExtension):
    """Says of a subscription in a plain request which way it must come."""

    def on_validate(self) -> Iterator[None]:
        running = self.execution_context
        if running.operation_type is OperationType.SUBSCRIPTION and not running.context.is_socket:
            message = "a subscription needs a transport that streams: open a socket with graphql-transport-ws"
            running.pre_execution_errors = [GraphQLError(message, extensions={"code": "SUBSCRIPTION_NEEDS_STREAM"})]
        yield


class Schema(strawberry.Schema):
    """Tells clients what they can use of an error, and the log the rest."""

    def process_errors(self, errors: list[GraphQLError], execution_context: ExecutionContext | None = None) -> None:
        request_id = getattr(execution_context and execution_context.context, "request_id", "")
        for error in errors:
            code = _code(error)
            if code == "INTERNAL":
                log.error("resolver_failed", path=error.path, exc_info=error.original_error)
                error.message = INTERNAL
            elif not isinstance(error.original_error, ClawNetError):
                error.message = _QUOTED.sub("", error.message)
            error.extensions = {**(error.extensions or {}), "code": code, "requestId": request_id}


def _code(error: GraphQLError) -> str:
    original = error.original_error
    while isinstance(original, GraphQLError):
        original = original.original_error
    if isinstance(original, Denied):
        return original.code
    if isinstance(original, Refusal):
        return original.code if original.code == "NOT_FOUND" else "BAD_USER_INPUT"
    if isinstance(original, ValueError) and error.nodes and error.path is None:
        return "BAD_USER_INPUT"  # a literal that no number can hold, found before anything ran
    if original is not None and not isinstance(original, _NO_OPERATION):
        return "INTERNAL"
    if isinstance(error, GraphQLSyntaxError) and f"more than {MAX_TOKENS} tokens" in error.message:
        return "QUERY_TOO_COMPLEX"
    # Without an original it was the document or its variables: the text is the caller's own.
    return str((error.extensions or {}).get("code", "BAD_USER_INPUT"))


schema = Schema(
    query=Query,
    mutation=Mutation,
    subscription=Subscription,
    config=StrawberryConfig(
        scalar_map={
            BigInt: strawberry.scalar(
                name="BigInt",
                description="A whole number up to 2^53 sent as a JSON number: byte counts, token totals, "
                "milliseconds since 1970.",
                serialize=int,
                parse_value=int,
            )
        },
    ),
    extensions=[lambda: MaxTokensLimiter(MAX_TOKENS), NeedsStream, QueryGuard],
)


def text() -> str:
    """The schema as `schema.graphql` holds it."""
    return print_schema(schema) + "\n"


def text_hash() -> str:
    return hashlib.sha256(text().encode()).hexdigest()


def check() -> None:
    """Refuses to go on with a root field that states no rule."""
    permissions.check(schema._schema)  # pyright: ignore[reportPrivateUsage]
