"""Accounts, signing in, and tokens for programs."""

import asyncio
import json
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
import websockets

from app.db.engine import DB
from app.domain.states import TokenScope, UserRole
from app.services import accounts
from app.vault import passwords
from tests.graphql.people import ALL, ERRORS, Caller, code, first, heard, house, opened, person
from tests.harness import Api

PASSWORD = "correct horse battery"


def mutation(name: str, what: str) -> str:
    return f"mutation($input: {name[0].upper()}{name[1:]}Input!) {{ {name}(input: $input) {{ {what} {ERRORS} }} }}"


USER = "user { id name email role disabledAt }"
SIGN_IN = mutation("signIn", "accessToken expiresAt viewer { id name email role }")
SIGN_OUT = f"mutation {{ signOut(input: {{}}) {{ viewer {{ name }} {ERRORS} }} }}"
CHANGE = mutation("passwordChange", "viewer { name }")
CREATE = mutation("userCreate", USER)
UPDATE = mutation("userUpdate", USER)
TOKEN = mutation("accessTokenCreate", "secret accessToken { id name hint scopes isSignIn expiresAt lastUsedAt }")
REVOKE = mutation("accessTokenRevoke", "revokedAccessTokenId")
VIEWER = "{ viewer { id name email role } }"
FLEET = "subscription { botStatus { kind } }"


async def account(api: Api, name: str = "Mia", role: str = "MEMBER") -> dict[str, Any]:
    made = await api.run(
        CREATE, input={"name": name, "email": f"{name.lower()}@example.com", "password": PASSWORD, "role": role}
    )
    assert made["userErrors"] == [], made
    return made["user"]


async def signed_in(api: Caller, name: str = "Mia", password: str = PASSWORD) -> Caller:
    answer = await api.signed_in(None).run(
        SIGN_IN, input={"email": f"{name.lower()}@example.com", "password": password}
    )
    assert answer["userErrors"] == [], answer
    return api.signed_in(answer["accessToken"])


async def closed_with(socket: Any) -> int | None:
    """The code a socket is closed with, whatever is heard before."""
    with anyio.fail_after(20), suppress(websockets.ConnectionClosed):
        while True:
            await socket.recv()
    return socket.close_code


