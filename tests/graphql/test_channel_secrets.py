"""Where the secrets of channels lie, and where they are never found."""

import json
import random
import stat
import string
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import pytest
from anyio import to_thread

from app.db.engine import DB
from app.graphql.inputs.channels import ChannelCreateInput, ChannelCredentialsSetInput
from tests import fake_openclaw
from tests.graphql.people import code, house, provider
from tests.graphql.test_channels import CREATE, DELETE, LIST, SET, UPDATE, channel, seen, token
from tests.harness import Api, environ, serve
from tests.journeys import documents as docs
from tests.journeys import story

#: A channel of each kind, with what it needs beside its secrets; `*` is where a secret differs from all others.
KINDS: list[tuple[str, dict[str, Any], dict[str, str]]] = [
    ("telegram", {"webhookUrl": "https://example.com/t"}, {"botToken": "123456789:*", "webhookSecret": "*"}),
    ("discord", {}, {"token": "*", "pluralkit.token": "*"}),
    ("slack", {}, {"botToken": "xoxb-*", "appToken": "xapp-*", "userToken": "xoxp-*", "signingSecret": "*"}),
    ("mattermost", {"baseUrl": "http://127.0.0.1:9"}, {"botToken": "*"}),
    ("line", {}, {"channelAccessToken": "*", "channelSecret": "*"}),
    ("bluebubbles", {"serverUrl": "http://127.0.0.1:9"}, {"password": "*"}),
    ("zalo", {"webhookUrl": "https://example.com/z"}, {"botToken": "*", "webhookSecret": "*"}),
    (
        "googlechat",
        {"audienceType": "app-url", "audience": "https://example.com/g"},
        {"serviceAccount": '{"type": "service_account", "private_key": "*"}'},
    ),
    ("nextcloud-talk", {"baseUrl": "http://127.0.0.1:9", "apiUser": "x"}, {"botSecret": "*", "apiPassword": "*"}),
]
#: What an error, an event or a payload may be asked for.
EVERYTHING = f"""{{ bots {{ nodes {{ {docs.BOT}
  config {{ rendered overrides }}
  channels {{ nodes {{ id name settings credentialKeys errorMessage status }} }} }} }}
  auditEntries(first: 100) {{ nodes {{ action detail }} }} }}"""


def canary(source: random.Random) -> str:
    return "".join(source.choices(string.ascii_letters + string.digits, k=32))


def with_canaries(secrets: dict[str, str], kept: list[str], source: random.Random) -> dict[str, str]:
    filled: dict[str, str] = {}
    for key, shape in secrets.items():
        kept.append(canary(source))
        filled[key] = shape.replace("*", kept[-1])
    return filled


async def dumped(config: dict[str, Any]) -> dict[str, str]:
    """Every table as one text."""
    connection = await asyncpg.connect(**config)
    try:
        tables = await connection.fetch("SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public'")
        found: dict[str, str] = {}
        for (table,) in tables:
            rows = await connection.fetch(f"SELECT t::text FROM {table} t")
            found[table] = "\n".join(row[0] for row in rows)
        return found
    finally:
        await connection.close()


def command_lines() -> str:
    """What every process of this machine was started with."""
    texts: list[str] = []
    for entry in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                texts.append((entry / name).read_bytes().decode(errors="replace"))
            except OSError:
                continue
    return "\n".join(texts)


def files_with(folder: Path, texts: list[str]) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if any(text in path.read_text(errors="replace") for text in texts)]


