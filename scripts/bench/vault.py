"""Seals and opens a second, and a change of keys over 100,000 values while the API is used.

The peer of the vault is Fernet, which one would take off the shelf: it binds a value to no place and names no key. The
peer of a change of keys is what none can do without: reading every row, sealing every value, writing every row, in
batches of the same size, with no lock, no check of the row's version and nobody else about.
"""

import json
import os
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

import anyio
from anyio import to_thread
from cryptography.fernet import Fernet
from rows import Row, quantile
from serving import folder, serving

from app import vault as vaults
from app.db import embedded
from app.db.engine import DB
from app.domain.ids import new_id
from app.services import keys, sealed_rows
from app.vault import Place, Vault
from tests.harness import Api

#: Values, and how many of them a channel has.
LEAVES, OF_A_CHANNEL = 100_000, 2
BATCH = 200
#: Seconds.
TARGET = 60
SAMPLES = 4_000
SECRET = "xoxb-0123456789-0123456789-abcdefghijklmnopqrstuvwx"

START = "mutation { keyRotationStart(input: {}) { keyRotation { id } userErrors { message } } }"
FOLLOW = "subscription($id: ID!) { keyRotation(id: $id) { state total done failed } }"
SAVE = """mutation($input: ModelProviderSaveInput!) { modelProviderSave(input: $input)
{ modelProvider { id } userErrors { message } } }"""
CREATE = 'mutation { botCreate(input: {name: "x", model: "local/m"}) { bot { databaseId } userErrors { message } } }'


async def measure() -> list[Row]:
    with folder() as where:
        more = {"CLAWNET_KEY_ROTATION_WAIT": "0", "CLAWNET_RATE_QUERY": "0", "CLAWNET_RATE_MUTATION": "0"}
        async with serving(where, None, CLAWNET_LOG_LEVEL="warning", **more) as (_, api):
            await api.run(SAVE, input={"name": "local", "models": [{"id": "m"}], "apiKey": "sk-0"})
            bot = UUID((await api.run(CREATE))["bot"]["databaseId"])
            async with embedded.server(where / "data") as connect:
                await DB.open(connect)
                try:
                    opened = await keys.open_vault(vaults.key_file(where / "data" / "encryption.key"))
                    return [*speed(opened), await changing(opened, api, bot)]
                finally:
                    await DB.close()


def speed(opened: Vault) -> list[Row]:
    place = Place("bot_channel", str(new_id()), "credentials", "slack.botToken")
    shelf, plain = Fernet(Fernet.generate_key()), SECRET.encode()
    sealing, sealed = a_second(lambda: opened.seal(SECRET, place))
    opening, _ = a_second(lambda: opened.unseal(sealed, place))
    encrypting, token = a_second(lambda: shelf.encrypt(plain))
    decrypting, _ = a_second(lambda: shelf.decrypt(token))
    return [
        Row("vault seals", f"{sealing:,.0f} a second", "", f"{sealing / encrypting:.2f} x Fernet ({encrypting:,.0f})"),
        Row("vault opens", f"{opening:,.0f} a second", "", f"{opening / decrypting:.2f} x Fernet ({decrypting:,.0f})"),
    ]


def a_second(do: Callable[[], Any]) -> tuple[float, Any]:
    """How often that can be done in a second, by the median of five rounds, and what came of it."""
    rates, made = list[float](), do()
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(SAMPLES):
            made = do()
        rates.append(SAMPLES / (time.perf_counter() - began))
    return quantile(rates, 0.5), made


