"""The audit trail: complete, in the transaction of what it tells, and without secrets."""

import json
from pathlib import Path
from typing import Any

from app.db.engine import DB
from tests.graphql.people import CANARY, Caller, code, house, person, provider
from tests.graphql.test_people import (
    CHANGE,
    CREATE,
    PASSWORD,
    REVOKE,
    SIGN_IN,
    SIGN_OUT,
    TOKEN,
    UPDATE,
    account,
    signed_in,
)

ENTRIES = """query($first: Int, $after: String, $filter: AuditFilter) { auditEntries(first: $first, after: $after,
filter: $filter) { totalCount pageInfo { hasNextPage endCursor } nodes { id action refusal detail address createdAt
subjectId actor { id name } subject { id __typename } } } }"""


PEOPLE = """query($first: Int, $after: String) { users(first: $first, after: $after) { totalCount nodes { name email }
pageInfo { hasNextPage endCursor } } }"""
OWN = "{ accessTokens { totalCount nodes { name isSignIn hint lastUsedAt } } }"


async def entries(api: Caller, **which: Any) -> list[dict[str, Any]]:
    """The oldest first, as people tell stories."""
    page = await api.run(ENTRIES, first=100, filter=which or None)
    assert page["totalCount"] == len(page["nodes"])
    return page["nodes"][::-1]


