"""What is installed in a home for its channels: once for a version, by OpenClaw's own command, and refused in time."""

import json
import os
import shutil
import sqlite3
import stat
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import pytest

from app.domain.errors import PluginMissing
from app.domain.states import PluginStep
from app.gateway import home, npm, openclaw, plugins, process
from app.gateway.plugins import Plugin, Plugins
from tests import fake_openclaw
from tests.gateway.planted import FENCED, plant, seen
from tests.journeys.story import is_alive

NEW, NEWER = "2026.9.6", "2026.9.7"
DISCORD = {"channels": {"discord": {"enabled": True}}}
BOTH = {"channels": {"discord": {"enabled": True}, "slack": {"enabled": True}}}


async def made(folder: Path, version: str = NEW, **faults: Any) -> tuple[Plugins, Path, Path]:
    """The plugins of a stand-in for OpenClaw, its wrapper, and a home."""
    wrapper = fake_openclaw.install(folder / version, version, **faults)
    found = await openclaw.find(str(wrapper), version, folder / "cache")
    assert found is not None
    bot = folder / "hana"
    home.make(bot)
    return Plugins(found, folder / "cache"), wrapper, bot


async def install(known: Plugins, bot: Path, plugin: Plugin, steps: list[PluginStep] | None = None) -> None:
    async def tell(step: PluginStep, megabytes: int) -> None:
        if steps is not None:
            steps.append(step)

    await known.install(plugin, bot, uuid4(), tell)


def is_at_home(run: dict[str, Any]) -> bool:
    """It installs into a bot's home, from what was brought into the cache before."""
    return run["words"][0] == "install" and "npm_config_offline" in run["environ"]


async def quiet(step: PluginStep, megabytes: int) -> None:
    pass


async def test_a_plugin_is_installed_once_and_then_costs_no_process(tmp_path: Path) -> None:
    known, wrapper, bot = await made(tmp_path)
    (discord,) = await known.missing(bot, DISCORD)
    assert discord == Plugin("discord", "Discord", "@openclaw/discord", NEW)
    steps: list[PluginStep] = []
    await install(known, bot, discord, steps)
    assert steps == [PluginStep.ASKING, PluginStep.DOWNLOADING, PluginStep.INSTALLING]
    runs = len(fake_openclaw.npm_runs(wrapper))
    assert await known.missing(bot, DISCORD) == []
    assert fake_openclaw.installed(wrapper, "hana") == [f"@openclaw/discord@{NEW}"]
    assert len(fake_openclaw.npm_runs(wrapper)) == runs
    # The bot's own configuration is another file, and nothing of the run is left beside the downloads.
    assert not (bot / "config.json5").exists()
    assert [path.name for path in (tmp_path / "cache" / "npm").iterdir() if path.name != "cache"] == []


async def test_another_version_of_openclaw_has_its_plugins_installed_anew(tmp_path: Path) -> None:
    known, _, bot = await made(tmp_path)
    await install(known, bot, *await known.missing(bot, DISCORD))
    newer, wrapper, _ = await made(tmp_path, NEWER)
    (discord,) = await newer.missing(bot, DISCORD)
    assert discord.spec == f"@openclaw/discord@{NEWER}"
    await install(newer, bot, discord)
    assert await newer.missing(bot, DISCORD) == []
    assert fake_openclaw.installed(wrapper, "hana") == [f"@openclaw/discord@{NEWER}"]


async def test_a_package_with_a_version_of_its_own_belongs_to_the_openclaw_that_installed_it(tmp_path: Path) -> None:
    qq = {"channels": {"qqbot": {"enabled": True}}}
    known, _, bot = await made(tmp_path)
    (package,) = known.wanted(qq)
    assert not package.is_official
    await install(known, bot, package)
    assert await known.missing(bot, qq) == []
    newer, _, _ = await made(tmp_path, NEWER)
    assert await newer.missing(bot, qq) == [package]


@pytest.mark.parametrize("gone", ["package", "record", "note"])
async def test_what_was_taken_away_is_installed_again(gone: str, tmp_path: Path) -> None:
    known, _, bot = await made(tmp_path)
    (discord,) = await known.missing(bot, DISCORD)
    await install(known, bot, discord)
    if gone == "package":
        shutil.rmtree(bot / "npm" / "projects" / "discord")
    elif gone == "note":
        (bot / "run" / "plugins.json").unlink()
    else:
        with sqlite3.connect(bot / "state" / "openclaw.sqlite") as store:
            store.execute("DELETE FROM config_machine_state")
    assert await known.missing(bot, DISCORD) == [discord]
    await install(known, bot, discord)
    assert await known.missing(bot, DISCORD) == []


