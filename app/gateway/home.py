"""A bot's home: its folders, what its process is started with, its persona, its last words. Its end: `trash.py`.

The agent can write everywhere in its home, so every name in it may have become a link to somewhere else: folders are
opened without following links, and what lies in the place of one of ours is refused, not used.
"""

import hashlib
import os
import re
import stat
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import UUID

from app.domain.errors import SpawnFailed
from app.domain.states import Reason
from app.gateway import files
from app.gateway.config import write_in
from app.gateway.openclaw import Installation, search_path

#: Ours within a home. The rest is OpenClaw's.
FOLDERS = ("run", "logs", "workspace", "tmp", "home")
#: Bytes of the log's end, and lines of it, in which a reason is looked for.
LAST_BYTES, LAST_LINES = 65_536, 40
#: Larger than this, a persona file was not written by a person, and is left alone.
PERSONA_MAX = 1_048_576

#: A configuration on its way: to be checked, or to be put in its file's place.
_LEFTOVER = re.compile(r"\.?candidate-[0-9a-f]+\.json5(?:\.[0-9a-f]+)?|\.config(?:\.good)?\.json5\.[0-9a-f]+")

_BEGIN, _END = "<!-- clawnet: written anew when the bot's system prompt changes -->", "<!-- clawnet: end -->"
_BLOCK = re.compile(re.escape(_BEGIN) + r".*?" + re.escape(_END) + r"\n?", re.DOTALL)
#: AGENTS.md is also read by helpers of the agent that do not read SOUL.md.
_AGENTS = "Who you are and how you work stands in SOUL.md in this folder. Read it and keep to it."


def environment(home: Path, installation: Installation, bot_id: UUID, nonce: str) -> dict[str, str]:
    """Everything the gateway finds in its environment; nothing of ours is inherited."""
    return {
        "PATH": search_path(installation.node),
        "HOME": str(home / "home"),
        "TMPDIR": str(home / "tmp"),
        "LANG": "C.UTF-8",
        "NO_COLOR": "1",
        "OPENCLAW_CONFIG_PATH": str(home / "config.json5"),
        "OPENCLAW_STATE_DIR": str(home),
        "OPENCLAW_CONFIG_READONLY": "1",
        "OPENCLAW_NO_RESPAWN": "1",
        "OPENCLAW_DISABLE_BONJOUR": "1",
        "CLAWNET_BOT_ID": str(bot_id),
        "CLAWNET_NONCE": nonce,
    }


def argv(installation: Installation, port: int) -> list[str]:
    """The command line; the configuration's place is in the environment."""
    return [*installation.argv_prefix, "gateway", "run", "--port", str(port)]


def make(home: Path) -> None:
    """Creates the home and its folders, for us alone, whatever the umask.

    Raises:
        SpawnFailed: A link or a file stands in the place of a folder, or it belongs to somebody else.
    """
    home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        home.mkdir(mode=0o700)
    with opened(home) as folder:
        for name in FOLDERS:
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=folder)
            with opened(Path(name), folder):
                pass
    sweep(home)


def sweep(home: Path) -> None:
    """Removes configurations, secrets and all, that a kill left half written or half checked.

    Raises:
        SpawnFailed: A link or a file stands in the place of a folder.
    """
    with opened(home) as base, opened(Path("run"), base) as run:
        for folder in (base, run):
            with os.scandir(folder) as entries:
                names = [entry.name for entry in entries]
            for name in filter(_LEFTOVER.fullmatch, names):
                with suppress(OSError):  # The agent may have made a folder of that name.
                    os.unlink(name, dir_fd=folder)