async def test_a_person_signs_in_is_seen_and_signs_out(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        made = await account(api)
        answer = await api.signed_in(None).run(SIGN_IN, input={"email": " MIA@example.com ", "password": PASSWORD})
        assert answer["viewer"] == {"id": made["id"], "name": "Mia", "email": "mia@example.com", "role": "MEMBER"}
        left = datetime.fromisoformat(answer["expiresAt"]) - datetime.now(UTC)
        assert timedelta(hours=11, minutes=59) < left <= timedelta(hours=12)
        mia = api.signed_in(answer["accessToken"])
        assert (await mia.run(VIEWER))["name"] == "Mia"
        assert (await mia.run(SIGN_OUT))["viewer"] == {"name": "Mia"}
        assert await mia.run(VIEWER) is None


async def test_a_sign_in_that_does_not_fit_says_the_same_whatever_was_wrong(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path) as api:
        await account(api)
        gone = await account(api, "Gus")
        await api.run(UPDATE, input={"userId": gone["id"], "disabled": True})
        nobody = api.signed_in(None)
        tries = [
            {"email": "mia@example.com", "password": "wrong horse battery"},
            {"email": "nobody@example.com", "password": PASSWORD},
            {"email": "gus@example.com", "password": PASSWORD},
            {"email": "", "password": PASSWORD},
            {"email": "a\0b@example.com", "password": PASSWORD},
            {"email": "\ud800", "password": "\ud800"},
            {"email": "x" * 5000, "password": PASSWORD},
            {"email": "mia@example.com", "password": ""},
            {"email": "mia@example.com", "password": PASSWORD * 100},
        ]
        answers = [await nobody.run(SIGN_IN, input=given) for given in tries]
        assert all(answer == answers[0] for answer in answers), answers
        assert code(answers[0]) == "CREDENTIALS_REFUSED"
        assert answers[0]["accessToken"] is None
        kept = await DB.fetch("SELECT refusal, subject, detail FROM audit_entry WHERE action = 'signIn'")
        assert len(kept) == len(tries)
        assert {row["refusal"] for row in kept} == {"CREDENTIALS_REFUSED"}
        assert PASSWORD not in str(kept)
        assert "mia@" not in str(kept)


async def test_weak_passwords_and_taken_addresses_are_refused_by_name(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        await account(api)
        good = {"name": "Leo", "email": "leo@example.com", "password": PASSWORD}
        cases = [
            ({"password": "short"}, "INVALID", "password"),
            ({"password": " " * 20}, "BLANK", "password"),
            ({"password": "abababababab"}, "INVALID", "password"),
            ({"password": "x1y2z3" * 200}, "TOO_LONG", "password"),
            ({"password": "Leo@Example.com"}, "INVALID", "password"),
            ({"email": "MIA@example.com"}, "TAKEN", "email"),
            ({"email": "leo"}, "INVALID", "email"),
            ({"email": "@example.com"}, "INVALID", "email"),
            ({"email": ""}, "BLANK", "email"),
            ({"email": "a b@example.com"}, "INVALID", "email"),
            ({"email": "l" * 400 + "@example.com"}, "TOO_LONG", "email"),
            ({"name": " "}, "BLANK", "name"),
        ]
        for wrong, wanted, field in cases:
            answer = await api.run(CREATE, input=good | wrong)
            assert [(e["code"], e["field"]) for e in answer["userErrors"]] == [(wanted, [field])], wrong
        assert (await api.run(CREATE, input=good))["userErrors"] == []
        rows = await DB.fetch("SELECT count(*) AS n FROM app_user")
        assert rows[0]["n"] == 3


async def test_a_password_is_kept_as_argon2id_and_renewed_when_the_parameters_are_old(
    database: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(database, tmp_path) as api:
        with monkeypatch.context() as older:
            older.setattr(passwords, "PASSES", 1)
            await account(api)
        before = (await DB.fetch("SELECT password_hash FROM app_user WHERE name = 'Mia'"))[0]["password_hash"]
        assert before.startswith("$argon2id$v=19$m=19456,t=1,p=1$")
        await signed_in(api)
        after = (await DB.fetch("SELECT password_hash FROM app_user WHERE name = 'Mia'"))[0]["password_hash"]
        assert after.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
        await signed_in(api)
    assert not passwords.is_outdated(passwords.NOBODY)


async def test_a_changed_password_ends_the_other_sign_ins_and_spares_tokens_for_programs(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path) as api:
        await account(api)
        here, there = await signed_in(api), await signed_in(api)
        program = api.signed_in((await here.run(TOKEN, input={"name": "ci", "scopes": ["FLEET_READ"]}))["secret"])
        wrong = await here.run(CHANGE, input={"currentPassword": "wrong horse battery", "newPassword": "x" * 12})
        assert (code(wrong), wrong["userErrors"][0]["field"]) == ("CREDENTIALS_REFUSED", ["currentPassword"])
        weak = await here.run(CHANGE, input={"currentPassword": PASSWORD, "newPassword": "short"})
        assert (code(weak), weak["userErrors"][0]["field"]) == ("INVALID", ["newPassword"])
        async with opened(there) as socket:
            assert (await heard(socket))["type"] == "connection_ack"
            new = "a new horse battery"
            assert (await here.run(CHANGE, input={"currentPassword": PASSWORD, "newPassword": new}))["userErrors"] == []
            assert await closed_with(socket) == 4401
        assert await here.run(VIEWER) is not None
        assert await there.run(VIEWER) is None
        assert await program.run(VIEWER) is not None
        refused = await api.signed_in(None).run(SIGN_IN, input={"email": "mia@example.com", "password": PASSWORD})
        assert code(refused) == "CREDENTIALS_REFUSED"
        await signed_in(api, password=new)


async def test_a_token_never_makes_one_that_may_more_than_itself(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        await account(api)
        mia = await signed_in(api)
        made = await mia.run(TOKEN, input={"name": "reader", "scopes": ["FLEET_READ", "FLEET_READ"]})
        assert made["accessToken"]["scopes"] == ["FLEET_READ"]
        assert made["secret"].startswith(made["accessToken"]["hint"])
        left = datetime.fromisoformat(made["accessToken"]["expiresAt"]) - datetime.now(UTC)
        assert timedelta(days=89) < left <= timedelta(days=90)
        reader = api.signed_in(made["secret"])
        assert (await reader.run(TOKEN, input={"name": "twin", "scopes": ["FLEET_READ"]}))["userErrors"] == []
        for caller, scope in ((reader, "FLEET_WRITE"), (reader, "ADMIN"), (mia, "ADMIN")):
            more = await caller.run(TOKEN, input={"name": "more", "scopes": ["FLEET_READ", scope]})
            assert (code(more), more["userErrors"][0]["field"]) == ("INVALID", ["scopes"])
        assert code(await mia.run(TOKEN, input={"name": "none", "scopes": []})) == "BLANK"
        past = await mia.run(TOKEN, input={"name": "x", "scopes": ["FLEET_READ"], "expiresAt": "2020-01-01T00:00:00Z"})
        assert code(past) == "INVALID"
        endless = await mia.run(TOKEN, input={"name": "x", "scopes": ["FLEET_READ"], "expiresAt": None})
        assert endless["accessToken"]["expiresAt"] is None
        unknown = await mia.ask(TOKEN, input={"name": "x", "scopes": ["FLEET_FLY"]})
        assert unknown["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"
        # An observer's sign-in may read; a member's may not administrate.
        await account(api, "Ines", "OBSERVER")
        ines = await signed_in(api, "Ines")
        assert code(await ines.run(TOKEN, input={"name": "x", "scopes": ["FLEET_WRITE"]})) == "INVALID"


async def test_a_revoked_token_ends_at_once_with_the_sockets_it_opened(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path) as api:
        await account(api)
        mia, other = await signed_in(api), await person(api, "Sven")
        made = await mia.run(TOKEN, input={"name": "program", "scopes": ["FLEET_READ"]})
        program = api.signed_in(made["secret"])
        async with opened(program) as gone, opened(mia) as stays:
            await heard(gone)
            await heard(stays)
            await gone.send(json.dumps({"id": "1", "type": "subscribe", "payload": {"query": FLEET}}))
            assert code(await other.run(REVOKE, input={"accessTokenId": made["accessToken"]["id"]})) == "NOT_FOUND"
            begun = anyio.current_time()
            answer = await mia.run(REVOKE, input={"accessTokenId": made["accessToken"]["id"]})
            assert answer["revokedAccessTokenId"] == made["accessToken"]["id"]
            assert await closed_with(gone) == 4401
            assert anyio.current_time() - begun < 1
            await stays.send('{"type":"ping"}')
            assert (await heard(stays))["type"] == "pong"
        assert await program.run(VIEWER) is None
        assert (await first(program, FLEET))["errors"][0]["extensions"]["code"] == "4403"
        assert code(await mia.run(REVOKE, input={"accessTokenId": made["accessToken"]["id"]})) == "NOT_FOUND"


async def test_a_socket_ends_with_its_token(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        user = await accounts.add_user("Eva", UserRole.MEMBER)
        short = api.signed_in(await accounts.add_token(user, "short", ALL, timedelta(seconds=2)))
        async with opened(short) as socket:
            assert (await heard(socket))["type"] == "connection_ack"
            assert await closed_with(socket) == 4403
        assert await short.run(VIEWER) is None


async def test_a_disabled_person_is_shut_out_and_can_be_let_in_again(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        made = await account(api)
        mia = await signed_in(api)
        program = api.signed_in((await mia.run(TOKEN, input={"name": "p", "scopes": ["FLEET_READ"]}))["secret"])
        async with opened(mia) as one, opened(program) as two:
            await heard(one)
            await heard(two)
            done = await api.run(UPDATE, input={"userId": made["id"], "disabled": True})
            assert done["user"]["disabledAt"] is not None
            assert [await closed_with(one), await closed_with(two)] == [4401, 4401]
        assert await mia.run(VIEWER) is None
        assert await program.run(VIEWER) is None
        again = await api.run(UPDATE, input={"userId": made["id"], "disabled": False})
        assert again["user"]["disabledAt"] is None
        # Let in again, she begins anew: what was taken from her stays taken.
        assert await mia.run(VIEWER) is None
        assert await program.run(VIEWER) is None
        assert (await (await signed_in(api)).run(VIEWER))["name"] == "Mia"


async def test_a_change_of_role_makes_clients_come_again(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        made = await account(api, "Ines", "OBSERVER")
        ines = await signed_in(api, "Ines")
        async with opened(ines) as socket:
            await heard(socket)
            await api.run(UPDATE, input={"userId": made["id"], "role": "MEMBER"})
            assert await closed_with(socket) == 4403
        assert (await ines.run(VIEWER))["role"] == "MEMBER"


async def test_the_last_administrator_stays_one_however_many_change_at_once(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path) as api:
        me = (await api.run(VIEWER))["id"]
        for change, field in (({"disabled": True}, "disabled"), ({"role": "MEMBER"}, "role")):
            refused = await api.run(UPDATE, input={"userId": me, **change})
            assert (code(refused), refused["userErrors"][0]["field"]) == ("CONFLICT", [field])
        others = [await account(api, f"Admin{n}", "ADMIN") for n in range(4)]
        everybody = [me, *(other["id"] for other in others)]
        await asyncio.gather(*(api.ask(UPDATE, input={"userId": one, "disabled": True}) for one in everybody))
        rows = await DB.fetch("SELECT id FROM app_user WHERE role = 'ADMIN' AND disabled_at IS NULL")
        assert len(rows) >= 1


async def test_nobody_but_administrators_changes_accounts(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        made = await account(api)
        mia = await signed_in(api)
        for document, given in (
            (UPDATE, {"userId": made["id"], "role": "ADMIN"}),
            (CREATE, {"name": "x", "email": "x@example.com", "password": PASSWORD}),
        ):
            answer = await mia.ask(document, input=given)
            assert [e["extensions"]["code"] for e in answer["errors"]] == ["FORBIDDEN"]
        narrow = await person(api, "Adam", UserRole.ADMIN, frozenset({TokenScope.FLEET_READ}))
        answer = await narrow.ask(UPDATE, input={"userId": made["id"], "role": "ADMIN"})
        assert [e["extensions"]["code"] for e in answer["errors"]] == ["FORBIDDEN"]
        rows = await DB.fetch("SELECT action, refusal FROM audit_entry WHERE refusal = 'FORBIDDEN' ORDER BY id")
        assert [row["action"] for row in rows] == ["userUpdate", "userCreate", "userUpdate"]


async def test_no_more_sockets_than_a_person_may_have(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path, CLAWNET_SOCKETS_PER_USER="3") as api, AsyncExitStack() as stack:
        await account(api)
        mia = await signed_in(api)
        for _ in range(2):
            assert (await heard(await stack.enter_async_context(opened(mia))))["type"] == "connection_ack"
        async with opened(mia) as third:
            assert (await heard(third))["type"] == "connection_ack"
            async with opened(mia) as one_more:
                assert await closed_with(one_more) == 1013
        with anyio.fail_after(20):
            while True:
                async with opened(mia) as another:
                    try:
                        assert (await heard(another))["type"] == "connection_ack"
                        break
                    except websockets.ConnectionClosed:
                        await asyncio.sleep(0.05)


async def test_a_flood_of_sign_ins_is_sent_away_and_told_for_how_long(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path, CLAWNET_RATE_SIGN_IN="5") as api:
        await account(api)
        nobody = api.signed_in(None)
        given = {"email": "mia@example.com", "password": "wrong horse battery"}
        answers = await asyncio.gather(*(nobody.ask(SIGN_IN, input=given) for _ in range(500)))
        refused = [a["errors"][0]["extensions"] for a in answers if "errors" in a]
        assert len(refused) >= 490  # The allowance fills again while they come.
        assert {e["code"] for e in refused} == {"RATE_LIMITED"}
        assert all(0 < e["retryAfterMs"] <= 60_000 for e in refused)
        assert all(a["data"] is None or code(a["data"]["signIn"]) == "CREDENTIALS_REFUSED" for a in answers)
        body = {"query": SIGN_IN, "variables": {"input": given}}
        answer = await api.http.post(f"{api.url}/graphql", json=body)
        assert (answer.status_code, int(answer.headers["retry-after"]) > 0) == (429, True)
        # Who has a token is not held up by that.
        assert await api.run(VIEWER) is not None


async def test_more_sign_ins_at_once_than_there_are_cores_wait_or_are_sent_away(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path, CLAWNET_RATE_SIGN_IN="0", CLAWNET_RATE_MUTATION="0") as api:
        await account(api)
        given = {"email": "mia@example.com", "password": PASSWORD}
        nobody = api.signed_in(None)
        answers = await asyncio.gather(*(nobody.ask(SIGN_IN, input=given) for _ in range(100)))
        let_in = [a for a in answers if a.get("data") and a["data"]["signIn"]["accessToken"]]
        sent_away = [a for a in answers if "errors" in a]
        assert len(let_in) + len(sent_away) == 100
        assert len(let_in) >= 22
        assert {a["errors"][0]["extensions"]["code"] for a in sent_away} == {"RATE_LIMITED"}
        await signed_in(api)
