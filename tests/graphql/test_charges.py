"""What a minute's allowance pays for, over HTTP and over sockets, and what is said when it is used up."""

import asyncio
import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from tests.conftest import administrator
from tests.graphql.people import Caller, first, heard, house, opened, person
from tests.harness import PATIENCE
from tests.journeys import documents as docs
from tests.journeys import story

LEFT = "{ rateLimit { cost limit remaining used resetAt } }"
#: Costs 1 + 20 * 1.
PAGE = "{ bots { nodes { id } } }"
STOP = 'botStop(input: {botId: "x"}) { userErrors { code } }'
CHANGE = f"mutation {{ {STOP} }}"
#: A page of bots with all that one may hold: 1 + 100 * 6.
DEAR = "bots(first: 100) { edges { node { owner { id } gateway { pid } config { revision } restartPolicy { mode } } } }"


def several(count: int, field: str, kind: str = "query") -> str:
    """One operation that asks for the same several times."""
    return f"{kind} {{ " + " ".join(f"a{number}: {field}" for number in range(count)) + " }"


async def post(api: Caller, query: Any, **body: Any) -> httpx.Response:
    return await api.http.post(f"{api.url}/graphql", json={"query": query, **body}, headers=api.headers)


async def used(api: Caller) -> int:
    """What the caller has used, without this question."""
    found = await api.run(LEFT)
    return found["used"] - found["cost"]


async def until_limited(api: Caller, query: str, most: int = 500) -> tuple[int, httpx.Response]:
    """How often it was answered before it was refused, and the refusal."""
    for number in range(most):
        answer = await post(api, query)
        if answer.status_code == 429:
            return number, answer
    raise AssertionError(f"never refused in {most} tries")


