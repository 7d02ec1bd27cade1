"""Administrators change the data keys and watch it go on; to everybody else there are none."""

import json
from pathlib import Path
from typing import Any

from app.db.engine import DB
from app.domain.states import UserRole
from app.services import keys
from app.vault import Vault
from tests.graphql.people import ERRORS, Caller, code, first, global_id, house, person, provider
from tests.graphql.test_channels import SET, channel
from tests.harness import environ, running_server
from tests.journeys import story
from tests.services.sealed_rows import fill, stored

START = f"""mutation($input: KeyRotationStartInput!) {{ keyRotationStart(input: $input) {{
keyRotation {{ id state fromVersion toVersion total done failed startedAt finishedAt }}
clientMutationId {ERRORS} }} }}"""
FOLLOW = """subscription($id: ID!) { keyRotation(id: $id) { id state total done failed finishedAt } }"""
ROOM = "subscription($names: [String!]!) { room(names: $names) { type event data } }"
VERSIONS = "{ encryptionKeys { version active credentialCount createdAt } }"


async def test_a_change_of_keys_is_followed_to_its_end(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path, CLAWNET_KEY_ROTATION_WAIT="0.3") as api:
        await provider(api, "own", apiKey="sk-canary-0123456789")
        await story.make_bot(api)
        known = await fill(await _vault(database, tmp_path), 100)
        answer = await api.run(START, input={"reason": "a key leaked", "clientMutationId": "7"})
        assert (answer["userErrors"], answer["clientMutationId"]) == ([], "7")
        started = answer["keyRotation"]
        assert (started["state"], started["fromVersion"], started["toVersion"]) == ("RUNNING", 1, 2)
        assert (started["total"], started["done"], started["finishedAt"]) == (len(known) + 2, 0, None)
        again = await api.run(START, input={})
        assert code(again) == "CONFLICT"
        async with api.listen(FOLLOW, id=started["id"]) as heard:
            seen = [event async for event in heard]
        assert seen[-1] == {
            "id": started["id"],
            "state": "SUCCEEDED",
            "total": len(known) + 2,
            "done": len(known) + 2,
            "failed": 0,
            "finishedAt": seen[-1]["finishedAt"],
        }
        assert seen[-1]["finishedAt"]
        assert [event["state"] for event in seen[:-1]] == ["RUNNING"] * (len(seen) - 1)
        assert [event["done"] for event in seen] == sorted(event["done"] for event in seen)
        # Whoever comes later gets its end, and the subscription ends with that.
        async with api.listen(FOLLOW, id=started["id"]) as heard:
            assert [event["state"] async for event in heard] == ["SUCCEEDED"]
        versions = await api.run(VERSIONS)
        assert [(it["version"], it["active"], it["credentialCount"]) for it in versions] == [
            (1, False, 0),
            (2, True, 100 * 2 * 2),
        ]
        found = await stored(await _vault(database, tmp_path))
        assert known.items() <= found.items()
        node = await api.run("query($id: ID!) { node(id: $id) { id __typename } }", id=started["id"])
        assert node == {"id": started["id"], "__typename": "KeyRotation"}
        entries = await api.run("{ auditEntries(first: 3) { nodes { action subjectId refusal detail } } }")
        ended, refused, begun = entries["nodes"]
        assert (begun["action"], begun["subjectId"]) == ("keyRotationStart", started["id"])
        assert begun["detail"] == {"fromVersion": 1, "toVersion": 2, "reason": "a key leaked"}
        assert (refused["action"], refused["refusal"]) == ("keyRotationStart", "CONFLICT")
        assert (ended["action"], ended["detail"]["state"]) == ("keyRotationEnd", "SUCCEEDED")


async def _vault(database: dict[str, Any], folder: Path) -> Vault:
    """A vault of the test's own, with the server's keys."""
    return await keys.open_vault(environ(folder, database, None)["ENCRYPTION_KEY"])


