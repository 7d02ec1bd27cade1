"""Linking a WhatsApp channel by a code: who is shown it, until when, and how it ends."""

import base64
import json
import struct
import sys
import time
import zlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from app.commands import qr
from app.db.engine import DB
from app.domain.errors import GatewayFailed
from app.domain.states import TokenScope, UserRole
from app.gateway import login
from app.services import logins
from tests import fake_openclaw
from tests.fake_openclaw.program.login import SIZE, matrix, picture
from tests.graphql.people import ALL, Caller, house, person
from tests.harness import PATIENCE, REPO, Heard, environ
from tests.journeys import documents as docs
from tests.journeys import story

OLD, NEW = "2026.2.1", "2026.9.6"
ERRORS = "userErrors { code message field }"
CREATE = f"mutation($input: ChannelCreateInput!) {{ channelCreate(input: $input) {{ channel {{ id }} {ERRORS} }} }}"
LOGIN = (
    "subscription($id: ID!) { channelLogin(channelId: $id) { state code codeEndsAt channel { id status } "
    "userErrors { code message field } } }"
)
READ = "query($id: ID!) { node(id: $id) { ... on Channel { status errorMessage } } }"
SOON = {"CLAWNET_HEALTH_INTERVAL": "0.1"}

eras = pytest.mark.parametrize("version", [OLD, NEW])


class Phone:
    """Somebody with WhatsApp, and what its servers do."""

    def __init__(self, port: int, home: Path) -> None:
        self._url = f"http://127.0.0.1:{port}/__fake/login"
        self._token = json.loads((home / "config.json5").read_text())["gateway"]["auth"]["token"]

    async def does(self, event: str) -> dict[str, Any]:
        async with httpx.AsyncClient(trust_env=False) as client:
            headers = {"authorization": f"Bearer {self._token}"}
            answer = (await client.post(self._url, json={"event": event}, headers=headers)).raise_for_status()
        return answer.json()

    async def was_asked(self) -> int:
        """How often somebody waited for a scan."""
        return (await self.does("nothing"))["waits"]


async def channel_on(api: Caller, bot: dict[str, Any], provider: str = "whatsapp", **more: Any) -> str:
    made = await api.run(CREATE, input={"botId": bot["id"], "provider": provider, "name": provider, **more})
    assert made["userErrors"] == [], made
    return made["channel"]["id"]


async def start(api: Caller, bot: dict[str, Any], folder: Path) -> Phone:
    home = folder / "data" / "openclaw" / "bots" / bot["agentId"]
    (home / "npm" / "projects" / "whatsapp").mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)
    started = await api.run(docs.BOT_START, input={"botId": bot["id"]})
    assert started["bot"]["status"] == "ACTIVE", started
    return Phone(started["bot"]["gateway"]["port"], home)


@asynccontextmanager
async def linkable(
    database: dict[str, Any], folder: Path, version: str = NEW, **faults: Any
) -> AsyncGenerator[tuple[Caller, dict[str, Any], str, Phone]]:
    """A server with a running bot that has a WhatsApp channel."""
    wrapper = fake_openclaw.install(folder / "openclaw", version, **faults)
    async with house(database, folder, wrapper, **SOON) as api:
        bot = await story.make_bot(api)
        channel = await channel_on(api, bot)
        yield api, bot, channel, await start(api, bot, folder)


async def next_of(heard: Heard, state: str) -> dict[str, Any]:
    return await heard.until(lambda step: step["state"] == state)


async def refused(api: Caller, channel: str) -> dict[str, Any]:
    async with api.listen(LOGIN, id=channel) as heard:
        step = await next_of(heard, "FAILED")
        assert (await heard.receive())["type"] == "complete"
    return step["userErrors"][0]