async def filled(api: Api, bot: dict[str, Any], kept: list[str], texts: list[str]) -> None:
    """Channels with secrets of all kinds on a bot, and requests about them that go wrong."""
    source = random.Random(5)
    while len(kept) < 50:
        for name, settings, shapes in KINDS:
            given = {
                "botId": bot["id"], "provider": name, "name": name, "accountId": f"n{len(kept)}", "settings": settings,
                "credentials": with_canaries(shapes, kept, source),
            }  # fmt: skip
            made = await api.ask(CREATE, input=given)
            texts.append(json.dumps(made))
            (payload,) = made["data"].values()
            assert payload["userErrors"] == [], (name, made)
            again = {"channelId": payload["channel"]["id"], "credentials": given["credentials"]}
            for document, wrong in (
                (CREATE, given),  # taken
                (CREATE, given | {"accountId": "A"}),
                (CREATE, given | {"credentials": {key: [value] for key, value in given["credentials"].items()}}),
                (CREATE, given | {"credentials": {value: key for key, value in given["credentials"].items()}}),
                (CREATE, given | {"settings": given["credentials"]}),
                (CREATE, given | {"enabled": next(iter(given["credentials"].values()))}),
                (CREATE, {"credentials": given["credentials"]}),
                (SET, again | {"credentials": {key: f" {value}\n" for key, value in given["credentials"].items()}}),
                (SET, again | {"credentials": {key: f"${{{value}}}" for key, value in given["credentials"].items()}}),
                (SET, again | {"unknown": given["credentials"]}),
                (UPDATE, {"channelId": payload["channel"]["id"], "credentials": given["credentials"]}),
                (SET, again),
            ):
                texts.append(json.dumps(await api.ask(document, input=wrong)))


