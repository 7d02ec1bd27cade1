"""The database goes away for a while: bots run on, listeners wait, and nothing is lost."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from tests import fake_openclaw
from tests.conftest import administrator
from tests.harness import Api, environ, running_server
from tests.journeys import documents as docs
from tests.journeys import story


async def ready(api: Api) -> int:
    return (await api.http.get(f"{api.url}/readyz")).status_code


async def test_a_death_during_an_outage_is_heard_of_afterwards_on_the_same_subscription(
    postgres: dict[str, Any], database: dict[str, Any], tmp_path: Path
) -> None:
    name = database["database"]
    wrapper = fake_openclaw.install(tmp_path / "openclaw")
    async with running_server(environ(tmp_path, database, wrapper)) as api, administrator(postgres) as admin:
        await story.make_provider(api, "http://127.0.0.1:9/v1")
        bot = await story.make_bot(api)
        pid = (await api.run(docs.BOT_START, input={"botId": bot["id"]}))["bot"]["gateway"]["pid"]
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            assert (await anext(heard))["status"] == "ACTIVE"
            await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
            await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
            async with asyncio.timeout(20):
                while await ready(api) != 503:
                    await asyncio.sleep(0.05)
            os.kill(pid, signal.SIGKILL)
            refused = await api.ask("{ bots { totalCount } }")
            assert refused["errors"][0]["extensions"]["code"] == "UNAVAILABLE", refused
            await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
            error = await heard.until(lambda e: e["event"] == "bot:error")
            assert (error["reason"], error["exitSignal"]) == ("CRASHED", "SIGKILL")
            await heard.until(lambda e: e["kind"] == "STARTED")
    assert fake_openclaw.violations(wrapper) == []


async def test_a_database_that_became_read_only_ends_nobody(
    postgres: dict[str, Any], database: dict[str, Any], tmp_path: Path
) -> None:
    name = database["database"]
    wrapper = fake_openclaw.install(tmp_path / "openclaw")
    async with running_server(environ(tmp_path, database, wrapper)) as api, administrator(postgres) as admin:
        await story.make_provider(api, "http://127.0.0.1:9/v1")
        bot = await story.make_bot(api)
        pid = (await api.run(docs.BOT_START, input={"botId": bot["id"]}))["bot"]["gateway"]["pid"]
        # As a failover leaves the old primary.
        await admin.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        async with asyncio.timeout(20):
            while await ready(api) != 503:
                await asyncio.sleep(0.05)
        assert story.is_alive(pid)
        await admin.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = off')
        await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        async with asyncio.timeout(20):
            while await ready(api) != 200:
                await asyncio.sleep(0.05)
        assert (await api.run(docs.BOT_STOP, input={"botId": bot["id"]}))["bot"]["status"] == "INACTIVE"
