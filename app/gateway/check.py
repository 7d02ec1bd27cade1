"""Asks the installed OpenClaw's own rules whether it would accept a configuration, before a bot is started with it."""

import hashlib
import json
import os
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any, cast

import anyio
import structlog
from anyio import to_thread
from anyio.abc import Process

from app.domain.errors import ConfigInvalid, SpawnFailed
from app.gateway import config as configs
from app.gateway import fenced
from app.gateway.config import Dialect
from app.gateway.openclaw import Installation, plain_environment

#: Seconds one check may take; it usually takes one or two.
CHECK_BUDGET = 60
#: Checks at a time: each is a Node process that keeps a core busy.
AT_ONCE = 2
#: Configurations whose answer is remembered.
REMEMBERED = 1_000
#: Reasons that are shown, and characters of each.
REASONS, REASON_LENGTH = 5, 300
#: Reasons that are remembered of one configuration.
REASONS_KEPT = 50
#: More output than any answer has; the rest is not read.
OUTPUT_MAX = 1_048_576
#: Grows when a Dialect learns to say more, so that older notes are not believed.
DIALECT_FORMAT = 2

#: Parts of a configuration that tell how one thing is said, by the Dialect's name for it.
PARTS = {
    "catalog_refresh": "models",
    "direct_peers": "bindings",
    "flat_dm_policy": "direct",
    "streaming_object": "streaming",
}

VALIDATE = Path(__file__).with_name("validate.mjs")

log = structlog.get_logger()


class Unchecked(Exception):
    """There is no answer."""