@contextmanager
def opened(path: Path, within: int | None = None) -> Generator[int]:
    """A folder of ours, held open, that is no link; it is closed to others if it was not."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        folder = os.open(path, flags, dir_fd=within)
    except OSError as error:
        raise SpawnFailed(f"{path} in the bot's home is not a folder of its own ({error.strerror}).") from error
    try:
        seen = os.fstat(folder)
        if seen.st_uid != os.geteuid():
            raise SpawnFailed(f"{path} in the bot's home belongs to user {seen.st_uid}, not to ClawNet's.")
        if stat.S_IMODE(seen.st_mode) != 0o700:
            os.fchmod(folder, 0o700)
        yield folder
    finally:
        os.close(folder)


def write_persona(home: Path, system_prompt: str) -> None:
    """Puts the system prompt where OpenClaw reads it at the start of each session.

    What the agent wrote around it stays, and what it changed in it stays until our text changes.

    Raises:
        SpawnFailed: The workspace is no folder of the bot's own any more.
    """
    prompt = system_prompt.strip()
    fingerprint = hashlib.sha256(prompt.encode(errors="surrogatepass")).hexdigest()
    with opened(home) as base, opened(Path("run"), base) as run, opened(Path("workspace"), base) as workspace:
        is_there = not prompt or _read(workspace, "SOUL.md") is not None
        if is_there and _read(run, "persona.sha256") == fingerprint:
            return
        _put(workspace, "SOUL.md", prompt)
        _put(workspace, "AGENTS.md", _AGENTS if prompt else "")
        write_in(run, "persona.sha256", fingerprint)


def _put(folder: int, name: str, text: str) -> None:
    before = _read(folder, name) or ""
    others = _BLOCK.sub("", before).strip("\n")
    # The text cannot end its own block early.
    ours = f"{_BEGIN}\n{text.replace(_END, '')}\n{_END}" if text else ""
    after = "\n\n".join(part for part in (ours, others) if part)
    if after.strip() != before.strip():
        write_in(folder, name, after + "\n")


def _read(folder: int, name: str) -> str | None:
    """A regular file's text; nothing where there is none, or a link, or a pipe, or more than a person writes."""
    try:
        found = files.read(name, PERSONA_MAX, folder)
    except OSError:
        return None
    return None if found is None else found.decode(errors="replace")


def last_words(home: Path) -> list[str]:
    """The last lines the gateway wrote, without time and colour; for looking for a reason, not for showing as they are.

    stdout carries what the agent says as well: hand on what `refusal_in` makes of them, or redact.
    """
    try:
        with opened(home) as base, opened(Path("logs"), base) as logs:
            text = files.end_of("bot.log", LAST_BYTES, logs).decode(errors="replace")
    except (SpawnFailed, OSError):
        return []
    lines = (_plain(line) for line in text.splitlines())
    return [line for line in lines if line][-LAST_LINES:]


_ENVELOPE = re.compile(r"^\d{10,16} [OE] ?")
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def _plain(line: str) -> str:
    return _CONTROL.sub("", _ENVELOPE.sub("", line)).rstrip()


_STAMP = re.compile(r"^\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:\d\d) ")
#: What stands before a path in new OpenClaw's list of problems: `config.json5:8 — `; in old's: `- `.
_BULLET = re.compile(r"^(?:\S+\.json5?:\d+ — |[-×] )")
_INVALID = re.compile(r"Invalid config at |^Config invalid$|^Problem:$")
_AFTER_PROBLEMS = re.compile(r"^$|^Run:? |^If startup is still blocked|doctor --fix")
_BLOCKED = re.compile(r"Gateway start blocked: (.+?)\. |^(Invalid --bind\.)|(Missing env var .+)")
_PORT = re.compile(r"Port \d+ is already in use|already listening on ws:|EADDRINUSE")
_NODE = re.compile(r"requires Node\b|node:sqlite is unavailable|nsupported Node|Node(?:\.js)? .* is not supported")
_LOCK = re.compile(r"GatewayLockError|[Gg]ateway already running|lock timeout")


def refusal_in(lines: Sequence[str]) -> tuple[Reason, str] | None:
    """Why a gateway that never became ready refused to run, if its last lines say so in words known to us.

    Exit codes do not tell: old OpenClaw ends with 1 for everything, new with 78 for configuration and locks alike.
    New quotes the refused value, so take the bot's secrets out of the sentence (`config.hide`).
    """
    plain = [_STAMP.sub("", line).strip() for line in lines]
    if any(map(_NODE.search, plain)):
        return Reason.BINARY_MISSING, "The installed OpenClaw does not accept the Node it was started with."
    if any(map(_LOCK.search, plain)):
        return Reason.SPAWN_FAILED, "Another process works in this bot's home and holds its lock."
    if problems := _problems(plain):
        return Reason.CONFIG_INVALID, f"OpenClaw refuses the configuration: {'; '.join(problems)}"
    if any(map(_PORT.search, plain)):
        return Reason.PORT_IN_USE, "Another program listens on the bot's port."
    return None


def _problems(lines: Sequence[str]) -> list[str]:
    """The problems of the last list of them, or the one that blocked the start."""
    headings = [number for number, line in enumerate(lines) if _INVALID.search(line)]
    if headings:
        found: list[str] = []
        for line in lines[headings[-1] + 1 :]:
            if _AFTER_PROBLEMS.search(line):
                break
            found.append(_BULLET.sub("", line))
        return found or ["no reason was given"]
    blocked = [match for line in lines if (match := _BLOCKED.search(line))]
    return [next(part for part in blocked[-1].groups() if part)] if blocked else []
