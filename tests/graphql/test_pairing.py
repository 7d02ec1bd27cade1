"""Who waits to be let in at a bot's channel, and who may decide about them."""

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from app.db.engine import DB
from app.domain.states import UserRole
from app.services.pairings import AT_A_BOT
from tests import fake_openclaw
from tests.gateway.test_rpc import asks
from tests.graphql.people import Caller, house, person
from tests.journeys import documents as docs
from tests.journeys import story

ERRORS = "userErrors { code message field }"
CREATE = f"mutation($input: ChannelCreateInput!) {{ channelCreate(input: $input) {{ channel {{ id }} {ERRORS} }} }}"
WAITING = "query($id: ID!) { node(id: $id) { ... on Channel { pairings { code peer requestedAt } } } }"
APPROVE, DISMISS = (
    f"mutation($input: PairingInput!) {{ {field}(input: $input) {{ channel {{ pairings {{ code }} }} {ERRORS} }} }}"
    for field in ("pairingApprove", "pairingDismiss")
)


async def waiting(api: Caller, channel: str) -> Any:
    return (await api.run(WAITING, id=channel))["pairings"]


@pytest.mark.parametrize("version", ["2026.2.1", "2026.9.6"])
async def test_the_owner_lets_one_in_and_sends_one_away(version: str, database: dict[str, Any], tmp_path: Path) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw", version)
    async with house(database, tmp_path, wrapper) as api:
        bot = await story.make_bot(api)
        given = {"botId": bot["id"], "provider": "telegram", "name": "Telegram", "credentials": {"botToken": "1:AAA"}}
        channel = (await api.run(CREATE, input=given))["channel"]["id"]
        assert await waiting(api, channel) is None
        idle = await api.run(APPROVE, input={"channelId": channel, "code": "ABCDEFGH"})
        assert idle["userErrors"][0]["code"] == "CONFLICT"

        port = (await api.run(docs.BOT_START, input={"botId": bot["id"]}))["bot"]["gateway"]["port"]
        assert await waiting(api, channel) == []
        home = tmp_path / "data" / "openclaw" / "bots" / bot["agentId"]
        token = json.loads((home / "config.json5").read_text())["gateway"]["auth"]["token"]
        ada, ben = await asks(port, "42", token=token), await asks(port, "43", "Ben", token=token)
        seen = await waiting(api, channel)
        assert [(each["code"], each["peer"]["firstName"]) for each in seen] == [(ada, "Ada"), (ben, "Ben")]

        observer, stranger = await person(api, "Ines", UserRole.OBSERVER), await person(api, "Sven")
        assert len(await waiting(observer, channel)) == 2
        assert (await stranger.run(WAITING, id=channel)) is None
        refused = await stranger.run(APPROVE, input={"channelId": channel, "code": ada})
        assert refused["userErrors"][0]["code"] == "NOT_FOUND"

        nobody = await api.run(DISMISS, input={"channelId": channel, "code": "NOBODY"})
        assert nobody["userErrors"] == [
            {"code": "NOT_FOUND", "message": "nobody waits at the channel with this code; it may have run out",
             "field": ["code"]}
        ]  # fmt: skip
        let_in = await api.run(APPROVE, input={"channelId": channel, "code": ada})
        assert let_in == {"channel": {"pairings": [{"code": ben}]}, "userErrors": []}
        sent_away = await api.run(DISMISS, input={"channelId": channel, "code": ben})
        assert sent_away == {"channel": {"pairings": []}, "userErrors": []}
        done = "SELECT action FROM audit_entry WHERE action LIKE 'pairing%' AND refusal IS NULL ORDER BY id"
        assert [row["action"] for row in await DB.fetch(done)] == ["pairingApprove", "pairingDismiss"]


def _connections(port: int) -> int:
    """Open ones to a port of this machine."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[2].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


async def test_many_lists_at_once_open_few_connections_and_cost_what_they_are(
    database: dict[str, Any], tmp_path: Path
) -> None:
    count = 12
    async with house(database, tmp_path, fake_openclaw.install(tmp_path / "openclaw", "2026.9.6")) as api:
        bot = await story.make_bot(api)
        for n in range(count):
            given = {"botId": bot["id"], "provider": "telegram", "name": "Telegram", "accountId": f"a{n}"}
            made = await api.run(CREATE, input=given | {"credentials": {"botToken": f"{n}:AAA"}})
            assert made["userErrors"] == []
        port = (await api.run(docs.BOT_START, input={"botId": bot["id"]}))["bot"]["gateway"]["port"]
        seen: list[int] = []

        async def watch() -> None:
            while True:
                seen.append(_connections(port))
                await anyio.sleep(0.002)

        some = "channels(first: 50) { nodes { pairings { code } } }"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            answer = await api.ask(f"query($by: BotBy!) {{ bot(by: $by) {{ {some} }} }}", by={"id": bot["id"]})
            tasks.cancel_scope.cancel()
        assert [each["pairings"] for each in answer["data"]["bot"]["channels"]["nodes"]] == [[]] * count
        # One more is the server's own, which looks after the channels.
        assert 0 < max(seen) <= AT_A_BOT + 1
        many = " ".join(f"c{n}: {some}" for n in range(10))
        refused = await api.ask(f"query($by: BotBy!) {{ bot(by: $by) {{ {many} }} }}", by={"id": bot["id"]})
        assert refused["errors"][0]["extensions"]["code"] == "QUERY_TOO_COMPLEX"
