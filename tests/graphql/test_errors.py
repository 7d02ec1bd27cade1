"""What goes wrong is told by code; what is ours to know stays in the log."""

import io
import json
import logging
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import structlog
import websockets

from app import log
from app.db.engine import DB
from tests.graphql.people import Caller, answered, first, heard, house, opened
from tests.harness import Api
from tests.journeys import documents as docs
from tests.journeys import story

#: What no answer may hold: names of ours, of the stack, of tables, of files.
INTERNALS = re.compile(
    r"Traceback|File \\?\"|\.py|site-packages|asyncpg|piccolo|strawberry|litestar|relation|SELECT|UndefinedTable|"
    r"Error\b|Exception|0x[0-9a-f]{6}|site-packages|\.py\b|sys\.",
)


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """What the server writes into its log, in the form of production."""
    root, out = logging.getLogger(), io.StringIO()
    before, level = list(root.handlers), root.level
    log.configure("json", "info", out)
    yield out
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


async def post(api: Api, body: str | bytes, content_type: str = "application/json", **headers: str) -> tuple[int, str]:
    given = {**api.headers, "content-type": content_type, **headers}
    answer = await api.http.post(f"{api.url}/graphql", content=body, headers=given)
    return answer.status_code, answer.text


def only_error(answer: dict[str, Any]) -> dict[str, Any]:
    (error,) = answer["errors"]
    assert re.fullmatch(r"[0-9a-f]{16}", error["extensions"]["requestId"])
    return error


async def test_an_internal_error_shows_a_number_and_nothing_else(
    database: dict[str, Any], tmp_path: Path, logged: io.StringIO
) -> None:
    masked = "Something went wrong on the server; the request id finds it in its log."
    async with house(database, tmp_path) as api:
        bot = await story.make_bot(api)
        await DB.fetch("ALTER TABLE model_provider RENAME TO elsewhere")
        await DB.fetch("ALTER TABLE bot RENAME COLUMN tags TO labels")
        asked: list[tuple[str, dict[str, Any]]] = [
            ("{ modelProviders { name } }", {}),
            (docs.PROVIDER_SAVE, {"input": {"name": "own", "apiKey": "sk-canary-0123456789"}}),
            ("{ bots { totalCount } }", {}),
            ("query($id: ID!) { node(id: $id) { id } }", {"id": bot["id"]}),
            (docs.BOT_CREATE, {"input": {"name": "x", "model": "local/echo"}}),
        ]
        ids = set()
        for document, variables in asked:
            answer = await api.ask(document, **variables)
            error = only_error(answer)
            assert (error["message"], error["extensions"]["code"]) == (masked, "INTERNAL"), document
            assert set(error) <= {"message", "locations", "path", "extensions"}
            assert set(error["extensions"]) == {"code", "requestId"}
            assert not INTERNALS.search(json.dumps(answer))
            ids.add(error["extensions"]["requestId"])
            over_socket = only_error(await first(api, document, **variables))
            assert (over_socket["message"], over_socket["extensions"]["code"]) == (masked, "INTERNAL")
        stream = only_error(await first(api, docs.BOT_STATUS))
        assert (stream["message"], stream["extensions"]["code"]) == (masked, "INTERNAL")
        assert len(ids) == len(asked)
        # What stands beside it is answered all the same, and the server lives on.
        both = await api.ask('{ serverInfo { version } node(id: "VXNlcjp4") { id } viewer { name } }')
        assert both["data"] == {
            "serverInfo": both["data"]["serverInfo"],
            "node": None,
            "viewer": {"name": "Administrator"},
        }
        assert (await api.http.get(f"{api.url}/readyz")).status_code == 200
        lines = [json.loads(line) for line in logged.getvalue().splitlines()]
        failed = [line for line in lines if line["event"] == "resolver_failed"]
        assert ids <= {line["request_id"] for line in failed}
        assert any("UndefinedTableError" in line["exception"] for line in failed)
        assert "sk-canary-0123456789" not in logged.getvalue()
        await DB.fetch("ALTER TABLE elsewhere RENAME TO model_provider")
        await DB.fetch("ALTER TABLE bot RENAME COLUMN labels TO tags")


