"""What we render of channels and bindings, held against the own rules of real OpenClaw of both versions."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import pytest

from app.domain.errors import ConfigInvalid
from app.gateway import channels, check, config, home, install
from app.gateway.channels import Account, Rule
from app.gateway.config import BotSettings, ModelProvider
from app.gateway.openclaw import Installation
from tests.gateway import channel_samples as samples

pytestmark = pytest.mark.openclaw

#: OpenClaw knows these only once their packages, which are not its own, are installed.
FOREIGN = {"qqbot", "openclaw-weixin", "openclaw-zaloclawbot", "yuanbao"}


@pytest.fixture(params=[samples.OLD, samples.NEW])
async def installed(request: pytest.FixtureRequest) -> Installation:
    return await install.ensure(request.param, install.usual_cache(), print)


async def accepted(
    installed: Installation, folder: Path, accounts: Sequence[Account], rules: Sequence[Rule] = ()
) -> None:
    dialect = await check.dialect(installed, install.usual_cache())
    rendered = channels.render(accounts, dialect, installed.version)
    assert rendered.left_out == ()
    bindings = channels.render_bindings(rules, "hana", dialect)
    await checked(installed, folder, channels=rendered.channels, plugins=rendered.plugins, bindings=bindings)


async def checked(installed: Installation, folder: Path, **parts: object) -> None:
    bot = folder / "hana"
    if not bot.exists():
        home.make(bot)
    provider = ModelProvider("local", "openai-completions", "http://127.0.0.1:9/v1", "sk-local", [])
    settings = BotSettings("hana", "Hana", "local/fake", "", bot, 20001, "tok-0123456789-secret", [provider])
    dialect = await check.dialect(installed, install.usual_cache())
    await check.Checker(installed).check(config.render(replace(settings, **parts), dialect), bot)


async def test_every_choice_of_every_provider_is_accepted(installed: Installation, tmp_path: Path) -> None:
    known = [each for each in channels.catalogue(installed.version).values() if each.name not in FOREIGN]
    many = [each for each in known if channels.account_refused(each, "a1") is None]
    single = [each for each in known if each not in many]
    every = [account for each in many for account in samples.accounts(each)]
    # One configuration may hold so much and no more.
    batches = [every[::3], every[1::3], every[2::3]]
    batches += [[each for each in turn if each] for turn in zip_longest(*(samples.few(each) for each in single))]
    for batch in batches:
        await accepted(installed, tmp_path, batch)


async def test_what_is_just_enough_is_accepted(installed: Installation, tmp_path: Path) -> None:
    known = channels.catalogue(installed.version)
    await accepted(installed, tmp_path, [samples.minimal(each) for each in known.values() if each.name not in FOREIGN])


async def test_what_is_switched_off_is_accepted_alone_and_beside_what_is_not(
    installed: Installation, tmp_path: Path
) -> None:
    known = [each for each in channels.catalogue(installed.version).values() if each.name not in FOREIGN]
    whole = [next(samples.accounts(each)) for each in known]
    off = [replace(each, enabled=False, credentials={}) for each in whole]
    dialect = await check.dialect(installed, install.usual_cache())
    written = channels.render(off, dialect, installed.version).channels
    assert written.keys() == {each.name for each in known if each.package is None}
    await accepted(installed, tmp_path, off)
    many = {each.name for each in known if channels.account_refused(each, "a1") is None}
    for first, second in ((whole, off), (off, whole)):
        beside = [replace(each, account_id="a1") for each in second if each.provider in many]
        await accepted(installed, tmp_path, [*first, *beside])


async def test_bindings_of_every_kind_are_accepted(installed: Installation, tmp_path: Path) -> None:
    rules = [
        Rule(provider, account, kind, peer, priority)
        for priority, provider in enumerate(("telegram", "slack"))
        for account in (None, "default", "work")
        for kind in (None, "direct", "group", "channel")
        for peer in (None, "-100${HOME}7", "__proto__")
    ]
    await accepted(installed, tmp_path, [], rules)


async def test_hostile_values_that_are_taken_are_accepted(installed: Installation, tmp_path: Path) -> None:
    settings = {
        "allowFrom": ["${HOME}", "__proto__", "x" * 200, 1234567890123456789],
        "groups": {"*": {"requireMention": True, "systemPrompt": "${HOME}\n$${PATH}\t<script>" + "é" * 19_000}},
    }
    provider = channels.catalogue(installed.version)["telegram"]
    secrets = {"botToken": "1:A"}
    assert channels.refused(provider, settings, secrets) == []
    await accepted(installed, tmp_path, [Account("telegram", "default", True, settings, secrets)])


@pytest.mark.parametrize("name", ["webchat", "wecom"])
async def test_the_rules_know_nothing_of_a_provider_that_is_closed(
    installed: Installation, tmp_path: Path, name: str
) -> None:
    assert channels.why_closed(name, installed.version)
    with pytest.raises(ConfigInvalid, match=name):
        await checked(installed, tmp_path, channels={name: {"enabled": True}})
