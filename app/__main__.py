"""The `clawnet` command."""

import argparse
import asyncio
import errno
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

import anyio

from app import __version__

if TYPE_CHECKING:
    from app.settings import Settings

#: Exit status for settings that do not fit, as OpenClaw itself uses it (EX_CONFIG).
EX_CONFIG = 78
#: Exit status after Ctrl-C, as shells count it.
EX_INTERRUPTED = 128 + signal.SIGINT
#: Longest life of a token that has an end, in days.
MOST_DAYS = 36_500
#: Seconds bots have to end after Ctrl-C at a terminal.
TERMINAL_GRACE = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="clawnet", description="A control plane for fleets of OpenClaw bots.")
    parser.add_argument("--version", action="version", version=f"clawnet {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    serve_ = commands.add_parser("serve", help="run the server: database, supervisor and API")
    serve_.add_argument("--no-openclaw", action="store_true", help="do not install OpenClaw when none is found")
    commands.add_parser("migrate", help="bring the database up to date and stop")
    schema_ = commands.add_parser("schema", help="print the GraphQL schema, or write it to a file")
    schema_.add_argument("path", nargs="?", help="file to write")
    openclaw_ = commands.add_parser("openclaw", help="install a version of OpenClaw into the cache folder")
    openclaw_.add_argument("version")
    _add_backup(commands)
    _add_people(commands)
    _add_keys(commands)
    _add_channels(commands)
    arguments = parser.parse_args()
    sys.exit(_run(arguments))


def _add_backup(commands: Any) -> None:
    source = "file with the passphrase in its first line; else CLAWNET_BACKUP_PASSPHRASE_FILE, else asked for"
    backup = commands.add_parser("backup", help="write database and key into one encrypted file, while servers run")
    backup.add_argument("file", help="where the archive is put")
    backup.add_argument("--force", action="store_true", help="replace a file that is there")
    restore = commands.add_parser("restore", help="put an archive in the place of database and key; servers stopped")
    restore.add_argument("file", help="the archive")
    restore.add_argument("--replace", action="store_true", help="also where an installation is; it is kept beside")
    restore.add_argument("--stopped", action="store_true", help="let no bot run: for a copy beside a living original")
    looks = restore.add_mutually_exclusive_group()
    looks.add_argument("--show-manifest", action="store_true", help="only say what is in the archive")
    looks.add_argument("--write-key", metavar="PATH", help="only write the archive's master key into a new file")
    for command in (backup, restore):
        command.add_argument("--passphrase-file", metavar="PATH", help=source)


def _add_people(commands: Any) -> None:
    who = "e-mail address or id of a person"
    users = commands.add_parser("users", help="list people, add one, shut one out, let a lost administrator in again")
    deeds = users.add_subparsers(dest="deed", required=True)
    deeds.add_parser("list", help="everyone with an account")
    add = deeds.add_parser("add", help="make an account; asks for its first password")
    add.add_argument("email", help="address for signing in")
    add.add_argument("--name", help="name shown to people; the part before @ when absent")
    add.add_argument("--role", choices=("admin", "member", "observer"), default="member")
    add.add_argument("--no-password", action="store_true", help="print a token instead of asking for a password")
    for deed, help_ in (
        ("password", "set a password, and end the person's sign-ins"),
        ("disable", "shut a person out, tokens and open sockets included"),
        ("enable", "let a person in again"),
    ):
        deeds.add_parser(deed, help=help_).add_argument("who", help=who)
    email = deeds.add_parser("email", help="change the address a person signs in with")
    email.add_argument("who", help=who)
    email.add_argument("email")
    role = deeds.add_parser("role", help="change what a person may do")
    role.add_argument("who", help=who)
    role.add_argument("role", choices=("admin", "member", "observer"))
    reset = deeds.add_parser("reset", help="let a lost administrator in again: prints a token that works for a day")
    reset.add_argument("who", nargs="?", help=f"{who}; the first administrator when absent")
    tokens = commands.add_parser("tokens", help="list, make and revoke access tokens")
    deeds = tokens.add_subparsers(dest="deed", required=True)
    deeds.add_parser("list", help="tokens that work").add_argument("who", nargs="?", help=f"{who}; all when absent")
    create = deeds.add_parser("create", help="make a token for a program")
    create.add_argument("who", help=who)
    create.add_argument("--name", required=True, help="what it is for")
    create.add_argument("--scope", action="append", required=True, help="what it may do, for example fleet_read; again")
    life = create.add_mutually_exclusive_group()
    life.add_argument("--days", type=_days, default=90, metavar="DAYS", help="days it works (90)")
    life.add_argument("--never-ends", action="store_true", help="let it work until it is revoked")
    deeds.add_parser("revoke", help="end a token and close its sockets").add_argument(
        "token", help="its id, as `clawnet tokens list` shows it"
    )


def _add_channels(commands: Any) -> None:
    channels = commands.add_parser("channels", help="link a channel to an account by a code that a phone scans")
    login = channels.add_subparsers(dest="deed", required=True).add_parser(
        "login", help="show codes until one is scanned (WhatsApp); on the machine where the bot runs"
    )
    login.add_argument("channel", help="id of the channel, as the API shows it")


def _add_keys(commands: Any) -> None:
    keys = commands.add_parser("keys", help="change the keys that secrets are encrypted with, and look after them")
    deeds = keys.add_subparsers(dest="deed", required=True)
    rotate = deeds.add_parser("rotate", help="encrypt every secret with a new key, or carry on where that was cut off")
    rotate.add_argument("--reason", help="why, for the audit trail")
    deeds.add_parser("rekey", help="take ENCRYPTION_KEY in place of ENCRYPTION_KEY_PREVIOUS; no secret is touched")
    deeds.add_parser("verify", help="open every secret; exit status 1 where one cannot be")
    deeds.add_parser("status", help="the keys, and how many secrets need each")
    prune = deeds.add_parser(
        "prune", help="delete old keys that nothing needs any more; rows out of older backups cannot be opened then"
    )
    prune.add_argument("--days", type=_days, default=30, metavar="DAYS", help="days since their last use (30)")


def _days(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:6]) <= MOST_DAYS:
        raise argparse.ArgumentTypeError(f"expected a number of days from 1 to {MOST_DAYS}")
    return int(text)


