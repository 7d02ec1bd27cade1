"""How long a sign-in takes must not tell whether somebody has an account."""

import random
import statistics
from pathlib import Path
from time import perf_counter
from typing import Any

from tests.graphql.people import code, house
from tests.graphql.test_people import SIGN_IN, UPDATE, account

#: Tries in all, in random order. The figure is the issue's.
TRIES = 500
#: Part of a median that the others may differ by: above the noise of many tries on a busy machine, and far below the
#: hash that all of them wait for, which is nearly all of it.
TOLERANCE = 0.1


async def test_known_unknown_and_disabled_people_wait_as_long(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path, CLAWNET_RATE_SIGN_IN="0", CLAWNET_RATE_MUTATION="0") as api:
        await account(api, "Mia")
        gus = await account(api, "Gus")
        await api.run(UPDATE, input={"userId": gus["id"], "disabled": True})
        took: dict[str, list[float]] = {"mia": [], "gus": [], "nobody": []}
        order = [who for who in took for _ in range(TRIES // len(took) + 1)][:TRIES]
        random.Random(4).shuffle(order)
        nobody = api.signed_in(None)
        for who in order:
            begun = perf_counter()
            answer = await nobody.run(SIGN_IN, input={"email": f"{who}@example.com", "password": "wrong horse battery"})
            took[who].append(perf_counter() - begun)
            assert code(answer) == "CREDENTIALS_REFUSED"
        medians = {who: statistics.median(times) for who, times in took.items()}
        assert max(medians.values()) < min(medians.values()) * (1 + TOLERANCE), medians