@eras
async def test_a_code_is_shown_until_a_phone_takes_it(version: str, database: dict[str, Any], tmp_path: Path) -> None:
    async with linkable(database, tmp_path, version) as (api, bot, channel, phone):
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as room:
            while (now := await api.run(READ, id=channel))["status"] != "ERROR":
                await room.until(lambda e: e["kind"] == "CHANNEL_CHANGED")
            assert "not linked to an account" in now["errorMessage"]
            async with api.listen(LOGIN, id=channel) as heard:
                shown = await next_of(heard, "CODE")
                assert shown["code"].startswith("data:image/png;base64,")
                assert shown["codeEndsAt"] is not None
                await phone.does("scan")
                linked = await next_of(heard, "LINKED")
                assert linked["code"] is None
                assert (await heard.receive())["type"] == "complete"
            await room.until(lambda e: e["kind"] == "CHANNEL_CHANGED")
            while (await api.run(READ, id=channel))["status"] != "CONNECTED":
                await room.until(lambda e: e["kind"] == "CHANNEL_CHANGED")
        # One that is linked is left alone; old OpenClaw would stop it.
        async with api.listen(LOGIN, id=channel) as heard:
            await next_of(heard, "LINKED")
        assert (await api.run(READ, id=channel))["status"] == "CONNECTED"
        kept = await DB.fetch("SELECT payload::text AS t FROM room_event UNION SELECT detail::text FROM audit_entry")
        assert not [row for row in kept if shown["code"][30:60] in row["t"]]
        log = tmp_path / "data" / "openclaw" / "bots" / bot["agentId"] / "logs" / "bot.log"
        assert shown["code"][30:60] not in log.read_text()


async def test_a_new_code_follows_when_the_old_one_ended(database: dict[str, Any], tmp_path: Path) -> None:
    async with linkable(database, tmp_path, NEW) as (api, _, channel, phone), api.listen(LOGIN, id=channel) as heard:
        first = await next_of(heard, "CODE")
        await phone.does("refresh")
        assert (await next_of(heard, "CODE"))["code"] != first["code"]


@eras
async def test_another_row_of_codes_follows_when_the_last_one_ended(
    version: str, database: dict[str, Any], tmp_path: Path
) -> None:
    async with linkable(database, tmp_path, version) as (api, _, channel, phone):
        async with api.listen(LOGIN, id=channel) as heard:
            first = await next_of(heard, "CODE")
            await phone.does("over")
            await next_of(heard, "WAITING")
            assert (await next_of(heard, "CODE"))["code"] != first["code"]
            await phone.does("scan")
            await next_of(heard, "LINKED")