async def test_fifty_secrets_are_found_sealed_in_their_column_and_in_the_closed_configuration_alone(
    database: dict[str, Any], tmp_path: Path
) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw", "2026.2.1", print_secret=True, crash_after_s=0.5)
    wanted = environ(tmp_path, database, wrapper, CLAWNET_LOG_LEVEL="debug", CLAWNET_RATE_MUTATION="100000")
    kept: list[str] = []
    texts: list[str] = []
    with await to_thread.run_sync(serve, wanted) as server:
        api = Api(server.url, server.token)
        async with api.http:
            await provider(api, "local", baseUrl="http://127.0.0.1:9/v1", models=[{"id": "echo"}])
            bot = await story.make_bot(api)
            await filled(api, bot, kept, texts)
            async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
                await api.run(docs.BOT_START, input={"botId": bot["id"], "wait": False})
                await heard.until(lambda e: e["kind"] == "STARTED")
                home = tmp_path / "data/openclaw/bots/hana"
                written = (home / "config.json5").read_text()
                mode = (home / "config.json5").stat().st_mode
                processes = command_lines()
                await heard.until(lambda e: e["kind"] == "BACKOFF")
                texts.append(json.dumps(heard.seen))
            texts.append(json.dumps(await api.ask(EVERYTHING)))
            await api.run(docs.BOT_STOP, input={"botId": bot["id"]})
        assert server.stop() == 0
        texts += server.lines
    assert [secret for secret in kept if secret not in written] == []
    assert stat.S_IMODE(mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    places = {
        "an answer": "\n".join(texts),
        "a process": processes,
        "the log": (tmp_path / "server.log").read_text(),
        **{f"the table {name}": text for name, text in (await dumped(database)).items()},
    }
    assert [(place, secret) for place, text in places.items() for secret in kept if secret in text] == []
    assert "Q04B" in places["the table channel"]
    assert "RATE_LIMITED" not in places["an answer"]
    # What OpenClaw writes into its own log stays in its own closed home; of what it prints no secret is kept.
    found = files_with(tmp_path, kept)
    own = {"config.json5", "config.good.json5", "logs/gateway.log"}
    assert {str(path.relative_to(home)) for path in found} <= own
    assert [path for path in found if path.stat().st_mode & 0o077] == []


async def test_a_secret_in_the_place_of_its_name_is_neither_told_nor_kept(
    database: dict[str, Any], tmp_path: Path
) -> None:
    wrong = "MTk4NjIyNDgzMTIzNDU2.Cl2FMQ.ZnCjm1XVW7vRze4b7Cq4se7kKWs"
    async with house(database, tmp_path) as api:
        bot = await story.make_bot(api)
        one = await channel(api, bot, provider="discord", credentials={"token": wrong[::-1]})
        for value in (None, "", 5, {}, [wrong], "x", {"x": None}):
            for more in ({}, {"token": wrong[::-1]}):
                given = {"credentials": {wrong: value, **more}}
                set_ = await api.run(SET, input={"channelId": one["id"], **given})
                made = await api.run(
                    CREATE, input={"botId": bot["id"], "provider": "discord", "name": "x", "accountId": "x", **given}
                )
                for payload in (set_, made):
                    assert (code(payload), payload["userErrors"][0]["field"]) == ("INVALID", ["credentials"])
                    assert wrong not in json.dumps(payload)
        removed = {"credentials": {"token": None, "pluralkit.token": None}}
        assert (await api.run(SET, input={"channelId": one["id"], **removed}))["userErrors"] == []
        row = await DB.fetch_one("SELECT detail FROM audit_entry WHERE detail ? 'removed'")
        assert row is not None
        assert row["detail"]["removed"] == ["token"]
    assert not [table for table, text in (await dumped(database)).items() if wrong in text]


def test_the_inputs_do_not_show_secrets_where_they_are_printed() -> None:
    secret: Any = {"botToken": "hush"}
    made = ChannelCreateInput(bot_id="x", provider="telegram", name="x", credentials=secret)  # type: ignore[arg-type]
    assert "hush" not in repr(made)
    assert "hush" not in repr(ChannelCredentialsSetInput(channel_id="x", credentials=secret))  # type: ignore[arg-type]


async def test_a_bot_gets_what_its_open_channels_need_and_nothing_of_closed_ones(
    database: dict[str, Any], tmp_path: Path
) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw")
    file = tmp_path / "data/openclaw/bots/hana/config.json5"
    async with house(database, tmp_path, wrapper) as api:
        bot = await story.make_bot(api)
        await channel(api, bot, credentials={"botToken": token(1)}, settings={"dmPolicy": "disabled"})
        await channel(api, bot, accountId="off", enabled=False, credentials={"botToken": token(2)})
        assert (await api.run(docs.BOT_START, input={"botId": bot["id"]}))["userErrors"] == []
        telegram = json.loads(file.read_text())["channels"]["telegram"]
        assert telegram["accounts"].keys() == {"default", "off"}
        assert telegram["accounts"]["off"] == {"enabled": False, "configWrites": False}
        default = telegram["accounts"]["default"]
        assert (default["botToken"], default["dmPolicy"]) == (token(1), "disabled")
        assert token(2) not in file.read_text()


BREAKS = {
    "changed": "UPDATE channel SET credentials = jsonb_build_object('botToken', overlay(credentials->>'botToken' "
    "placing 'AAAA' from 120))",
    "another channel's": "UPDATE channel c SET credentials = o.credentials FROM channel o WHERE o.id <> c.id",
    "no ciphertext": 'UPDATE channel SET credentials = \'{"botToken": "plain"}\'',
    "no text": "UPDATE channel SET credentials = '{\"botToken\": [5]}'",
    "of another provider": "UPDATE channel SET provider = 'discord'",
}


@pytest.mark.parametrize("how", BREAKS)
async def test_a_bot_whose_channel_cannot_be_read_is_not_started_and_says_which_channel_it_is(
    database: dict[str, Any], tmp_path: Path, how: str
) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw")
    async with house(database, tmp_path, wrapper) as api:
        bot = await story.make_bot(api)
        one = await channel(api, bot, name="Front desk", credentials={"botToken": token(1)})
        await channel(api, bot, accountId="second", enabled=False, credentials={"botToken": token(2)})
        await DB.fetch(BREAKS[how])
        started = await api.run(docs.BOT_START, input={"botId": bot["id"]})
        assert code(started) == "GATEWAY_FAILED"
        assert "'Front desk'" in started["bot"]["errorMessage"]
        assert "set it anew" in started["bot"]["errorMessage"]
        assert fake_openclaw.starts(wrapper) == []
        first, second = (await seen(api, bot))["channels"]["nodes"]
        assert (first["status"], second["status"]) == ("ERROR", "DISCONNECTED")
        assert "'botToken'" in first["errorMessage"]
        assert token(1) not in json.dumps([started, first])
        if how == "of another provider":
            return
        mended = await api.run(SET, input={"channelId": one["id"], "credentials": {"botToken": token(3)}})
        assert (mended["userErrors"], mended["channel"]["errorMessage"]) == ([], None)
        assert (await api.run(docs.BOT_START, input={"botId": bot["id"]}))["userErrors"] == []


@pytest.mark.parametrize("damaged", ["[]", "null", "5", '"x"', '["botToken"]'])
async def test_credentials_that_are_no_object_are_unreadable_and_can_be_set_anew(
    database: dict[str, Any], tmp_path: Path, damaged: str
) -> None:
    async with house(database, tmp_path, fake_openclaw.install(tmp_path / "openclaw")) as api:
        bot = await story.make_bot(api)
        one = await channel(api, bot, name="Front desk", credentials={"botToken": token(1)})
        await DB.fetch("UPDATE channel SET credentials = $1::text::jsonb", damaged)
        (node,) = (await seen(api, bot))["channels"]["nodes"]
        assert node["credentialKeys"] == []
        started = await api.run(docs.BOT_START, input={"botId": bot["id"]})
        assert code(started) == "GATEWAY_FAILED"
        assert "'Front desk'" in started["bot"]["errorMessage"]
        (node,) = (await seen(api, bot))["channels"]["nodes"]
        assert (node["status"], node["errorMessage"]) == ("ERROR", "the credentials cannot be read; set them anew")
        mended = await api.run(SET, input={"channelId": one["id"], "credentials": {"botToken": token(3)}})
        assert (mended["userErrors"], mended["channel"]["errorMessage"]) == ([], None)
        assert (await api.run(docs.BOT_START, input={"botId": bot["id"]}))["userErrors"] == []


async def test_deleting_a_bot_leaves_nothing_of_its_channels(database: dict[str, Any], tmp_path: Path) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw")
    async with house(database, tmp_path, wrapper) as api:
        bot = await story.make_bot(api, start=True)
        made = await channel(api, bot, credentials={"botToken": token(1)})
        bind = "mutation($id: ID!) { bindingCreate(input: {botId: $id}) { userErrors { code } } }"
        assert (await api.run(bind, id=bot["id"]))["userErrors"] == []
        assert (await api.run(docs.BOT_DELETE, input={"botId": bot["id"]}))["userErrors"] == []
        for table in ("channel", "channel_state", "binding", "bot_secret"):
            assert await DB.fetch(f"SELECT * FROM {table}") == [], table
        assert code(await api.run(DELETE, input={"channelId": made["id"]})) == "NOT_FOUND"
        other = await story.make_bot(api)
        await channel(api, other, credentials={"botToken": token(1)})
        assert token(1) not in json.dumps(await api.ask(LIST, by={"id": other["id"]}))


async def test_a_running_bot_reads_new_credentials(database: dict[str, Any], tmp_path: Path) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw")
    file = tmp_path / "data/openclaw/bots/hana/config.json5"
    async with house(database, tmp_path, wrapper) as api:
        bot = await story.make_bot(api)
        made = await channel(api, bot, credentials={"botToken": token(1)})
        assert (await api.run(docs.BOT_START, input={"botId": bot["id"]}))["userErrors"] == []
        assert (await api.run(SET, input={"channelId": made["id"], "credentials": {"botToken": token(2)}}))[
            "userErrors"
        ] == []
        with anyio.fail_after(30):
            while (await api.run(docs.BOT_QUERY, by={"id": bot["id"]}))["config"]["restartPending"]:
                await anyio.sleep(0.05)
        assert token(2) in file.read_text()
        assert token(1) not in file.read_text()
    assert fake_openclaw.violations(wrapper) == []
