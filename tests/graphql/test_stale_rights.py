"""Rights that are taken away while a document is under way are not used to its end."""

import asyncio
import json
import socket as socketlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import websockets

from app.db.engine import DB
from tests import fake_openclaw
from tests.graphql.people import Caller, heard, house, opened
from tests.graphql.test_people import PASSWORD, REVOKE, TOKEN, UPDATE, account, closed_with, signed_in
from tests.journeys import story

#: A bot that takes so long to become ready, in seconds, is what a document waits for.
SLOW = 3.0


async def until_starting(api: Caller) -> None:
    with anyio.fail_after(30):
        while not await DB.fetch("SELECT 1 FROM bot_process WHERE status = 'STARTING' AND phase = 'launching'"):
            await asyncio.sleep(0.02)


async def test_an_administrator_who_was_shut_out_does_not_let_himself_in_again(
    database: dict[str, Any], tmp_path: Path
) -> None:
    openclaw = fake_openclaw.install(tmp_path, start_delay_s=SLOW)
    async with house(database, tmp_path, openclaw) as api:
        bob = await account(api, "Bob", "ADMIN")
        him = await signed_in(api, "Bob")
        bot = await story.make_bot(him)
        document = """mutation($bot: ID!, $me: ID!, $x: UserCreateInput!) {
            wait: botStart(input: {botId: $bot, wait: true}) { bot { description } userErrors { code } }
            friend: userCreate(input: $x) { user { id } }
            back: userUpdate(input: {userId: $me, role: ADMIN, disabled: false}) { user { id } }
            key: accessTokenCreate(input: {name: "x", scopes: [ADMIN], expiresAt: null}) { secret }
        }"""
        friend = {"name": "X", "email": "x@example.com", "password": PASSWORD, "role": "ADMIN"}
        asking = asyncio.create_task(him.ask(document, bot=bot["id"], me=bob["id"], x=friend))
        await until_starting(api)
        done = await api.run(UPDATE, input={"userId": bob["id"], "role": "OBSERVER", "disabled": True})
        assert done["userErrors"] == []
        answer = await asking
        assert {error["extensions"]["code"] for error in answer["errors"]} == {"UNAUTHENTICATED"}
        assert answer["data"] is None
        rows = await DB.fetch("SELECT name, role, disabled_at IS NULL AS is_in FROM app_user ORDER BY created_at")
        assert [tuple(row.values()) for row in rows] == [("Administrator", "ADMIN", True), ("Bob", "OBSERVER", False)]


