"""Who speaks to the API in these tests, through which door, and with what in hand."""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import anyio
import websockets

from app.domain.states import TokenScope, UserRole
from app.services import accounts
from tests.harness import PATIENCE, Api, environ, running_server
from tests.journeys import documents as docs

ALL = frozenset(TokenScope)

ERRORS = "userErrors { code message field }"
#: A key that must be seen nowhere.
CANARY = "sk-canary-0123456789"
#: What PostgreSQL or a reader of logs would choke on.
UNKEEPABLE = ["a\0b", "\ud800", "a\x07b", "a\x1b[31m", "a\x7f", "a\x9bb", "a\x85b"]


class Caller(Api):
    """A client that also sends what is no valid Unicode, as JSON lets anybody do."""

    def signed_in(self, token: str | None) -> "Caller":
        return Caller(self.url, token, self.running, self.http)

    async def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        body = json.dumps({"query": query, "variables": variables})
        headers = {**self.headers, "content-type": "application/json"}
        return (await self.http.post(f"{self.url}/graphql", content=body, headers=headers)).json()


async def person(
    api: Caller, name: str = "Mia", role: UserRole = UserRole.MEMBER, scopes: frozenset[TokenScope] = ALL
) -> Caller:
    """A new account, signed in at the same server."""
    user = await accounts.add_user(name, role)
    return api.signed_in(await accounts.add_token(user, "test", scopes))


@asynccontextmanager
async def house(
    database: dict[str, Any], folder: Path, openclaw: Path | None = None, **settings: str
) -> AsyncGenerator[Caller]:
    """A server whose administrator has shared one provider of models, `local`."""
    async with running_server(environ(folder, database, openclaw, **settings)) as up:
        api = Caller(up.url, up.token, up.running, up.http)
        shared = {"name": "local", "baseUrl": "http://127.0.0.1:9/v1", "models": [{"id": "echo"}], "shared": True}
        await provider(api, **shared)
        yield api


async def provider(api: Api, name: str, **more: Any) -> dict[str, Any]:
    saved = await api.run(docs.PROVIDER_SAVE, input={"name": name, **more})
    assert saved["userErrors"] == [], saved
    return saved["modelProvider"]


def code(payload: dict[str, Any]) -> str | None:
    """Why a mutation was refused; None where it was not."""
    return payload["userErrors"][0]["code"] if payload["userErrors"] else None


@asynccontextmanager
async def opened(api: Caller) -> AsyncGenerator[Any]:
    """A socket that has said who it is."""
    uri, protocol = api.url.replace("http", "ws", 1) + "/graphql", cast("Any", "graphql-transport-ws")
    async with websockets.connect(uri, subprotocols=[protocol], proxy=None) as socket:
        payload = {"authorization": f"Bearer {api.token}"} if api.token else {}
        await socket.send(json.dumps({"type": "connection_init", "payload": payload}))
        yield socket


async def heard(socket: Any) -> dict[str, Any]:
    """The next message. Raises `ConnectionClosed`."""
    with anyio.fail_after(PATIENCE):
        return json.loads(await socket.recv())


def answered(message: dict[str, Any]) -> dict[str, Any]:
    """What a message says, in the shape that HTTP would give it; what never ran comes as an `error`."""
    return {"data": None, "errors": message["payload"]} if message["type"] == "error" else message["payload"]


async def first(api: Caller, document: str, **variables: Any) -> dict[str, Any]:
    """The first answer over a socket; one that is closed instead answers with its code."""
    async with opened(api) as socket:
        with suppress(websockets.ConnectionClosed):
            assert await heard(socket) == {"type": "connection_ack"}
            body = {"query": document, "variables": variables}
            await socket.send(json.dumps({"id": "1", "type": "subscribe", "payload": body}))
            return answered(await heard(socket))
        return {"errors": [{"extensions": {"code": str(socket.close_code)}}]}


def global_id(type_name: str, key: str) -> str:
    return base64.b64encode(f"{type_name}:{key}".encode()).decode()


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


async def refusals(api: Caller, document: str, cases: list[tuple[dict[str, Any], str, list[str]]]) -> list[Any]:
    """The cases that were not refused with their code and field."""
    wrong: list[Any] = []
    answers = await asyncio.gather(*[api.ask(document, input=given) for given, _, _ in cases])
    for (given, wanted, field), answer in zip(cases, answers, strict=True):
        (payload,) = answer["data"].values() if answer.get("data") else [None]
        found = payload and [(error["code"], error["field"]) for error in payload["userErrors"]]
        if found != [(wanted, field)]:
            wrong.append((repr(given)[:120], found, answer.get("errors")))
    return wrong