async def changing(opened: Vault, api: Api, bot: UUID) -> Row:
    await fill(opened, bot)
    bare = await bare_minimum(opened)
    asked = Asked(api)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(asked.read)
        tasks.start_soon(asked.write)
        began = time.perf_counter()
        started = (await api.run(START))["keyRotation"]
        async with api.listen(FOLLOW, id=started["id"]) as heard:
            ended = await heard.until(lambda event: event["state"] != "RUNNING", patience=10 * TARGET)
        took = time.perf_counter() - began
        tasks.cancel_scope.cancel()
    assert ended["state"] == "SUCCEEDED", ended
    await keys.refresh(opened)
    checked = await sealed_rows.verify(opened, lambda _: None)
    assert not checked.unreadable
    assert checked.opened["channel"] == LEAVES
    return Row(
        f"vault change of keys, {LEAVES:,} values",
        f"{took:.1f} s; {asked.failed} of {len(asked.took)} requests failed, p95 {quantile(asked.took, 0.95):.3f} s",
        f"<= {TARGET} s, 0 failed",
        f"{took / bare:.1f} x the bare minimum ({bare:.1f} s)",
    )


async def fill(opened: Vault, bot: UUID) -> None:
    rows = [new_id() for _ in range(LEAVES // OF_A_CHANNEL)]
    for at in range(0, len(rows), 1000):
        batch = rows[at : at + 1000]
        sealed = await to_thread.run_sync(lambda batch=batch: [credentials(opened, row) for row in batch])
        await DB.fetch(
            "INSERT INTO channel (id, bot, provider, account_id, name, credentials, credentials_key_id) "
            "SELECT n.id, $3, 'slack', n.id::text, 'x', n.value::jsonb, $4 "
            "FROM unnest($1::uuid[], $2::text[]) n(id, value)",
            batch, sealed, bot, opened.active_key_id,
        )  # fmt: skip


def credentials(opened: Vault, row: UUID) -> str:
    names = ("botToken", "appToken")[:OF_A_CHANNEL]
    return json.dumps({name: opened.seal(SECRET, keys.channel_place(row, "slack", name)) for name in names})


async def bare_minimum(opened: Vault) -> float:
    """Seconds for the same work in a copy of the table, with nothing that makes it safe."""
    await DB.fetch("CREATE TABLE bare AS SELECT id, credentials FROM channel")
    await DB.fetch("ALTER TABLE bare ADD PRIMARY KEY (id)")
    began, after = time.perf_counter(), UUID(int=0)
    while rows := await DB.fetch("SELECT id, credentials FROM bare WHERE id > $1 ORDER BY id LIMIT $2", after, BATCH):
        values = [json.dumps({name: again(opened, row["id"], name, it) for name, it in row["credentials"].items()})
                  for row in rows]  # fmt: skip
        await DB.fetch(
            "UPDATE bare b SET credentials = n.value::jsonb FROM unnest($1::uuid[], $2::text[]) n(id, value) "
            "WHERE b.id = n.id",
            [row["id"] for row in rows], values,
        )  # fmt: skip
        after = rows[-1]["id"]
    took = time.perf_counter() - began
    await DB.fetch("DROP TABLE bare")
    return took


def again(opened: Vault, row: UUID, name: str, sealed: str) -> str:
    return opened.reseal(sealed, keys.channel_place(row, "slack", name))


class Asked:
    """What a front end asks meanwhile, reading and writing, and what came of it."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.took: list[float] = []
        self.failed = 0

    async def read(self) -> None:
        while True:
            await self._ask("{ modelProviders { hasApiKey } bots { nodes { name } } encryptionKeys { version } }")

    async def write(self) -> None:
        while True:
            key = f"sk-{os.urandom(8).hex()}"
            await self._ask(SAVE, input={"name": f"p{key[-12:]}", "models": [{"id": "m"}], "apiKey": key})

    async def _ask(self, document: str, **variables: Any) -> None:
        began = time.perf_counter()
        answer = await self._api.ask(document, **variables)
        self.took.append(time.perf_counter() - began)
        payload = (answer.get("data") or {}).get("modelProviderSave") or {}
        self.failed += "errors" in answer or bool(payload.get("userErrors"))
        await anyio.sleep(0.01)
