"""Rights at the edge: each root field states its scope and its rule of ownership, or the server does not start."""

import dataclasses
import inspect
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import strawberry
from graphql import GraphQLSchema
from strawberry.extensions import FieldExtension
from strawberry.schema_directive import Location
from strawberry.types.field import StrawberryField

from app.domain.errors import Denied, Forbidden, Refusal
from app.domain.states import TokenScope
from app.graphql import cost
from app.graphql.context import Info
from app.graphql.types import node
from app.graphql.types.error import UserError
from app.services import audit

_RULE = "clawnet.rule"


class Rule(StrEnum):
    """Whose objects a root field touches."""

    PUBLIC = "nobody's: anonymous callers may"
    SELF = "the caller's own"
    VISIBLE = "what the caller may see: own ones, or all for administrators and observers"
    OWNED = "what the caller may change: own ones, or all for administrators"
    BY_ROOM = "rooms whose subject the caller may see, checked name by name"


@strawberry.schema_directive(
    locations=[Location.FIELD_DEFINITION, Location.OBJECT],
    name="requires",
    description="The scope an access token must carry to reach a field.",
)
class Requires:
    scope: TokenScope = strawberry.directive_field(name="scope")


class _Guard(FieldExtension):
    """Lets through who is signed in and carries the scope."""

    def __init__(self, rule: Rule, scope: TokenScope | None) -> None:
        self._rule = rule
        self._scope = scope

    async def resolve_async(self, next_: Callable[..., Any], source: Any, info: Info, **kwargs: Any) -> Any:
        if self._rule is not Rule.PUBLIC:
            viewer = await (info.context.renewed() if "input" in kwargs else info.context.signed_in())
            if self._scope is not None and not viewer.may(self._scope):
                refusal = Forbidden(f"this needs a token with the scope {self._scope}")
                if "input" in kwargs:
                    with audit.acting(info.context.actor):
                        await _note_refusal(info, kwargs["input"], refusal)
                raise refusal
        result = next_(source, info, **kwargs)
        if inspect.isasyncgen(result):
            return result
        return await result if inspect.isawaitable(result) else result


class _Payloads(FieldExtension):
    """Turns a raised refusal into the payload's `userErrors`, hands `clientMutationId` back, and says who acts."""

    async def resolve_async(self, next_: Callable[..., Any], source: Any, info: Info, **kwargs: Any) -> Any:
        await info.context.viewer()
        with audit.acting(info.context.actor):
            try:
                payload = await next_(source, info, **kwargs)
            except Refusal as refusal:
                await _note_refusal(info, kwargs["input"], refusal)
                error = UserError(code=UserError.code_of(refusal), message=refusal.message, field=refusal.field)
                make: Any = info.return_type
                payload: Any = make(user_errors=[error])
        payload.client_mutation_id = kwargs["input"].client_mutation_id
        return payload


async def _note_refusal(info: Info, given: Any, refusal: Refusal | Denied) -> None:
    """Refusals are told in a transaction of their own: what was refused was rolled back."""
    if info.context.known is None or (isinstance(refusal, Refusal) and refusal.is_told):
        return
    field = refusal.field if isinstance(refusal, Refusal) else None
    await audit.note(info.field_name, _subject(given), refusal=refusal.code, field=field)


def _subject(given: Any) -> audit.Subject | None:
    """The object that an input is about: the first of its identities."""
    for field in dataclasses.fields(given):
        value = getattr(given, field.name)
        if (field.name == "id" or field.name.endswith("_id")) and isinstance(value, str):
            parsed = node.parse(value)
            return audit.Subject(*parsed) if parsed else None
    return None


def _metadata(rule: Rule) -> dict[Any, object]:
    return {_RULE: rule}


def _directives(scope: TokenScope | None) -> list[object]:
    return [] if scope is None else [Requires(scope=scope)]


def query(
    rule: Rule, scope: TokenScope | None, description: str, weight: int | None = None
) -> Callable[[Callable[..., Any]], Any]:
    """A root field that reads; a list's cost is known by its arguments, `weight` is what one look at it takes."""

    def declare(resolver: Callable[..., Any]) -> Any:
        return strawberry.field(
            description=description,
            directives=[*cost.directives(resolver, weight), *_directives(scope)],
            extensions=[_Guard(rule, scope)],
            metadata=_metadata(rule),
        )(resolver)

    return declare


def mutation(rule: Rule, scope: TokenScope | None, description: str) -> Callable[[Callable[..., Any]], Any]:
    """A root field that changes something: one `input`, one payload."""
    return strawberry.mutation(
        description=description,
        directives=[cost.Cost(weight=cost.MUTATION), *_directives(scope)],
        extensions=[_Guard(rule, scope), _Payloads()],
        metadata=_metadata(rule),
    )


def subscription(rule: Rule, scope: TokenScope | None, description: str) -> Callable[[Callable[..., Any]], Any]:
    """A root field that is listened to."""
    return strawberry.subscription(
        description=description,
        directives=_directives(scope),
        extensions=[_Guard(rule, scope)],
        metadata=_metadata(rule),
    )


def check(schema: GraphQLSchema) -> None:
    """Every root field states a rule, or the server does not start."""
    roots = (schema.query_type, schema.mutation_type, schema.subscription_type)
    for root in filter(None, roots):
        for name, field in root.fields.items():
            definition: StrawberryField | None = field.extensions.get("strawberry-definition")
            if definition is None or _RULE not in definition.metadata:
                raise RuntimeError(f"{root}.{name} states no rule of ownership; declare it with permissions.*")
