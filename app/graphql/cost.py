"""What an operation costs, worked out from its document and the schema before it runs.

A field that is a value costs nothing, one that is an object costs 1, unless `@cost` says otherwise; `pageInfo` is part
of its page and free. Arguments that `@cost` names multiply all that lies below the field. A fragment's cost is worked
out once, and sums stop at a ceiling, so working it out takes as long as reading the document does.
"""

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

import strawberry
from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLField,
    GraphQLInterfaceType,
    GraphQLNamedType,
    GraphQLObjectType,
    GraphQLSchema,
    InlineFragmentNode,
    IntValueNode,
    ListValueNode,
    NullValueNode,
    OperationDefinitionNode,
    OperationType,
    SelectionSetNode,
    ValueNode,
    VariableNode,
    get_named_type,
    is_composite_type,
)
from strawberry.schema_directive import Location
from strawberry.types.field import StrawberryField

from app.graphql.types.page import DEFAULT_SIZE, MAX_SIZE

#: Most that one operation may cost.
MAX_COST = 5_000
#: Where counting stops.
CEILING = 1_000_000
#: What a mutation costs, and what asking for the schema itself does, with each of its lists.
MUTATION, INTROSPECTION = 10, 50
#: The schema's own lists, and what one inside another of its kind multiplies by.
SCHEMA_LISTS = frozenset(
    {"types", "fields", "inputFields", "args", "enumValues", "possibleTypes", "interfaces", "directives"}
)
NESTED = 10
#: An object that is part of the one it stands in.
FREE = "PageInfo"
#: Digits of a number that are read: no page is that long.
_DIGITS = 9
#: Arguments that say how many objects a field answers with.
PAGES = ("first", "last", "ids")

#: What the operation that runs in this task was charged.
charged: ContextVar[int] = ContextVar("charged", default=0)


@strawberry.schema_directive(
    locations=[Location.FIELD_DEFINITION],
    name="cost",
    description="The weight of a field in the cost of an operation.\nThe server adds the weights up before it runs an "
    "operation and refuses one above the limit.",
)
class Cost:
    #: Units the field itself costs.
    weight: int = strawberry.directive_field(name="weight")
    #: Arguments that multiply the cost of everything below the field.
    multipliers: list[str] | None = strawberry.directive_field(name="multipliers", default=strawberry.UNSET)


def directives(resolver: Callable[..., Any], weight: int | None = None) -> list[object]:
    """The `@cost` of a root field: a list's number of objects is known by its arguments, so none can be forgotten."""
    code = resolver.__code__
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    multipliers = [name for name in PAGES if name in arguments]
    if multipliers:
        return [Cost(weight=1 if weight is None else weight, multipliers=multipliers)]
    return [] if weight is None else [Cost(weight=weight)]


@dataclass(frozen=True, slots=True)
class _Weight:
    """What a field costs; `below` is the type that is selected from in it."""

    itself: int
    multipliers: tuple[str, ...]
    below: str


class Costs:
    """What the fields of a schema cost, and whole operations."""

    def __init__(self, schema: GraphQLSchema) -> None:
        self._roots = {kind: root.name for kind in OperationType if (root := schema.get_root_type(kind))}
        self.weights = {
            name: {field: _weigh(found) for field, found in type_.fields.items()}
            for name, type_ in schema.type_map.items()
            if isinstance(type_, GraphQLObjectType | GraphQLInterfaceType) and not name.startswith("__")
        }

    def of(
        self, document: DocumentNode, operation: OperationDefinitionNode, variables: Mapping[str, object] | None
    ) -> int:
        """What an operation of a valid document costs; at least 1."""
        total = _Sum(self.weights, document, operation, variables or {})
        return max(1, total.below(operation.selection_set, self._roots[operation.operation]))


def check(schema: GraphQLSchema) -> None:
    """Every list that is paged says what it multiplies, or the server does not start."""
    for name, type_ in schema.type_map.items():
        if isinstance(type_, GraphQLObjectType | GraphQLInterfaceType):
            for field, found in type_.fields.items():
                pages = [argument for argument in PAGES if argument in found.args]
                if pages != list(_weigh(found).multipliers):
                    raise RuntimeError(f"{name}.{field} states no cost; declare @cost with the multipliers {pages}")


def _weigh(field: GraphQLField) -> _Weight:
    type_ = cast("GraphQLNamedType", get_named_type(cast("Any", field.type)))
    definition: StrawberryField | None = field.extensions.get("strawberry-definition")
    stated = [item for item in (definition.directives if definition else ()) if isinstance(item, Cost)]
    if not stated:
        return _Weight(int(is_composite_type(type_) and type_.name != FREE), (), type_.name)
    return _Weight(stated[0].weight, tuple(stated[0].multipliers or ()), type_.name)


