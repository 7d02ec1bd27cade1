"""Whatever a bot puts in the place of its own files, it is stopped, started again and deleted like any other."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from tests import fake_openclaw
from tests.graphql.people import house
from tests.journeys import documents as docs
from tests.journeys import story
from tests.supervisor.test_delete import DELETE

#: Seconds for everything below; a thread that waits for a pipe waits for ever.
ENOUGH = 90


def link(path: Path) -> None:
    large(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def large(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 30)


@pytest.mark.parametrize("make", [os.mkfifo, link, large])
async def test_a_bot_that_spoils_its_home_is_in_nobody_s_way(
    database: dict[str, Any], tmp_path: Path, make: Callable[[Path], None]
) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw")

    def spoil(*others: str) -> None:
        for name in ("config.json5", "config.good.json5", "logs/bot.log", "run/persona.sha256", *others):
            path = tmp_path / "data/openclaw/bots/hana" / name
            path.unlink(missing_ok=True)
            path.with_name("elsewhere").unlink(missing_ok=True)
            make(path)

    async with house(database, tmp_path, wrapper, CLAWNET_STOP_GRACE="1") as api:
        bot = await story.make_bot(api)
        with anyio.fail_after(ENOUGH):
            async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
                started = await api.run(docs.BOT_START, input={"botId": bot["id"]})
                spoil()
                os.kill(started["bot"]["gateway"]["pid"], signal.SIGKILL)
                await heard.until(lambda e: e["status"] == "BACKOFF")
                await heard.until(lambda e: e["kind"] == "STARTED")
            spoil()
            stopped = await api.run(docs.BOT_STOP, input={"botId": bot["id"], "graceSeconds": 1})
            assert stopped["bot"]["status"] == "INACTIVE"
            assert (await api.run(docs.BOT_START, input={"botId": bot["id"]}))["bot"]["status"] == "ACTIVE"
            # Not before: the gateway itself would wait for a reader of such a log.
            spoil("logs/gateway.log", "run/state.json", "run/exit.json")
            assert (await api.run(DELETE, input={"botId": bot["id"]}))["userErrors"] == []
        assert story.left_of(bot) == []
        assert anyio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
