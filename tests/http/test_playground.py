"""The playground as a browser gets it: everything from this server, nothing from anybody else."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import graphql

from app.graphql.schema import schema
from app.http import playground
from tests.harness import environ, running_server

CONTENT_TYPES = {".js": "text/javascript", ".css": "text/css"}
SCRIPT = (Path(playground.__file__).parent / "static" / "playground.js").read_text()
#: Which shipped file each global of the page's script comes from.
GLOBALS = {
    "React": "react.production.min.js",
    "ReactDOM": "react-dom.production.min.js",
    "GraphiQL": "graphiql.min.js",
    "graphqlWs": "graphql-ws.min.js",
    "GraphiQLPluginExplorer": "graphiql-plugin-explorer.umd.js",
}


class References(HTMLParser):
    """What a page makes its browser fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("src", "href") and value]


def welcome() -> str:
    match = re.search(r"const WELCOME = `(.*?)`;", SCRIPT, re.DOTALL)
    assert match
    return match[1]


async def test_the_page_and_all_it_loads_come_from_this_server(database: dict[str, Any], tmp_path: Path) -> None:
    async with running_server(environ(tmp_path, database, None)) as api:
        page = await api.http.get(f"{api.url}/playground")
        assert page.status_code == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        needed = [each for each in References(page.text).found if each != "data:,"]
        assert len(needed) > len(GLOBALS)
        for path in needed:
            assert path.startswith("/playground/"), path
            answer = await api.http.get(f"{api.url}{path}")
            assert answer.status_code == 200, path
            assert answer.headers["content-type"] == f"{CONTENT_TYPES[Path(path).suffix]}; charset=utf-8"
            assert answer.content
        assert (await api.http.get(f"{api.url}/playground/own/..%2fplayground.py")).status_code == 404


async def test_a_browser_is_told_to_reach_nobody_else(database: dict[str, Any], tmp_path: Path) -> None:
    async with running_server(environ(tmp_path, database, None)) as api:
        policy = (await api.http.get(f"{api.url}/playground")).headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == "'self'"
    assert rules["connect-src"] == "'self'"
    assert rules["frame-ancestors"] == "'none'"
    allowed = {source for sources in rules.values() for source in sources.split()}
    assert allowed <= {"'self'", "'none'", "'unsafe-inline'", "data:"}


async def test_the_welcome_query_runs_for_somebody_without_a_token(database: dict[str, Any], tmp_path: Path) -> None:
    async with running_server(environ(tmp_path, database, None)) as api:
        answer = await api.signed_in(None).ask(welcome())
    assert "errors" not in answer
    assert answer["data"]["serverInfo"]["version"]
    assert answer["data"]["viewer"] is None


def test_the_subscription_that_the_welcome_text_offers_fits_the_schema() -> None:
    offered = welcome()[welcome().index("# subscription") :].replace("# ", "")
    assert graphql.validate(schema._schema, graphql.parse(offered)) == []


def test_the_names_that_the_script_uses_are_in_the_shipped_files() -> None:
    used = set(re.findall(rf"\b({'|'.join(GLOBALS)})\.(\w+)", SCRIPT))
    assert {origin for origin, _ in used} == GLOBALS.keys()
    for origin, name in used:
        assert re.search(rf"\b{name}\b", (playground._graphiql() / GLOBALS[origin]).read_text()), f"{origin}.{name}"


async def test_browsers_are_told_to_guess_nothing_and_frame_nothing(database: dict[str, Any], tmp_path: Path) -> None:
    async with running_server(environ(tmp_path, database, None)) as api:
        answers = [await api.http.get(f"{api.url}{path}") for path in ("/playground", "/healthz")]
        answers.append(await api.http.post(f"{api.url}/graphql", json={"query": "{ __typename }"}))
        for answer in answers:
            assert answer.headers["x-content-type-options"] == "nosniff", answer.url
            assert answer.headers["x-frame-options"] == "DENY", answer.url
            assert answer.headers["referrer-policy"] == "no-referrer", answer.url