def _run(arguments: argparse.Namespace) -> int:
    # Imported here, so that `--help` and a wrong option answer at once.
    from app.domain.errors import ClawNetError, SettingsError  # noqa: PLC0415
    from app.settings import require_linux  # noqa: PLC0415

    try:
        require_linux()
        match arguments.command:
            case "serve":
                return anyio.run(_serve, not arguments.no_openclaw)
            case "migrate":
                return anyio.run(_migrate)
            case "backup" | "restore":
                from app.commands import backup  # noqa: PLC0415

                return backup.run(arguments)
            case "users" | "tokens":
                return anyio.run(_people, arguments)
            case "keys":
                return anyio.run(_keys, arguments)
            case "channels":
                return anyio.run(_channels, arguments)
            case "schema":
                return _schema(arguments.path)
            case _:
                return anyio.run(_install, arguments.version)
    except SettingsError as error:
        print(f"clawnet: {error}", file=sys.stderr)
        return EX_CONFIG
    except ClawNetError as error:
        print(f"clawnet: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", flush=True)
        return 0 if arguments.command == "serve" else EX_INTERRUPTED


def _say(line: str) -> None:
    print(f"  {line}", flush=True)


async def _serve(with_openclaw: bool) -> int:
    from app import log, server, settings  # noqa: PLC0415
    from app.http.front import Front  # noqa: PLC0415
    from app.main import running  # noqa: PLC0415

    wanted = settings.take(os.environ)
    log.configure(wanted.clawnet_log_format, wanted.clawnet_log_level)
    print(f"ClawNet {__version__}", flush=True)
    for warning in wanted.warnings:
        _say(f"warning: {warning}")
    with _listen(wanted) as listener:
        front = Front()
        served = server.Server(front, wanted)

        def say(line: str) -> None:
            front.step = line
            _say(line)

        starting = asyncio.current_task()
        assert starting is not None
        serving = asyncio.create_task(served.serve(sockets=[listener]))
        # A signal while everything still starts ends the start, in order: what has been started is stopped again.

        def end_start(_: object) -> None:
            if not served.is_open:
                starting.cancel()

        serving.add_done_callback(end_start)
        budget = TERMINAL_GRACE if sys.stdin.isatty() else None
        try:
            async with running(wanted, say, with_openclaw=with_openclaw, stop_budget=budget) as up:
                served.opens(up)
                _welcome(up.first_token, listener.getsockname())
                await serving
                print("stopping …", flush=True)
        except asyncio.CancelledError:
            if not serving.done():
                raise
        finally:
            # What went wrong is the news; this end of serving is our own.
            serving.remove_done_callback(end_start)
            served.should_exit = True
            await serving
    print("stopped", flush=True)
    return 0


def _listen(wanted: "Settings") -> socket.socket:
    from app import server  # noqa: PLC0415
    from app.domain.errors import SettingsError  # noqa: PLC0415

    try:
        return server.bind(wanted)
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise SettingsError(
                f"CLAWNET_HOST is {wanted.clawnet_host!r}, which is no address of this machine ({_why(error)}); "
                "expected one, for example 127.0.0.1"
            ) from error
        raise SettingsError(
            f"CLAWNET_PORT is {wanted.clawnet_port}, which cannot be used on {wanted.clawnet_host} ({_why(error)}); "
            "expected a free port, or 0 for any"
        ) from error


def _why(error: OSError) -> str:
    # Python adds the address, which the sentence has said.
    return (error.strerror or str(error)).split(" (while", 1)[0]


def _welcome(token: str | None, address: tuple[str, int]) -> None:
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    if token is not None:
        _say("administrator: this token is shown only once, keep it:")
        print(f"\n    {token}\n", flush=True)
    _say(f"ready: http://{host}:{address[1]}/playground")


async def _migrate() -> int:
    from app import settings  # noqa: PLC0415
    from app.foundations import database, protect  # noqa: PLC0415

    protect()
    async with database(settings.take(os.environ), _say):
        return 0


async def _people(arguments: argparse.Namespace) -> int:
    from app.commands import people  # noqa: PLC0415

    return await people.run(arguments)


async def _keys(arguments: argparse.Namespace) -> int:
    from app.commands import keys  # noqa: PLC0415

    return await keys.run(arguments)


async def _channels(arguments: argparse.Namespace) -> int:
    from app.commands import channels  # noqa: PLC0415

    return await channels.run(arguments)


async def _install(version: str) -> int:
    from app import settings  # noqa: PLC0415
    from app.gateway import install  # noqa: PLC0415

    found = await install.ensure(version, settings.load(os.environ).clawnet_cache_dir, _say)
    _say(f"OpenClaw {found.version}: {found.entry}")
    return 0


def _schema(path: str | None) -> int:
    from pathlib import Path  # noqa: PLC0415

    from app.graphql import schema  # noqa: PLC0415

    if path is None:
        print(schema.text(), end="")
    else:
        Path(path).write_text(schema.text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    main()