async def test_a_record_that_cannot_be_read_leaves_the_files_to_tell(tmp_path: Path) -> None:
    known, _, bot = await made(tmp_path)
    (discord,) = await known.missing(bot, DISCORD)
    await install(known, bot, discord)
    with sqlite3.connect(bot / "state" / "openclaw.sqlite") as store:
        store.execute("ALTER TABLE config_machine_state RENAME TO elsewhere")
    assert await known.missing(bot, DISCORD) == []
    shutil.rmtree(bot / "npm" / "projects" / "discord")
    assert await known.missing(bot, DISCORD) == [discord]


async def test_a_bot_cannot_have_a_pipe_or_a_link_read_in_a_plugins_place(tmp_path: Path) -> None:
    known, _, bot = await made(tmp_path)
    (discord,) = await known.missing(bot, DISCORD)
    await install(known, bot, discord)
    package = bot / "npm" / "projects" / "discord" / "node_modules" / "@openclaw" / "discord" / "package.json"
    package.unlink()
    os.mkfifo(package)
    with anyio.fail_after(10):
        assert await known.missing(bot, DISCORD) == [discord]
    package.unlink()
    package.symlink_to("/dev/zero")
    with anyio.fail_after(10):
        assert await known.missing(bot, DISCORD) == [discord]


async def test_what_needs_no_plugin_asks_for_none(tmp_path: Path) -> None:
    known, _, bot = await made(tmp_path)
    off = {"channels": {"telegram": {"enabled": True}, "discord": {"enabled": False}, "nonsense": {}}}
    assert await known.missing(bot, off) == []
    assert await known.missing(bot, {}) == []
    old, _, _ = await made(tmp_path, "2026.2.1")
    assert await old.missing(bot, BOTH) == []
    assert [plugin.provider for plugin in await known.missing(bot, BOTH)] == ["discord", "slack"]


@pytest.mark.parametrize(
    ("registry", "why"),
    [
        ("refused", "npm's registry cannot be reached from this server"),
        ("lacks", "npm's registry does not have it"),
        ("silent", "npm's registry cannot be reached from this server"),
    ],
)
async def test_a_registry_that_is_no_help_is_told_in_one_sentence(
    registry: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if registry == "silent":
        monkeypatch.setattr(plugins, "ASK_BUDGET", 1.0)
    known, wrapper, bot = await made(tmp_path, registry=registry)
    (discord,) = await known.missing(bot, DISCORD)
    with anyio.fail_after(20), pytest.raises(PluginMissing) as refused:
        await install(known, bot, discord)
    assert str(refused.value) == f"Discord's plugin (@openclaw/discord@{NEW}) cannot be installed: {why}."
    assert refused.value.provider == "discord"
    # OpenClaw itself was not even asked, and nobody waits on.
    assert fake_openclaw.installed(wrapper, "hana") == []
    assert [run["words"][0] for run in fake_openclaw.npm_runs(wrapper)] == ["view"]
    assert not any(is_alive(run["pid"]) for run in fake_openclaw.npm_runs(wrapper))
    assert await known.missing(bot, DISCORD) == [discord]


async def test_an_installation_that_is_cut_short_leaves_no_process_and_counts_for_nothing(tmp_path: Path) -> None:
    known, wrapper, bot = await made(tmp_path, npm_install_s=60.0)
    (discord,) = await known.missing(bot, DISCORD)
    bot_id = uuid4()
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(known.install, discord, bot, bot_id, quiet)
            while not any(is_at_home(run) for run in fake_openclaw.npm_runs(wrapper)):
                await anyio.sleep(0.02)
            assert len(await process.strays(str(bot_id))) >= 2
            tasks.cancel_scope.cancel()
    assert await process.strays(str(bot_id)) == []
    assert list((bot / "npm" / "projects").iterdir()) == []
    assert await known.missing(bot, DISCORD) == [discord]
    fake_openclaw.clear_faults(wrapper)
    await install(known, bot, discord)
    assert await known.missing(bot, DISCORD) == []


async def test_a_download_leaves_the_home_of_a_running_bot_alone(tmp_path: Path) -> None:
    known, wrapper, bot = await made(tmp_path)
    (discord,) = await known.missing(bot, DISCORD)
    await known.download(discord, quiet)
    assert [run["words"][0] for run in fake_openclaw.npm_runs(wrapper)] == ["view", "install"]
    assert "--ignore-scripts" in fake_openclaw.npm_runs(wrapper)[1]["words"]
    assert await known.missing(bot, DISCORD) == [discord]
    assert not (bot / "npm").exists()


async def test_npm_is_told_its_own_settings_and_no_secret_of_the_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENCRYPTION_KEY", "a-secret-of-the-server")
    monkeypatch.setenv("NPM_TOKEN", "a-secret-of-npms")
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9/registry")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9/proxy")
    monkeypatch.setenv("NODE_EXTRA_CA_CERTS", "/etc/a-certificate.pem")
    known, wrapper, bot = await made(tmp_path)
    await install(known, bot, *await known.missing(bot, DISCORD))
    runs = [run["environ"] for run in fake_openclaw.npm_runs(wrapper)]
    ours = [told for told in runs if "npm_config_offline" not in told]
    assert len(ours) == 3
    for told in ours:
        assert told["NPM_CONFIG_REGISTRY"] == "http://127.0.0.1:9/registry"
        assert told["HTTPS_PROXY"] == "http://127.0.0.1:9/proxy"
        assert told["NODE_EXTRA_CA_CERTS"] == "/etc/a-certificate.pem"
        assert told["npm_config_userconfig"] == str(Path.home() / ".npmrc")
        assert not Path(told["HOME"]).is_relative_to(bot)
    theirs = [told for told in runs if "npm_config_offline" in told]
    assert len(theirs) == 2
    for told in theirs:
        # A bot's own code may run there.
        assert told.keys().isdisjoint({"NPM_TOKEN", "NPM_CONFIG_REGISTRY", "HTTPS_PROXY"})
        assert told["npm_config_userconfig"] != str(Path.home() / ".npmrc")
        assert Path(told["npm_config_userconfig"]).is_relative_to(tmp_path / "cache" / "npm")
    for told in runs:
        assert "a-secret-of-the-server" not in json.dumps(told)
        assert told["npm_config_cache"] == str(tmp_path / "cache" / "npm" / "cache")
    gateway = home.environment(bot, known._installation, uuid4(), "nonce")  # pyright: ignore[reportPrivateUsage]
    assert not gateway.keys() & {"NPM_CONFIG_REGISTRY", "HTTPS_PROXY", "npm_config_cache", "npm_config_userconfig"}


