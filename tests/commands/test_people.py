"""People and tokens from the command line, beside a running server and on its own."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from app.db.engine import DB
from tests.graphql.people import Caller, code, heard, house, opened
from tests.graphql.test_people import PASSWORD, SIGN_IN, TOKEN, VIEWER, account, closed_with, signed_in
from tests.harness import REPO, environ


class Clawnet:
    """The `clawnet` command, with one installation's settings."""

    def __init__(self, wanted: dict[str, str]) -> None:
        self._environ = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **wanted}

    async def __call__(self, *arguments: str, types: str = "", status: int = 0) -> str:
        """What it printed; what it complains of where it fails."""

        def run() -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "app", *arguments]
            return subprocess.run(command, cwd=REPO, env=self._environ, input=types, capture_output=True, text=True)

        done = await anyio.to_thread.run_sync(run)
        assert done.returncode == status, done
        assert "Traceback" not in done.stderr, done.stderr
        return done.stderr if status else done.stdout


def secret_in(text: str) -> str:
    (found,) = re.findall(r"cn_p_[a-z2-7]{12}_\S{49}", text)
    return found


async def test_a_lost_administrator_gets_in_again(database: dict[str, Any], tmp_path: Path) -> None:
    clawnet = Clawnet(environ(tmp_path, database, None))
    async with house(database, tmp_path) as api:
        me = (await api.run(VIEWER))["id"]
        (row,) = await DB.fetch("SELECT id FROM app_user")
        await DB.fetch("UPDATE access_token SET revoked_at = now()")
        await DB.fetch("UPDATE app_user SET disabled_at = now()")
        assert await api.run(VIEWER) is None
        again = api.signed_in(secret_in(await clawnet("users", "reset")))
        assert (await again.run(VIEWER)) == {"id": me, "name": "Administrator", "email": None, "role": "ADMIN"}
        # A password needs an address to go with it.
        await clawnet("users", "password", str(row["id"]), types=f"{PASSWORD}\n")
        await clawnet("users", "email", str(row["id"]), "root@example.com")
        assert (await (await signed_in(api, "Root")).run(VIEWER))["id"] == me
        made = await clawnet("users", "add", "ada@example.com", "--role", "admin", types=f"{PASSWORD}\n")
        assert "ada@example.com: admin" in made
        await signed_in(api, "Ada")
        await clawnet("users", "password", "ADA@example.com", types="another horse battery\n")
        await signed_in(api, "Ada", "another horse battery")
        assert str(row["id"]) in await clawnet("users", "list")


async def test_what_the_command_line_takes_away_a_running_server_notices(
    database: dict[str, Any], tmp_path: Path
) -> None:
    clawnet = Clawnet(environ(tmp_path, database, None))
    async with house(database, tmp_path) as api:
        await account(api)
        mia = await signed_in(api)
        made = await mia.run(TOKEN, input={"name": "ci", "scopes": ["FLEET_READ"]})
        program = api.signed_in(made["secret"])
        async with opened(mia) as one, opened(program) as two:
            await heard(one)
            await heard(two)
            assert made["accessToken"]["hint"].removeprefix("cn_p_") in await clawnet(
                "tokens", "list", "mia@example.com"
            )
            await clawnet("tokens", "revoke", made["secret"])
            with anyio.fail_after(3):
                assert await closed_with(two) == 4401
            await clawnet("users", "disable", "mia@example.com")
            with anyio.fail_after(3):
                assert await closed_with(one) == 4401
        await clawnet("users", "enable", "mia@example.com")
        await clawnet("users", "role", "mia@example.com", "observer")
        assert (await (await signed_in(api)).run(VIEWER))["role"] == "OBSERVER"
        rows = await DB.fetch("SELECT action FROM audit_entry WHERE address LIKE 'command line%' ORDER BY id")
        assert [row["action"] for row in rows] == ["accessTokenRevoke", "userUpdate", "userUpdate", "userUpdate"]


async def test_a_token_for_a_program_is_made_and_works(database: dict[str, Any], tmp_path: Path) -> None:
    clawnet = Clawnet(environ(tmp_path, database, None))
    async with house(database, tmp_path) as api:
        await account(api)
        text = await clawnet("tokens", "create", "mia@example.com", "--name", "ci", "--scope", "fleet_read")
        program = api.signed_in(secret_in(text))
        assert (await program.run("{ bots { totalCount } }"))["totalCount"] == 0
        create = ("tokens", "create", "mia@example.com", "--name", "x", "--scope")
        assert "there is no scope 'fly'" in await clawnet(*create, "fly", status=1)
        assert "not for a member" in await clawnet(*create, "admin", status=1)
        for days in ("0", "-1", "36501", "99999999999", "x"):
            assert "from 1 to 36500" in await clawnet(*create, "fleet_read", "--days", days, status=2), days
        assert "nobody 'eve@example.com'" in await clawnet("users", "disable", "eve@example.com", status=1)
        assert "no id of a token" in await clawnet("tokens", "revoke", "x", status=1)
        assert "nobody has such an address" in await clawnet("users", "disable", "\udcff", status=1)
        # The secret at hand is what people paste; what was wrong with it is said without it.
        unknown = "Bearer " + (program.token or "").replace("cn_p_", "cn_p_a", 1)
        assert program.token is not None
        assert program.token[17:] not in await clawnet("tokens", "revoke", unknown, status=1)


async def test_without_a_terminal_or_a_line_of_input_no_password_is_made_up(
    database: dict[str, Any], tmp_path: Path
) -> None:
    wanted = environ(tmp_path, database, None)
    command = f"{sys.executable} -m app users add leo@example.com <&-"
    environment = {"PATH": os.environ["PATH"], **wanted}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(["sh", "-c", command], cwd=REPO, env=environment, capture_output=True, text=True)

    done = await anyio.to_thread.run_sync(run)
    assert (done.returncode, "a password is needed" in done.stderr, "Traceback" in done.stderr) == (1, True, False)


async def test_accounts_can_be_made_before_the_first_start(database: dict[str, Any], tmp_path: Path) -> None:
    clawnet = Clawnet(environ(tmp_path, database, None))
    refused = await clawnet("users", "add", "leo@example.com", types="short\n", status=1)
    assert "at least 12" in refused
    await clawnet("users", "add", "leo@example.com", types=f"{PASSWORD}\n")
    assert "another person has this address" in await clawnet(
        "users", "add", "LEO@example.com", types=f"{PASSWORD}\n", status=1
    )
    async with house(database, tmp_path) as api:
        # There is a person, and still nobody who may administrate: the first start makes one.
        assert (await api.run(VIEWER))["role"] == "ADMIN"
        await signed_in(api, "Leo")
        wrong: Caller = api.signed_in(None)
        assert code(await wrong.run(SIGN_IN, input={"email": "leo@example.com", "password": "x" * 12})) is not None
        assert "last administrator" in await clawnet("users", "disable", (await _first())["id"], status=1)


async def _first() -> dict[str, str]:
    (row,) = await DB.fetch("SELECT id::text FROM app_user WHERE role = 'ADMIN'")
    return row
