"""What operations cost."""

from typing import Any

import pytest
from graphql import OperationDefinitionNode, build_schema, get_introspection_query, get_operation_ast, parse

from app.graphql import cost
from app.graphql.schema import schema


def of(text: str, **variables: Any) -> int:
    document = parse(text)
    operation = get_operation_ast(document, None)
    assert isinstance(operation, OperationDefinitionNode)
    return schema.costs.of(document, operation, variables)


def test_values_are_free_and_objects_cost_one() -> None:
    assert of("{ viewer { id name email } }") == 1
    assert of("{ viewer { id } serverInfo { version time } }") == 2
    assert of('{ bot(by: {agentId: "a"}) { id name owner { name } gateway { pid } } }') == 3


def test_nothing_is_cheaper_than_one() -> None:
    assert of("{ __typename }") == 1
    assert of("{ bots(first: 0) { nodes { id } } }") == 1


def test_a_page_multiplies_what_lies_below() -> None:
    assert of("{ bots(first: 10) { nodes { id owner { name } } } }") == 1 + 10 * 2
    assert of("{ bots(last: 7) { nodes { id } totalCount } }") == 1 + 7
    assert of("{ bots { nodes { id } } }") == 1 + 20
    assert of("{ bots { edges { cursor node { id } } pageInfo { hasNextPage } } }") == 1 + 20 * 2
    assert of("{ bots(first: null) { nodes { id } } }") == 1 + 20
    assert of("{ bots(first: null, last: 3) { nodes { id } } }") == 1 + 3


def test_identities_multiply_as_pages_do() -> None:
    assert of('{ nodes(ids: ["a", "b", "c"]) { id ... on Bot { owner { id } gateway { pid } } } }') == 1 + 3 * 2
    text = "query($ids: [ID!]!) { nodes(ids: $ids) { ... on Bot { owner { id } } } }"
    assert of(text, ids=["x"] * 40) == 1 + 40
    assert of(text, ids=["x"] * 40_000) == 1 + 100
    assert of(text, ids="x") == 1 + 1


def test_mutations_cost_ten_and_each_list_of_the_schema_fifty() -> None:
    assert of('mutation { botStart(input: {botId: "a"}) { bot { id } userErrors { code } } }') == 10 + 2
    assert of('{ __type(name: "Bot") { name } __typename }') == 50
    assert of("{ __schema { types { name } } }") == 100
    assert of(get_introspection_query()) == 500
    # Lists inside lists of their kind are as many times as long.
    inside = "{ __schema { types { fields { type { fields { name } } } } } }"
    assert of(inside) == 50 + 50 + 50 + 10 * 50
    many = " ".join(f"a{n}: types {{ fields {{ type {{ fields {{ name }} }} }} }}" for n in range(15))
    assert of(f"{{ __schema {{ {many} }} }}") > cost.MAX_COST
    spread = "{ __schema { ...S } } fragment S on __Schema { types { fields { type { fields { name } } } } }"
    assert of(spread) == of(inside)


def test_a_subscription_costs_what_one_event_does() -> None:
    assert of("subscription { botStatus { kind bot { id owner { id } } } }") == 3


SIZE = "query($n: Int) { bots(first: $n) { nodes { id } } }"
DEFAULT = "query($n: Int = 5) { bots(first: $n) { nodes { id } } }"


@pytest.mark.parametrize(
    ("text", "variables", "items"),
    [
        (SIZE, {}, 20),
        (SIZE, {"n": None}, 20),
        (SIZE, {"n": 3}, 3),
        (SIZE, {"n": 100.0}, 100),
        (SIZE, {"n": 10**9}, 100),
        (SIZE, {"n": 10**4000}, 100),
        (SIZE, {"n": float("inf")}, 100),
        (SIZE, {"n": -1}, 0),
        (SIZE, {"n": -(10**9)}, 0),
        (SIZE, {"n": True}, 1),
        (SIZE, {"n": "100"}, 1),
        (SIZE, {"n": {"a": 1}}, 1),
        (SIZE, {"n": [1, 2]}, 2),
        (SIZE, {"other": 3}, 20),
        (DEFAULT, {}, 5),
        (DEFAULT, {"n": None}, 20),
        (DEFAULT, {"n": 7}, 7),
        ("{ bots(first: 1000000000) { nodes { id } } }", {}, 100),
        ("{ bots(first: " + "9" * 5_000 + ") { nodes { id } } }", {}, 100),
        ("{ bots(first: -" + "9" * 5_000 + ") { nodes { id } } }", {}, 0),
        ('{ bots(first: "100") { nodes { id } } }', {}, 1),
        ("{ bots(first: $unknown) { nodes { id } } }", {}, 20),
    ],
)
def test_sizes_are_read_as_they_come(text: str, variables: dict[str, Any], items: int) -> None:
    assert of(text, **variables) == max(1, 1 + items)


def test_fragments_count_where_they_are_spread() -> None:
    text = "{ a: bots(first: 10) { nodes { ...b } } b: bots(first: 5) { nodes { ...b } } } fragment b on Bot { %s }"
    assert of(text % "id owner { id }") == (1 + 10 * 2) + (1 + 5 * 2)
    assert of("{ viewer { ... { id } ... on User { id } ...v } } fragment v on User { name }") == 1


#: Documents whose meaning grows with a power of their length.
FANS = {
    depth: "{ viewer { ...f0 } } "
    + " ".join(f"fragment f{n} on User {{ ...f{n + 1} ...f{n + 1} }}" for n in range(depth))
    + f" fragment f{depth} on User {{ id }}"
    for depth in (20, 40, 80)
}


def visits(monkeypatch: pytest.MonkeyPatch, text: str) -> int:
    """How many selections are looked at to know what a document costs."""
    seen = 0
    below = cost._Sum.below

    def counted(self: cost._Sum, *arguments: Any) -> int:
        nonlocal seen
        seen += 1
        return below(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(cost._Sum, "below", counted)
        of(text)
    return seen


def test_a_document_that_fans_out_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [visits(monkeypatch, FANS[depth]) for depth in (20, 40, 80)] == [23 + 1, 43 + 1, 83 + 1]
    same = "{ " + "viewer { id } " * 900 + "}"
    assert visits(monkeypatch, same) == 1 + 900 * 2
    cycle = "{ viewer { ...a } } fragment a on User { ...b ...b } fragment b on User { ...a ...a }"
    assert visits(monkeypatch, cycle) <= 5


def test_sums_stop_at_a_ceiling() -> None:
    levels = 60
    parts = [f"fragment f{n} on BotConnection {{ nodes {{ id }} ...f{n + 1} ...f{n + 1} }}" for n in range(levels)]
    text = (
        "{ bots(first: 100) { ...f0 } } " + " ".join(parts) + f" fragment f{levels} on BotConnection {{ totalCount }}"
    )
    assert cost.CEILING <= of(text) <= 101 * cost.CEILING


def test_every_paged_list_states_what_it_multiplies() -> None:
    cost.check(schema._schema)
    forgotten = build_schema("type Query { a: A } type A { bots(first: Int, last: Int): [A] }")
    with pytest.raises(RuntimeError, match=r"A\.bots states no cost"):
        cost.check(forgotten)


def test_the_schema_says_what_fields_cost() -> None:
    text = schema.as_str()
    assert "directive @cost(weight: Int!, multipliers: [String!]) on FIELD_DEFINITION" in text
    assert ': BotConnection! @cost(weight: 1, multipliers: ["first", "last"]) @requires(scope: FLEET_READ)' in text
    assert text.count("Payload! @cost(weight: 10)") == len(schema._schema.mutation_type.fields)
