import os
import stat
from pathlib import Path
from uuid import uuid4

import pytest

from app.domain.errors import SpawnFailed
from app.domain.states import Reason
from app.gateway import home
from app.gateway.openclaw import Installation
from app.gateway.start_cache import _copy_into  # pyright: ignore[reportPrivateUsage]


@pytest.fixture
def bot(tmp_path: Path) -> Path:
    made = tmp_path / "bots" / "hana"
    home.make(made)
    return made


def test_a_home_is_closed_to_others_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        home.make(tmp_path / "bots" / "hana")
    finally:
        os.umask(before)
    for folder in (tmp_path / "bots" / "hana", *(tmp_path / "bots" / "hana" / name for name in home.FOLDERS)):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_home_that_was_opened_to_others_is_closed_again(bot: Path) -> None:
    bot.chmod(0o755)
    (bot / "workspace").chmod(0o777)
    home.make(bot)
    assert stat.S_IMODE(bot.stat().st_mode) == stat.S_IMODE((bot / "workspace").stat().st_mode) == 0o700


@pytest.mark.parametrize("name", home.FOLDERS)
def test_a_link_in_a_folders_place_is_refused(bot: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o755)
    (bot / name).rmdir()
    (bot / name).symlink_to(outside)
    with pytest.raises(SpawnFailed, match=name):
        home.make(bot)
    assert stat.S_IMODE(outside.stat().st_mode) == 0o755


def test_a_home_that_is_itself_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "hana").symlink_to(tmp_path / "outside")
    with pytest.raises(SpawnFailed):
        home.make(tmp_path / "hana")
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_file_in_a_folders_place_is_refused(bot: Path) -> None:
    (bot / "run").rmdir()
    (bot / "run").write_text("")
    with pytest.raises(SpawnFailed, match="run"):
        home.make(bot)