class _Sum:
    """The cost of one operation's selections; a fragment's is worked out once. A cycle counts as nothing."""

    def __init__(
        self,
        weights: Mapping[str, Mapping[str, _Weight]],
        document: DocumentNode,
        operation: OperationDefinitionNode,
        variables: Mapping[str, object],
    ) -> None:
        self._weights = weights
        self._fragments = {
            item.name.value: item for item in document.definitions if isinstance(item, FragmentDefinitionNode)
        }
        self._variables = variables
        self._defaults = {item.variable.name.value: item.default_value for item in operation.variable_definitions or ()}
        self._known: dict[str, int] = {}

    def below(self, selections: SelectionSetNode | None, type_: str) -> int:
        total = 0
        for item in selections.selections if selections else ():
            if isinstance(item, FieldNode):
                cost = self._field(item, type_)
            elif isinstance(item, InlineFragmentNode):
                cost = self.below(item.selection_set, item.type_condition.name.value if item.type_condition else type_)
            else:
                assert isinstance(item, FragmentSpreadNode)
                cost = self._fragment(item.name.value)
            total = min(CEILING, total + cost)
        return total

    def _field(self, item: FieldNode, type_: str) -> int:
        name = item.name.value
        if name.startswith("__"):
            return 0 if name == "__typename" else self._introspection(item.selection_set, frozenset())
        weight = self._weights.get(type_, {}).get(name)
        if weight is None:
            return 1  # Validation has refused such a document.
        times = self._times(item, weight.multipliers) if weight.multipliers else 1
        return weight.itself + times * self.below(item.selection_set, weight.below)

    def _introspection(self, selections: SelectionSetNode | None, around: frozenset[str]) -> int:
        """Each list of the schema costs the same, and one inside another of its kind as many times as that is long."""
        total = INTROSPECTION if not around else 0
        for item in selections.selections if selections else ():
            if isinstance(item, FragmentSpreadNode):
                total += self._introspected(item.name.value, around)
                continue
            assert isinstance(item, FieldNode | InlineFragmentNode)
            name = item.name.value if isinstance(item, FieldNode) else ""
            inner = around | {name} if name in SCHEMA_LISTS else around | {"__schema"}
            below = self._introspection(item.selection_set, inner)
            if name in SCHEMA_LISTS:
                below = (below + INTROSPECTION) * (NESTED if name in around else 1)
            total = min(CEILING, total + below)
        return min(CEILING, total)

    def _introspected(self, name: str, around: frozenset[str]) -> int:
        key = f"{name} in {sorted(around)}"
        if key not in self._known:
            self._known[key] = 0
            fragment = self._fragments.get(name)
            if fragment is not None:
                self._known[key] = self._introspection(fragment.selection_set, around or frozenset({"__schema"}))
        return self._known[key]

    def _fragment(self, name: str) -> int:
        if name not in self._known:
            self._known[name] = 0
            fragment = self._fragments.get(name)
            if fragment is not None:
                self._known[name] = self.below(fragment.selection_set, fragment.type_condition.name.value)
        return self._known[name]

    def _times(self, item: FieldNode, multipliers: tuple[str, ...]) -> int:
        given = (self._size(argument.value) for argument in item.arguments or () if argument.name.value in multipliers)
        return max((size for size in given if size is not None), default=DEFAULT_SIZE)

    def _size(self, value: ValueNode | None) -> int | None:
        """How many objects an argument asks for; None where it says nothing."""
        if isinstance(value, VariableNode):
            name = value.name.value
            return _size_of(self._variables[name]) if name in self._variables else self._size(self._defaults.get(name))
        if isinstance(value, IntValueNode):
            # Python does not turn a text of thousands of digits into a number.
            return _size_of(float(value.value[:_DIGITS]))
        if isinstance(value, ListValueNode):
            return _size_of(value.values)
        return None if value is None or isinstance(value, NullValueNode) else 1


def _size_of(value: object) -> int | None:
    """The same of a variable, which nobody has looked at yet. What no field accepts may count as anything."""
    if value is None:
        return None
    if isinstance(value, int | float):
        # More than a page is refused by the field itself, in better words.
        return int(max(0, min(MAX_SIZE, value)))
    return min(MAX_SIZE, len(cast("Sequence[object]", value))) if isinstance(value, list | tuple) else 1
