"""Limits on what one document may ask, counted in one pass that visits each fragment once, and on all of a minute's.

Strawberry's own limiters follow a fragment anew at each spread, which a few hundred bytes turn into seconds; here a
fragment's counts are kept and added, and sums stop at a ceiling, so a document costs what its text costs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, cast

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    InlineFragmentNode,
    OperationDefinitionNode,
    OperationType,
    SelectionSetNode,
    get_operation_ast,
    validate,
)
from strawberry.extensions import SchemaExtension
from strawberry.schema.validation_rules.maybe_null import MaybeNullValidationRule
from strawberry.schema.validation_rules.one_of import OneOfInputValidationRule
from strawberry.types import ExecutionContext

from app.domain.errors import RateLimited, Unavailable
from app.graphql.context import Context
from app.graphql.cost import CEILING, MAX_COST, MUTATION, Costs, charged
from app.services import limits

#: Most levels of fields, fields in all (fragments counted where they are spread), aliases, and root fields.
MAX_DEPTH, MAX_FIELDS, MAX_ALIASES, MAX_ROOT_FIELDS = 10, 300, 15, 20
#: Introspection nests deeper by nature; it is answered from memory.
MAX_INTROSPECTION_DEPTH = 15
#: What a document costs that cannot run, and bytes that cost 1 more: they had to be read to find that out.
FAULTY, BYTES_A_UNIT = 1, 500
#: Units of size that a valid operation has for nothing.
FREE_UNITS = 20
#: Faults that are told of one document.
MAX_FAULTS = 10

TOO_COMPLEX: Final = {"code": "QUERY_TOO_COMPLEX"}


@dataclass(frozen=True, slots=True)
class Size:
    """What a selection amounts to, its fragments included."""

    depth: int = 0
    introspection_depth: int = 0
    fields: int = 0
    aliases: int = 0
    roots: int = 0


class QueryGuard(SchemaExtension):
    """Refuses a document above the limits before it is validated or run, and validates it."""

    def on_validate(self) -> Iterator[None]:
        running = self.execution_context
        document = running.graphql_document
        try:
            if document is not None and running.pre_execution_errors is None:
                check(document)
                running.pre_execution_errors = _faults(running, document) or None
        except GraphQLError as error:
            # Raised out of a hook it would end a socket's operation without a word.
            running.pre_execution_errors = [error]
        running.validation_rules = ()  # That was all of it.
        yield


def _faults(running: ExecutionContext, document: DocumentNode) -> list[GraphQLError]:
    """What is wrong with a document. No names are suggested: looking for them takes a second where all are wrong."""
    rules = (*running.validation_rules, MaybeNullValidationRule, OneOfInputValidationRule)
    core: Any = cast("Any", running.schema)._schema  # Strawberry gives graphql-core's schema no public name.
    return validate(core, document, rules, max_errors=MAX_FAULTS, hide_suggestions=True)


def check(document: DocumentNode) -> None:
    """Raises a GraphQLError with the code QUERY_TOO_COMPLEX for a document above the limits."""
    measure = _Measure(document)
    for definition in document.definitions:
        if isinstance(definition, OperationDefinitionNode):
            _refuse(measure.selection(definition.selection_set))


def _refuse(size: Size) -> None:
    for what, found, limit in (
        ("levels deep", size.depth, MAX_DEPTH),
        ("levels of introspection deep", size.introspection_depth, MAX_INTROSPECTION_DEPTH),
        ("fields", size.fields, MAX_FIELDS),
        ("aliases", size.aliases, MAX_ALIASES),
        ("root fields", size.roots, MAX_ROOT_FIELDS),
    ):
        if found > limit:
            message = f"the operation has {found} {what}; at most {limit} are allowed"
            raise GraphQLError(message, extensions=TOO_COMPLEX)


@dataclass(frozen=True, slots=True)
class _Price:
    """What an operation is charged; `excess` says why it may not run whoever asks."""

    cost: int
    #: Root fields of a mutation, which are what it is charged for; None for anything else.
    mutations: int | None
    excess: str | None

    @property
    def query(self) -> int:
        """What the allowance of queries pays: of a mutation, only what it answers with."""
        return self.cost if self.mutations is None else max(0, self.cost - self.mutations * MUTATION)


async def turn_away(running: ExecutionContext) -> GraphQLError | None:
    """Why an operation is not even read: its caller has nothing left; None where something is."""
    context: Context = running.context
    try:
        context.services.limits.turn_away(await payer(context))
    except RateLimited as refusal:
        return GraphQLError(refusal.message, original_error=refusal)
    return None


async def charge(running: ExecutionContext, costs: Costs, *, is_valid: bool) -> GraphQLError | None:
    """Charges an operation once, before it runs; a subscription's start pays for all that it will say.

    Returns:
        Why it may not run after all; None where it may, or is not valid and would not have run anyway.
    """
    context: Context = running.context
    book, who = context.services.limits, await payer(context)
    size = max(len(running.query or ""), context.body_size) // BYTES_A_UNIT
    price = _price(running, costs, book, size) if is_valid else _Price(FAULTY + size, None, None)
    charged.set(price.cost)
    try:
        if price.excess is not None:
            book.charge_query(who, FAULTY)
            return GraphQLError(price.excess, extensions=TOO_COMPLEX)
        if price.mutations is not None:
            book.charge_mutation(who, price.mutations)
        if price.query:
            book.charge_query(who, price.query)
    except RateLimited as refusal:
        return GraphQLError(refusal.message, original_error=refusal)
    return None


def _price(running: ExecutionContext, costs: Costs, book: limits.Limits, size: int) -> _Price:
    document = running.graphql_document
    operation = get_operation_ast(document, running.operation_name) if document else None
    assert document is not None  # It is valid.
    assert operation is not None
    cost = costs.of(document, operation, running.variables) + max(0, size - FREE_UNITS)
    if operation.operation is not OperationType.MUTATION:
        return _Price(cost, None, _excess(cost, "units", MAX_COST, book.largest_query))
    count = _Measure(document).selection(operation.selection_set).roots
    excess = _excess(cost, "units", MAX_COST) or _excess(count, "mutations", book.most_mutations)
    return _Price(cost, count, excess)


def _excess(found: int, what: str, *most: int | None) -> str | None:
    # What not even a full allowance could pay is refused for good: waiting would not help.
    limit = min((limit for limit in most if limit is not None), default=found)
    return f"the operation costs {found} {what}; at most {limit} are allowed" if found > limit else None


async def payer(context: Context) -> str:
    """Whose allowance is used: the person's, and where nobody is known, the address's."""
    try:
        # A socket's person stays the same; a token that ended since stops the fields.
        viewer = context.known or await context.viewer()
    except Unavailable:
        viewer = None  # What needs no database must be answered without one.
    return limits.caller(viewer and viewer.user_id, context.address)


class _Measure:
    """Sizes of selections; a fragment's is worked out once. A cycle counts as empty: validation refuses it."""

    def __init__(self, document: DocumentNode) -> None:
        self._fragments = {
            item.name.value: item for item in document.definitions if isinstance(item, FragmentDefinitionNode)
        }
        self._known: dict[str, Size] = {}

    def selection(self, selections: SelectionSetNode | None) -> Size:
        depth = introspection = fields = aliases = roots = 0
        for item in selections.selections if selections else ():
            if isinstance(item, FieldNode):
                size = self._field(item)
                roots += 1
            elif isinstance(item, InlineFragmentNode):
                size = self.selection(item.selection_set)
                roots += size.roots
            else:
                assert isinstance(item, FragmentSpreadNode)
                size = self._fragment(item.name.value)
                roots += size.roots
            depth = max(depth, size.depth)
            introspection = max(introspection, size.introspection_depth)
            fields = min(CEILING, fields + size.fields)
            aliases = min(CEILING, aliases + size.aliases)
        return Size(depth, introspection, fields, aliases, min(CEILING, roots))

    def _field(self, item: FieldNode) -> Size:
        inner = self.selection(item.selection_set)
        aliases = inner.aliases + (item.alias is not None)
        if item.name.value.startswith("__"):
            return Size(0, max(inner.depth, inner.introspection_depth) + 1, 1, aliases)
        return Size(inner.depth + 1, inner.introspection_depth, inner.fields + 1, aliases)

    def _fragment(self, name: str) -> Size:
        if name not in self._known:
            self._known[name] = Size()
            fragment = self._fragments.get(name)
            self._known[name] = self.selection(fragment.selection_set) if fragment else Size()
        return self._known[name]
