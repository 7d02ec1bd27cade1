"""Secrets of channels of every kind, and a bot that says them wherever it can: they are found nowhere."""

import base64
import ctypes
import json
import random
import resource
import stat
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import pytest
from anyio import to_thread

from app.gateway import channels
from app.gateway.channels import providers
from app.gateway.channels.providers import Provider
from tests import fake_openclaw
from tests.gateway import channel_samples as samples
from tests.graphql.people import provider
from tests.graphql.test_channel_secrets import EVERYTHING, command_lines, dumped
from tests.graphql.test_channels import CREATE
from tests.harness import Api, environ, running_server, serve
from tests.journeys import documents as docs
from tests.journeys import story

#: Where the plain secrets lie: closed files of the bot itself.
THEIRS = {"config.json5", "config.good.json5"}
#: What OpenClaw writes for itself in its home is the bot's own.
ITS_OWN = {"logs/gateway.log"}


class Canaries:
    """Secrets that are nowhere else, and what they are turned into on their way."""

    def __init__(self) -> None:
        self.plain: list[str] = []
        self._source = random.Random(7)

    def hatch(self, letters: str = string.ascii_letters + string.digits, length: int = 32) -> str:
        self.plain.append("".join(self._source.choices(letters, k=length)))
        return self.plain[-1]

    def found_in(self, text: str) -> list[str]:
        return [canary for canary in self.plain if any(each in text for each in _spellings(canary))]


def _spellings(canary: str) -> Iterator[str]:
    """In base64 without the characters that depend on what stands beside it."""
    yield canary
    for before in ("", "x", "xx"):
        yield base64.b64encode(f"{before}{canary}".encode()).decode()[4:40]
    yield quote(canary)


def refused(kind: Provider, secrets: dict[str, str]) -> list[list[str]]:
    return [[str(part) for part in path] for path, _ in providers.refused(kind, {}, secrets)]


def credentials(kind: Provider, canaries: Canaries) -> dict[str, str]:
    """Every secret that the kind takes, in its form."""
    found: dict[str, str] = {}
    for name, example in samples.credentials(kind).items():
        if example.startswith("{"):
            found[name] = json.dumps({**json.loads(example), "private_key": canaries.hatch()})
        elif any(".".join(path) == f"credentials.{name}" for path in refused(kind, {name: example + "aB3" * 10})):
            digits = canaries.hatch("0123456789abcdef", 64)
            assert refused(kind, {name: digits}) == [], (kind.name, name)
            found[name] = digits
        else:
            found[name] = example + canaries.hatch()
    return found


async def furnish(api: Api, bot: dict[str, Any], version: str, canaries: Canaries, texts: list[str]) -> None:
    """Channels of every kind, and again until there are fifty secrets; each is refused in some way as well."""
    kinds = [kind for kind in channels.catalogue(version).values() if samples.credentials(kind)]
    for turn in range(5):
        for kind in kinds:
            account = f"n{turn}" if turn else "default"
            if turn and (len(canaries.plain) >= 50 or providers.account_refused(kind, account)):
                continue
            secrets = credentials(kind, canaries)
            settings, whole = dict(samples.minimal(kind).settings), next(samples.accounts(kind)).settings
            needed = [path[-1] for path, _ in providers.missing(kind, settings, secrets)]
            settings |= {name: whole[name] for name in needed}
            given = {
                "botId": bot["id"], "provider": kind.name, "name": kind.name, "accountId": account,
                "settings": settings, "credentials": secrets,
            }  # fmt: skip
            made = await api.ask(CREATE, input=given)
            assert made["data"]["channelCreate"]["userErrors"] == [], (kind.name, made)
            wrong = given | {"settings": secrets, "credentials": {value: name for name, value in secrets.items()}}
            texts += [json.dumps(made), *[json.dumps(await api.ask(CREATE, input=each)) for each in (given, wrong)]]


