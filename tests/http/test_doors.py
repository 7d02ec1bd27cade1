"""How many sockets come in, and whose address a client has."""

import asyncio
import json
import socket as sockets
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import anyio
import httpx
import pytest
import websockets
from websockets.exceptions import InvalidStatus

from app.db.engine import DB
from app.http.doors import Doors
from app.services.limits import Limits
from tests.graphql.people import Caller, house, person
from tests.harness import PATIENCE

PROTOCOL: Any = ["graphql-transport-ws"]
MAKE = 'mutation { accessTokenCreate(input: {name: "one", scopes: [FLEET_READ]}) { userErrors { code } } }'


def connect(api: Caller, address: str = "127.0.0.1", **more: Any) -> Any:
    """A socket from one of this machine's own addresses, which has not said who it is."""
    uri = api.url.replace("http", "ws", 1) + "/graphql"
    return websockets.connect(uri, subprotocols=PROTOCOL, proxy=None, local_addr=(address, 0), **more)


def doors(api: Caller) -> Doors:
    assert api.running is not None
    return cast("Doors", api.running.app)


async def emptied(api: Caller, count: int = 0) -> None:
    """Returns once the server counts no more than these."""
    with anyio.fail_after(PATIENCE):
        while doors(api).open_sockets > count:
            await anyio.sleep(0.01)


async def refused(api: Caller, address: str = "127.0.0.1", **more: Any) -> Any:
    with pytest.raises(InvalidStatus) as caught:
        async with connect(api, address, **more):
            pass
    return caught.value.response


async def test_one_socket_too_many_is_refused_until_one_is_closed(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path, CLAWNET_SOCKETS_PER_ADDRESS="3") as api, AsyncExitStack() as stack:
        # They never say who they are, and count all the same.
        open_ones = [await stack.enter_async_context(connect(api)) for _ in range(3)]
        answer = await refused(api)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) > 0
        assert answer.body == b"your address has 3 sockets open already; close one first"
        # Another address has its own.
        async with connect(api, "127.0.0.7"):
            assert doors(api).open_sockets == 4
        await open_ones[0].close()
        await emptied(api, 2)
        async with connect(api) as another:
            await another.send(json.dumps({"type": "connection_init", "payload": {"authorization": api.token}}))
            assert json.loads(await another.recv())["type"] == "connection_ack"


async def test_a_burst_of_upgrades_is_refused_and_said_how_long_to_wait(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path, CLAWNET_RATE_CONNECT="5") as api:
        for _ in range(5):
            async with connect(api):
                pass
        answer = await refused(api)
        assert answer.status_code == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 12
        assert answer.body.startswith(b"your address may open 5 sockets in a minute; try again in ")
        async with connect(api, "127.0.0.7"):
            pass
        # HTTP goes on.
        assert await api.run("{ serverInfo { version } }")


async def test_sockets_that_are_torn_down_are_not_counted_any_more(database: dict[str, Any], tmp_path: Path) -> None:
    limits = {"CLAWNET_SOCKETS_PER_ADDRESS": "300", "CLAWNET_RATE_CONNECT": "0", "CLAWNET_SOCKETS_PER_USER": "0"}
    async with house(database, tmp_path, **limits) as api:
        opened = await asyncio.gather(*[connect(api).__aenter__() for _ in range(300)])
        assert doors(api).open_sockets == 300
        assert (await refused(api)).status_code == 429
        for number, socket in enumerate(opened):
            if number % 3 == 0:
                await socket.send(json.dumps({"type": "connection_init", "payload": {"authorization": api.token}}))
            if number % 3 == 1:
                await socket.send("no JSON")
        for socket in opened:
            # A reset, with what was sent still unread.
            raw = socket.transport.get_extra_info("socket")
            raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            socket.transport.abort()
        await emptied(api)
        assert doors(api)._inside == {}
        async with connect(api):
            assert doors(api).open_sockets == 1


async def test_half_an_upgrade_is_not_counted(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path, CLAWNET_SOCKETS_PER_ADDRESS="2") as api:
        host, port = api.url.removeprefix("http://").split(":")
        for _ in range(5):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET /graphql HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
            writer.close()
        # What the application itself refuses has left again.
        for _ in range(5):
            assert (await refused(api, origin=cast("Any", "https://evil.example"))).status_code == 403
        await emptied(api)
        async with connect(api), connect(api):
            pass