async def test_a_code_that_ended_is_not_shown_any_more(
    database: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A minute is long for a test; old OpenClaw shows one code a row.
    monkeypatch.setattr(login, "FIRST_LIFE", login.NEXT_LIFE / 10)
    async with linkable(database, tmp_path, OLD) as (api, _, channel, phone), api.listen(LOGIN, id=channel) as heard:
        await next_of(heard, "CODE")
        await next_of(heard, "WAITING")
        await phone.does("scan")
        await next_of(heard, "LINKED")


async def test_what_goes_wrong_is_told_in_our_words(database: dict[str, Any], tmp_path: Path) -> None:
    async with linkable(database, tmp_path) as (api, _, channel, phone):
        async with api.listen(LOGIN, id=channel) as heard:
            await next_of(heard, "CODE")
            await phone.does("break")
            error = (await next_of(heard, "FAILED"))["userErrors"][0]
    assert error["code"] == "GATEWAY_FAILED"
    assert "secret-of-whatsapp" not in json.dumps(error)


@eras
async def test_whatsapp_that_cannot_be_reached_is_a_failure(
    version: str, database: dict[str, Any], tmp_path: Path
) -> None:
    async with linkable(database, tmp_path, version, whatsapp_unreachable=True) as (api, _, channel, _):
        error = await refused(api, channel)
        assert (error["code"], "got no code" in error["message"]) == ("GATEWAY_FAILED", True)


async def test_who_stops_listening_makes_room_for_the_next(database: dict[str, Any], tmp_path: Path) -> None:
    async with linkable(database, tmp_path) as (api, _, channel, phone):
        async with api.listen(LOGIN, id=channel) as heard:
            first = await next_of(heard, "CODE")
            assert (await refused(api, channel))["code"] == "CONFLICT"
        with anyio.fail_after(PATIENCE):
            while True:
                async with api.listen(LOGIN, id=channel) as heard:
                    again = await heard.until(lambda step: step["state"] in {"CODE", "FAILED"})
                if again["state"] == "CODE":
                    break
        # It is the same code: the gateway's goes on until it ends. When that is nobody knows now.
        assert (again["code"], again["codeEndsAt"]) == (first["code"], None)
        await phone.does("scan")


async def test_only_who_may_write_its_credentials_is_shown_a_code(database: dict[str, Any], tmp_path: Path) -> None:
    async with linkable(database, tmp_path) as (api, _, channel, _):
        for caller, code in (
            (await person(api, "Sven"), "NOT_FOUND"),
            (await person(api, "Ines", UserRole.OBSERVER), "FORBIDDEN"),
            (await person(api, "Arno", UserRole.ADMIN, ALL - {TokenScope.CREDENTIALS_WRITE}), "FORBIDDEN"),
        ):
            async with caller.listen(LOGIN, id=channel) as heard:
                message = await heard.receive()
                if message["type"] == "next":
                    message = message["payload"]["errors"][0]
                    assert message["extensions"]["code"] == code
                else:
                    assert message["payload"][0]["extensions"]["code"] == code
        noted = "SELECT refusal FROM audit_entry WHERE action = 'channelLogin' ORDER BY id"
        assert [row["refusal"] for row in await DB.fetch(noted)] == ["NOT_FOUND"]


async def test_what_cannot_be_linked_is_refused_with_a_reason(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path, fake_openclaw.install(tmp_path / "openclaw", NEW)) as api:
        bot = await story.make_bot(api)
        idle = await channel_on(api, bot)
        telegram = await channel_on(api, bot, "telegram", credentials={"botToken": "1:AAA"})
        zalo = await channel_on(api, bot, "zalouser")
        assert (await refused(api, idle))["code"] == "CONFLICT"
        needs = await refused(api, telegram)
        assert (needs["code"], "needs credentials" in needs["message"]) == ("INVALID", True)
        later = await refused(api, zalo)
        assert (later["code"], "does not offer yet" in later["message"]) == ("INVALID", True)
        listed = await api.run("{ channelProviders { name pairsByQr loginUnavailable } }")
        kinds = {each["name"]: (each["pairsByQr"], each["loginUnavailable"]) for each in listed}
        assert kinds["telegram"] == (False, None)
        assert kinds["whatsapp"] == (True, None)
        assert kinds["zalouser"] == (True, later["message"])


async def test_a_gateway_that_does_not_open_the_channel_says_so(database: dict[str, Any], tmp_path: Path) -> None:
    async with linkable(database, tmp_path, NEW, channels_unloadable=["whatsapp"]) as (api, _, channel, _):
        error = await refused(api, channel)
        assert (error["code"], "has not opened" in error["message"]) == ("GATEWAY_FAILED", True)


async def test_the_terminal_shows_the_code_and_ends_when_it_is_taken(database: dict[str, Any], tmp_path: Path) -> None:
    async with linkable(database, tmp_path) as (_, _, channel, phone):
        command = [sys.executable, "-m", "app", "channels", "login", channel]
        env = environ(tmp_path, database, tmp_path / "openclaw" / "openclaw")
        outside = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        async with await anyio.open_process(command, cwd=REPO, env=outside | env) as process:
            assert process.stderr is not None
            assert process.stdout is not None
            said = b""
            with anyio.fail_after(PATIENCE):
                while b"scan it" not in said:
                    said += await process.stderr.receive()
            await phone.does("scan")
            out = b"".join([part async for part in process.stdout])
        assert process.returncode == 0
        *shown, last = out.decode().splitlines()
        assert last == "linked"
        assert said.count(b"scan it") == 1
        assert len(shown) == (SIZE + 2 * qr.QUIET + 1) // 2
        asked = "SELECT address FROM audit_entry WHERE action = 'channelLogin'"
        assert [row["address"].startswith("command line") for row in await DB.fetch(asked)] == [True]


@pytest.mark.parametrize("seed", range(5))
def test_a_picture_becomes_the_modules_it_was_drawn_from(seed: int) -> None:
    rows = matrix(seed)
    expected = list(qr.half_blocks(rows))
    shown = [line.removeprefix("\x1b[97;40m").removesuffix("\x1b[0m") for line in qr.lines(picture(rows))]
    assert shown == expected
    assert len(shown[0]) == SIZE + 2 * qr.QUIET


@pytest.mark.parametrize("form", [(3400, 3400, 8, 0), (4096, 4096, 1, 0), (1024, 1024, 8, 6), (1024, 1, 255, 0)])
def test_a_picture_too_large_for_a_code_is_refused_before_it_is_unpacked(form: tuple[int, int, int, int]) -> None:
    width, height, depth, _ = form
    row = b"\4" + bytes(min(width * depth // 8, 4096))
    # It packs well: what is long to look at is short to send.
    began = time.process_time()
    with pytest.raises(GatewayFailed, match="cannot be shown here"):
        qr.lines(drawn(*form, row * height))
    assert time.process_time() - began < 1


def test_the_largest_picture_that_is_taken_is_not_long_to_read() -> None:
    began = time.process_time()
    with pytest.raises(GatewayFailed):
        qr.lines(drawn(1023, 1024, 8, 0, (b"\4" + bytes(1023)) * 1024))
    assert time.process_time() - began < 10


def drawn(width: int, height: int, depth: int, colour: int, data: bytes) -> str:
    parts = (
        b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0),
        b"IDAT" + zlib.compress(data),
        b"IEND",
    )
    body = b"".join(struct.pack(">I", len(each) - 4) + each + struct.pack(">I", zlib.crc32(each)) for each in parts)
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + body).decode()


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "no such one"])
def test_a_terminal_without_blocks_gets_colours(encoding: str) -> None:
    rows = matrix(1)
    shown = [line.removesuffix("\x1b[0m") for line in qr.lines(picture(rows), encoding)]
    assert all(line.isascii() for line in shown)
    modules = [[part.startswith("40m") for part in line.split("\x1b[")[1:]] for line in shown]
    inside = [row[qr.QUIET : -qr.QUIET] for row in modules[qr.QUIET : -qr.QUIET]]
    assert inside == rows
    assert sum(map(sum, modules)) == sum(map(sum, rows))