async def test_a_caller_sees_what_is_left_of_the_minute(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        mia = await person(api, "Mia")
        found = await mia.run(LEFT)
        assert (found["cost"], found["limit"], found["used"], found["remaining"]) == (1, 6_000, 1, 5_999)
        await mia.run("{ bots(first: 100) { nodes { id owner { id } } } }")
        found = await mia.run("{ rateLimit { cost used remaining resetAt } }")
        # It fills by 100 a second meanwhile.
        assert 0 < found["used"] <= 203
        assert found["used"] + found["remaining"] == 6_000
        assert -5 < (datetime.fromisoformat(found["resetAt"]) - datetime.now(UTC)).total_seconds() <= 60
        both = await mia.ask("{ rateLimit { cost } bots(first: 10) { nodes { id } } }")
        assert both["data"]["rateLimit"] == {"cost": 12}


async def test_each_person_has_an_allowance_and_each_address_one_for_strangers(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path, CLAWNET_RATE_QUERY="60") as api:
        mia, sven = await person(api, "Mia"), await person(api, "Sven")
        times, refusal = await until_limited(mia, PAGE)
        assert 2 <= times <= 4
        (error,) = refusal.json()["errors"]
        assert error["extensions"]["code"] == "RATE_LIMITED"
        assert error["extensions"]["requestId"]
        assert refusal.json()["data"] is None
        wait = error["extensions"]["retryAfterMs"]
        assert 0 < wait <= 60_000
        assert (wait + 999) // 1000 == int(refusal.headers["retry-after"])
        assert error["message"].startswith("this costs 21 of the 60 you may use in a minute; try again in ")
        # Another token of the same person has no allowance of its own; another person has, and so has nobody.
        assert (await post(sven, PAGE)).status_code == 200
        assert (await post(api.signed_in(None), "{ serverInfo { version } }")).status_code == 200
        times, _ = await until_limited(api.signed_in(None), "{ serverInfo { version } }", 200)
        assert times >= 55
        times, _ = await until_limited(api.signed_in("cn_p_nonsense"), "{ serverInfo { version } }", 200)
        assert times <= 5
        assert (await post(sven, PAGE)).status_code == 200


async def test_mutations_are_counted_one_by_one_and_their_answers_as_queries(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path, CLAWNET_RATE_MUTATION="12") as api:
        mia = await person(api, "Mia")
        five = several(5, STOP, "mutation")
        assert "errors" not in await mia.ask(five)
        assert "errors" not in await mia.ask(five)
        refusal = await post(mia, five)
        assert refusal.status_code == 429
        assert refusal.json()["errors"][0]["message"].startswith("you may send 12 mutations in a minute, and this")
        # Two are left, and of the queries' allowance only what the answers hold was taken.
        assert "errors" not in await mia.ask(CHANGE)
        assert await used(mia) <= 2 * 5 + 2
        assert (await post(mia, PAGE)).status_code == 200


async def test_what_no_allowance_could_pay_is_refused_for_good(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path, CLAWNET_RATE_QUERY="50", CLAWNET_RATE_MUTATION="2") as api:
        mia = await person(api, "Mia")
        answer = await post(mia, "{ bots(first: 100) { nodes { id } } }")
        (error,) = answer.json()["errors"]
        assert (answer.status_code, error["extensions"]["code"]) == (200, "QUERY_TOO_COMPLEX")
        assert error["message"] == "the operation costs 101 units; at most 50 are allowed"
        assert "retryAfterMs" not in error["extensions"]
        three = several(3, STOP, "mutation")
        (error,) = (await mia.ask(three))["errors"]
        assert error["message"] == "the operation costs 3 mutations; at most 2 are allowed"


async def test_no_operation_costs_more_than_five_thousand(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path, CLAWNET_RATE_QUERY="0") as api:
        assert "errors" not in await api.ask(several(8, DEAR))
        (error,) = (await api.ask(several(9, DEAR)))["errors"]
        assert error["extensions"]["code"] == "QUERY_TOO_COMPLEX"
        assert error["message"] == "the operation costs 5409 units; at most 5000 are allowed"


FAULTY: dict[str, dict[str, Any]] = {
    "no GraphQL": {"query": "{ viewer {"},
    "unknown field": {"query": "{ nothing }"},
    "too deep": {"query": "{ a { " * 12 + "b" + " } }" * 12},
    "too dear": {"query": several(15, DEAR)},
    "no such operation": {"query": "query A { viewer { id } }", "operationName": "B"},
    "no query": {"query": ""},
    "a subscription": {"query": "subscription { botStatus { kind } }"},
}


@pytest.mark.parametrize("name", FAULTY)
async def test_what_cannot_run_costs_one_and_is_refused_in_the_end(
    database: dict[str, Any], tmp_path: Path, name: str
) -> None:
    async with house(database, tmp_path, CLAWNET_RATE_QUERY="10") as api:
        mia, body = await person(api, "Mia"), FAULTY[name]
        answers = [await post(mia, **body) for _ in range(10)]
        assert {answer.status_code for answer in answers} <= {200, 400}
        assert "RATE_LIMITED" not in "".join(answer.text for answer in answers)
        # One fills in 6 s, within which some may have been let through.
        for _ in range(10):
            answer = await post(mia, **body)
            if answer.status_code == 429:
                break
        assert answer.json()["errors"][0]["extensions"]["code"] == "RATE_LIMITED"
        assert int(answer.headers["retry-after"]) in range(1, 7)


async def test_sockets_pay_from_the_same_allowance(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path, CLAWNET_RATE_QUERY="60") as api:
        mia = await person(api, "Mia")
        async with opened(mia) as socket:
            assert await heard(socket) == {"type": "connection_ack"}

            async def ask(number: int, query: str) -> dict[str, Any]:
                body = {"query": query}
                await socket.send(json.dumps({"id": str(number), "type": "subscribe", "payload": body}))
                while True:
                    message = await heard(socket)
                    if message["type"] != "complete":
                        return message

            # Ordinary answers, then one `error` message each; the socket stays.
            answers = [await ask(number, PAGE) for number in range(6)]
            kinds = [message["type"] for message in answers]
            assert kinds[:2] == ["next", "next"]
            assert kinds[-1] == "error"
            (error,) = answers[-1]["payload"]
            assert error["extensions"]["code"] == "RATE_LIMITED"
            assert error["extensions"]["retryAfterMs"] > 0
            assert (await post(mia, PAGE)).status_code == 429
            faults = [await ask(number, "{ nothing }") for number in range(100, 170)]
            assert faults[-1]["payload"][0]["extensions"]["code"] == "RATE_LIMITED"
            await socket.send(json.dumps({"type": "ping"}))
            with suppress(AssertionError):
                while (await heard(socket))["type"] != "pong":
                    continue


async def test_a_subscription_pays_once_for_all_it_says(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path, CLAWNET_RATE_QUERY="60") as api:
        mia = await person(api, "Mia")
        bot = await story.make_bot(mia, model="local/echo")
        async with mia.listen(docs.BOT_STATUS, ids=[bot["id"]]) as events:
            await anext(events)
            before = await used(mia)
            for number in range(5):
                assert (await story_update(mia, bot["id"], f"Bot {number}"))["userErrors"] == []
                await anext(events)
            # Each change answers with one bot of its own.
            assert await used(mia) <= before + 5 * 2
        refused = await until_refused_subscription(mia, bot["id"])
        assert refused["errors"][0]["extensions"]["code"] == "RATE_LIMITED"


async def story_update(api: Caller, bot_id: str, name: str) -> dict[str, Any]:
    document = "mutation($i: BotUpdateInput!) { botUpdate(input: $i) { userErrors { code } } }"
    return await api.run(document, i={"botId": bot_id, "name": name})


async def until_refused_subscription(api: Caller, bot_id: str) -> dict[str, Any]:
    for _ in range(100):
        answer = await first(api, docs.BOT_STATUS, ids=[bot_id])
        if "errors" in answer:
            return answer
    raise AssertionError("never refused")


async def test_without_limits_nobody_counts(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path, CLAWNET_RATE_QUERY="0", CLAWNET_RATE_MUTATION="0") as api:
        assert await api.run("{ rateLimit { limit } }") is None
        answers = await asyncio.gather(*[post(api, PAGE) for _ in range(40)], *[post(api, CHANGE) for _ in range(40)])
        assert {answer.status_code for answer in answers} == {200}


SIGN_IN = "mutation($i: SignInInput!) { signIn(input: $i) { userErrors { code } } }"


async def test_a_refused_sign_in_says_when_to_come_again(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path, CLAWNET_RATE_SIGN_IN="2", CLAWNET_RATE_MUTATION="0") as api:
        nobody = api.signed_in(None)
        given = {"i": {"email": "nobody@example.com", "password": "a wrong one, surely"}}
        for _ in range(2):
            assert (await nobody.run(SIGN_IN, **given))["userErrors"][0]["code"] == "CREDENTIALS_REFUSED"
        answer = await post(nobody, SIGN_IN, variables=given)
        (error,) = answer.json()["errors"]
        assert (answer.status_code, error["extensions"]["code"]) == (429, "RATE_LIMITED")
        assert 0 < error["extensions"]["retryAfterMs"] <= 30_000
        assert int(answer.headers["retry-after"]) == -(-error["extensions"]["retryAfterMs"] // 1000)


async def test_what_needs_no_database_is_answered_without_one_also_to_who_is_signed_in(
    postgres: dict[str, Any], database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path, CLAWNET_RATE_QUERY="60") as api, administrator(postgres) as admin:
        name = database["database"]
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        with anyio.fail_after(PATIENCE):
            while (await api.http.get(f"{api.url}/readyz")).status_code != 503:
                await anyio.sleep(0.02)
        assert (await api.run("{ serverInfo { version } }"))["version"]
        assert (await api.ask(PAGE))["errors"][0]["extensions"]["code"] == "UNAVAILABLE"
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        with anyio.fail_after(PATIENCE):
            while (await api.http.get(f"{api.url}/readyz")).status_code != 200:
                await anyio.sleep(0.02)


async def test_an_operation_is_charged_that_is_named_among_others(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        several_ = "query A { rateLimit { cost } } query B { rateLimit { cost } bots(first: 5) { nodes { id } } }"
        for name, cost in (("A", 1), ("B", 7), (None, 1)):
            answer = (await post(api, several_, operationName=name)).json()
            assert answer["data"]["rateLimit"] == {"cost": cost}, name
        for document in ("query A { rateLimit { cost } }", "{ rateLimit { cost } }", several_):
            answer = await post(api, document, operationName="")
            assert "INTERNAL" not in answer.text
            assert answer.status_code in (200, 400)