@pytest.mark.parametrize("version", [samples.OLD, samples.NEW])
async def test_no_secret_is_found_anywhere_however_a_bot_misbehaves(
    database: dict[str, Any], tmp_path: Path, version: str
) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw", version, bots={"hana": {"echo_secrets": True}})
    more = {"CLAWNET_LOG_LEVEL": "debug", "CLAWNET_RATE_MUTATION": "0", "CLAWNET_HEALTH_INTERVAL": "0.2"}
    canaries, texts = Canaries(), list[str]()
    homes = tmp_path / "data/openclaw/bots"
    with await to_thread.run_sync(serve, environ(tmp_path, database, wrapper, **more)) as server:
        api = Api(server.url, server.token)
        async with api.http:
            key = canaries.hatch()
            await provider(api, "local", baseUrl="http://127.0.0.1:9/v1", models=[{"id": "echo"}], apiKey=f"sk-{key}")
            await provider(api, "plain", baseUrl="http://127.0.0.1:9/v1", models=[{"id": "echo"}])
            bot, other = await story.make_bot(api), await story.make_bot(api, "Mio", model="plain/echo")
            await furnish(api, bot, version, canaries, texts)
            async with api.listen(docs.ROOM, names=[bot["rooms"][0]]) as heard:
                for each in (other, bot):
                    texts.append(json.dumps(await api.ask(docs.BOT_START, input={"botId": each["id"]})))
                await heard.until(lambda e: e["event"] == "bot:started")
                texts.append(json.dumps(await api.ask(docs.MESSAGE_SEND, input={"botId": bot["id"], "text": "hi"})))
                assert "internal error" in texts[-1]
                assert "***" in texts[-1]
                await until_failed(api)
                texts.append(json.dumps(await api.ask(EVERYTHING)))
                written = (homes / "hana/config.json5").read_text()
                processes = await to_thread.run_sync(command_lines)
                fake_openclaw.set_faults(wrapper, "hana", crash_after_s=0.2)
                await api.ask(docs.BOT_RESTART, input={"botId": bot["id"], "wait": False})
                await heard.until(lambda e: e["event"] == "bot:error")
                texts.append(json.dumps(heard.seen))
            texts.append(json.dumps(await api.ask(EVERYTHING)))
            modes = {path.stat().st_mode & 0o77 for path in homes.rglob("*.json5")}
        assert server.stop() == 0
        texts += server.lines
    assert len(canaries.plain) >= 50 or version == samples.NEW
    assert [canary for canary in canaries.plain if canary not in written] == []
    assert modes == {0}
    assert {stat.S_IMODE(home.stat().st_mode) for home in homes.iterdir()} == {0o700}
    places = {
        "an answer": "\n".join(texts),
        "a process": processes,
        "the server's log": (tmp_path / "server.log").read_text(),
        **{f"the table {name}": text for name, text in (await dumped(database)).items()},
        **{str(path): path.read_bytes().decode("utf-8", "replace") for path in files(tmp_path, THEIRS | ITS_OWN)},
    }
    assert {place: found for place, text in places.items() if (found := canaries.found_in(text))} == {}
    log = (homes / "hana/logs/bot.log").read_text()
    assert "a secret slipped out: ***" in log
    assert "the fault crash_after_s" in log


async def test_a_server_lets_nobody_into_its_memory(database: dict[str, Any], tmp_path: Path) -> None:
    get_dumpable, set_dumpable, libc = 3, 4, ctypes.CDLL(None)
    libc.prctl(set_dumpable, 1, 0, 0, 0)
    async with running_server(environ(tmp_path, database, None)):
        assert libc.prctl(get_dumpable, 0, 0, 0, 0) == 0
        assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)


def files(folder: Path, but: set[str]) -> Iterator[Path]:
    closed = {folder / "data/openclaw/bots/hana" / name for name in but}
    return (path for path in folder.rglob("*") if path.is_file() and path not in closed)


async def until_failed(api: Api) -> None:
    """The channels' watcher has heard what the gateway says of them."""
    asked = "{ bots { nodes { channels { nodes { status errorMessage } } } } }"
    with anyio.fail_after(30):
        while True:
            said = json.dumps(await api.run(asked))
            if "fetch failed" in said:
                return
            await anyio.sleep(0.05)
