"""Bots over the API: what a caller may send, what is refused and how, and what the answers promise."""

import asyncio
import base64
import itertools
import json
from pathlib import Path
from typing import Any

import anyio

from app.db.engine import DB
from app.domain.states import TokenScope, UserRole
from app.services import words
from tests import fake_openclaw
from tests.graphql.people import (
    CANARY,
    ERRORS,
    UNKEEPABLE,
    Caller,
    code,
    global_id,
    house,
    nested,
    person,
    provider,
    refusals,
)
from tests.harness import PATIENCE
from tests.journeys import documents as docs
from tests.journeys import story

CREATE = f"""mutation($input: BotCreateInput!) {{
  botCreate(input: $input) {{
    bot {{ id databaseId name agentId description model systemPrompt tags status desiredState createdAt updatedAt
      restartPolicy {{ mode maxRestarts windowSeconds backoffSeconds }} config {{ revision rendered overrides }} }}
    {ERRORS} clientMutationId }}
}}"""

UPDATE = CREATE.replace("botCreate", "botUpdate").replace("BotCreateInput", "BotUpdateInput")

START, STOP, RESTART, DELETE = (
    f"mutation($input: {name[0].upper()}{name[1:]}Input!) {{ {name}(input: $input) {{ {what} {ERRORS} }} }}"
    for name, what in (
        ("botStart", "bot { id status gateway { pid } }"),
        ("botStop", "bot { id status gateway { pid } }"),
        ("botRestart", "bot { id status gateway { pid } }"),
        ("botDelete", "deletedBotId"),
    )
)

BY = "query($by: BotBy!) { bot(by: $by) { id } }"

PAGE = """query($filter: BotFilter, $orderBy: BotOrder, $first: Int, $after: String, $last: Int, $before: String) {
  bots(filter: $filter, orderBy: $orderBy, first: $first, after: $after, last: $last, before: $before) {
    totalCount nodes { name agentId } edges { cursor }
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
  }
}"""


async def test_each_mistake_in_a_new_bot_is_named_and_nothing_is_made(database: dict[str, Any], tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str, list[str]]] = [
        *[({"name": name}, "INVALID", ["name"]) for name in [*UNKEEPABLE, "a\nb", "a\rb", "a\u2028b"]],
        *[({"name": name}, "BLANK", ["name"]) for name in ["", "  ", "\n", "\xa0", "\u200b", "\ufeff"]],
        ({"name": "x" * 101}, "TOO_LONG", ["name"]),
        *[({"model": model}, "INVALID", ["model"]) for model in ["echo", "/", "local/", "/echo", "nobody/echo"]],
        *[({"model": f"local/{text}"}, "INVALID", ["model"]) for text in UNKEEPABLE],
        ({"model": " "}, "BLANK", ["model"]),
        ({"model": "local/" + "x" * 200}, "TOO_LONG", ["model"]),
        *[({"description": text}, "INVALID", ["description"]) for text in UNKEEPABLE],
        ({"description": "x" * 2_001}, "TOO_LONG", ["description"]),
        *[({"systemPrompt": text}, "INVALID", ["systemPrompt"]) for text in UNKEEPABLE],
        ({"systemPrompt": "x" * (words.MAX_PROMPT + 1)}, "TOO_LONG", ["systemPrompt"]),
        ({"tags": ["a\0"]}, "INVALID", ["tags"]),
        ({"tags": ["ok", " "]}, "BLANK", ["tags"]),
        ({"tags": ["x" * 51]}, "TOO_LONG", ["tags"]),
        ({"tags": [str(n) for n in range(21)]}, "TOO_LONG", ["tags"]),
        *[({"configOverrides": value}, "INVALID", ["configOverrides"]) for value in ["x", 5, True, [1]]],
        ({"configOverrides": {"messages": {"a": "\ud800"}}}, "INVALID", ["configOverrides"]),
        ({"configOverrides": {"messages": {"a": "\0"}}}, "INVALID", ["configOverrides"]),
        ({"configOverrides": {"messages": {"a": "\\\0"}}}, "INVALID", ["configOverrides"]),
        ({"configOverrides": {"messages": {"a": "é" * 40_000}}}, "TOO_LONG", ["configOverrides"]),
        ({"configOverrides": {"messages": nested(200)}}, "TOO_LONG", ["configOverrides"]),
    ]
    async with house(database, tmp_path) as api:
        given = [({"name": "Hana", "model": "local/echo"} | case, *wanted) for case, *wanted in cases]
        assert await refusals(api, CREATE, given) == []
        assert (await api.run(PAGE))["totalCount"] == 0


