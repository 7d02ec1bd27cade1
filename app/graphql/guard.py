"""Limits on what one document may ask, counted in one pass that visits each fragment once.

Strawberry's own limiters follow a fragment anew at each spread, which a few hundred bytes turn into seconds; here a
fragment's counts are kept and added, and sums stop at a ceiling, so a document costs what its text costs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
)
from strawberry.extensions import SchemaExtension

#: Most levels of fields, fields in all (fragments counted where they are spread), aliases, and root fields.
MAX_DEPTH, MAX_FIELDS, MAX_ALIASES, MAX_ROOT_FIELDS = 10, 300, 15, 20
#: Introspection nests deeper by nature; it is answered from memory.
MAX_INTROSPECTION_DEPTH = 15
#: Where counting stops.
CEILING = 1_000_000


@dataclass(frozen=True, slots=True)
class Size:
    """What a selection amounts to, its fragments included."""

    depth: int = 0
    introspection_depth: int = 0
    fields: int = 0
    aliases: int = 0
    roots: int = 0


class QueryGuard(SchemaExtension):
    """Refuses a document above the limits before it is validated or run."""

    def on_validate(self) -> Iterator[None]:
        document = self.execution_context.graphql_document
        try:
            if document is not None:
                check(document)
        except GraphQLError as error:
            # Raised out of a hook it would end a socket's operation without a word.
            self.execution_context.pre_execution_errors = [error]
        yield


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
            raise GraphQLError(message, extensions={"code": "QUERY_TOO_COMPLEX"})


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