BAD_DOCUMENTS = [
    "{", "}", "", "query", "{ nope }", "{ viewer }", "{ viewer { nope } }", "{ viewer { name { x } } }",
    "query($x: Nope) { viewer { name } }", "query($x: Int!) { bots(first: $x) { totalCount } }", "{ bot { id } }",
    '{ bots(first: "1") { totalCount } }', "{ bots(nope: 1) { totalCount } }", "{ ...f } fragment f on Query { ...f }",
    "{ ...nope }", "fragment f on Query { viewer { name } }", "query A { viewer { name } } query A { viewer { name } }",
    "{ viewer { name } } { viewer { name } }", "{ viewer @nope { name } }", "type Query { x: Int }", "\ud800", "{ é }",
    "{ bots(first: " + "9" * 5_000 + ") { totalCount } }", "{ bot(by: {}) { id } }",
    '{ bot(by: {id: "x", agentId: "y"}) { id } }',
    "mutation { nope }", "mutation { botStop { bot { id } } }", "subscription { nope }",
    "subscription { botStatus { kind } room(names: []) { event } }",
]  # fmt: skip


async def test_a_faulty_document_is_told_by_code_and_over_a_socket_spares_the_others(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path) as api:
        for document in BAD_DOCUMENTS:
            status, text = await post(api, json.dumps({"query": document}))
            if status == 400:  # there was no operation to run
                assert document in {"", "fragment f on Query { viewer { name } }", "type Query { x: Int }"}, document
                assert not INTERNALS.search(text)
                continue
            answer = json.loads(text)
            assert answer.get("data") is None
            wanted = "SUBSCRIPTION_NEEDS_STREAM" if document.startswith("sub") else "BAD_USER_INPUT"
            assert {error["extensions"]["code"] for error in answer["errors"]} == {wanted}, (document, text)
            assert not INTERNALS.search(text.replace("Syntax Error", "")), (document, text)
        async with opened(api) as socket:
            assert (await heard(socket))["type"] == "connection_ack"
            live = {"query": docs.BOT_STATUS, "variables": {}}
            await story.make_bot(api)
            await socket.send(json.dumps({"id": "live", "type": "subscribe", "payload": live}))
            assert (await heard(socket))["payload"]["data"]["botStatus"]["kind"] == "CURRENT"
            for number, document in enumerate(BAD_DOCUMENTS):
                body = {"id": str(number), "type": "subscribe", "payload": {"query": document}}
                await socket.send(json.dumps(body))
                message = await heard(socket)
                assert message["id"] == str(number)
                codes = {error["extensions"]["code"] for error in answered(message)["errors"]}
                assert codes == {"BAD_USER_INPUT"}, (document, message)
                if message["type"] != "error":
                    assert await heard(socket) == {"id": str(number), "type": "complete"}
            await story.make_bot(api, "Another")
            news = await heard(socket)
            assert (news["id"], news["payload"]["data"]["botStatus"]["kind"]) == ("live", "CREATED")


TOO_COMPLEX = {
    "aliases": "{ " + " ".join(f"a{n}: serverInfo {{ version }}" for n in range(16)) + " }",
    "root fields": "{ " + "serverInfo { version } " * 21 + "}",
    "deep": '{ __type(name: "Query") { ' + "ofType { " * 15 + "name " + "}" * 15 + " } }",
    "fields": "{ bots { nodes { " + "name " * 300 + "} } }",
    "tokens": "{ viewer { " + "name " * 1_000 + "} }",
    "fan-out": "{ ...f0 } "
    + " ".join(f"fragment f{n} on Query {{ ...f{n + 1} ...f{n + 1} }}" for n in range(60))
    + " fragment f60 on Query { viewer { name } }",
}


