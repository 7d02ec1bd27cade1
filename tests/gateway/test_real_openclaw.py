"""Real OpenClaw of both versions: found or installed, asked for its dialect, and asked about our configuration."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from uuid import uuid4

import anyio
import pytest

from app.domain.errors import ConfigInvalid
from app.gateway import check, config, home, install, openclaw, reserved
from app.gateway.candidate import Candidates
from app.gateway.config import BotSettings, Dialect, ModelProvider
from app.gateway.openclaw import Installation
from app.gateway.overrides import Reserved

pytestmark = pytest.mark.openclaw

DIALECTS = {"2026.2.1": Dialect(False, False, False, False, False), "2026.9.6": Dialect(True, True, True, True, True)}
SECRET = "tok-0123456789-secret"
TEXT = "Hana ${HOME} $${PATH} ${A ${B} $"


@pytest.fixture(params=DIALECTS)
async def installed(request: pytest.FixtureRequest) -> Installation:
    return await install.ensure(request.param, install.usual_cache(), print)


@pytest.fixture
def settings(tmp_path: Path) -> BotSettings:
    bot = tmp_path / "hana"
    home.make(bot)
    provider = ModelProvider("local", "openai-completions", "http://127.0.0.1:9/v1", "sk-local", [])
    return BotSettings("hana", TEXT, "local/vendor/fake", "", bot, 20001, SECRET, [provider])


async def test_the_installation_is_found_again_with_a_node_it_accepts(installed: Installation) -> None:
    again = await openclaw.find(str(installed.entry), installed.version, install.usual_cache())
    assert again == installed
    assert installed.node is not None
    asked = openclaw.ask_node(installed.node)
    assert asked is not None
    assert installed.package_root is not None
    engines = json.loads((installed.package_root / "package.json").read_text())["engines"]
    assert openclaw.satisfies(asked[1], engines["node"])


async def test_the_dialect_is_asked_once_and_then_remembered(installed: Installation, tmp_path: Path) -> None:
    assert await check.dialect(installed, tmp_path) == DIALECTS[installed.version]
    unable = replace(installed, argv_prefix=("/nonexistent",), package_root=None)
    assert await check.dialect(unable, tmp_path) == DIALECTS[installed.version]


async def test_what_we_render_is_accepted(installed: Installation, settings: BotSettings) -> None:
    overrides = {"agents": {"defaults": {"heartbeat": {"every": "30m"}}}, "cron": {"enabled": True}}
    rendered = config.render(replace(settings, overrides=overrides), DIALECTS[installed.version])
    await check.Checker(installed).check(rendered, settings.home)
    assert list((settings.home / "run").iterdir()) == []


async def test_an_unknown_key_is_refused_with_its_reason_and_no_secret(
    installed: Installation, settings: BotSettings
) -> None:
    checker = check.Checker(installed)
    rendered = config.render(settings, DIALECTS[installed.version])
    wrong = rendered | {"gateway": rendered["gateway"] | {"sekret": 1, "mode": SECRET}}
    with pytest.raises(ConfigInvalid, match="sekret") as refused:
        await checker.check(wrong, settings.home)
    assert "gateway" in str(refused.value)
    assert SECRET not in str(refused.value)


def candidates(installed: Installation, settings: BotSettings) -> Candidates:
    async def rules() -> tuple[check.Checker, Dialect, Reserved]:
        return check.Checker(installed), DIALECTS[installed.version], partial(reserved.why, installed)

    return Candidates(rules, settings.home.parent)


async def test_what_it_refuses_of_models_is_told_by_its_path(installed: Installation, settings: BotSettings) -> None:
    models = [{"id": "a", "contextWindow": 1000}, {"id": "b", "contextTokens": 10, "cost": {"input": "dear"}}]
    paths = [path for path, _ in await candidates(installed, settings).models(uuid4(), models)]
    unknown = [["1"]] if installed.version == "2026.2.1" else []
    assert sorted(paths) == [*unknown, ["1", "cost", "input"]]


async def test_a_channel_of_somebody_elses_plugin_is_for_the_new_one_alone(
    installed: Installation, settings: BotSettings
) -> None:
    overrides = {"channels": {"acme-chat": {"team": "t"}}, "plugins": {"entries": {"acme-chat": {"enabled": True}}}}

    found = await candidates(installed, settings)(uuid4(), overrides, settings.home.name)
    unknown = [
        (["channels", "acme-chat"], "unknown channel id: acme-chat"),
        (["plugins", "entries", "acme-chat"], "plugin not found: acme-chat"),
    ]
    assert sorted(found) == (unknown if installed.version == "2026.2.1" else [])
    root = installed.package_root
    assert root is not None
    bundled = [each.parent.name for each in root.rglob("extensions/*/openclaw.plugin.json")]
    others = (
        ["voice-call", "lobster"] if installed.version == "2026.2.1" else ["voice-call", "lobster", "diffs", "acpx"]
    )
    assert len(bundled) > 20
    assert all(reserved.why(installed, each) for each in bundled + others)


async def test_the_other_dialect_is_refused(installed: Installation, settings: BotSettings) -> None:
    rendered = config.render(settings, Dialect(not DIALECTS[installed.version].agents_entries, True))
    checked: Callable[[], Awaitable[None]] = lambda: check.Checker(installed).check(rendered, settings.home)  # noqa: E731
    if installed.version == "2026.2.1":
        with pytest.raises(ConfigInvalid, match="entries"):
            await checked()
    else:
        await checked()  # It still reads `agents.list`.


async def test_an_answer_is_remembered(installed: Installation, settings: BotSettings) -> None:
    checker = check.Checker(installed)
    rendered = config.render(settings, DIALECTS[installed.version])
    await checker.check(rendered, settings.home)
    (settings.home / "run").rmdir()  # A second question would have nowhere to be written to.
    (settings.home / "home").rmdir()
    await checker.check(dict(reversed(rendered.items())), settings.home)


async def test_openclaw_reads_a_text_as_it_was_written(installed: Installation, settings: BotSettings) -> None:
    dialect = DIALECTS[installed.version]
    config.write(settings.home / "config.json5", config.to_text(config.render(settings, dialect)))
    environment = openclaw.plain_environment(installed.node, str(settings.home))
    path = "agents.entries.hana.name" if dialect.agents_entries else "agents.list[0].name"
    argv = [*installed.argv_prefix, "config", "get", path, "--json"]
    # In a new home the old version compiles for half a minute of a core's time first.
    with anyio.fail_after(180):
        said = await anyio.run_process(argv, env=environment)
    assert json.loads(said.stdout) == TEXT


async def test_an_openclaw_without_rules_to_ask_leaves_a_configuration_unchecked(
    installed: Installation, settings: BotSettings
) -> None:
    mute = replace(installed, argv_prefix=("/bin/true",), package_root=None)
    await check.Checker(mute).check({"foo": 1}, settings.home)