@pytest.mark.parametrize("end", [None, RuntimeError("broken"), asyncio.CancelledError()])
async def test_the_count_goes_down_however_a_socket_ends(end: BaseException | None) -> None:
    inside = Doors(_ends(end), Limits(sockets_per_address=1))
    for _ in range(3):
        with pytest.raises(type(end)) if end is not None else nullcontext():
            await inside(_scope(), _nothing, _nothing)
        assert inside.open_sockets == 0


async def test_a_server_without_words_for_it_closes_with_try_again() -> None:
    said: list[Any] = []

    async def send(message: Any) -> None:
        said.append(message)

    inside = Doors(_ends(None), Limits(connect=1))
    await inside(_scope(), _nothing, send)
    await inside(_scope(), _nothing, send)
    assert [message["type"] for message in said] == ["websocket.close"]
    assert said[0]["code"] == 1013


def _ends(end: BaseException | None) -> Any:
    async def app(*_: Any) -> None:
        if end is not None:
            raise end

    return app


def _scope() -> Any:
    return {"type": "websocket", "client": ("10.0.0.1", 5), "extensions": None}


async def _nothing(*_: Any) -> Any:
    return None


# Who a client is.


@asynccontextmanager
async def peer(api: Caller, address: str) -> AsyncGenerator[Caller]:
    """The same caller, over HTTP from another of this machine's addresses."""
    transport = httpx.AsyncHTTPTransport(local_address=address)
    async with httpx.AsyncClient(transport=transport, trust_env=False, timeout=PATIENCE) as http:
        yield Caller(api.url, api.token, api.running, http)


async def seen(api: Caller, forwarded: str | None, header: str = "x-forwarded-for") -> str:
    """The address that the audit trail has of a change."""
    headers = api.headers | ({header: forwarded} if forwarded is not None else {})
    answer = await api.http.post(f"{api.url}/graphql", json={"query": MAKE}, headers=headers)
    assert answer.json()["data"]["accessTokenCreate"]["userErrors"] == []
    row = await DB.fetch_one("SELECT address FROM audit_entry WHERE action = 'accessTokenCreate' ORDER BY id DESC")
    assert row is not None
    return row["address"]


async def test_who_is_not_trusted_cannot_say_that_it_is_another(database: dict[str, Any], tmp_path: Path) -> None:
    trusted = {"CLAWNET_TRUSTED_PROXIES": "127.0.0.2, 127.1.0.0/16", "CLAWNET_SOCKETS_PER_ADDRESS": "2"}
    async with house(database, tmp_path, **trusted) as api:
        forged = ["203.0.113.9", "127.0.0.2", "203.0.113.9, 127.0.0.2", "", ",,,", "x" * 4_000]
        async with peer(api, "127.0.0.5") as liar:
            assert {await seen(liar, text) for text in [None, *forged]} == {"127.0.0.5"}
            for other in ("forwarded", "x-real-ip", "true-client-ip"):
                assert await seen(liar, "for=203.0.113.9", other) == "127.0.0.5"
        async with AsyncExitStack() as stack:
            for number in range(2):
                lie = {"x-forwarded-for": f"203.0.113.{number}"}
                await stack.enter_async_context(connect(api, "127.0.0.5", additional_headers=lie))
            answer = await refused(api, "127.0.0.5", additional_headers={"x-forwarded-for": "203.0.113.77"})
            assert answer.status_code == 429


async def test_a_trusted_proxy_says_who_its_client_is(database: dict[str, Any], tmp_path: Path) -> None:
    trusted = {"CLAWNET_TRUSTED_PROXIES": "127.0.0.2, 127.1.0.0/16, 2001:db8:1::/48"}
    async with house(database, tmp_path, CLAWNET_SOCKETS_PER_ADDRESS="1", **trusted) as api:
        cases = {
            "203.0.113.9": "203.0.113.9",
            "203.0.113.9:4711": "203.0.113.9",
            "[2001:db8::7]:4711": "2001:db8::7",
            "2001:db8::7": "2001:db8::7",
            # The rightmost that is not trusted; what stands left of it, anybody can have written.
            "198.51.100.1, 203.0.113.9": "203.0.113.9",
            "198.51.100.1, 203.0.113.9, 127.1.2.3": "203.0.113.9",
            "127.0.0.2, 203.0.113.9, 2001:db8:1::5, 127.1.2.3": "203.0.113.9",
            "": "127.0.0.2",
        }
        for address in ("127.0.0.2", "127.1.9.9"):
            async with peer(api, address) as proxy:
                for said, wanted in cases.items():
                    assert await seen(proxy, said) == (wanted if said else address), said
                for said in ("unknown", "_hidden", "x" * 4_000, "203.0.113.9, unknown", "fe80::1%" + "x" * 100):
                    assert await seen(proxy, said) is None, said
                    assert await proxy.run("{ serverInfo { version } }")
        one, two = ({"x-forwarded-for": f"203.0.113.{number}"} for number in (1, 2))
        async with connect(api, "127.0.0.2", additional_headers=one):
            assert (await refused(api, "127.0.0.2", additional_headers=one)).status_code == 429
            async with connect(api, "127.0.0.2", additional_headers=two):
                pass