async def test_what_is_just_within_the_limits_is_kept_as_it_was_typed(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        given = {
            "name": "🤖" * 100,
            "model": "local/meta/llama-3:70b",
            "description": "two\nlines\tand a tab, " + "é" * 1_900,
            "systemPrompt": "é\n" * (words.MAX_PROMPT // 2),
            "tags": [f"{n}" * 25 for n in range(10, 30)],
        }
        made = await api.run(CREATE, input=given | {"name": f"  {given['name'][:98]}"})
        assert made["userErrors"] == []
        expected = given | {"name": given["name"][:98]}
        assert {key: made["bot"][key] for key in expected} == expected
        assert made["bot"]["agentId"] == "bot"
        assert made["bot"]["config"] == {"revision": 1, "rendered": {}, "overrides": {}}


HOSTILE_AGENT_IDS = [
    "", " ", ".", "..", "...", "/", "\\", "a/b", "a\\b", "../a", "a/..", "..%2fa", "%2e%2e", "~", "~root", "$HOME",
    "a.b", "a_b", "a b", " a", "a ", "a\n", "\na", "a\tb", "a\0", "\0", "A", "Hana", "é", "ａ", "ⅰ", "１",
    "a\u200d", "\ud800", "-", "-a", "a-", "--help", "a:b", "a*", "a;b", "a|b", "a&b", "`id`", "$(id)", "a'b", 'a"b',
    "<a>", "{a}", "a@b", "a#b", "a,b", "a+b", "a" * 41, "a" * 39 + "-a", "a" * 10_000, "con.", "nul:",
    "file:///etc/passwd", "/etc/passwd",
]  # fmt: skip


async def test_an_agent_id_that_could_leave_its_folder_is_refused(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        bot = {"name": "Hana", "model": "local/echo"}
        cases = [(bot | {"agentId": text}, "INVALID", ["agentId"]) for text in HOSTILE_AGENT_IDS]
        assert await refusals(api, CREATE, cases) == []
        assert (await api.run(PAGE))["totalCount"] == 0
        good = ["a", "0", "a" * 40, "a-b", "a--b", "0-0"]
        made = [await api.run(CREATE, input=bot | {"agentId": text}) for text in good]
        assert [each["bot"]["agentId"] for each in made] == good
        # Nothing is sought under such a name either.
        sought = await asyncio.gather(*[api.run(BY, by={"agentId": text}) for text in HOSTILE_AGENT_IDS])
        assert sought == [None] * len(HOSTILE_AGENT_IDS)


async def test_an_agent_id_in_use_is_taken_and_one_from_the_name_gets_the_next_free_suffix(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path) as api:
        mia = await person(api)

        async def make(who: Caller, **given: Any) -> dict[str, Any]:
            return await who.run(CREATE, input={"name": "Hana Ito!", "model": "local/echo", **given})

        assert (await make(api))["bot"]["agentId"] == "hana-ito"
        assert (await make(api))["bot"]["agentId"] == "hana-ito-2"
        assert (await make(mia, agentId="hana-ito-3"))["bot"]["agentId"] == "hana-ito-3"
        # Another owner's are in the way as well: folders are named after them.
        assert (await make(mia))["bot"]["agentId"] == "hana-ito-4"
        for who in (api, mia):
            taken = await make(who, agentId="hana-ito")
            assert (taken["bot"], code(taken)) == (None, "TAKEN")
            assert taken["userErrors"][0]["field"] == ["agentId"]
        many = await asyncio.gather(*[make(api, name="Ito") for _ in range(8)])
        assert sorted(each["bot"]["agentId"] for each in many) == ["ito", *[f"ito-{n}" for n in range(2, 9)]]
        both = await asyncio.gather(*[make(api, agentId="one") for _ in range(8)])
        assert sorted(str(code(each)) for each in both) == ["None", *["TAKEN"] * 7]
        assert (await make(api, name="-" * 90 + "日本"))["bot"]["agentId"] == "bot"


async def test_the_number_of_bots_is_exact_however_many_ask_at_once(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path, OPENCLAW_MAX_BOTS="7") as api:
        mia = await person(api)
        given = {"name": "Hana", "model": "local/echo"}
        answers = await asyncio.gather(*[who.run(CREATE, input=given) for who in [api, mia] * 100])
        assert sorted(str(code(each)) for each in answers) == ["LIMIT_REACHED"] * 193 + ["None"] * 7
        assert (await api.run(PAGE))["totalCount"] == 7
        assert [error["field"] for each in answers for error in each["userErrors"]] == [None] * 193
        made = next(each["bot"] for each in answers if each["bot"])
        assert (await api.run(DELETE, input={"botId": made["id"]}))["userErrors"] == []
        again = await asyncio.gather(*[api.run(CREATE, input={"name": "H", "model": "local/echo"}) for _ in range(3)])
        assert sorted(str(code(each)) for each in again) == ["LIMIT_REACHED", "LIMIT_REACHED", "None"]


async def test_the_number_of_bots_stays_exact_while_some_are_deleted(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path, OPENCLAW_MAX_BOTS="4") as api:
        given = {"name": "Hana", "model": "local/echo"}
        tally = {"made": 0, "deleted": 0, "most": 0}

        async def come_and_go() -> None:
            for _ in range(4):
                made = await api.run(CREATE, input=given)
                if code(made):
                    assert code(made) == "LIMIT_REACHED"
                    continue
                tally["made"] += 1
                assert (await api.run(DELETE, input={"botId": made["bot"]["id"]}))["userErrors"] == []
                tally["deleted"] += 1

        async def count() -> None:
            while True:
                (row,) = await DB.fetch("SELECT count(*) AS n FROM bot")
                tally["most"] = max(tally["most"], row["n"])

        counting = asyncio.create_task(count())
        await asyncio.gather(*[come_and_go() for _ in range(25)])
        counting.cancel()
        assert tally["made"] == tally["deleted"] >= 4
        assert tally["most"] <= 4
        # No place was lost on the way.
        full = await asyncio.gather(*[api.run(CREATE, input=given) for _ in range(20)])
        assert sorted(str(code(each)) for each in full) == ["LIMIT_REACHED"] * 16 + ["None"] * 4


NAMES_A_BOT = {
    "botUpdate": {"name": "x"},
    "botDelete": {},
    "botStart": {"wait": False},
    "botStop": {},
    "botRestart": {"wait": False},
    "messageSend": {"text": "x"},
}


async def test_a_missing_a_foreign_and_a_mistyped_identity_are_answered_alike(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path) as api:
        bot = await story.make_bot(api)
        mia, rows = await person(api), "SELECT desired, generation, config_revision FROM bot"
        before = await DB.fetch(rows)
        viewer, key = await api.run("{ viewer { id } }"), bot["databaseId"]
        ids = [
            bot["id"], viewer["id"], global_id("Bot", "01a20c9c-c192-76fb-8b18-a8ef6bc684a7"), global_id("bot", key),
            global_id("ModelProvider", key), global_id("User", key), global_id("Bot", ""), global_id("Bot", "x"), key,
            "", "x", "\0", "\ud800", "0", "é", "Qm90Og", "A" * 10_000, "' OR 1=1 --",
            # The right bot, written as its owner does not.
            *[global_id("Bot", text) for text in (key.upper(), f"{{{key}}}", f"urn:uuid:{key}", key.replace("-", ""))],
            f"{bot['id'][:5]}!{bot['id'][5:]}", f"{bot['id']} ", f" {bot['id']}", f"{bot['id']}\n",
        ]  # fmt: skip
        for name, more in NAMES_A_BOT.items():
            type_name = f"{name[0].upper()}{name[1:]}Input"
            document = f"mutation($input: {type_name}!) {{ {name}(input: $input) {{ __typename {ERRORS} }} }}"
            answers = await asyncio.gather(*[mia.run(document, input={"botId": text, **more}) for text in ids])
            error = {"code": "NOT_FOUND", "message": "there is no such bot", "field": ["botId"]}
            assert [answer["userErrors"] for answer in answers] == [[error]] * len(ids), name
        found = await asyncio.gather(*[mia.run(BY, by={"id": text}) for text in ids])
        assert found == [None] * len(ids)
        own = await asyncio.gather(*[api.run(BY, by={"id": text}) for text in ids])
        assert own == [{"id": bot["id"]}, *[None] * (len(ids) - 1)]
        assert await mia.run("query($ids: [ID!]!) { nodes(ids: $ids) { id } }", ids=ids) == [None] * len(ids)
        assert await DB.fetch(rows) == before


async def test_objects_come_back_by_identity_in_the_order_asked_for(database: dict[str, Any], tmp_path: Path) -> None:
    nodes = """query($ids: [ID!]!) { nodes(ids: $ids) {
      __typename id ... on Bot { name } ... on ModelProvider { name } ... on User { name email } } }"""
    async with house(database, tmp_path) as api:
        mia, ids = await person(api), "query { viewer { id } }"
        own = await provider(mia, "own")
        bot = await story.make_bot(mia)
        (shared,) = [p for p in await api.run("{ modelProviders { id name } }") if p["name"] == "local"]
        admin, member = (await api.run(ids))["id"], (await mia.run(ids))["id"]
        asked = [bot["id"], "nothing", own["id"], member, shared["id"], admin, bot["id"]]
        seen = await mia.run(nodes, ids=asked)
        assert [one and one["__typename"] for one in seen] == [
            "Bot", None, "ModelProvider", "User", "ModelProvider", None, "Bot",
        ]  # fmt: skip
        assert all(one is None or one["id"] == text for one, text in zip(seen, asked, strict=True))
        assert [one and one["id"] for one in await api.run(nodes, ids=asked)] == [
            text if text != "nothing" else None for text in asked
        ]
        one = await mia.run("query($id: ID!) { node(id: $id) { id ... on Bot { agentId } } }", id=bot["id"])
        assert one == {"id": bot["id"], "agentId": bot["agentId"]}
        answer = await mia.ask(nodes, ids=["x"] * 101)
        assert answer["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


async def test_the_caller_s_own_text_comes_back_from_every_mutation(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        schema = await api.run('{ __type(name: "Mutation") { fields { name args { type { ofType { name } } } } } }')
        names = {field["name"]: field["args"][0]["type"]["ofType"]["name"] for field in schema["fields"]}
        # Each of these is refused or answered; the text comes back either way.
        inputs: dict[str, dict[str, Any]] = {
            **{name: {"botId": "x", **more} for name, more in NAMES_A_BOT.items()},
            "botCreate": {"name": "", "model": ""},
            "channelCreate": {"botId": "x", "provider": "x", "name": ""},
            "channelUpdate": {"channelId": "x"},
            "channelCredentialsSet": {"channelId": "x", "credentials": {}},
            "channelDelete": {"channelId": "x"},
            "bindingCreate": {"botId": "x"},
            "bindingUpdate": {"bindingId": "x"},
            "bindingDelete": {"bindingId": "x"},
            "pairingApprove": {"channelId": "x", "code": "x"},
            "pairingDismiss": {"channelId": "x", "code": "x"},
            "keyRotationStart": {},
            "modelProviderSave": {"name": "own"},
            "modelProviderDelete": {"id": "x"},
            "botTransfer": {"botId": "x", "ownerId": "x"},
            "botsControl": {"botIds": [], "action": "START"},
            "signIn": {"email": "x", "password": "x"},
            "signOut": {},
            "passwordChange": {"currentPassword": "x", "newPassword": "x"},
            "accessTokenCreate": {"name": "", "scopes": []},
            "accessTokenRevoke": {"accessTokenId": "x"},
            "userCreate": {"name": "", "email": "", "password": ""},
            "userUpdate": {"userId": "x"},
        }
        assert inputs.keys() == names.keys()
        for name, type_name in names.items():
            document = f"mutation($input: {type_name}!) {{ {name}(input: $input) {{ clientMutationId }} }}"
            texts = ["", "x" * 5_000, "日本\n\t", "\0", "\ud800", None]
            # Who signs out can be asked only once.
            callers = [await person(api) if name == "signOut" else api for _ in texts]
            asked = [
                who.run(document, input={**inputs[name], "clientMutationId": text})
                for who, text in zip(callers, texts, strict=True)
            ]
            assert await asyncio.gather(*asked) == [{"clientMutationId": text} for text in texts], name


async def test_overrides_may_change_how_a_bot_speaks_and_nothing_that_fences_it_in(
    database: dict[str, Any], tmp_path: Path
) -> None:
    refused: list[dict[str, Any]] = [
        {"gateway": {"port": 1}},
        {"gateway": None},
        {"gateway": {"auth": {"token": "x"}}},
        {"models": {"providers": {"x": {"apiKey": "sk-x"}}}},
        {"channels": {"telegram": {"botToken": "x"}}},
        {"auth": {}},
        {"secrets": {}},
        {"env": {"A": "b"}},
        {"$include": "/etc/passwd"},
        {"agents": {"$include": "/etc/passwd"}},
        {"agents": {"list": []}},
        {"agents": {"defaults": {"workspace": "/"}}},
        {"agents": {"defaults": {"model": {"primary": "x/y"}}}},
        {"agents": {"defaults": {"sandbox": {"docker": {}}}}},
        {"messages": {"__proto__": {}}},
        {"messages": {"apiKey": "sk-x"}},
        {"agents.defaults": {"workspace": "/"}},
        {"": {}},
    ]
    async with house(database, tmp_path) as api:
        bot = {"name": "Hana", "model": "local/echo"}
        answers = await asyncio.gather(*[api.run(CREATE, input=bot | {"configOverrides": each}) for each in refused])
        for overrides, answer in zip(refused, answers, strict=True):
            assert (answer["bot"], code(answer)) == (None, "INVALID"), overrides
            assert answer["userErrors"][0]["field"][0] == "configOverrides"
        assert answers[0]["userErrors"][0]["field"] == ["configOverrides", "gateway"]
        many = {"agents": {"defaults": {str(number): 1 for number in range(3_000)}}}
        answer = await api.run(CREATE, input=bot | {"configOverrides": many})
        assert (code(answer), answer["userErrors"][0]["field"]) == ("INVALID", ["configOverrides"])
        kept = {"messages": {"ackReaction": "👍", "responsePrefix": "\\u0000 is text"}}
        made = (await api.run(CREATE, input=bot | {"configOverrides": kept}))["bot"]
        assert made["config"]["overrides"] == kept
        # JSON has no infinity; kept as null it would take a setting away.
        infinite = CREATE.replace("$input: BotCreateInput!", "").replace("mutation()", "mutation")
        literal = '{name: "x", model: "local/echo", configOverrides: {messages: {a: 1e999}}}'
        answer = await api.run(infinite.replace("$input", literal))
        assert (code(answer), answer["userErrors"][0]["field"]) == ("INVALID", ["configOverrides"])
        changes = [{"botId": made["id"], "configOverrides": overrides} for overrides in refused]
        answers = await asyncio.gather(*[api.run(UPDATE, input=given) for given in changes])
        assert [code(answer) for answer in answers] == ["INVALID"] * len(refused)
        kept = await api.run(docs.BOT_QUERY, by={"id": made["id"]})
        assert kept["config"]["revision"] == 1


async def test_the_rendered_configuration_shows_no_secret(database: dict[str, Any], tmp_path: Path) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw")
    async with house(database, tmp_path, wrapper) as api:
        await provider(api, "keyed", baseUrl="http://127.0.0.1:9/v1", models=[{"id": "m"}], apiKey=CANARY)
        made = await story.make_bot(api, model="keyed/m")
        assert (await api.run(START, input={"botId": made["id"]}))["userErrors"] == []
        written = (tmp_path / "data/openclaw/bots/hana/config.json5").read_text()
        token = json.loads(written)["gateway"]["auth"]["token"]
        assert CANARY in written
        answer = await api.http.post(
            f"{api.url}/graphql",
            json={"query": "{ bots { nodes { config { rendered overrides } } } modelProviders { models } }"},
            headers=api.headers,
        )
        (node,) = answer.json()["data"]["bots"]["nodes"]
        assert node["config"]["rendered"]["gateway"]["auth"]["token"] == "***"
        assert node["config"]["rendered"]["gateway"]["port"] == json.loads(written)["gateway"]["port"]
        assert CANARY not in answer.text
        assert token not in answer.text
        rows = await DB.fetch("SELECT config_rendered::text AS text FROM bot_process")
        assert CANARY not in rows[0]["text"]
        assert token not in rows[0]["text"]


async def test_absent_leaves_a_setting_alone_and_null_clears_it(database: dict[str, Any], tmp_path: Path) -> None:
    filled = {
        "description": "speaks",
        "systemPrompt": "You are Hana.",
        "tags": ["a", "b"],
        "configOverrides": {"messages": {"ackReaction": "👍"}},
        "restartPolicy": {"mode": "NEVER", "maxRestarts": 1, "windowSeconds": 2, "backoffSeconds": 3.5},
    }
    async with house(database, tmp_path) as api:
        made = (await api.run(CREATE, input={"name": "Hana", "model": "local/echo", **filled}))["bot"]
        untouched = await api.run(UPDATE, input={"botId": made["id"]})
        assert untouched["bot"] == made | {"updatedAt": untouched["bot"]["updatedAt"]}
        cleared = await api.run(UPDATE, input={"botId": made["id"], **dict.fromkeys(filled)})
        assert cleared["userErrors"] == []
        assert cleared["bot"] == made | {
            "description": None,
            "systemPrompt": None,
            "tags": [],
            "config": {"revision": 2, "rendered": {}, "overrides": {}},
            "restartPolicy": {"mode": "ALWAYS", "maxRestarts": 5, "windowSeconds": 600, "backoffSeconds": 1.0},
            "updatedAt": cleared["bot"]["updatedAt"],
        }
        needed = itertools.product(("name", "model"), (None, ""))
        blank = [({"botId": made["id"], name: value}, "BLANK", [name]) for name, value in needed]
        assert await refusals(api, UPDATE, blank) == []
        assert (await api.run(UPDATE, input={"botId": made["id"]}))["bot"]["name"] == "Hana"


async def test_each_mistake_in_a_change_is_named_and_nothing_changes(database: dict[str, Any], tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str, list[str]]] = [
        *[({"name": name}, "INVALID", ["name"]) for name in UNKEEPABLE],
        ({"name": "x" * 101}, "TOO_LONG", ["name"]),
        ({"model": "nobody/echo"}, "INVALID", ["model"]),
        ({"model": "echo"}, "INVALID", ["model"]),
        ({"description": "x" * 2_001}, "TOO_LONG", ["description"]),
        ({"tags": [str(n) for n in range(21)]}, "TOO_LONG", ["tags"]),
        ({"configOverrides": [1]}, "INVALID", ["configOverrides"]),
        ({"expectedRevision": 0}, "STALE", ["expectedRevision"]),
        ({"expectedRevision": 2}, "STALE", ["expectedRevision"]),
        # The first mistake refuses it all.
        ({"description": "new", "name": ""}, "BLANK", ["name"]),
    ]
    async with house(database, tmp_path) as api:
        bot = await story.make_bot(api)
        before = await DB.fetch("SELECT * FROM bot")
        assert await refusals(api, UPDATE, [({"botId": bot["id"]} | case, *wanted) for case, *wanted in cases]) == []
        assert await DB.fetch("SELECT * FROM bot") == before


async def test_only_what_the_process_reads_makes_a_new_revision_and_a_stale_one_is_refused(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path) as api:
        bot = await story.make_bot(api)

        async def change(**given: Any) -> dict[str, Any]:
            return await api.run(UPDATE, input={"botId": bot["id"], **given})

        policy = {"mode": "NEVER"}
        for ours in ({"description": "new"}, {"tags": ["a"]}, {"restartPolicy": policy}, {"expectedRevision": 1}):
            assert (await change(**ours))["bot"]["config"]["revision"] == 1, ours
        changes = {"name": "Ito", "systemPrompt": "Hi", "model": "local/other", "configOverrides": {"messages": {}}}
        for revision, (name, value) in enumerate(changes.items(), 2):
            changed = await change(**{name: value}, expectedRevision=revision - 1)
            assert changed["bot"]["config"]["revision"] == revision, name
        stale = await change(name="Late", expectedRevision=4)
        assert (stale["bot"], code(stale)) == (None, "STALE")
        assert "5" in stale["userErrors"][0]["message"]
        # Of many who read the same revision one wins.
        racers = await asyncio.gather(*[change(name=f"Racer {n}", expectedRevision=5) for n in range(6)])
        assert sorted(str(code(each)) for each in racers) == ["None", *["STALE"] * 5]
        assert (await change())["bot"]["config"]["revision"] == 6


async def test_a_restart_policy_has_bounds(database: dict[str, Any], tmp_path: Path) -> None:
    bounds: dict[str, tuple[Any, Any, list[Any]]] = {
        "maxRestarts": (0, 1_000, [-1, 1_001, 2**31 - 1, -(2**31)]),
        "windowSeconds": (1, 86_400, [0, -1, 86_401, 2**31 - 1]),
        "backoffSeconds": (0.1, 300.0, [0, -1, 0.09, 300.1, 1e308]),
    }
    async with house(database, tmp_path) as api:
        bot = {"name": "Hana", "model": "local/echo"}
        made = (await api.run(CREATE, input=bot))["bot"]
        for name, (least, most, outside) in bounds.items():
            for value in (least, most):
                policy = {"mode": "ON_FAILURE", name: value}
                kept = await api.run(UPDATE, input={"botId": made["id"], "restartPolicy": policy})
                assert kept["bot"]["restartPolicy"][name] == value
            for document, given in ((CREATE, bot), (UPDATE, {"botId": made["id"]})):
                cases = [
                    (given | {"restartPolicy": {"mode": "ALWAYS", name: value}}, "INVALID", ["restartPolicy", name])
                    for value in outside
                ]
                assert await refusals(api, document, cases) == []
        # No number of the schema's at all: the document is at fault, not the value.
        for policy in ({"mode": "ALWAYS", "maxRestarts": 2**31}, {"mode": "SOMETIMES"}, {}, {"mode": None}):
            answer = await api.ask(CREATE, input=bot | {"restartPolicy": policy})
            assert answer["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


async def _pages(api: Caller, size: int, *, forward: bool, **given: Any) -> list[str]:
    """Names on all pages, walked by cursor; each page keeps its promises."""
    found: list[str] = []
    cursor = None
    for _ in range(100):
        where = {"first": size, "after": cursor} if forward else {"last": size, "before": cursor}
        page = await api.run(PAGE, **given, **where)
        names = [node["agentId"] for node in page["nodes"]]
        info, cursors = page["pageInfo"], [edge["cursor"] for edge in page["edges"]]
        assert len(names) <= size
        assert [info["startCursor"], info["endCursor"]] == ([cursors[0], cursors[-1]] if cursors else [None, None])
        assert info["hasPreviousPage" if forward else "hasNextPage"] is (cursor is not None)
        found = found + names if forward else names + found
        if not info["hasNextPage" if forward else "hasPreviousPage"]:
            return found
        cursor = info["endCursor" if forward else "startCursor"]
    raise AssertionError("the pages do not end")


async def test_pages_walk_the_whole_list_in_any_order_and_either_way(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path, CLAWNET_RATE_QUERY="0") as api:
        mia = await person(api)
        # Names repeat, so that an order by name alone would lose some between pages.
        for n in range(13):
            given = {"agentId": f"b{n:02}", "tags": ["odd", "x"] if n % 2 else ["even"]}
            await story.make_bot(api if n % 3 else mia, f"Bot {n % 4}", **given, description="50%_off\\" * (n == 5))
        # As if machines had seen them: what an order by status or by sign of life stands on.
        await DB.fetch(
            "UPDATE bot_process SET last_seen_at = now() - (substr(b.agent_id, 2)::int % 5) * interval '1 hour' "
            "FROM bot b WHERE b.id = bot AND b.agent_id > 'b04'"
        )
        everything = [f"b{n:02}" for n in range(13)]
        rows = {
            row["agent_id"]: row
            for row in await DB.fetch("SELECT b.*, p.last_seen_at FROM bot b JOIN bot_process p ON p.bot = b.id")
        }
        keys: dict[str, Any] = {
            "CREATED_AT": lambda row: row["created_at"],
            "NAME": lambda row: row["name"],
            "STATUS": lambda row: 0,
            "LAST_SEEN_AT": lambda row: row["last_seen_at"].timestamp() if row["last_seen_at"] else 0.0,
        }
        for field, direction in itertools.product(keys, ("ASC", "DESC")):
            key, order = keys[field], {"field": field, "direction": direction}
            expected = sorted(
                everything, key=lambda name, key=key: (key(rows[name]), rows[name]["id"]), reverse=direction == "DESC"
            )
            ways = list(itertools.product((4, 13), (True, False)))
            walks = await asyncio.gather(*[_pages(api, size, forward=way, orderBy=order) for size, way in ways])
            assert walks == [expected] * len(ways), order
        assert await _pages(mia, 2, forward=True) == everything[::3]
        assert await _pages(api, 20, forward=True) == everything
        owner = (await mia.run("{ viewer { id } }"))["id"]
        filters: list[tuple[dict[str, Any], list[str]]] = [
            ({}, everything),
            ({"tags": ["even"]}, everything[::2]),
            ({"tags": ["odd", "x"]}, everything[1::2]),
            ({"tags": ["odd", "even"]}, []),
            ({"tags": []}, everything),
            ({"status": ["INACTIVE"]}, everything),
            ({"status": ["ACTIVE", "ERROR"]}, []),
            ({"status": []}, []),
            ({"ownerId": [owner]}, everything[::3]),
            ({"ownerId": [owner], "tags": ["even"]}, everything[::6]),
            ({"ownerId": []}, []),
            ({"ownerId": ["x", global_id("Bot", "x")]}, []),
            ({"search": "bot 1"}, everything[1::4]),
            ({"search": "B03"}, ["b03"]),
            ({"search": "%"}, ["b05"]),
            ({"search": "50%_OFF\\"}, ["b05"]),
            ({"search": "_"}, ["b05"]),
            ({"search": "' OR true --"}, []),
            ({"search": ""}, everything),
        ]

        async def check(given: dict[str, Any], expected: list[str]) -> None:
            assert await _pages(api, 5, forward=True, filter=given) == expected, given
            assert await _pages(api, 5, forward=False, filter=given) == expected, given
            assert (await api.run(PAGE, filter=given, first=1))["totalCount"] == len(expected), given

        await asyncio.gather(*[check(given, expected) for given, expected in filters])
        assert (await mia.run(PAGE, first=2))["totalCount"] == 5
        assert (await mia.run(PAGE, filter={"ownerId": [owner]}, last=2))["totalCount"] == 5
        empty = await api.run(PAGE, first=0)
        assert (empty["nodes"], empty["totalCount"]) == ([], 13)


async def test_a_person_s_own_bots_are_shown_as_far_as_the_caller_may_see_them(
    database: dict[str, Any], tmp_path: Path
) -> None:
    own = """query($first: Int, $after: String) { viewer { bots(first: $first, after: $after) {
      totalCount nodes { agentId owner { name } } pageInfo { hasNextPage endCursor } } } }"""
    others = "query($ids: [ID!]!) { nodes(ids: $ids) { ... on User { name bots { totalCount nodes { agentId } } } } }"
    async with house(database, tmp_path) as api:
        mia, sven = await person(api), await person(api, "Sven")
        for n in range(3):
            await story.make_bot(mia, agentId=f"m{n}")
        await story.make_bot(sven, agentId="s0")
        first = (await mia.run(own, first=2))["bots"]
        assert (first["totalCount"], first["pageInfo"]["hasNextPage"]) == (3, True)
        assert first["nodes"] == [{"agentId": f"m{n}", "owner": {"name": "Mia"}} for n in range(2)]
        rest = (await mia.run(own, first=2, after=first["pageInfo"]["endCursor"]))["bots"]
        assert [bot["agentId"] for bot in rest["nodes"]] == ["m2"]
        # A place on this list is one on the list of all bots as well: it is the same list, with fewer on it.
        assert [bot["agentId"] for bot in (await sven.run(own))["bots"]["nodes"]] == ["s0"]
        ids = [(await who.run("{ viewer { id } }"))["id"] for who in (mia, sven, api)]
        seen = await api.run(others, ids=ids)
        assert [(user["bots"]["totalCount"], len(user["bots"]["nodes"])) for user in seen] == [(3, 3), (1, 1), (0, 0)]
        hers = await mia.run(others, ids=ids)
        assert [user and user["name"] for user in hers] == ["Mia", None, None]
        # Through the owner of a bot an observer sees what an observer may see.
        ines = await person(api, "Ines", UserRole.OBSERVER)
        fleet = await ines.run("{ bots { nodes { owner { name bots(first: 1) { totalCount } } } } }")
        assert [bot["owner"]["bots"]["totalCount"] for bot in fleet["nodes"]] == [3, 3, 3, 1]
        bare = await person(api, "Nina", UserRole.ADMIN, frozenset({TokenScope.SOCIAL_READ}))
        refused = await bare.ask(own)
        assert refused["errors"][0]["extensions"]["code"] == "FORBIDDEN"
        assert refused["data"] == {"viewer": None}


async def test_an_update_without_a_change_says_nothing_to_anybody(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        bot = await story.make_bot(api)
        rows = "SELECT * FROM bot", "SELECT name, seq FROM room ORDER BY name"
        before = [await DB.fetch(sql) for sql in rows]
        empty = await api.run(UPDATE, input={"botId": bot["id"], "expectedRevision": 1})
        assert (empty["userErrors"], empty["bot"]["config"]["revision"]) == ([], 1)
        assert code(await api.run(UPDATE, input={"botId": bot["id"], "expectedRevision": 2})) == "STALE"
        assert [await DB.fetch(sql) for sql in rows] == before


def _cursor(value: object) -> str:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


async def test_a_page_that_cannot_be_is_refused_and_never_breaks_the_server(
    database: dict[str, Any], tmp_path: Path
) -> None:
    key, mine = "0" * 32, "bots.createdAt"
    garbage = [
        "", "x", "=", "\0", "\ud800", "é", "%00", "' OR 1=1 --", "A" * 10_000, _cursor(b"\xff\xfe"), _cursor(1),
        _cursor(None),
        _cursor([]), _cursor([1, 2]), _cursor(["x", key, "y"]), _cursor({"a": 1, "b": 2}), _cursor([None, key]),
        _cursor(["x", "y"]), _cursor([key, "x"]), _cursor([mine]), _cursor([mine, key]), _cursor([mine, key, None]),
        _cursor([mine, key, ["x"]]), _cursor([mine, None, "x"]), _cursor([mine, "x", "x"]), _cursor(["", key, "x"]),
        _cursor(["users.createdAt", key, "2026-01-01T00:00:00+00:00"]),
        *[_cursor([f"bots.{field}", key, text]) for field in ("name", "status") for text in ("\0", "\ud800", 1, None)],
        _cursor(b"[" * 10_000),
        _cursor(b"[" + b"9" * 5_000 + b', "x"]'), _cursor(["x", 5]), _cursor("ab"), _cursor(["", None]),
    ]  # fmt: skip
    no_times = ["x", "", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-13-01", "now"]
    async with house(database, tmp_path, CLAWNET_RATE_QUERY="0") as api:
        await story.make_bot(api)

        cursors = [
            *[({"after": text}, field) for text in garbage for field in ("CREATED_AT", "NAME")],
            *[({"before": text}, "STATUS") for text in garbage],
            *[
                ({"after": _cursor([f"bots.{name}", key, text])}, field)
                for text in no_times
                for field, name in (("CREATED_AT", "createdAt"), ("LAST_SEEN_AT", "lastSeenAt"))
            ],
        ]
        asked: list[dict[str, Any]] = [
            *[given | {"orderBy": {"field": field}} for given, field in cursors],
            *[{where: size} for where in ("first", "last") for size in (-1, 101, 2**31 - 1, 2**31, "5", 1.5, True)],
            {"first": 1, "last": 1},
            *[{"filter": {"search": text}} for text in UNKEEPABLE[:2]],
            *[{"filter": {"tags": [text]}} for text in UNKEEPABLE[:2]],
        ]
        answers = await asyncio.gather(*[api.ask(PAGE, **given) for given in asked])
        for given, answer in zip(asked, answers, strict=True):
            codes = [error["extensions"]["code"] for error in answer.get("errors", [])]
            assert codes == ["BAD_USER_INPUT"], (str(given)[:200], answer)
        assert (await api.run(PAGE, first=100))["totalCount"] == 1


async def test_a_second_start_joins_the_first_and_a_second_stop_likewise(
    database: dict[str, Any], tmp_path: Path
) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw", start_delay_s=0.3, drain_s=0.3)
    async with house(database, tmp_path, wrapper) as api:
        bot = {"botId": (await story.make_bot(api))["id"]}
        idle = await api.run(STOP, input=bot)
        assert (idle["bot"]["status"], idle["userErrors"]) == ("INACTIVE", [])
        seen = await DB.fetch("SELECT name, seq FROM room ORDER BY name")
        assert (await api.run(STOP, input=bot))["bot"]["status"] == "INACTIVE"
        assert await DB.fetch("SELECT name, seq FROM room ORDER BY name") == seen
        async with api.listen(docs.BOT_STATUS, ids=[bot["botId"]]) as heard:
            first = asyncio.create_task(api.run(START, input=bot))
            await heard.until(lambda e: e["status"] == "STARTING")
            second = await api.run(START, input=bot)
            assert second["userErrors"] == []
            assert second == await first
            assert second["bot"]["status"] == "ACTIVE"
            assert await api.run(START, input=bot) == second
            assert len(fake_openclaw.starts(wrapper)) == 1
            stopping = asyncio.create_task(api.run(STOP, input=bot))
            await heard.until(lambda e: e["status"] == "STOPPING")
            assert (await api.run(STOP, input=bot | {"wait": False}))["bot"]["status"] == "STOPPING"
            assert (await api.run(STOP, input=bot))["bot"] == (await stopping)["bot"]
            await heard.until(lambda e: e["status"] == "INACTIVE")
            kinds = [event["kind"] for event in heard.seen]
            assert [kind for kind, _ in itertools.groupby(kinds)] == [
                "CURRENT", "STARTING", "STARTED", "STOPPING", "STOPPED",
            ]  # fmt: skip
        graces = [(bot | {"graceSeconds": value}, "INVALID", ["graceSeconds"]) for value in (-1, -0.001, 331, 1e300)]
        assert await refusals(api, STOP, graces) == []
    assert fake_openclaw.violations(wrapper) == []


async def test_a_start_that_is_overtaken_by_a_stop_answers_with_how_things_are(
    database: dict[str, Any], tmp_path: Path
) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw", never_ready=True)
    async with house(database, tmp_path, wrapper) as api:
        for wish in (START, RESTART):
            made = await story.make_bot(api)
            async with api.listen(docs.BOT_STATUS, ids=[made["id"]]) as heard:
                waiting = asyncio.create_task(api.run(wish, input={"botId": made["id"]}))
                await heard.until(lambda e: e["phase"] == "launching")
                stopped = await api.run(STOP, input={"botId": made["id"], "graceSeconds": 0})
                assert stopped["bot"]["status"] == "INACTIVE"
                with anyio.fail_after(PATIENCE):
                    overtaken = await waiting
                assert overtaken["userErrors"] == []
                assert overtaken["bot"]["status"] in {"STARTING", "STOPPING", "INACTIVE"}
            assert story.left_of(made) == []


async def test_deleting_a_bot_that_starts_ends_it_first_and_frees_its_name(
    database: dict[str, Any], tmp_path: Path
) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw", start_delay_s=30)
    async with house(database, tmp_path, wrapper) as api:
        made = await story.make_bot(api, agentId="hana")
        async with api.listen(docs.BOT_STATUS, ids=[made["id"]]) as heard:
            waiting = asyncio.create_task(api.run(START, input={"botId": made["id"]}))
            await heard.until(lambda e: e["phase"] == "launching")
            deleting = [asyncio.create_task(api.run(DELETE, input={"botId": made["id"]})) for _ in range(4)]
            answers = await asyncio.gather(*deleting)
            assert sorted(str(code(each)) for each in answers) == ["NOT_FOUND", "NOT_FOUND", "NOT_FOUND", "None"]
            assert code(await waiting) == "NOT_FOUND"
            last = await heard.until(lambda e: e["kind"] == "DELETED")
            assert last["bot"] is None
        assert story.left_of(made) == []
        assert await api.run(docs.BOT_QUERY, by={"id": made["id"]}) is None
        assert (await story.make_bot(api, agentId="hana"))["agentId"] == "hana"


async def test_what_cannot_be_said_to_a_bot_is_refused(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        made = await story.make_bot(api)
        cases: list[tuple[dict[str, Any], str, list[str]]] = [
            ({"text": "Hello"}, "CONFLICT", ["botId"]),
            ({"text": ""}, "BLANK", ["text"]),
            ({"text": " \n\t"}, "BLANK", ["text"]),
            ({"text": "x" * 100_001}, "TOO_LONG", ["text"]),
            *[({"text": text}, "INVALID", ["text"]) for text in UNKEEPABLE],
        ]
        given = [({"botId": made["id"]} | case, *wanted) for case, *wanted in cases]
        assert await refusals(api, docs.MESSAGE_SEND, given) == []


async def test_two_hundred_wishes_at_once_never_give_two_processes(database: dict[str, Any], tmp_path: Path) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw", lock_delay_s=0.1, port_delay_s=0.1)
    async with house(database, tmp_path, wrapper) as api:
        made = await story.make_bot(api)

        async def wish(number: int) -> dict[str, Any]:
            given = {"botId": made["id"], "wait": number % 4 < 2}
            return await api.run((START, STOP)[number % 2], input=given)

        answers = await asyncio.gather(*[wish(number) for number in range(200)])
        assert [each["userErrors"] for each in answers] == [[]] * 200
        bot = await api.run(docs.BOT_QUERY, by={"id": made["id"]})
        end = "ACTIVE" if bot["desiredState"] == "RUNNING" else "INACTIVE"
        async with api.listen(docs.BOT_STATUS, ids=[made["id"]]) as heard:
            await heard.until(lambda e: e["status"] == end)
        bot = await api.run(docs.BOT_QUERY, by={"id": made["id"]})
        assert bot["status"] == end
        running = fake_openclaw.running(wrapper)
        assert running == ({bot["agentId"]: bot["gateway"]["pid"]} if end == "ACTIVE" else {})
        stopped = await api.run(STOP, input={"botId": made["id"]})
        assert stopped["bot"]["status"] == "INACTIVE"
        assert story.left_of(made) == []
        nonces = [start.nonce for start in fake_openclaw.starts(wrapper)]
        assert len(set(nonces)) == len(nonces)
    assert fake_openclaw.violations(wrapper) == []