def test_the_environment_is_complete_and_inherits_nothing(bot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENCRYPTION_KEY", "secret")
    installed = Installation("1.2.3", Path("/o/openclaw.mjs"), ("/n/node", "/o/openclaw.mjs"), Path("/n/node"), None)
    bot_id = uuid4()
    environment = home.environment(bot, installed, bot_id, "nonce")
    assert environment.pop("PATH").split(":")[0] == "/n"
    assert environment == {
        "HOME": f"{bot}/home",
        "TMPDIR": f"{bot}/tmp",
        "LANG": "C.UTF-8",
        "NO_COLOR": "1",
        "OPENCLAW_CONFIG_PATH": f"{bot}/config.json5",
        "OPENCLAW_STATE_DIR": str(bot),
        "OPENCLAW_CONFIG_READONLY": "1",
        "OPENCLAW_NO_RESPAWN": "1",
        "OPENCLAW_DISABLE_BONJOUR": "1",
        "CLAWNET_BOT_ID": str(bot_id),
        "CLAWNET_NONCE": "nonce",
    }
    assert home.argv(installed, 20001) == ["/n/node", "/o/openclaw.mjs", "gateway", "run", "--port", "20001"]


def test_the_prompt_stands_in_the_persona_and_the_agents_additions_stay(bot: Path) -> None:
    soul = bot / "workspace" / "SOUL.md"
    home.write_persona(bot, "You are Hana.")
    soul.write_text("Before.\n" + soul.read_text() + "\nI like tea.\n")
    home.write_persona(bot, "You are Hana, and patient.")
    text = soul.read_text()
    assert "You are Hana, and patient." in text
    assert "You are Hana.\n" not in text
    assert "Before." in text
    assert "I like tea." in text
    assert "SOUL.md" in (bot / "workspace" / "AGENTS.md").read_text()


def test_the_persona_is_left_alone_until_the_prompt_changes(bot: Path) -> None:
    soul = bot / "workspace" / "SOUL.md"
    home.write_persona(bot, "You are Hana.")
    soul.write_text("I have become somebody else.")
    home.write_persona(bot, "You are Hana.")
    assert soul.read_text() == "I have become somebody else."
    soul.unlink()
    home.write_persona(bot, "You are Hana.")
    assert "You are Hana." in soul.read_text()


def test_a_prompt_that_is_taken_away_leaves_only_what_the_agent_wrote(bot: Path) -> None:
    soul = bot / "workspace" / "SOUL.md"
    home.write_persona(bot, "You are Hana.")
    soul.write_text(soul.read_text() + "I like tea.")
    home.write_persona(bot, "")
    assert soul.read_text().strip() == "I like tea."


def test_a_bot_without_a_prompt_gets_no_persona(bot: Path) -> None:
    home.write_persona(bot, "  ")
    assert list((bot / "workspace").iterdir()) == []


def test_the_persona_does_not_follow_a_link_the_agent_made(bot: Path, tmp_path: Path) -> None:
    outside = tmp_path / "authorized_keys"
    outside.write_text("precious")
    (bot / "workspace" / "SOUL.md").symlink_to(outside)
    home.write_persona(bot, "You are Hana.")
    assert outside.read_text() == "precious"
    assert "precious" not in (bot / "workspace" / "SOUL.md").read_text()


def test_the_persona_is_not_written_through_a_workspace_that_is_a_link(bot: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (bot / "workspace").rmdir()
    (bot / "workspace").symlink_to(tmp_path / "outside")
    with pytest.raises(SpawnFailed, match="workspace"):
        home.write_persona(bot, "You are Hana.")
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_pipe_in_the_personas_place_blocks_nobody(bot: Path) -> None:
    os.mkfifo(bot / "workspace" / "SOUL.md")
    home.write_persona(bot, "You are Hana.")
    assert "You are Hana." in (bot / "workspace" / "SOUL.md").read_text()


def test_a_start_cache_is_copied_as_files_of_the_homes_own(bot: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (cache / "node-compile-cache" / "v24").mkdir(parents=True)
    compiled = cache / "node-compile-cache" / "v24" / "code"
    compiled.write_text("compiled")
    compiled.chmod(0o400)
    (cache / "node-compile-cache" / "link").symlink_to("/etc/passwd")
    _copy_into(cache, bot)
    copy = bot / "tmp" / "node-compile-cache" / "v24" / "code"
    assert copy.read_text() == "compiled"
    assert copy.stat().st_ino != compiled.stat().st_ino
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert not (bot / "tmp" / "node-compile-cache" / "link").exists()
    copy.write_text("the bot's")
    _copy_into(cache, bot)
    assert copy.read_text() == "the bot's"


def test_the_last_words_come_without_time_and_colour(bot: Path) -> None:
    (bot / "logs" / "bot.log").write_bytes(b"1763970000000 O \x1b[31mhello\x1b[0m\n1763970000001 E \x00bye\xff\n\n")
    assert home.last_words(bot) == ["hello", "bye\ufffd"]


def test_the_last_words_do_not_follow_a_link(bot: Path) -> None:
    (bot / "logs" / "bot.log").symlink_to("/etc/passwd")
    assert home.last_words(bot) == []


OLD_INVALID = """\
Invalid config at /h/config.json5:\\n- gateway.bind: Invalid input
- <root>: Unrecognized key: "foo"
◇  Doctor ──────╮
Config invalid
File: /h/config.json5
Problem:
  - gateway.bind: Invalid input
  - <root>: Unrecognized key: "foo"

Run: openclaw doctor --fix"""
NEW_INVALID = """\
2026-11-24T08:00:55.925+00:00 [gateway] spawn broker ready pid=24075
2026-11-24T08:00:57.804+00:00 Gateway failed to start: Invalid config at /h/config.json5:
config.json5:8 — agents.defaults.thinkingDefault: Invalid option: expected one of "off"|"high", got: "loud"
<root>: Unrecognized key: "foo"
Run "openclaw doctor --fix" to repair, then retry."""
REFUSALS = {
    OLD_INVALID: (Reason.CONFIG_INVALID, 'gateway.bind: Invalid input; <root>: Unrecognized key: "foo"'),
    NEW_INVALID: (Reason.CONFIG_INVALID, 'got: "loud"; <root>: Unrecognized key: "foo"'),
    "2026-11-24T08:00:45.577+00:00 Invalid --bind. Use loopback.": (Reason.CONFIG_INVALID, "--bind"),
    "Gateway start blocked: existing config is missing gateway.mode. Treat this as": (
        Reason.CONFIG_INVALID,
        "existing config is missing gateway.mode",
    ),
    "Gateway failed to start: another gateway instance is already listening on ws://127.0.0.1:6 | EADDRINUSE": (
        Reason.PORT_IN_USE,
        "port",
    ),
    "2026-11-24T08:00:29.063Z Port 62000 is already in use.": (Reason.PORT_IN_USE, "port"),
    "openclaw requires Node >=22.0.0.": (Reason.BINARY_MISSING, "Node"),
    "openclaw: Node 20.20.2: node:sqlite is unavailable; use 24.16+": (Reason.BINARY_MISSING, "Node"),
    "Doctor could not enter maintenance. GatewayLockError: Legacy Gateway lock": (Reason.SPAWN_FAILED, "lock"),
    "Gateway failed to start: gateway already running (pid 7); lock timeout after 5000ms": (
        Reason.SPAWN_FAILED,
        "lock",
    ),
}


@pytest.mark.parametrize("said", REFUSALS, ids=lambda said: said[-40:])
def test_a_refusal_is_known_by_its_words(said: str) -> None:
    refusal = home.refusal_in(said.splitlines())
    assert refusal is not None
    assert refusal[0] is REFUSALS[said][0]
    assert REFUSALS[said][1] in refusal[1]


def test_other_words_are_no_refusal() -> None:
    assert home.refusal_in(["[gateway] ready", "[heartbeat] disabled"]) is None
    assert home.refusal_in([]) is None