async def test_a_bot_s_own_code_runs_without_privileges_and_sees_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NPM_TOKEN", "a-secret-of-npms")
    known, wrapper, bot = await made(tmp_path)
    (discord,) = await known.missing(bot, DISCORD)
    plant(bot)
    await install(known, bot, discord)
    told = seen(bot)
    # OpenClaw's command, and the npm that it starts.
    assert {one["program"] for one in told} == {str(wrapper), str(wrapper.parent / "npm")}
    assert all(one["fence"] == FENCED for one in told)
    assert "a-secret-of-npms" not in json.dumps(told)


async def test_a_package_that_one_bot_needed_is_there_for_the_next(tmp_path: Path) -> None:
    known, wrapper, bot = await made(tmp_path)
    (discord,) = await known.missing(bot, DISCORD)
    await install(known, bot, discord)
    home.make(tmp_path / "bela")
    fake_openclaw.set_faults(wrapper, registry="refused")
    steps: list[PluginStep] = []
    await install(known, tmp_path / "bela", discord, steps)
    assert steps == [PluginStep.INSTALLING]


@pytest.mark.parametrize("folder", ["npm", "npm/projects", "state"])
async def test_nothing_is_installed_through_a_link(folder: str, tmp_path: Path) -> None:
    known, wrapper, bot = await made(tmp_path)
    (discord,) = await known.missing(bot, DISCORD)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (bot / folder).parent.mkdir(exist_ok=True)
    (bot / folder).symlink_to(foreign)
    with pytest.raises(PluginMissing, match=f"{Path(folder).name} in the bot's home is not a folder of its own"):
        await install(known, bot, discord)
    assert list(foreign.iterdir()) == []
    assert fake_openclaw.npm_runs(wrapper) == []


async def test_a_pipe_in_the_place_of_a_bot_s_environment_holds_up_nobody(tmp_path: Path) -> None:
    known, _, bot = await made(tmp_path)
    (discord,) = await known.missing(bot, DISCORD)
    os.mkfifo(bot / ".env")
    with anyio.fail_after(20), pytest.raises(PluginMissing, match=r"\.env in the bot's home is no plain file"):
        await install(known, bot, discord)


