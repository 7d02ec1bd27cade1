"""One bot's life as its owner sees it, told once and lived by the fake and by real OpenClaw alike."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.harness import REPO, Api
from tests.journeys import documents as docs


@contextmanager
def local_model() -> Iterator[str]:
    """The stand-in that the README names, on a free port; its base URL."""
    process = subprocess.Popen(
        [sys.executable, str(REPO / "scripts" / "model"), "0"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        yield line[line.index("http://") :].split()[0].removesuffix("/v1") + "/v1"
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


async def make_provider(api: Api, base_url: str) -> None:
    made = await api.run(
        docs.PROVIDER_SAVE,
        input={
            "name": "local",
            "baseUrl": base_url,
            "apiKey": "sk-test-0123456789",
            "models": [{"id": "echo", "name": "Echo", "contextWindow": 128000, "maxTokens": 4096}],
        },
    )
    assert made["userErrors"] == [], made
    assert made["modelProvider"]["hasApiKey"]


async def make_bot(api: Api, name: str = "Hana", **more: Any) -> dict[str, Any]:
    made = await api.run(docs.BOT_CREATE, input={"name": name, "model": "local/echo", **more})
    assert made["userErrors"] == [], made
    return made["bot"]


def is_alive(pid: int) -> bool:
    """The process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def left_of(bot: dict[str, Any]) -> list[int]:
    """Processes that carry the bot's marker."""
    marker = f"CLAWNET_BOT_ID={bot['databaseId']}".encode()
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if marker in entry.read_bytes().split(b"\0") and is_alive(int(entry.parent.name)):
                found.append(int(entry.parent.name))
    return found


async def live(api: Api, base_url: str, patience: float) -> dict[str, Any]:
    """create → start → ACTIVE → it answers → kill -9 → `bot:error` → ACTIVE again → stop → nothing left."""
    await make_provider(api, base_url)
    bot = await make_bot(api, systemPrompt="You are Hana.")
    assert bot["status"] == "INACTIVE"
    async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
        assert (await anext(heard))["kind"] == "CURRENT"
        started = await api.run(docs.BOT_START, input={"botId": bot["id"], "wait": False})
        assert started["userErrors"] == [], started
        active = await heard.until(lambda e: e["kind"] == "STARTED", patience)
        assert active["status"] == "ACTIVE"
        assert active["event"] == "bot:started"
        assert active["port"]
        assert is_alive(active["pid"])
        said = await api.run(docs.MESSAGE_SEND, input={"botId": bot["id"], "text": "Good morning"})
        assert said["userErrors"] == [], said
        assert "Good morning" in said["reply"]["text"]
        os.kill(active["pid"], signal.SIGKILL)
        error = await heard.until(lambda e: e["event"] == "bot:error", patience)
        assert error["status"] == "BACKOFF"
        assert error["reason"] == "CRASHED"
        assert error["exitSignal"] == "SIGKILL"
        again = await heard.until(lambda e: e["kind"] == "STARTED", patience)
        assert again["pid"] != active["pid"]
        stopped = await api.run(docs.BOT_STOP, input={"botId": bot["id"]})
        assert stopped["bot"]["status"] == "INACTIVE"
        assert stopped["bot"]["gateway"] is None
        gone = await heard.until(lambda e: e["kind"] == "STOPPED", patience)
        assert gone["status"] == "INACTIVE"
        assert left_of(bot) == []
    return bot