async def test_its_room_is_the_administrators(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path, CLAWNET_KEY_ROTATION_WAIT="0") as api:
        started = (await api.run(START, input={}))["keyRotation"]
        async with api.listen(FOLLOW, id=started["id"]) as heard:
            await heard.until(lambda event: event["state"] == "SUCCEEDED")
        (row,) = await DB.fetch("SELECT id::text FROM key_rotation")
        name = f"keys:rotation:{row['id']}"
        present = await first(api, ROOM, names=[name])
        assert present["data"]["room"]["event"] == "room:current"
        assert present["data"]["room"]["data"]["state"] == "SUCCEEDED"
        for role in (UserRole.MEMBER, UserRole.OBSERVER):
            other = await person(api, "Mia", role)
            assert _codes(await first(other, ROOM, names=[name])) == ["NOT_FOUND"]
            assert _codes(await first(other, FOLLOW, id=started["id"])) == ["FORBIDDEN"]
        for missing in ("x", global_id("KeyRotation", str(row["id"])[::-1]), global_id("Bot", row["id"])):
            assert _codes(await first(api, FOLLOW, id=missing)) == ["NOT_FOUND"]
        nobody = name[:-1] + ("0" if name[-1] != "0" else "1")
        assert _codes(await first(api, ROOM, names=[nobody])) == ["NOT_FOUND"]
        (event,) = await DB.fetch(
            "SELECT payload FROM room_event e JOIN room r ON r.id = e.room WHERE r.name = $1 "
            "ORDER BY e.seq DESC LIMIT 1",
            name,
        )
        assert json.dumps(event["payload"]).count(row["id"]) == 1


def _codes(answer: dict[str, Any]) -> list[str]:
    return [error["extensions"]["code"] for error in answer["errors"]]


async def test_credentials_set_anew_mend_a_change_of_keys_that_failed(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path, CLAWNET_KEY_ROTATION_WAIT="0") as api:
        bot = await story.make_bot(api)
        given = {"botToken": "xoxb-1", "appToken": "xapp-1"}
        made = await channel(api, bot, provider="slack", credentials=given)
        await DB.fetch("UPDATE channel SET credentials = jsonb_set(credentials, '{botToken}', '\"xoxb-canary\"')")
        failed = await _rotate(api)
        assert (failed["state"], failed["done"], failed["failed"]) == ("FAILED", 2, 1)
        (user,) = await DB.fetch("SELECT id::text FROM app_user")
        present = await first(api, ROOM, names=[f"notifications:user:{user['id']}"])
        assert present["data"]["room"]["data"] == {"unreadCount": 1}
        mended = await api.run(SET, input={"channelId": made["id"], "credentials": {"botToken": "xoxb-2"}})
        assert mended["userErrors"] == []
        assert mended["channel"]["credentialKeys"] == ["appToken", "botToken"]
        again = await _rotate(api)
        assert (again["state"], again["done"], again["failed"]) == ("SUCCEEDED", 3, 0)
        assert [(it["version"], it["credentialCount"]) for it in await api.run(VERSIONS)] == [(1, 0), (2, 0), (3, 2)]


async def _rotate(api: Caller) -> dict[str, Any]:
    started = (await api.run(START, input={}))["keyRotation"]
    async with api.listen(FOLLOW, id=started["id"]) as heard:
        return await heard.until(lambda event: event["state"] != "RUNNING")


async def test_a_reason_that_cannot_be_kept_starts_nothing(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        for reason, wanted in (("x" * 501, "TOO_LONG"), ("a\0b", "INVALID")):
            answer = await api.run(START, input={"reason": reason})
            assert (code(answer), answer["userErrors"][0]["field"]) == (wanted, ["reason"])
        assert [it["version"] for it in await api.run(VERSIONS)] == [1]


async def test_a_server_carries_on_what_another_one_left(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path, CLAWNET_KEY_ROTATION_WAIT="3600") as api:
        known = await fill(await _vault(database, tmp_path), 20)
        started = (await api.run(START, input={}))["keyRotation"]
        async with api.listen(FOLLOW, id=started["id"]) as heard:
            await heard.until(lambda event: event["done"] >= 20)
        token = api.token
    wanted = environ(tmp_path, database, None, CLAWNET_KEY_ROTATION_WAIT="0")
    async with running_server(wanted, token) as up:
        async with up.listen(FOLLOW, id=started["id"]) as heard:
            ended = await heard.until(lambda event: event["state"] != "RUNNING")
        assert (ended["state"], ended["done"]) == ("SUCCEEDED", started["total"])
        assert known.items() <= (await stored(await _vault(database, tmp_path))).items()