async def test_what_people_do_with_accounts_can_be_read_again(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        made = await account(api)
        mia = await signed_in(api)
        token = await mia.run(TOKEN, input={"name": "ci", "scopes": ["FLEET_READ"]})
        await mia.run(REVOKE, input={"accessTokenId": token["accessToken"]["id"]})
        await mia.run(CHANGE, input={"currentPassword": PASSWORD, "newPassword": CANARY})
        await api.run(UPDATE, input={"userId": made["id"], "role": "OBSERVER", "disabled": True})
        told = [e for e in await entries(api) if e["action"] != "modelProviderSave"]
        assert [(e["action"], e["actor"] and e["actor"]["name"], e["refusal"]) for e in told] == [
            ("userCreate", None, None),  # the server made the first administrator, with a token
            ("accessTokenCreate", None, None),
            ("userCreate", "Administrator", None),
            ("signIn", "Mia", None),
            ("accessTokenCreate", "Mia", None),
            ("accessTokenRevoke", "Mia", None),
            ("passwordChange", "Mia", None),
            ("userUpdate", "Administrator", None),
        ]
        assert told[0]["address"] is None
        assert {e["address"] for e in told[2:]} == {"127.0.0.1"}
        assert told[2]["subject"] == {"id": made["id"], "__typename": "User"}
        assert told[-1]["detail"] == {"changed": ["disabled", "role"], "role": "OBSERVER", "disabled": True}
        # The token is gone; which one it was can still be told.
        assert told[5]["subject"] is None
        assert told[5]["subjectId"] == token["accessToken"]["id"]
        everything = json.dumps(await DB.fetch("SELECT * FROM audit_entry"), default=str)
        for secret in (PASSWORD, CANARY, token["secret"], mia.token, api.token):
            assert secret not in everything


async def test_refusals_are_told_with_who_and_what(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        made = await account(api)
        mia = await signed_in(api)
        await api.signed_in(None).run(SIGN_IN, input={"email": "mia@example.com", "password": "x" * 12})
        await mia.ask(UPDATE, input={"userId": made["id"], "role": "ADMIN"})
        await api.run(CREATE, input={"name": "x", "email": "mia@example.com", "password": PASSWORD})
        await mia.run(REVOKE, input={"accessTokenId": made["id"]})
        refused = [e for e in await entries(api) if e["refusal"]]
        assert [(e["action"], e["actor"] and e["actor"]["name"], e["refusal"], e["subjectId"]) for e in refused] == [
            ("signIn", None, "CREDENTIALS_REFUSED", made["id"]),
            ("userUpdate", "Mia", "FORBIDDEN", made["id"]),
            ("userCreate", "Administrator", "TAKEN", None),
            ("accessTokenRevoke", "Mia", "NOT_FOUND", made["id"]),
        ]


async def test_nothing_is_told_of_what_was_rolled_back(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        me = (await api.run("{ viewer { id } }"))["id"]
        refused = await api.run(UPDATE, input={"userId": me, "disabled": True})
        assert code(refused) == "CONFLICT"
        told = await entries(api, action=["userUpdate"])
        assert [e["refusal"] for e in told] == ["CONFLICT"]


async def test_entries_are_found_by_person_deed_and_object_page_by_page(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path) as api:
        made = await account(api)
        mia = await signed_in(api)
        for _ in range(5):
            await mia.run(TOKEN, input={"name": "ci", "scopes": ["FLEET_READ"]})
        assert [e["action"] for e in await entries(api, actorId=[made["id"]], action=["accessTokenCreate"])] == [
            "accessTokenCreate"
        ] * 5
        assert [e["action"] for e in await entries(api, subjectId=[made["id"]])] == ["userCreate", "signIn"]
        assert await entries(api, subjectId=["nonsense"]) == []
        seen: list[str] = []
        after = None
        while True:
            page = await api.run(ENTRIES, first=3, after=after)
            seen += [e["id"] for e in page["nodes"]]
            after = page["pageInfo"]["endCursor"]
            if not page["pageInfo"]["hasNextPage"]:
                break
        assert len(seen) == len(set(seen)) == page["totalCount"]
        foreign = await api.ask(ENTRIES, first=3, after="bm9wZQ")
        assert foreign["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"
        one = await api.run("query($id: ID!) { node(id: $id) { id ... on AuditEntry { action } } }", id=seen[0])
        assert one["id"] == seen[0]


async def test_only_administrators_read_it(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        (entry, *_) = await entries(api)
        for caller in (await person(api), await person(api, "Ines", scopes=frozenset())):
            answer = await caller.ask(ENTRIES)
            assert [e["extensions"]["code"] for e in answer["errors"]] == ["FORBIDDEN"]
            assert await caller.run("query($id: ID!) { node(id: $id) { id } }", id=entry["id"]) is None


async def test_people_and_tokens_are_listed_to_whom_they_concern(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        for name in ("Mia", "Leo", "Eva"):
            await account(api, name)
        first = await api.run(PEOPLE, first=2)
        rest = await api.run(PEOPLE, first=2, after=first["pageInfo"]["endCursor"])
        assert [u["name"] for u in first["nodes"] + rest["nodes"]] == ["Administrator", "Mia", "Leo", "Eva"]
        assert (first["totalCount"], rest["pageInfo"]["hasNextPage"]) == (4, False)
        mia, leo = await signed_in(api), await signed_in(api, "Leo")
        await mia.run(TOKEN, input={"name": "ci", "scopes": ["FLEET_READ"]})
        seen = await mia.run(OWN)
        assert [(t["name"], t["isSignIn"]) for t in seen["nodes"]] == [("ci", False), ("sign-in", True)]
        assert seen["totalCount"] == 2
        assert seen["nodes"][1]["lastUsedAt"] is not None
        assert [t["name"] for t in (await leo.run(OWN))["nodes"]] == ["sign-in"]
        assert (await mia.ask(PEOPLE))["errors"][0]["extensions"]["code"] == "FORBIDDEN"
        await leo.run(SIGN_OUT)
        assert (await leo.ask(OWN))["errors"][0]["extensions"]["code"] == "UNAUTHENTICATED"


async def test_nobody_s_address_is_shown_to_strangers(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        await account(api)
        mia = await signed_in(api)
        await provider(mia, "own", models=[{"id": "m"}])
        await account(api, "Ines", "OBSERVER")
        ines = await signed_in(api, "Ines")
        seen = await ines.run("{ modelProviders { owner { name email disabledAt } } }")
        assert {"name": "Mia", "email": None, "disabledAt": None} in [p["owner"] for p in seen]