async def test_a_gateway_that_answers_at_once_is_asked_once_a_second(database: dict[str, Any], tmp_path: Path) -> None:
    async with linkable(database, tmp_path, login_hurries="still") as (api, _, channel, phone):
        async with api.listen(LOGIN, id=channel) as heard:
            await next_of(heard, "CODE")
            began = time.monotonic()
            await anyio.sleep(1.5)
            await phone.does("scan")
            await next_of(heard, "LINKED")
            assert await phone.was_asked() <= time.monotonic() - began + 2


async def test_a_gateway_that_never_ends_giving_codes_is_left(
    database: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login, "LEAST_WAIT", 0.01)
    monkeypatch.setattr(login, "ROWS", 2)
    async with linkable(database, tmp_path, login_hurries="fresh") as (api, _, channel, _):
        states = list[str]()
        async with api.listen(LOGIN, id=channel) as heard:
            while "FAILED" not in states:
                states.append((await heard.until(lambda _: True))["state"])
        row = ["WAITING", *["CODE"] * login.MAX_CODES]
        assert states == [*row, *row, "WAITING", "FAILED"]


async def test_a_login_that_takes_too_long_ends(
    database: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login, "LEAST_WAIT", 0.01)
    monkeypatch.setattr(login, "LONGEST", 0.3)
    async with linkable(database, tmp_path, login_hurries="still") as (api, _, channel, _):
        error = await refused(api, channel)
        assert (error["code"], "begin anew" in error["message"]) == ("GATEWAY_FAILED", True)


@pytest.mark.parametrize(("limit", "who"), [("you are linking", "one"), ("of this bot", "two")])
async def test_only_so_many_logins_are_under_way_at_a_time(
    limit: str, who: str, database: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logins, "MAX_AT_ONCE", 1)
    async with linkable(database, tmp_path) as (api, bot, channel, _):
        second = await channel_on(api, bot, accountId="second")
        other = await person(api, "Arno", UserRole.ADMIN) if who == "two" else api
        async with api.listen(LOGIN, id=channel) as heard:
            await next_of(heard, "CODE")
            error = await refused(other, second)
            assert (error["code"], limit in error["message"]) == ("LIMIT_REACHED", True)
