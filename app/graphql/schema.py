"""The schema, its text, and what clients are told of errors."""

import hashlib
import math
import re
from collections.abc import Iterator
from functools import cached_property

import strawberry
import structlog
from graphql import GraphQLError, GraphQLSyntaxError
from strawberry.exceptions import MissingQueryError
from strawberry.extensions import MaxTokensLimiter, SchemaExtension
from strawberry.extensions.runner import SchemaExtensionsRunner
from strawberry.printer import print_schema
from strawberry.schema.config import StrawberryConfig
from strawberry.schema.exceptions import CannotGetOperationTypeError, InvalidOperationTypeError
from strawberry.types import ExecutionContext
from strawberry.types.execution import PreExecutionError
from strawberry.types.graphql import OperationType

from app.domain.errors import ClawNetError, Denied, RateLimited, Refusal
from app.graphql import cost, guard, permissions
from app.graphql.context import Context
from app.graphql.guard import QueryGuard
from app.graphql.mutations import Mutation
from app.graphql.queries import Query
from app.graphql.subscriptions import Subscription
from app.graphql.types.room import BigInt

log = structlog.get_logger()

#: Lexical tokens a document may have.
MAX_TOKENS = 1_000

#: HTTP's status for callers who ask for too much.
TOO_MANY_REQUESTS = 429

INTERNAL = "Something went wrong on the server; the request id finds it in its log."

# graphql-core quotes the value it refuses, and an input can hold an API key.
_QUOTED = re.compile(
    r"(?:[,;.]? (?:found: |but encountered error )|, found (?:Block)?String |(?<!invalid value)(?<=value): "
    r"|(?<=represent a DateTime): ).*"
    r"|(?<=Value) '.*'(?= does not exist)",
    re.DOTALL | re.IGNORECASE,
)

#: Characters of a refusal that are looked through and handed on: the rest is the caller's own text again.
MAX_MESSAGE = 1_000

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
    """Charges each operation before it runs, and tells clients what they can use of an error, and the log the rest."""

    @cached_property
    def costs(self) -> cost.Costs:
        return cost.Costs(self._schema)

    async def _prepare_operation_async(
        self, context: ExecutionContext, extensions_runner: SchemaExtensionsRunner
    ) -> PreExecutionError | None:
        # Every operation passes here, on whatever transport; an empty allowance pays for no parsing either.
        if refused := await guard.turn_away(context):
            return PreExecutionError(data=None, errors=[refused])
        try:
            fault = await super()._prepare_operation_async(context, extensions_runner)
        except _NO_OPERATION as error:
            if refused := await self._charge(context, is_valid=False):
                return refused
            raise error from error.__cause__
        return await self._charge(context, is_valid=fault is None) or fault

    async def _charge(self, running: ExecutionContext, *, is_valid: bool) -> PreExecutionError | None:
        refused = await guard.charge(running, self.costs, is_valid=is_valid)
        return PreExecutionError(data=None, errors=[refused]) if refused else None

    def process_errors(self, errors: list[GraphQLError], execution_context: ExecutionContext | None = None) -> None:
        request_id = getattr(execution_context and execution_context.context, "request_id", "")
        for error in errors:
            code = _code(error)
            if code == "INTERNAL":
                log.error("resolver_failed", path=error.path, exc_info=error.original_error)
                error.message = INTERNAL
            elif not isinstance(error.original_error, ClawNetError):
                error.message = _QUOTED.sub("", error.message[:MAX_MESSAGE])
            error.extensions = {**(error.extensions or {}), "code": code, "requestId": request_id}
            if isinstance(refusal := _original(error), RateLimited):
                _say_when(refusal, error, execution_context and execution_context.context)


def _say_when(refusal: RateLimited, error: GraphQLError, context: Context | None) -> None:
    """Says how long to wait: in the error, and over HTTP in its own words too."""
    is_ever = math.isfinite(refusal.wait)
    if is_ever:
        error.extensions = {**(error.extensions or {}), "retryAfterMs": math.ceil(refusal.wait * 1000)}
    if context is not None and context.response is not None:
        context.response.status_code = TOO_MANY_REQUESTS
        if is_ever:
            context.response.headers["retry-after"] = str(math.ceil(refusal.wait))


def _original(error: GraphQLError) -> BaseException | None:
    """What a resolver raised, whatever it was wrapped in."""
    original = error.original_error
    while isinstance(original, GraphQLError):
        original = original.original_error
    return original


def _code(error: GraphQLError) -> str:
    original = _original(error)
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
    """Refuses to go on with a root field that states no rule, or with a list that states no cost."""
    permissions.check(schema._schema)  # pyright: ignore[reportPrivateUsage]
    cost.check(schema._schema)  # pyright: ignore[reportPrivateUsage]