class Checker:
    """Checks configurations with one installation's rules and remembers the answers."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._limiter = anyio.CapacityLimiter(AT_ONCE)
        self._answers: OrderedDict[str, Sequence[tuple[str, str]]] = OrderedDict()

    async def check(self, config: dict[str, Any], home: Path) -> None:
        """Returns when the configuration is accepted, or when there are no rules to ask.

        Raises:
            ConfigInvalid: It is refused; the message holds OpenClaw's own reasons, without any secret.
        """
        if known := _sentence(await self.issues(config, home)):
            raise ConfigInvalid(known)

    async def issues(self, config: dict[str, Any], home: Path) -> Sequence[tuple[str, str]]:
        """Each refused path with OpenClaw's own reason, without any secret; nothing where there are no rules to ask."""
        digest = configs.digest(config)
        if (known := self._answers.get(digest)) is None:
            try:
                async with self._limiter:
                    found = await _ask(self._installation, config, home)
            except Unchecked as error:
                # Nothing to remember: a process may have been killed, and the next one has an answer.
                log.warning("config_unchecked", openclaw=self._installation.version, why=str(error))
                return ()
            known = self._remember(digest, _shown(found, config))
        return known

    def _remember(self, digest: str, answer: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
        self._answers[digest] = answer
        if len(self._answers) > REMEMBERED:
            self._answers.popitem(last=False)
        return answer


def _shown(issues: Sequence[tuple[str, str]], config: dict[str, Any]) -> Sequence[tuple[str, str]]:
    """OpenClaw quotes refused values, so secrets are taken out."""
    shown = [(configs.hide(path, config), " ".join(configs.hide(why, config).split())) for path, why in issues]
    return tuple(shown[:REASONS_KEPT])


def _sentence(issues: Sequence[tuple[str, str]]) -> str:
    """Nothing for an accepted configuration."""
    reasons = [(f"{path}: {message}" if path else message)[:REASON_LENGTH] for path, message in issues[:REASONS]]
    more = f" (and {len(issues) - REASONS} more)" if len(issues) > REASONS else ""
    return f"OpenClaw refuses the configuration: {'; '.join(reasons)}{more}" if reasons else ""


async def _ask(installation: Installation, config: dict[str, Any], home: Path) -> list[tuple[str, str]]:
    """Each refused path with its reason; nothing when it is accepted."""
    try:
        await to_thread.run_sync(fenced.check_environment, home)
    except SpawnFailed as error:
        raise Unchecked(str(error)) from error
    if (root := installation.package_root) and (root / "dist" / "config" / "validation.js").is_file():
        assert installation.node is not None, "a package is run by a Node"
        argv = [str(installation.node), str(VALIDATE), str(root)]
        return _issues(await _output(argv, _environment(installation, home), config))
    candidate = await to_thread.run_sync(_write_candidate, home, config)
    try:
        argv = [*installation.argv_prefix, "config", "validate", "--json"]
        environment = _environment(installation, home) | {"OPENCLAW_CONFIG_PATH": str(candidate)}
        return _issues(await _output(argv, environment, None))
    finally:
        with suppress(OSError):
            candidate.unlink()


def _environment(installation: Installation, home: Path) -> dict[str, str]:
    """As the bot's own: which plugins are installed, and with them which channels are known, is the home's."""
    plain = plain_environment(installation.node, str(home / "home"))
    return plain | {"TMPDIR": str(home / "tmp"), "OPENCLAW_STATE_DIR": str(home)}


def _write_candidate(home: Path, config: dict[str, Any]) -> Path:
    candidate = home / "run" / f"candidate-{os.urandom(8).hex()}.json5"
    try:
        configs.write(candidate, configs.to_text(config))
    except OSError as error:
        raise Unchecked(f"no candidate file could be written: {error.strerror}") from error
    return candidate


def _issues(output: str) -> list[tuple[str, str]]:
    answer = _last_object(output)
    verdict = answer.get("valid", answer.get("ok"))
    if verdict is True:
        return []
    found = answer.get("issues")
    if verdict is not False or not isinstance(found, list):
        raise Unchecked("the installed OpenClaw cannot check a configuration")
    issues = [cast("dict[str, Any]", each) for each in cast("list[Any]", found) if isinstance(each, dict)]
    pairs = [(str(each.get("path") or ""), str(each.get("message") or "refused")) for each in issues]
    return pairs or [("", "refused, and no reason was given")]


def _last_object(output: str) -> dict[str, Any]:
    """The JSON object at the end; plugins and warnings may have written before it."""
    start = len(output)
    while (start := output.rfind("{", 0, start)) >= 0:
        if start == 0 or output[start - 1] == "\n":
            with suppress(ValueError):
                found = json.loads(output[start:])
                return cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    return {}


async def _output(argv: list[str], environment: dict[str, str], config: dict[str, Any] | None) -> str:
    said = configs.to_text(config).encode() if config is not None else None
    try:
        # OpenClaw reads a file of the bot's for its own environment, and plugins: it may run the bot's code.
        async with fenced.started(argv, environment, stdin=DEVNULL if said is None else PIPE, stdout=PIPE) as process:
            with anyio.fail_after(CHECK_BUDGET):
                return await _communicate(process, said or b"")
    except TimeoutError as error:
        raise Unchecked(f"no answer within {CHECK_BUDGET} s") from error
    except OSError as error:
        raise Unchecked(f"{argv[0]} does not run: {error.strerror}") from error


async def _communicate(process: Process, said: bytes) -> str:
    output = bytearray()
    async with anyio.create_task_group() as group:

        async def speak() -> None:
            if process.stdin:
                with suppress(anyio.BrokenResourceError):
                    await process.stdin.send(said)
                await process.stdin.aclose()

        group.start_soon(speak)
        assert process.stdout is not None
        async for part in process.stdout:
            output += part[: OUTPUT_MAX - len(output)]
    await process.wait()
    return output.decode(errors="replace")


async def dialect(installation: Installation, cache_dir: Path) -> Dialect:
    """How this installation wants things said: asked of its own rules once, then remembered in the cache folder."""
    note = cache_dir / "dialects" / f"{installation.version}-{_fingerprint(installation)}.json"
    known = await to_thread.run_sync(_noted, note)
    if known is None:
        known = await _asked(installation)
        await to_thread.run_sync(_note, note, known)
    return known


def _fingerprint(installation: Installation) -> str:
    marks = [str(DIALECT_FORMAT), str(installation.entry)]
    with suppress(OSError):
        marks.append(str(installation.entry.stat().st_mtime_ns))
    return hashlib.sha256("\0".join(marks).encode()).hexdigest()[:16]


def _noted(note: Path) -> Dialect | None:
    try:
        return Dialect(**json.loads(note.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _note(note: Path, known: Dialect) -> None:
    # It is only a note: without it the question is asked again.
    with suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        values = {name: getattr(known, name) for name in Dialect.__dataclass_fields__}
        configs.write(note, json.dumps(values))


async def _asked(installation: Installation) -> Dialect:
    """First everything the new way, which one answer settles; else feature by feature."""
    new = Dialect(True, True, True, True, True)
    try:
        with tempfile.TemporaryDirectory(prefix="clawnet-") as folder:
            home = Path(folder)
            for name in ("run", "home", "tmp", "workspace"):
                (home / name).mkdir()
            if await _accepts(installation, home, new, *PARTS.values()):
                return new
            old = Dialect(await _accepts(installation, home, new), False, False, False, False)
            said = {
                name: await _accepts(installation, home, replace(old, **{name: True}), part)
                for name, part in PARTS.items()
            }
            return replace(old, **said)
    except Unchecked:
        return by_version(installation.version)


async def _accepts(installation: Installation, home: Path, said: Dialect, *parts: str) -> bool:
    return not await _ask(installation, _tiny(home, said, parts), home)


def _tiny(home: Path, said: Dialect, parts: Sequence[str]) -> dict[str, Any]:
    agent = {"workspace": str(home / "workspace")}
    tiny: dict[str, Any] = {
        "gateway": {"mode": "local"},
        "agents": {"entries": {"a": agent}} if said.agents_entries else {"list": [{"id": "a", **agent}]},
    }
    if "models" in parts:
        tiny["models"] = {"catalogRefresh": {"enabled": False}}
    if "bindings" in parts:
        match = {"channel": "telegram", "accountId": "*", "peer": {"kind": "direct", "id": "1"}}
        tiny["bindings"] = [{"agentId": "a", "match": match}]
    if "direct" in parts:
        tiny.setdefault("channels", {})["discord"] = {"dmPolicy": "pairing"}
    if "streaming" in parts:
        tiny.setdefault("channels", {})["telegram"] = {"streaming": {"mode": "off"}}
    return tiny


def by_version(version: str) -> Dialect:
    """A guess for an OpenClaw that cannot be asked: the two versions that are known, and what lies between."""
    numbers = [int(part) for part in version.split("-", maxsplit=1)[0].split(".") if part.isdigit()]
    is_new = numbers >= [2026, 9]
    return Dialect(is_new, is_new, numbers >= [2026, 3], is_new, is_new)