async def test_what_asks_too_much_is_refused_before_it_runs(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        for name, document in TOO_COMPLEX.items():
            for answer in (await api.ask(document), await first(api, document)):
                assert answer["data"] is None, name
                assert only_error(answer)["extensions"]["code"] == "QUERY_TOO_COMPLEX", name


async def test_a_body_that_is_no_request_is_refused_and_breaks_nothing(
    database: dict[str, Any], tmp_path: Path
) -> None:
    fine = b'{"query": "{ serverInfo { version } }"}'
    bodies = [
        b"", b" ", b"x", b"{", b"[]", b"null", b"1", b'"x"', b"true", b"[1]", b"[" + fine + b"]", b"{}", b"\x80",
        b"\xff\xfe",
        b'{"query": null}', b'{"query": 42}', b'{"query": ["x"]}', b'{"query": {}}', b'{"query": ""}',
        b'{"query": "{ viewer { name } }", "variables": []}', b'{"query": "{ viewer { name } }", "variables": "x"}',
        b'{"query": "{ viewer { name } }", "extensions": 1}', b'{"query": "{ viewer { name } }", "operationName": 5}',
        b'{"query": "query A { viewer { name } }", "operationName": "\\ud800"}', b"[" * 500_000, b'{"a":' * 100_000,
        b'{"query": "{ viewer { name } }", "variables": {"x": ' + b"9" * 5_000 + b"}}",
        b'{"query": "{ viewer { name } }", "variables": {"x": NaN}}',
        b'{"query": "{ viewer { name } }", "variables": {"x": Infinity}}',
    ]  # fmt: skip
    async with house(database, tmp_path) as api:
        for body in bodies:
            status, text = await post(api, body)
            assert status == 400, (body[:80], status, text)
            assert not INTERNALS.search(text), (body[:80], text)
        for content_type in ("", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
                             "application/graphql", "text/plain; application/json", "text/html"):  # fmt: skip
            status, text = await post(api, fine, content_type)
            assert (status, text) == (400, "Unsupported content type"), content_type
        for content_type in ("application/json", "application/json; charset=utf-8", "APPLICATION/JSON"):
            assert (await post(api, fine, content_type))[0] == 200, content_type
        padding = b" " * (1024 * 1024 - len(fine))
        assert (await post(api, fine + padding))[0] == 200
        status, text = await post(api, fine + padding + b" ")
        assert status == 413
        assert not INTERNALS.search(text)

        # A client that does not say how much it sends is stopped all the same.
        async def endless() -> Any:
            for _ in range(40):
                yield b" " * 64 * 1024

        answer = await api.http.post(
            f"{api.url}/graphql", content=endless(), headers={**api.headers, "content-type": "application/json"}
        )
        assert answer.status_code == 413
        assert (await post(api, fine))[0] == 200


async def test_reading_by_get_works_and_changing_does_not(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        bot = await story.make_bot(api)

        async def get(**params: str) -> tuple[int, str]:
            answer = await api.http.get(f"{api.url}/graphql", params=params, headers=api.headers)
            return answer.status_code, answer.text

        assert await get(query="{ viewer { name } }") == (200, '{"data":{"viewer":{"name":"Administrator"}}}')
        by = json.dumps({"by": {"agentId": "hana"}})
        status, text = await get(query="query($by: BotBy!) { bot(by: $by) { id } }", variables=by)
        assert (status, json.loads(text)["data"]["bot"]["id"]) == (200, bot["id"])
        fine = "{ viewer { name } }"
        delete = f'mutation {{ botDelete(input: {{botId: "{bot["id"]}"}}) {{ deletedBotId }} }}'
        for params in (
            {"query": delete},
            {
                "query": f"query A {{ viewer {{ name }} }} {delete.replace('mutation', 'mutation B')}",
                "operationName": "B",
            },
        ):
            status, text = await get(**params)
            assert status == 400, text
            assert "not allowed" in text
        assert await api.run(docs.BOT_QUERY, by={"id": bot["id"]})
        for params in (
            {},
            {"query": ""},
            *[{"query": fine, "variables": text} for text in ("[" * 9_000, "x", "[]", "1")],
        ):
            status, text = await get(**params)
            assert status in {400, 404}, (params, text)
            assert not INTERNALS.search(text)
        for method in ("PUT", "DELETE", "PATCH"):
            answer = await api.http.request(method, f"{api.url}/graphql", headers=api.headers)
            assert answer.status_code == 405


async def test_a_subscription_in_a_plain_request_is_told_which_way_to_come(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path) as api:
        for document in ("subscription { botStatus { kind } }", 'subscription { room(names: ["x"]) { event } }'):
            answer = await api.ask(document)
            assert answer["data"] is None
            assert only_error(answer)["extensions"]["code"] == "SUBSCRIPTION_NEEDS_STREAM"


FRAMES = [
    (4400, "x"), (4400, "{"), (4400, "[]"), (4400, "null"), (4400, '"x"'), (4400, "1"), (4400, "{}"),
    (4400, '{"type": 5}'),
    (4400, '{"type": []}'), (4400, '{"type": "nope"}'), (4400, "[" * 60_000), (4400, "9" * 5_000), (4400, b"\x00\x01"),
    (4400, '{"type": "subscribe"}'), (4400, '{"type": "subscribe", "id": "1"}'),
    (4400, '{"type": "subscribe", "id": 1, "payload": {"query": "{ viewer { name } }"}}'),
    (4400, '{"type": "subscribe", "id": [], "payload": {"query": "{ viewer { name } }"}}'),
    (4400, '{"type": "subscribe", "id": "", "payload": {"query": "{ viewer { name } }"}}'),
    (4400, '{"type": "subscribe", "id": "1", "payload": "x"}'),
    (4400, '{"type": "subscribe", "id": "1", "payload": {}}'),
    (4400, '{"type": "subscribe", "id": "1", "payload": {"query": 42}}'),
    (4400, '{"type": "subscribe", "id": "1", "payload": {"query": "{ viewer { name } }", "variables": []}}'),
    (4400, '{"type": "subscribe", "id": "1", "payload": {"query": "{ viewer { name } }", "operationName": 5}}'),
    (4400, '{"type": "complete"}'), (4400, '{"type": "complete", "id": {}}'), (4429, '{"type": "connection_init"}'),
    (1009, "x" * 70_000),
]  # fmt: skip


async def test_a_message_against_the_protocol_closes_the_socket_with_its_code(
    database: dict[str, Any], tmp_path: Path, logged: io.StringIO
) -> None:
    async with house(database, tmp_path) as api:

        async def close_code(*frames: str | bytes, is_signed_in: bool = True) -> int | None:
            async with opened(api if is_signed_in else api.signed_in(None)) as socket:
                try:
                    await heard(socket)
                    for frame in frames:
                        await socket.send(frame)
                    for _ in range(5):
                        await heard(socket)
                except websockets.ConnectionClosed:
                    return socket.close_code
            return None

        for code, frame in FRAMES:
            assert await close_code(frame) == code, frame[:100]
        body = json.dumps({"type": "subscribe", "id": "1", "payload": {"query": "subscription { botStatus { kind } }"}})
        assert await close_code(body, body) == 4409
        assert await close_code(is_signed_in=False) == 4403
        uri = api.url.replace("http", "ws", 1) + "/graphql"
        for protocols, wanted in ((["graphql-ws"], 4406), (None, 4406)):
            async with websockets.connect(uri, subprotocols=protocols, proxy=None) as socket:  # type: ignore[arg-type]
                with pytest.raises(websockets.ConnectionClosed):
                    await heard(socket)
                assert socket.close_code == wanted
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with websockets.connect(uri, origin="http://evil.example", proxy=None):  # type: ignore[arg-type]
                pass
        assert refused.value.response.status_code == 403
        async with opened(api) as socket:
            assert (await heard(socket))["type"] == "connection_ack"
            await socket.send('{"type": "ping"}')
            assert await heard(socket) == {"type": "pong"}
            odd = '{"id": "\\ud800", "type": "subscribe", "payload": {"query": "{ viewer { name } }"}}'
            await socket.send(odd)
            assert answered(await heard(socket)) == {"data": {"viewer": {"name": "Administrator"}}}
        assert "Traceback" not in logged.getvalue()


async def test_a_person_s_own_words_in_an_error_do_not_break_the_answer(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async def hurt(api: Caller, document: str, **variables: Any) -> str:
        return only_error(await api.ask(document, **variables))["extensions"]["code"]

    async with house(database, tmp_path) as api:
        query = "query($x: Int, $by: BotBy, $f: BotFilter) { bots(first: $x, filter: $f) { totalCount } }"
        for value in ("\ud800", "\0", [1], {"a": "\ud800"}, 1.5, 2**40, True):
            assert await hurt(api, query, x=value) == "BAD_USER_INPUT"
        assert await hurt(api, query, f={"status": ["\ud800"]}) == "BAD_USER_INPUT"
        assert await hurt(api, query, f={"\ud800": 1}) == "BAD_USER_INPUT"


@asynccontextmanager
async def beside(database: dict[str, Any]) -> AsyncGenerator[Any]:
    """A connection to the server that holds the database, by another door."""
    connection = await asyncpg.connect(**{**database, "database": "postgres"})
    try:
        yield connection
    finally:
        await connection.close()


async def test_while_the_database_is_away_everything_that_needs_it_says_so_and_then_goes_on(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path) as api, beside(database) as admin:
        bot = await story.make_bot(api)
        async with api.listen(docs.BOT_STATUS) as ear:
            assert (await anext(ear))["kind"] == "CURRENT"
            await admin.execute(f"ALTER DATABASE {database['database']} ALLOW_CONNECTIONS false")
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", database["database"]
            )
            for document in ("{ bots { totalCount } }", "{ viewer { name } }", docs.BOT_QUERY):
                error = only_error(await api.ask(document, by={"id": bot["id"]}))
                assert error["extensions"]["code"] == "UNAVAILABLE"
            assert "errors" not in await api.ask("{ serverInfo { version } }")
            assert (await api.http.get(f"{api.url}/readyz")).status_code == 503
            # 1013 is "try again later"; 4403 or 4500 would send clients away for good.
            assert (await first(api, docs.BOT_STATUS))["errors"] == [{"extensions": {"code": "1013"}}]
            await admin.execute(f"ALTER DATABASE {database['database']} ALLOW_CONNECTIONS true")
            changed = await api.run(docs.BOT_UPDATE, input={"botId": bot["id"], "description": "back"})
            assert changed["userErrors"] == []
            assert (await anext(ear))["kind"] == "UPDATED"
