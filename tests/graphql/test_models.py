"""Providers of models: the key goes in and never comes out, and what bots use is not taken from under them."""

import asyncio
import json
from pathlib import Path
from typing import Any

from app.db.engine import DB
from app.domain.states import UserRole
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
from tests.journeys import documents as docs
from tests.journeys import story

FIELDS = "id name api baseUrl models hasApiKey apiKeyUpdatedAt shared owner { name }"
SAVE = f"""mutation($input: ModelProviderSaveInput!) {{
  modelProviderSave(input: $input) {{ modelProvider {{ {FIELDS} }} {ERRORS} clientMutationId }}
}}"""
DELETE = (
    f"mutation($input: ModelProviderDeleteInput!) {{ modelProviderDelete(input: $input) {{ deletedId {ERRORS} }} }}"
)
LIST = f"{{ modelProviders {{ {FIELDS} }} }}"


async def save(caller: Caller, /, **given: Any) -> dict[str, Any]:
    return await caller.run(SAVE, input=given)


async def names(api: Caller) -> list[str]:
    return [each["name"] for each in await api.run(LIST)]


async def kept_keys() -> dict[str, str | None]:
    return {row["name"]: row["api_key"] for row in await DB.fetch("SELECT name, api_key FROM model_provider")}


async def test_each_mistake_is_named_and_nothing_is_kept(database: dict[str, Any], tmp_path: Path) -> None:
    urls = [
        "x", "example.com", "ftp://h/", "file:///etc/passwd", "javascript:alert(1)", "http://", "http:///v1", "//h/v1",
        "http://user:pw@h/", "http://user@h/", "http://@h/", "http://h h/", "http://h/a b", "http://h:99999/", "http://h:x/",
        "http://h:0/", "http://[::1", "http://h\\@x/", "http:h", "http://h\n/", "http://h/\0", "http://h/\ud800",
    ]  # fmt: skip
    shapes: list[Any] = [{}, "x", 5, True, [1], ["x"], [[]], [None], [{}], [{"id": ""}], [{"id": 5}], [{"name": "x"}]]
    bad_keys = ["a\nb", "a\r\nX: y", "é", "a\0", "\ud800", "x" * 4_097, "!id"]
    bad_names = ["A", "a b", "a/b", "a.b", "-a", "a-", "é", "a" * 41, "..", *UNKEEPABLE]
    cases: list[tuple[dict[str, Any], str, list[str]]] = [
        *[({"name": name}, "INVALID", ["name"]) for name in bad_names],
        *[({"name": name}, "BLANK", ["name"]) for name in ["", " ", "\u200b"]],
        ({"name": "a" * 51}, "TOO_LONG", ["name"]),
        *[({"baseUrl": url}, "INVALID", ["baseUrl"]) for url in urls],
        ({"baseUrl": "http://h/" + "x" * 500}, "TOO_LONG", ["baseUrl"]),
        *[({"models": value}, "INVALID", ["models"]) for value in shapes],
        ({"models": [{"id": "\ud800"}]}, "INVALID", ["models"]),
        ({"models": [{"id": "a\0"}]}, "INVALID", ["models"]),
        ({"models": [{"id": "x" * 70_000}]}, "TOO_LONG", ["models"]),
        ({"models": [{"id": "x", "deep": nested(40)}]}, "TOO_LONG", ["models"]),
        ({"models": [{"id": "x", "deep": nested(700)}]}, "TOO_LONG", ["models"]),
        *[({"apiKey": key}, "BLANK", ["apiKey"]) for key in ["", "  ", "\n"]],
        *[({"apiKey": key}, "INVALID", ["apiKey"]) for key in bad_keys],
        *[({"id": text}, "NOT_FOUND", ["id"]) for text in ["", "x", "\0", "\ud800", global_id("Bot", "x")]],
    ]  # fmt: skip
    async with house(database, tmp_path) as api:
        given = [({"name": "own"} | case, *wanted) for case, *wanted in cases]
        assert await refusals(api, SAVE, given) == []
        assert await names(api) == ["local"]
        for value in ("OPENAI", None, 5):
            answer = await api.ask(SAVE, input={"name": "own", "api": value})
            assert answer["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


async def test_what_is_saved_comes_back_but_for_the_key(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        mia = await person(api)
        given = {
            "name": "own",
            "api": "ANTHROPIC_MESSAGES",
            "baseUrl": "https://[::1]:8443/v1?x=y",
            "models": [{"id": "a/b", "name": "日本", "cost": {"input": 0.1}, "contextWindow": 2**53}, {"id": "b"}],
        }
        made = await save(mia, **given, apiKey=CANARY, clientMutationId="x")
        assert (made["userErrors"], made["clientMutationId"]) == ([], "x")
        one = made["modelProvider"]
        assert one | {"apiKeyUpdatedAt": None} == given | {
            "id": one["id"], "hasApiKey": True, "apiKeyUpdatedAt": None, "shared": False, "owner": {"name": "Mia"},
        }  # fmt: skip
        assert one["apiKeyUpdatedAt"]
        assert [each for each in await mia.run(LIST) if each["name"] == "own"] == [one]
        again = await mia.run(
            f"query($id: ID!) {{ node(id: $id) {{ ... on ModelProvider {{ {FIELDS} }} }} }}", id=one["id"]
        )
        assert again == one


async def test_a_key_is_never_answered_and_lies_sealed(database: dict[str, Any], tmp_path: Path) -> None:
    """Every way to ask for it, right or wrong; and what the database and the log hold."""
    async with house(database, tmp_path) as api:
        texts: list[str] = []

        async def ask(query: str, **variables: Any) -> str:
            body = {"query": query, "variables": variables}
            answer = await api.http.post(f"{api.url}/graphql", json=body, headers=api.headers)
            texts.append(answer.text)
            return answer.text

        given = {"name": "keyed", "models": [{"id": "m"}], "apiKey": CANARY}
        assert '"hasApiKey":true' in await ask(SAVE, input=given)
        identity = next(each["id"] for each in await api.run(LIST) if each["name"] == "keyed")
        await ask(LIST)
        await ask("query($id: ID!) { node(id: $id) { id ... on ModelProvider { name models baseUrl } } }", id=identity)
        await ask(SAVE, input=given)  # taken
        await ask(SAVE, input=given | {"id": identity, "name": "A"})
        await ask(SAVE, input=given | {"baseUrl": "x"})
        await ask(SAVE, input=given | {"apiKey": f"{CANARY}\n"})
        # Input that the schema refuses, as a whole or in a part: clients log such errors.
        await ask(SAVE, input={"apiKey": CANARY})
        await ask(SAVE, input=given | {"apikey": CANARY})
        await ask(SAVE, input=given | {"zzz": CANARY})
        await ask(SAVE, input=given | {"apiKey": {"value": CANARY}})
        await ask(SAVE, input=given | {"apiKey": [CANARY]})
        await ask(SAVE, input=given | {"shared": CANARY})
        await ask(SAVE, input=given | {"api": CANARY})
        await ask(SAVE, input=CANARY)
        await ask(SAVE, input=[CANARY])
        await ask(
            'mutation($key: Int) { modelProviderSave(input: {name: "x", apiKey: $key}) { userErrors { code } } }',
            key=CANARY,
        )
        literals = [
            f'{{apiKey: "{CANARY}"}}',
            f'"{CANARY}"',
            f'{{name: "x", apiKey: {{a: "{CANARY}"}}}}',
            f'{{name: "x", zzz: "{CANARY}"}}',
            f'{{name: "x", shared: "{CANARY}"}}',
            f'{{name: "x", api: "{CANARY}"}}',
            f'{{name: "x" apiKey "{CANARY}"}}',
            f'{{name: "x" apiKey """{CANARY}"""}}',
        ]
        for literal in literals:
            await ask(f"mutation {{ modelProviderSave(input: {literal}) {{ userErrors {{ code }} }} }}")
        for field in ("apiKey", "api_key", "key", "row", "apiKeyKeyId"):
            assert "Cannot query field" in await ask(f"{{ modelProviders {{ {field} }} }}")
        assert [text for text in texts if CANARY in text] == []
        sealed = (await kept_keys())["keyed"]
        assert sealed is not None
        assert sealed.startswith("Q04B")
        assert CANARY not in sealed
        # The same key sealed again looks different, and each row names the key it is sealed with.
        await save(api, **given | {"name": "other"})
        keys = await kept_keys()
        assert keys["other"] != keys["keyed"]
        rows = await DB.fetch(
            "SELECT DISTINCT api_key_key_id IS NOT NULL AS named FROM model_provider WHERE api_key > ''"
        )
        assert rows == [{"named": True}]
        tables = await DB.fetch("SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public'")
        for table in tables:
            (found,) = await DB.fetch(f"SELECT count(*) AS n FROM {table['name']} t WHERE t::text LIKE '%{CANARY}%'")
            assert found["n"] == 0, table


async def test_absent_keeps_the_key_and_null_removes_it(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        made = (await save(api, name="own", apiKey="one"))["modelProvider"]
        first = (await kept_keys())["own"]
        kept = (await save(api, id=made["id"], name="own", models=[{"id": "m"}]))["modelProvider"]
        assert kept == made | {"models": [{"id": "m"}]}
        assert (await kept_keys())["own"] == first
        # A refused change leaves it alone as well.
        assert code(await save(api, id=made["id"], name="own", baseUrl="x", apiKey="two")) == "INVALID"
        assert (await kept_keys())["own"] == first
        new = (await save(api, id=made["id"], name="own", apiKey="two"))["modelProvider"]
        assert new["apiKeyUpdatedAt"] > made["apiKeyUpdatedAt"]
        assert (await kept_keys())["own"] != first
        gone = (await save(api, id=made["id"], name="own", apiKey=None))["modelProvider"]
        assert (gone["hasApiKey"], gone["apiKeyUpdatedAt"]) == (False, None)
        assert (await kept_keys())["own"] is None
        never = (await save(api, name="bare"))["modelProvider"]
        assert (never["hasApiKey"], never["apiKeyUpdatedAt"]) == (False, None)


async def test_a_stored_key_is_not_sent_to_another_address(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        made = (await save(api, name="own", baseUrl="http://h/v1", apiKey=CANARY))["modelProvider"]
        given = {"id": made["id"], "name": "own"}
        for elsewhere in ({"baseUrl": "http://eve.example/v1"}, {"baseUrl": None}, {}):
            refused = await save(api, **given, **elsewhere)
            assert (code(refused), refused["userErrors"][0]["field"]) == ("CONFLICT", ["baseUrl"])
        assert code(await save(api, **given, baseUrl="http://h/v1")) is None
        assert code(await save(api, **given, baseUrl="http://h/v2", apiKey=CANARY)) is None
        assert code(await save(api, **given, baseUrl="http://h/v3", apiKey=None)) is None
        assert code(await save(api, **given, baseUrl="http://h/v4")) is None


async def test_own_ones_are_private_and_shared_ones_are_the_administrators(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path) as api:
        mia, sven = await person(api), await person(api, "Sven")
        ines = await person(api, "Ines", UserRole.OBSERVER)
        own = await provider(mia, "own", models=[{"id": "m"}])
        assert await names(mia) == ["local", "own"]
        assert await names(sven) == ["local"]
        assert await names(ines) == await names(api) == ["local", "own"]
        # Two people may use one name; one person may not use it twice.
        await provider(sven, "own", models=[{"id": "m"}])
        taken = await save(mia, name="own")
        assert (code(taken), taken["userErrors"][0]["field"]) == ("TAKEN", ["name"])
        at_once = await asyncio.gather(*[save(mia, name="race") for _ in range(6)])
        assert sorted(str(code(each)) for each in at_once) == ["None", *["TAKEN"] * 5]
        refused = await save(mia, name="mine", shared=True)
        assert (code(refused), refused["userErrors"][0]["field"]) == ("INVALID", ["shared"])
        refused = await save(mia, id=own["id"], name="own", shared=True)
        assert (code(refused), refused["userErrors"][0]["field"]) == ("INVALID", ["shared"])
        (shared,) = [each for each in await api.run(LIST) if each["name"] == "local"]
        assert (shared["shared"], shared["owner"]) == (True, None)
        # Everybody sees the shared one, so its refusal need not pretend.
        assert code(await save(mia, id=shared["id"], name="local")) == "CONFLICT"
        assert code(await mia.run(DELETE, input={"id": shared["id"]})) == "CONFLICT"
        # Another's own is not there at all.
        for document, given in ((SAVE, {"id": own["id"], "name": "own"}), (DELETE, {"id": own["id"]})):
            missing = given | {"id": global_id("ModelProvider", "01a20c9c-c192-76fb-8b18-a8ef6bc684a7")}
            foreign = await sven.run(document, input=given)
            assert code(foreign) == "NOT_FOUND"
            assert foreign == await sven.run(document, input=missing)
            assert foreign == await sven.run(document, input=given | {"id": "x"})
        # An administrator may share what is his own, and another's; its owner then has it as everybody has.
        assert (await save(api, id=own["id"], name="own", shared=True))["modelProvider"]["owner"] is None
        assert await names(sven) == ["local", "own", "own"]
        assert (await api.run(DELETE, input={"id": own["id"]}))["deletedId"] == own["id"]
        assert await names(mia) == ["local", "race"]


async def test_what_a_bot_uses_is_neither_deleted_nor_renamed(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        mia = await person(api)
        own = await provider(mia, "own", models=[{"id": "m"}])
        bot = await story.make_bot(mia, model="own/m")
        (shared,) = [each for each in await api.run(LIST) if each["shared"]]
        other = await story.make_bot(mia, "Other", model="local/echo")

        async def refused(who: Caller, identity: str, name: str) -> list[str | None]:
            renamed = await save(who, id=identity, name=f"{name}-2")
            deleted = await who.run(DELETE, input={"id": identity})
            assert deleted["deletedId"] is renamed["modelProvider"] is None
            assert "1 bot(s)" in deleted["userErrors"][0]["message"]
            return [code(renamed), code(deleted)]

        assert await refused(mia, own["id"], "own") == ["CONFLICT", "CONFLICT"]
        assert await refused(api, own["id"], "own") == ["CONFLICT", "CONFLICT"]
        assert await refused(api, shared["id"], "local") == ["CONFLICT", "CONFLICT"]
        # Not to be shared any more would take it from others' bots.
        assert code(await save(api, id=shared["id"], name="local", shared=False)) == "CONFLICT"
        # Other changes are welcome, and the bots that use it read them.
        assert code(await save(mia, id=own["id"], name="own", models=[{"id": "m"}, {"id": "n"}])) is None
        seen = [await mia.run(docs.BOT_QUERY, by={"id": each["id"]}) for each in (bot, other)]
        assert [each["config"]["revision"] for each in seen] == [2, 1]
        # Once no bot uses it, it may go; a bot cannot come to one that is gone.
        moved = await mia.run(docs.BOT_UPDATE, input={"botId": bot["id"], "model": "local/echo"})
        assert moved["userErrors"] == []
        assert (await mia.run(DELETE, input={"id": own["id"]}))["userErrors"] == []
        back = await mia.run(docs.BOT_UPDATE, input={"botId": bot["id"], "model": "own/m"})
        assert code(back) == "INVALID"
        assert await names(mia) == ["local"]


async def test_a_provider_is_not_taken_from_a_bot_that_is_just_coming_to_it(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path) as api:

        async def come(name: str) -> dict[str, Any]:
            return await api.run(docs.BOT_CREATE, input={"name": "Hana", "model": f"{name}/m"})

        for n in range(12):
            own = await provider(api, f"own{n}", models=[{"id": "m"}])
            take = api.run(DELETE, input={"id": own["id"]}) if n % 2 else save(api, id=own["id"], name=f"other{n}")
            came, taken = await asyncio.gather(come(own["name"]), take)
            assert (code(came), code(taken)) in {(None, "CONFLICT"), ("INVALID", None)}
        lost = "SELECT model FROM bot WHERE split_part(model, '/', 1) NOT IN (SELECT name FROM model_provider)"
        assert await DB.fetch(lost) == []
        # Many of both at once wait for each other, and never for ever.
        own = await provider(api, "own", models=[{"id": "m"}])
        bots = [await story.make_bot(api, model="own/m") for _ in range(4)]
        changes = [
            *[
                api.run(docs.BOT_UPDATE, input={"botId": bot["id"], "model": f"own/{n}"})
                for n in range(5)
                for bot in bots
            ],
            *[save(api, id=own["id"], name="own", models=[{"id": str(n)}]) for n in range(10)],
        ]
        assert [code(each) for each in await asyncio.gather(*changes)] == [None] * 30


async def test_a_running_bot_reads_its_provider_s_new_key(database: dict[str, Any], tmp_path: Path) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw")
    file = tmp_path / "data/openclaw/bots/hana/config.json5"
    async with house(database, tmp_path, wrapper) as api:
        given = {"name": "own", "models": [{"id": "m"}], "baseUrl": "http://127.0.0.1:9/v1"}
        own = await provider(api, **given, apiKey="sk-first-0123456789")
        bot = await story.make_bot(api, model="own/m")
        assert (await api.run(docs.BOT_START, input={"botId": bot["id"]}))["userErrors"] == []
        assert "sk-first-0123456789" in file.read_text()
        changed = await save(api, id=own["id"], **given, apiKey=CANARY)
        assert changed["userErrors"] == []
        async with asyncio.timeout(60):
            while (await api.run(docs.BOT_QUERY, by={"id": bot["id"]}))["config"]["restartPending"]:
                await asyncio.sleep(0.02)
        assert len(fake_openclaw.starts(wrapper)) == 1
        written = json.loads(file.read_text())
        assert written["models"]["providers"]["own"]["apiKey"] == CANARY
    assert fake_openclaw.violations(wrapper) == []