async def test_with_no_proxy_named_nobody_is_believed(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        async with peer(api, "127.0.0.1") as local:
            assert await seen(local, "203.0.113.9") == "127.0.0.1"


async def test_strangers_behind_one_proxy_have_allowances_of_their_own(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path, CLAWNET_TRUSTED_PROXIES="127.0.0.1", CLAWNET_RATE_QUERY="5") as api:

        async def ask(client: str) -> int:
            body, headers = {"query": "{ serverInfo { version } }"}, {"x-forwarded-for": client}
            return (await api.http.post(f"{api.url}/graphql", json=body, headers=headers)).status_code

        assert [await ask("203.0.113.1") for _ in range(6)] == [200] * 5 + [429]
        assert await ask("203.0.113.2") == 200


# Pages elsewhere.

APP = "https://app.example.com"
EVIL = ["https://evil.example", "https://appXexample.com", "https://app.example.com.evil.example", "null"]
EVIL += ["http://app.example.com", "https://app.example.com:444", "https://sub.app.example.com", "*", ""]


async def preflight(api: Caller, origin: str, method: str = "POST", headers: str = "authorization") -> httpx.Response:
    asked = {"origin": origin, "access-control-request-method": method, "access-control-request-headers": headers}
    return await api.http.options(f"{api.url}/graphql", headers=asked)


async def test_pages_of_named_origins_may_ask_and_no_others(database: dict[str, Any], tmp_path: Path) -> None:
    origins = {"CLAWNET_ALLOWED_ORIGINS": f"{APP}, http://localhost:3000", "CLAWNET_RATE_MUTATION": "1"}
    async with house(database, tmp_path, **origins) as api:
        mia = await person(api, "Mia")
        for origin in (APP, "http://localhost:3000"):
            allowed = await preflight(api, origin, headers="authorization, content-type")
            assert allowed.status_code == 204
            assert allowed.headers["access-control-allow-origin"] == origin
            assert allowed.headers["vary"].lower() == "origin"
            assert allowed.headers["access-control-allow-methods"] == "GET, OPTIONS, POST"
            assert "access-control-allow-credentials" not in allowed.headers
            named = allowed.headers["access-control-allow-headers"].lower()
            assert {"authorization", "content-type"} <= set(named.split(", "))
        assert (await preflight(api, APP, method="DELETE")).status_code == 400
        assert (await preflight(api, APP, headers="x-evil")).status_code == 400
        for query, status in (("{ viewer { id } }", 200), (MAKE, 200), (MAKE, 429), ("{", 200)):
            answer = await mia.http.post(
                f"{api.url}/graphql", json={"query": query}, headers={**mia.headers, "origin": APP}
            )
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == APP
            assert answer.headers["access-control-expose-headers"] == "retry-after"
        for origin in EVIL:
            assert "access-control-allow-origin" not in (await preflight(api, origin)).headers
            answer = await api.http.post(
                f"{api.url}/graphql", json={"query": "{ viewer { id } }"}, headers={"origin": origin}
            )
            assert "access-control-allow-origin" not in answer.headers


async def test_sockets_of_named_origins_and_of_our_own_pages_come_in(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path, CLAWNET_ALLOWED_ORIGINS=APP) as api:
        for origin in (APP, api.url, None):
            async with connect(api, origin=cast("Any", origin)):
                pass
        for origin in EVIL:
            assert (await refused(api, origin=cast("Any", origin))).status_code == 403


async def test_with_no_origin_named_only_our_own_pages_come_in(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        assert "access-control-allow-origin" not in (await preflight(api, APP)).headers
        assert (await refused(api, origin=cast("Any", APP))).status_code == 403
        async with connect(api, origin=cast("Any", api.url)):
            pass