async def test_a_token_makes_no_successor_after_its_end(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        await account(api)
        mia = await signed_in(api)
        answer = await mia.ask(
            "mutation { signOut(input: {}) { viewer { name } } "
            'accessTokenCreate(input: {name: "x", scopes: [FLEET_READ], expiresAt: null}) { secret } }'
        )
        assert [error["extensions"]["code"] for error in answer["errors"]] == ["UNAUTHENTICATED"]
        rows = await DB.fetch("SELECT 1 FROM access_token WHERE kind = 'p' AND name = 'x'")
        assert rows == []


async def test_one_client_that_reads_nothing_does_not_keep_others_sockets_open(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path, CLAWNET_RATE_QUERY="0") as api:
        await account(api, "Mal")
        await account(api, "Eve")
        mal, eve = await signed_in(api, "Mal"), await signed_in(api, "Eve")
        tokens = [await mal.run(TOKEN, input={"name": "deaf", "scopes": ["FLEET_READ"]}) for _ in range(2)]
        connections = api.running.connections  # type: ignore[union-attr]
        async with opened(eve) as victim:
            await heard(victim)
            sockets = [await deaf(api.signed_in(token["secret"])) for token in tokens]
            assert len(connections) == 3
            for token in tokens:
                await mal.run(REVOKE, input={"accessTokenId": token["accessToken"]["id"]})
            (row,) = await DB.fetch("SELECT id::text FROM app_user WHERE name = 'Eve'")
            begun = anyio.current_time()
            await api.run(UPDATE, input={"userId": _user(row["id"]), "disabled": True})
            assert await closed_with(victim) == 4401
            assert anyio.current_time() - begun < 1
            with anyio.fail_after(10):
                while api.running.doors.open_sockets:  # type: ignore[union-attr]
                    await asyncio.sleep(0.05)
            assert len(connections) == 0
            for socket in sockets:
                socket.transport.abort()


def _user(key: str) -> str:
    from tests.graphql.people import global_id

    return global_id("User", key)


async def deaf(api: Caller) -> Any:
    """A socket whose client asks for a lot and reads nothing."""
    uri, protocol = api.url.replace("http", "ws", 1) + "/graphql", "graphql-transport-ws"
    host, _, port = api.url.removeprefix("http://").partition(":")
    line = socketlib.socket()
    line.setsockopt(socketlib.SOL_SOCKET, socketlib.SO_RCVBUF, 4096)
    line.connect((host, int(port)))
    socket = await websockets.connect(uri, sock=line, subprotocols=[protocol], proxy=None, max_queue=1)  # type: ignore[list-item]
    await socket.send(json.dumps({"type": "connection_init", "payload": {"authorization": f"Bearer {api.token}"}}))
    await heard(socket)
    document = "{ __schema { types { name description fields { name description } } } }"
    socket.transport.pause_reading()
    for number in range(45):
        body = {"id": str(number), "type": "subscribe", "payload": {"query": document}}
        with suppress(websockets.ConnectionClosed):
            await socket.send(json.dumps(body))
    # Round trips elsewhere, so that what was asked has been worked on and cannot be got rid of.
    for _ in range(20):
        await api.run("{ viewer { id } }")
    return socket


async def test_one_person_s_many_changes_hold_up_nobody_else_s(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        await account(api, "Mal")
        await account(api, "Eve")
        mal, eve = await signed_in(api, "Mal"), await signed_in(api, "Eve")
        made = [await mal.run(TOKEN, input={"name": "x", "scopes": ["FLEET_READ"]}) for _ in range(40)]
        async with opened(eve) as victim:
            await heard(victim)
            await asyncio.gather(*(mal.run(REVOKE, input={"accessTokenId": one["accessToken"]["id"]}) for one in made))
            begun = anyio.current_time()
            assert (await eve.run("mutation { signOut(input: {}) { viewer { name } } }"))["viewer"]["name"] == "Eve"
            assert await closed_with(victim) == 4401
            assert anyio.current_time() - begun < 1


async def test_an_identity_that_is_none_is_refused_and_told(database: dict[str, Any], tmp_path: Path) -> None:
    from tests.graphql.people import global_id

    key = "018f3c1e-0000-7000-8000-000000000001"
    async with house(database, tmp_path) as api:
        for name in ("a\0b", "\x1b[31mX", "bot", "X" * 40, ""):
            answer = await api.run(REVOKE, input={"accessTokenId": global_id(name, key)})
            assert [e["code"] for e in answer["userErrors"]] == ["NOT_FOUND"], name
        rows = await DB.fetch("SELECT subject_type FROM audit_entry WHERE action = 'accessTokenRevoke'")
        assert rows == [{"subject_type": None}] * 5


async def test_ends_that_no_calendar_reaches_are_refused(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        for end in ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59-12:00", "2200-01-01T00:00:00Z"):
            answer = await api.run(TOKEN, input={"name": "x", "scopes": ["FLEET_READ"], "expiresAt": end})
            assert [e["code"] for e in answer["userErrors"]] == ["INVALID"], end
        echoed = await api.ask(
            'mutation { accessTokenCreate(input: {name: "x", scopes: [ADMIN], expiresAt: "sk-secret-1"}) { secret } }'
        )
        assert "sk-secret-1" not in json.dumps(echoed)


async def test_spellings_of_an_address_share_one_allowance(database: dict[str, Any], tmp_path: Path) -> None:
    sign_in = "mutation($e: String!, $p: String!) { signIn(input: {email: $e, password: $p}) { accessToken } }"
    async with house(database, tmp_path, CLAWNET_RATE_SIGN_IN="3") as api:
        await account(api, "iiix")
        nobody = api.signed_in(None)
        answers = [
            await nobody.ask(sign_in, e=spelling, p=PASSWORD)
            for spelling in ("iiix@example.com", "IIIX@EXAMPLE.COM", "\u0130iix@example.com", "iI\u0130x@example.com")
        ]
        assert [bool(a.get("data") and a["data"]["signIn"]["accessToken"]) for a in answers[:2]] == [True, True]
        # What the database might fold into the address is nobody's.
        assert not any(a.get("data") and a["data"]["signIn"]["accessToken"] for a in answers[2:])


async def test_a_document_full_of_unknown_names_is_cheap_to_refuse(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        document = "{ nodes(ids: []) { id " + "...on AccessTokenConXXXnection { name } " * 100 + "} }"
        answer = await api.signed_in(None).ask(document)
        messages = [error["message"] for error in answer["errors"]]
        assert len(messages) <= 11
        assert not any("Did you mean" in message for message in messages)
        quoted = "Value '" * 20_000
        given = f'{{name: "x", scopes: [ADMIN], expiresAt: "{quoted}"}}'
        long = await api.ask(f"mutation {{ accessTokenCreate(input: {given}) {{ secret }} }}")
        assert len(long["errors"][0]["message"]) <= 1_000
