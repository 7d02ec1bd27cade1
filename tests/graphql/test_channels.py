"""Channels over the API: what can be set on them, what is refused, and that their secrets are never seen again."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from app.db.engine import DB
from app.domain.states import TokenScope, UserRole
from app.services.channels import MAX_CHANNELS
from tests import fake_openclaw
from tests.graphql.people import (
    ERRORS,
    UNKEEPABLE,
    Caller,
    code,
    global_id,
    house,
    nested,
    person,
    refusals,
)
from tests.journeys import documents as docs
from tests.journeys import story

CHANNEL = """id name provider accountId enabled status errorMessage settings credentialKeys credentialKeyVersion
  credentialsUpdatedAt lastConnectedAt createdAt bot { id }"""


def _mutation(name: str, what: str) -> str:
    type_name = f"{name[0].upper()}{name[1:]}Input"
    return f"mutation($input: {type_name}!) {{ {name}(input: $input) {{ {what} {ERRORS} clientMutationId }} }}"


CREATE = _mutation("channelCreate", f"channel {{ {CHANNEL} }}")
UPDATE = _mutation("channelUpdate", f"channel {{ {CHANNEL} }}")
SET = _mutation("channelCredentialsSet", f"channel {{ {CHANNEL} }}")
DELETE = _mutation("channelDelete", "deletedChannelId bot { id }")
LIST = f"""query($by: BotBy!) {{ bot(by: $by) {{
  channels {{ nodes {{ {CHANNEL} }} totalCount }} config {{ revision }} viewerCan }} }}"""
TELEGRAM = {"provider": "telegram", "name": "Front desk"}


def token(number: int) -> str:
    """A token as Telegram's look, and no other test's."""
    return f"{700_000_000 + number}:AAcanary{number:04}-xxxxxxxxxxxxxxxxxxxxxxxx"


async def channel(api: Caller, bot: dict[str, Any], **more: Any) -> dict[str, Any]:
    made = await api.run(CREATE, input={"botId": bot["id"], **TELEGRAM, **more})
    assert made["userErrors"] == [], made
    return made["channel"]


async def seen(api: Caller, bot: dict[str, Any]) -> dict[str, Any]:
    return await api.run(LIST, by={"id": bot["id"]})


async def test_a_channel_is_made_changed_given_secrets_and_deleted(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        mia = await person(api)
        bot = await story.make_bot(mia)
        made = await mia.run(
            CREATE,
            input={
                "botId": bot["id"],
                **TELEGRAM,
                "settings": {"dmPolicy": "allowlist", "allowFrom": ["1"]},
                "credentials": {"botToken": token(1)},
                "clientMutationId": "x",
            },
        )
        assert (made["userErrors"], made["clientMutationId"]) == ([], "x")
        first = made["channel"]
        assert first["credentialsUpdatedAt"]
        expected = {
            "name": "Front desk", "provider": "telegram", "accountId": "default", "enabled": True,
            "status": "DISCONNECTED", "errorMessage": None, "credentialKeys": ["botToken"], "credentialKeyVersion": 1,
            "settings": {"dmPolicy": "allowlist", "allowFrom": ["1"]}, "lastConnectedAt": None,
            "bot": {"id": bot["id"]},
        }  # fmt: skip
        assert first.items() >= expected.items()
        assert (await seen(mia, bot))["channels"] == {"nodes": [first], "totalCount": 1}
        changed = await mia.run(UPDATE, input={"channelId": first["id"], "name": "Back door", "settings": None})
        assert changed["channel"] == first | {"name": "Back door", "settings": {}}
        hooked = {"webhookUrl": "https://example.com/hook"}
        assert (await mia.run(UPDATE, input={"channelId": first["id"], "settings": hooked}))["userErrors"] == []
        more = {"webhookSecret": "hush", "botToken": token(2)}
        both = await mia.run(SET, input={"channelId": first["id"], "credentials": more})
        assert both["channel"]["credentialKeys"] == ["botToken", "webhookSecret"]
        assert both["channel"]["credentialsUpdatedAt"] > first["credentialsUpdatedAt"]
        one = await mia.run(SET, input={"channelId": first["id"], "credentials": {"webhookSecret": None}})
        assert one["channel"]["credentialKeys"] == ["botToken"]
        none = await mia.run(SET, input={"channelId": first["id"], "credentials": {"botToken": None}})
        assert none["channel"]["credentialKeys"] == []
        assert none["channel"]["credentialKeyVersion"] is none["channel"]["credentialsUpdatedAt"] is None
        gone = await mia.run(DELETE, input={"channelId": first["id"]})
        assert (gone["deletedChannelId"], gone["bot"], gone["userErrors"]) == (first["id"], {"id": bot["id"]}, [])
        assert (await seen(mia, bot))["channels"] == {"nodes": [], "totalCount": 0}
        assert code(await mia.run(DELETE, input={"channelId": first["id"]})) == "NOT_FOUND"
        assert await DB.fetch("SELECT * FROM channel_state") == []


async def test_a_stored_secret_is_not_sent_to_another_address(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path, fake_openclaw.install(tmp_path / "openclaw", "2026.9.6")) as api:
        bot = await story.make_bot(api)
        relay = {"provider": "irc", "settings": {"host": "irc.example", "nick": "hana"}}
        telegram = await channel(api, bot, credentials={"botToken": token(1)})
        irc = await channel(api, bot, **relay, credentials={"nickserv": {"password": "hush-hush"}})

        async def change(made: dict[str, Any], **settings: Any) -> str | None:
            return code(await api.run(UPDATE, input={"channelId": made["id"], "settings": settings}))

        assert await change(telegram, apiRoot="http://127.0.0.1:9") == "CONFLICT"
        assert await change(telegram, proxy="http://127.0.0.1:9") == "CONFLICT"
        assert await change(irc, host="irc.example.net", nick="hana") == "CONFLICT"
        assert await change(irc, host="irc.example", nick="hana", nickserv={"service": "Eve"}) == "CONFLICT"
        assert await change(irc, host="irc.example", nick="hana-2") is None
        removed = {"channelId": telegram["id"], "credentials": {"botToken": None}}
        assert (await api.run(SET, input=removed))["userErrors"] == []
        assert await change(telegram, apiRoot="http://127.0.0.1:9") is None
        given = {"channelId": telegram["id"], "credentials": {"botToken": token(1)}}
        assert (await api.run(SET, input=given))["userErrors"] == []
        # To take the address away is a change as well.
        assert await change(telegram) == "CONFLICT"


async def test_a_change_raises_the_revision_once_and_one_that_changes_nothing_says_nothing(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path) as api:
        bot = await story.make_bot(api)
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            await anext(heard)
            made = await channel(api, bot, credentials={"botToken": token(1)})
            given = {"channelId": made["id"]}

            async def revision() -> int:
                return (await seen(api, bot))["config"]["revision"]

            assert await revision() == 2
            for document, more, wanted in (
                (UPDATE, {}, 2),
                (UPDATE, {"name": "Front desk", "enabled": True, "settings": {}}, 2),
                (SET, {"credentials": {}}, 2),
                (UPDATE, {"name": "Desk"}, 2),  # a name is ours alone
                (UPDATE, {"settings": {"dmPolicy": "disabled"}}, 3),
                (SET, {"credentials": {"botToken": token(1)}}, 4),
                (UPDATE, {"enabled": False}, 5),
                (UPDATE, {"settings": {}}, 5),  # of what is switched off the configuration says just that
                (DELETE, {}, 6),
            ):
                answer = await api.run(document, input=given | more)
                assert answer["userErrors"] == [], answer
                assert await revision() == wanted, more
            await api.run(docs.BOT_UPDATE, input={"botId": bot["id"], "tags": ["end"]})
            kinds = [(await anext(heard))["kind"] for _ in range(8)]
            assert kinds == ["UPDATED"] * 8
        rows = await DB.fetch("SELECT action, detail FROM audit_entry WHERE action LIKE 'channel%' ORDER BY id")
        assert [(row["action"], row["detail"]) for row in rows] == [
            (
                "channelCreate",
                {
                    "bot": bot["databaseId"],
                    "provider": "telegram",
                    "accountId": "default",
                    "credentialKeys": ["botToken"],
                },
            ),
            ("channelUpdate", {"changed": ["name"]}),
            ("channelUpdate", {"changed": ["settings"]}),
            ("channelCredentialsSet", {"set": ["botToken"], "removed": []}),
            ("channelUpdate", {"changed": ["enabled"], "enabled": False}),
            ("channelUpdate", {"changed": ["settings"]}),
            (
                "channelDelete",
                {"bot": bot["databaseId"], "provider": "telegram", "accountId": "default", "bindings": 0},
            ),
        ]


async def test_what_is_malformed_is_refused_by_its_path_and_nothing_is_kept(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path) as api:
        bot = await story.make_bot(api)
        at = {"botId": bot["id"], **TELEGRAM}
        good = {"botToken": token(1)}
        cases: list[tuple[dict[str, Any], str, list[str]]] = [
            (at | {"provider": "pigeon"}, "INVALID", ["provider"]),
            (at | {"provider": ""}, "INVALID", ["provider"]),
            (at | {"name": " "}, "BLANK", ["name"]),
            (at | {"name": "x" * 101}, "TOO_LONG", ["name"]),
            *[(at | {"name": text}, "INVALID", ["name"]) for text in UNKEEPABLE],
            *[
                (at | {"accountId": text}, "INVALID", ["accountId"])
                for text in ("", "A", "-a", "a b", "a" * 65, "a\n", "__proto__", "constructor", "ä", "../x", "a.b")
            ],
            (at | {"settings": []}, "INVALID", ["settings"]),
            (at | {"settings": "x"}, "INVALID", ["settings"]),
            (at | {"settings": {"dmPolicy": "sometimes"}}, "INVALID", ["settings", "dmPolicy"]),
            (at | {"settings": {"nonsense": 1}}, "INVALID", ["settings", "nonsense"]),
            (at | {"settings": {"botToken": token(1)}}, "INVALID", ["settings", "botToken"]),
            (at | {"settings": {"tokenFile": "/etc/passwd"}}, "INVALID", ["settings", "tokenFile"]),
            (at | {"settings": {"dmPolicy": "open"}}, "INVALID", ["settings", "allowFrom"]),
            (at | {"credentials": []}, "INVALID", ["credentials"]),
            (at | {"credentials": "x"}, "INVALID", ["credentials"]),
            (at | {"credentials": {"botToken": "nope"}}, "INVALID", ["credentials", "botToken"]),
            (at | {"credentials": {"botToken": "${HOME}"}}, "INVALID", ["credentials", "botToken"]),
            (at | {"credentials": {"botToken": 5}}, "INVALID", ["credentials", "botToken"]),
            (at | {"credentials": {"botToken": ["x"]}}, "INVALID", ["credentials", "botToken"]),
            (at | {"credentials": {"botToken": ""}}, "BLANK", ["credentials", "botToken"]),
            (at | {"credentials": {"botToken": "1:" + "x" * 20_000}}, "TOO_LONG", ["credentials", "botToken"]),
            (at | {"credentials": {"botToken": "1:\ud800"}}, "INVALID", ["credentials", "botToken"]),
            (at | {"credentials": {token(1): "x"}}, "INVALID", ["credentials"]),
            (at | {"credentials": nested(50)}, "INVALID", ["credentials"]),
            (at | {"credentials": good | {"nonsense": "x"}}, "INVALID", ["credentials"]),
            (at | {"credentials": good | {"a": {"b": "x"}}}, "INVALID", ["credentials"]),
            (at | {"credentials": good | {"dmPolicy": None}}, "INVALID", ["credentials", "dmPolicy"]),
            (at | {"credentials": {"webhookSecret": "x"}}, "INVALID", ["credentials", "botToken"]),
            (at | {"provider": "irc", "settings": {"host": "irc.example"}}, "INVALID", ["settings", "nick"]),
            (at | {"provider": "msteams", "accountId": "second"}, "INVALID", ["accountId"]),
            (at | {"botId": "x"}, "NOT_FOUND", ["botId"]),
            (at | {"botId": global_id("Bot", bot["databaseId"][::-1])}, "NOT_FOUND", ["botId"]),
        ]
        assert await refusals(api, CREATE, cases) == []
        assert await DB.fetch("SELECT * FROM channel") == []
        made = await channel(api, bot, credentials=good)
        before = await DB.fetch("SELECT * FROM channel")
        on = {"channelId": made["id"]}
        cases = [
            (on | {"name": None}, "BLANK", ["name"]),
            (on | {"settings": {"dmPolicy": 5}}, "INVALID", ["settings", "dmPolicy"]),
            ({"channelId": bot["id"]}, "NOT_FOUND", ["channelId"]),
        ]
        assert await refusals(api, UPDATE, cases) == []
        cases = [
            (on | {"credentials": "x"}, "INVALID", ["credentials"]),
            (on | {"credentials": {"botToken": "nope"}}, "INVALID", ["credentials", "botToken"]),
            (on | {"credentials": {"nonsense": "x"}}, "INVALID", ["credentials"]),
            (on | {"credentials": {"webhookSecret": "needs-an-address"}}, "INVALID", ["credentials"]),
            ({"channelId": bot["id"], "credentials": good}, "NOT_FOUND", ["channelId"]),
        ]
        assert await refusals(api, SET, cases) == []
        assert (await api.run(SET, input=on | {"credentials": {"webhookSecret": None}}))["userErrors"] == []
        taken = await api.run(CREATE, input=at | {"name": "Again"})
        assert (code(taken), taken["userErrors"][0]["field"]) == ("TAKEN", ["accountId"])
        assert await DB.fetch("SELECT * FROM channel") == before
        await channel(api, bot, accountId="second", credentials={"botToken": token(2)})


async def test_an_exclusive_credential_serves_one_open_channel_in_the_whole_fleet(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path) as api:
        mia, leo = await person(api, "Mia"), await person(api, "Leo")
        hers, his = await story.make_bot(mia), await story.make_bot(leo)
        same = {"credentials": {"botToken": token(1)}}
        first = await channel(mia, hers, **same)
        given = {"botId": his["id"], **TELEGRAM}
        refused = await leo.run(CREATE, input=given | same)
        (error,) = refused["userErrors"]
        assert (error["code"], error["field"]) == ("CREDENTIALS_REFUSED", ["credentials", "botToken"])
        (told,) = await DB.fetch("SELECT action, detail FROM audit_entry WHERE refusal = 'CREDENTIALS_REFUSED'")
        assert told == {"action": "channelCreate", "detail": {"field": ["credentials", "botToken"]}}
        for word in (hers["id"], hers["databaseId"], "Mia", "hana", first["id"], token(1)):
            assert word not in json.dumps(refused)
        # One that is switched off may have it, and cannot be opened with it.
        off = await channel(leo, his, enabled=False, **same)
        refused = await leo.run(UPDATE, input={"channelId": off["id"], "enabled": True})
        assert [(e["code"], e["field"]) for e in refused["userErrors"]] == [("CREDENTIALS_REFUSED", ["enabled"])]
        other = await channel(leo, his, accountId="other", credentials={"botToken": token(2)})
        refused = await leo.run(SET, input={"channelId": other["id"], **same})
        assert code(refused) == "CREDENTIALS_REFUSED"
        assert (await mia.run(UPDATE, input={"channelId": first["id"], "enabled": False}))["userErrors"] == []
        assert (await leo.run(UPDATE, input={"channelId": off["id"], "enabled": True}))["userErrors"] == []
        assert code(await mia.run(UPDATE, input={"channelId": first["id"], "enabled": True})) == "CREDENTIALS_REFUSED"
        # Without the credential it can be opened, and the other one's is free when its bot is gone.
        await mia.run(SET, input={"channelId": first["id"], "credentials": {"botToken": None}})
        assert (await mia.run(UPDATE, input={"channelId": first["id"], "enabled": True}))["userErrors"] == []
        await leo.run(docs.BOT_DELETE, input={"botId": his["id"]})
        assert (await mia.run(SET, input={"channelId": first["id"], **same}))["userErrors"] == []


async def test_a_bot_has_a_bounded_number_of_channels(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path, CLAWNET_RATE_MUTATION="100000") as api:
        bot, other = await story.make_bot(api), await story.make_bot(api)
        given = [{"botId": bot["id"], **TELEGRAM, "accountId": f"n{number}"} for number in range(MAX_CHANNELS + 3)]
        answers = await asyncio.gather(*[api.run(CREATE, input=each) for each in given])
        assert sorted(code(answer) or "made" for answer in answers) == ["LIMIT_REACHED"] * 3 + ["made"] * MAX_CHANNELS
        await channel(api, other)
        pages = "query($after: String) { bots(first: 1) { nodes { channels(first: 30, after: $after) "
        pages += "{ nodes { accountId } pageInfo { hasNextPage endCursor } totalCount } } } }"
        first = (await api.run(pages))["nodes"][0]["channels"]
        rest = (await api.run(pages, after=first["pageInfo"]["endCursor"]))["nodes"][0]["channels"]
        assert len({each["accountId"] for page in (first, rest) for each in page["nodes"]}) == MAX_CHANNELS
        assert (first["totalCount"], rest["pageInfo"]["hasNextPage"]) == (MAX_CHANNELS, False)


async def test_of_many_that_want_one_credential_at_once_one_gets_it(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        bots = [await story.make_bot(api) for _ in range(6)]
        same = {**TELEGRAM, "credentials": {"botToken": token(1)}}
        answers = await asyncio.gather(*[api.run(CREATE, input={"botId": bot["id"], **same}) for bot in bots])
        assert sorted(code(answer) or "made" for answer in answers) == ["CREDENTIALS_REFUSED"] * 5 + ["made"]


async def test_a_channel_that_openclaw_does_not_open_says_what_it_lacks(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path) as api:
        bot = await story.make_bot(api)
        await channel(api, bot)
        await DB.fetch("UPDATE channel_state SET status = 'ERROR', error = 'not opened'")
        (found,) = (await seen(api, bot))["channels"]["nodes"]
        assert (found["status"], found["errorMessage"]) == ("ERROR", "credentials.botToken: this is missing")


async def test_writing_secrets_needs_a_scope_of_its_own(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        plain = await person(api, scopes=frozenset({TokenScope.FLEET_READ, TokenScope.FLEET_WRITE}))
        bot = await story.make_bot(plain)
        assert "WRITE_CREDENTIALS" not in (await seen(plain, bot))["viewerCan"]
        assert "WRITE_CREDENTIALS" in (await seen(api, bot))["viewerCan"]
        secret = {"credentials": {"botToken": token(1)}}
        answer = await plain.ask(CREATE, input={"botId": bot["id"], **TELEGRAM, **secret})
        assert [error["extensions"]["code"] for error in answer["errors"]] == ["FORBIDDEN"]
        (entry,) = await DB.fetch("SELECT subject::text, refusal FROM audit_entry WHERE action = 'channelCreate'")
        assert entry == {"subject": bot["databaseId"], "refusal": "FORBIDDEN"}
        made = await channel(plain, bot, credentials={})
        answer = await plain.ask(SET, input={"channelId": made["id"], **secret})
        assert [error["extensions"]["code"] for error in answer["errors"]] == ["FORBIDDEN"]
        observer = await person(api, "Ines", UserRole.OBSERVER)
        assert (await seen(observer, bot))["channels"]["nodes"] == [made]
        assert (await seen(observer, bot))["viewerCan"] == []


async def test_a_channel_goes_with_its_bot_to_another_owner(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        mia, leo = await person(api, "Mia"), await person(api, "Leo")
        bot = await story.make_bot(mia)
        made = await channel(mia, bot, credentials={"botToken": token(1)})
        his = (await leo.run("{ viewer { id } }"))["id"]
        await api.run(
            "mutation($input: BotTransferInput!) { botTransfer(input: $input) { bot { id } } }",
            input={"botId": bot["id"], "ownerId": his},
        )
        node = "query($id: ID!) { node(id: $id) { id } }"
        assert await mia.run(node, id=made["id"]) is None
        assert code(await mia.run(UPDATE, input={"channelId": made["id"], "name": "x"})) == "NOT_FOUND"
        assert (await leo.run(UPDATE, input={"channelId": made["id"], "name": "x"}))["userErrors"] == []


@pytest.mark.parametrize(("version", "missing"), [("2026.9.6", "bluebubbles"), ("2026.2.1", "irc")])
async def test_the_kinds_of_channels_are_those_of_the_installed_openclaw(
    database: dict[str, Any], tmp_path: Path, version: str, missing: str
) -> None:
    async with house(database, tmp_path, CLAWNET_OPENCLAW_VERSION=version) as api:
        kinds = await api.run("{ channelProviders { name label credentialSchema settingsSchema } }")
        found = {kind["name"]: kind for kind in kinds}
        assert missing not in found
        assert found["telegram"]["label"] == "Telegram"
        assert "botToken" in found["telegram"]["credentialSchema"]["properties"]
        assert "dmPolicy" in found["telegram"]["settingsSchema"]["properties"]
