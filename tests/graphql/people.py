"""Who speaks to the API in these tests, and what of theirs is spoken about."""

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
