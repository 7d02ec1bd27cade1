"""What one server takes away, another one on the same database stops serving."""

from pathlib import Path
from typing import Any

import anyio

from tests.graphql.people import Caller, first, heard, house, opened
from tests.graphql.test_people import REVOKE, TOKEN, UPDATE, account, closed_with, signed_in
from tests.harness import environ, serve


async def test_sockets_at_another_server_are_closed_within_three_seconds(
    database: dict[str, Any], tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    async with house(database, tmp_path) as api:
        made = await account(api)
        mia = await signed_in(api)
        token = await mia.run(TOKEN, input={"name": "ci", "scopes": ["FLEET_READ"]})
        with await anyio.to_thread.run_sync(serve, environ(elsewhere, database, None, CLAWNET_NODE="other")) as other:
            there = Caller(other.url, mia.token)
            program = there.signed_in(token["secret"])
            async with opened(there) as one, opened(program) as two:
                await heard(one)
                await heard(two)
                await mia.run(REVOKE, input={"accessTokenId": token["accessToken"]["id"]})
                with anyio.fail_after(3):
                    assert await closed_with(two) == 4401
                await api.run(UPDATE, input={"userId": made["id"], "disabled": True})
                with anyio.fail_after(3):
                    assert await closed_with(one) == 4401
            refused = await first(program, "subscription { botStatus { kind } }")
            assert refused["errors"][0]["extensions"]["code"] == "4403"
            await there.http.aclose()