async def test_what_the_system_refuses_is_told_in_one_sentence(tmp_path: Path) -> None:
    known, _, bot = await made(tmp_path)
    (discord,) = await known.missing(bot, DISCORD)
    (tmp_path / "cache").write_text("no folder")
    for act in (known.download(discord, quiet), install(known, bot, discord)):
        with pytest.raises(PluginMissing, match=r"the server's system refuses it \(.+\)\.$"):
            await act


@pytest.mark.parametrize("place", ["\0", "\ud800", "a" * 5000, "home/../../outside", "loop"])
async def test_a_record_of_any_place_counts_only_within_the_home(place: str, tmp_path: Path) -> None:
    known, _, bot = await made(tmp_path)
    (discord,) = await known.missing(bot, DISCORD)
    await install(known, bot, discord)
    shutil.move(bot / "npm" / "projects" / "discord" / "node_modules" / "@openclaw" / "discord", tmp_path / "outside")
    (bot / "loop").symlink_to("loop")
    records = {"discord": {"resolvedName": discord.package, "installPath": f"{bot}/{place}"}}
    with sqlite3.connect(bot / "state" / "openclaw.sqlite") as store:
        said = json.dumps({"index": {"installRecords": records}})
        store.execute("UPDATE config_machine_state SET value_json = ?", (said,))
    assert await known.missing(bot, DISCORD) == [discord]
    # The same words are believed of what lies in the home.
    shutil.move(tmp_path / "outside", bot / "inside")
    records["discord"]["installPath"] = f"{bot}/home/../inside"
    with sqlite3.connect(bot / "state" / "openclaw.sqlite") as store:
        said = json.dumps({"index": {"installRecords": records}})
        store.execute("UPDATE config_machine_state SET value_json = ?", (said,))
    assert await known.missing(bot, DISCORD) == []


async def test_what_a_killed_server_left_is_swept(tmp_path: Path) -> None:
    known, _, bot = await made(tmp_path)
    left = tmp_path / "cache" / "npm" / "run-4194305-x"
    left.mkdir(parents=True)
    await install(known, bot, *await known.missing(bot, DISCORD))
    assert not left.exists()
    assert stat.S_IMODE((bot / "run" / "plugins.json").stat().st_mode) == 0o600


def test_a_setting_that_somebody_gives_npm_wins_however_it_is_written() -> None:
    told = npm.environment({"NPM_CONFIG_CACHE": "/elsewhere", "HOME": "/home/ada", "PATH": "/bin"}, Path("/cache"))
    assert told["NPM_CONFIG_CACHE"] == "/elsewhere"
    assert "npm_config_cache" not in told
    assert told["npm_config_userconfig"] == "/home/ada/.npmrc"
    assert told.keys().isdisjoint({"HOME", "PATH"})


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("ENOTFOUND", "npm's registry cannot be reached from this server"),
        ("ERR_SOCKET_TIMEOUT", "npm's registry cannot be reached from this server"),
        ("E503", "npm's registry cannot be reached from this server"),
        ("ETARGET", "npm's registry does not have it"),
        ("E403", "npm's registry does not let this server in"),
        ("SELF_SIGNED_CERT_IN_CHAIN", "npm's registry shows a certificate that this server does not trust"),
        ("UNABLE_TO_GET_ISSUER_CERT_LOCALLY", "npm's registry shows a certificate that this server does not trust"),
        ("ENOSPC", "the disk is full"),
        ("EINTEGRITY", "npm failed (EINTEGRITY)"),
    ],
)
def test_npm_s_codes_are_said_in_words(code: str, why: str) -> None:
    assert npm.why(f"npm error code {code}\nnpm error request to http://me:secret@host/x failed") == why
    assert npm.why(json.dumps({"error": {"code": code}}, indent=2)) == why


def test_the_cache_is_asked_by_the_registries_names_and_nothing_else_is_handed_on() -> None:
    said = {
        "cache": "/x",
        "registry": "http://in.example/npm/",
        "@acme:registry": "http://acme.example/",
        "email": "a@b",
    }
    written = npm.registries("npm warn something\n" + json.dumps(said, indent=2) + "\n")
    assert written == 'registry="http://in.example/npm/"\n@acme:registry="http://acme.example/"\n'
    assert npm.registries("no JSON at all") == ""
    assert npm.cache_of(npm.environment({"NPM_CONFIG_CACHE": "/elsewhere"}, Path("/cache"))) == "/elsewhere"


def test_words_without_a_code_are_kept_to_ourselves() -> None:
    assert npm.why("a stack trace of /srv/secret") == "npm failed"
