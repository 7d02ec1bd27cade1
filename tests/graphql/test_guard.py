"""Limits on what one document may ask."""

import pytest
from graphql import GraphQLError, parse

from app.graphql import guard, schema


def refused(text: str) -> str:
    with pytest.raises(GraphQLError) as caught:
        guard.check(parse(text))
    assert caught.value.extensions == {"code": "QUERY_TOO_COMPLEX"}
    return caught.value.message


def test_what_stays_within_the_limits_passes() -> None:
    guard.check(parse("{ bots { nodes { owner { name } } } } "))


def test_depth_counts_through_fragments() -> None:
    deep = "{ a { ...f } } fragment f on X " + "{ b " * 10 + "}" * 10
    assert "levels deep" in refused(deep)


def test_a_small_document_that_fans_out_is_refused_at_once() -> None:
    levels = 80
    parts = [f"fragment f{n} on X {{ a {{ ...f{n + 1} }} b {{ ...f{n + 1} }} }}" for n in range(levels)]
    text = "{ ...f0 } " + " ".join(parts) + f" fragment f{levels} on X {{ c }}"
    assert "at most" in refused(text)


def test_cycles_end() -> None:
    guard.check(parse("{ ...a } fragment a on X { x { ...b } } fragment b on X { y { ...a } }"))


def test_aliases_and_root_fields_are_counted() -> None:
    assert "aliases" in refused("{ " + " ".join(f"a{n}: serverInfo {{ version }}" for n in range(16)) + " }")
    assert "root fields" in refused("{ " + "serverInfo { version } " * 21 + "}")


def test_introspection_passes() -> None:
    from graphql import get_introspection_query

    guard.check(parse(get_introspection_query()))


def test_every_root_field_states_a_rule() -> None:
    schema.check()


def test_the_written_schema_is_the_code_s() -> None:
    from tests.harness import REPO

    assert (REPO / "schema.graphql").read_text() == schema.text(), "run scripts/schema"


def test_no_secret_column_is_a_field() -> None:

    from piccolo.table import Table

    from app.db import tables

    secret = {
        column._meta.name
        for table in vars(tables).values()
        if isinstance(table, type) and issubclass(table, Table) and table is not Table
        for column in table._meta.secret_columns
    }
    assert secret == {"password_hash", "secret_sha256", "sealed", "api_key", "credentials"}
    outputs = [t for name, t in schema.schema._schema.type_map.items() if not name.startswith("__")]
    fields = {
        field.lower()
        for t in outputs
        if hasattr(t, "fields") and not name_of(t).endswith("Input")
        for field in t.fields
    }
    assert not fields & {name.replace("_", "") for name in secret}


def name_of(type_: object) -> str:
    return getattr(type_, "name", "")
