"""Which changes a running OpenClaw takes, and how what it says of one is read. The log's lines are real ones."""

import json
import os
import random
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from app.gateway import config, home, lastgood, reloads
from app.gateway.config import Dialect
from app.gateway.reloads import Outcome, Watch

OLD, NEW = Dialect(False, False, False), Dialect(True, True, True)
BOTH = pytest.mark.parametrize("dialect", [OLD, NEW], ids=["old", "new"])


def tree(dialect: Dialect, **more: Any) -> dict[str, Any]:
    provider = config.ModelProvider("local", "openai-completions", "http://127.0.0.1:9/v1", more.pop("key", "sk-1"))
    settings = {"name": "Hana", "model": "local/echo", "system_prompt": "", "port": 20_000, "gateway_token": "t" * 20}
    return config.render(
        config.BotSettings(agent_id="hana", home=Path("/srv/hana"), providers=(provider,), **(settings | more)), dialect
    )


@BOTH
@pytest.mark.parametrize(
    "change",
    [
        {"key": "sk-2"},
        {"model": "local/other"},
        {"name": "Hana the second"},
        {"overrides": {"session": {"dmScope": "per-peer"}}},
        {"overrides": {"tools": {"deny": ["browser"]}}},
        {"bindings": [{"agentId": "hana", "match": {"channel": "telegram"}}]},
    ],
    ids=str,
)
def test_what_people_change_daily_needs_no_restart(dialect: Dialect, change: dict[str, Any]) -> None:
    assert reloads.changed(tree(dialect), tree(dialect, **change))
    assert reloads.needing_restart(tree(dialect), tree(dialect, **change), dialect) == []


@BOTH
@pytest.mark.parametrize("change", [{"port": 20_120}, {"gateway_token": "u" * 20}], ids=str)
def test_what_a_gateway_listens_with_needs_one(dialect: Dialect, change: dict[str, Any]) -> None:
    (path,) = reloads.needing_restart(tree(dialect), tree(dialect, **change), dialect)
    assert path.startswith("gateway.")


@BOTH
def test_what_nobody_knows_of_needs_one(dialect: Dialect) -> None:
    before = tree(dialect)
    assert reloads.needing_restart(before, before | {"novelty": {"on": True}}, dialect) == ["novelty"]
    assert reloads.needing_restart(before | {"novelty": {"on": True}}, before, dialect) == ["novelty"]


def test_a_channels_token_is_taken_by_both_and_a_channel_that_comes_by_new_only() -> None:
    def telegram(token: str) -> dict[str, Any]:
        return {"channels": {"telegram": {"enabled": True, "botToken": token}},
                "plugins": {"entries": {"telegram": {"enabled": True}}}}  # fmt: skip

    for dialect in (OLD, NEW):
        before, after = tree(dialect, **telegram("1:a")), tree(dialect, **telegram("1:b"))
        assert reloads.needing_restart(before, after, dialect) == []
    assert reloads.needing_restart(tree(NEW), tree(NEW, **telegram("1:a")), NEW) == []
    assert reloads.needing_restart(tree(OLD), tree(OLD, **telegram("1:a")), OLD) == ["channels", "plugins"]


def test_a_change_is_none_to_itself_and_the_same_back_and_forth() -> None:
    chance = random.Random(5)

    def some(depth: int = 0) -> Any:
        if depth == 4 or chance.random() < 0.3:
            return chance.choice([1, "a", None, True, [1, 2], ["a"]])
        return {chance.choice("abcd"): some(depth + 1) for _ in range(chance.randrange(4))}

    for _ in range(500):
        one, two = {"x": some()}, {"x": some()}
        assert reloads.changed(one, one) == []
        assert reloads.changed(one, two) == reloads.changed(two, one)
        assert bool(reloads.changed(one, two)) == (one != two)


class Bot:
    """A home whose gateway says what the test says."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "hana"
        home.make(self.home)
        self.log = self.home / "logs" / "gateway.log"

    def says(self, *texts: str, subsystem: str = "gateway/reload") -> None:
        with self.log.open("a") as log:
            for text in texts:
                log.write(json.dumps({"0": json.dumps({"subsystem": subsystem}), "1": text, "time": "…"}) + "\n")

    async def verdict(self, watch: Watch, change: dict[str, Any], dialect: Dialect = NEW) -> reloads.Verdict:
        return await watch.verdict(tree(dialect), tree(dialect, **change), dialect)


SEEN = "config change detected; evaluating reload (models.providers.local.apiKey)"


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        ("config hot reload applied (models.providers.local.apiKey)", Outcome.TAKEN),
        ("config change applied (dynamic reads: models.providers.local.apiKey, agents.list)", Outcome.TAKEN),
        ('config reload skipped (invalid config): tools: Unrecognized key: "noSuch"', Outcome.REFUSED),
        ("config change requires gateway restart (channels, plugins)", Outcome.UNSURE),
        ("config change requires gateway restart (gateway.port) — preparing", Outcome.UNSURE),
        ("config reload failed: Error: no", Outcome.UNSURE),
        ("config hot reload failed before commit during channels", Outcome.UNSURE),
        ("config hot reload committed with unrecovered channels failure", Outcome.UNSURE),
    ],
)
async def test_the_gateways_word_decides(tmp_path: Path, said: str, outcome: Outcome) -> None:
    bot = Bot(tmp_path)
    bot.says("config hot reload applied (something earlier)")
    watch = Watch(bot.home)
    bot.says(SEEN, said)
    verdict = await bot.verdict(watch, {"key": "sk-2"})
    assert verdict.outcome is outcome
    if outcome is Outcome.REFUSED:
        assert verdict.why == 'tools: Unrecognized key: "noSuch"'


async def test_new_takes_in_silence_what_needs_no_work(tmp_path: Path) -> None:
    bot = Bot(tmp_path)
    watch = Watch(bot.home)
    bot.says("config change detected; evaluating reload (session.dmScope)")
    assert (await bot.verdict(watch, {"overrides": {"session": {"dmScope": "main"}}})).outcome is Outcome.TAKEN


async def test_a_change_that_is_put_off_or_overtaken_is_waited_for(tmp_path: Path) -> None:
    bot = Bot(tmp_path)
    watch = Watch(bot.home)
    bot.says(
        SEEN,
        "config change requires channel reload (telegram) — deferring until 1 active run complete",
        "config reload superseded: GatewayConfigReloadSupersededError: config reload superseded by a newer source",
        "config hot reload applied (channels.telegram.botToken)",
    )
    assert (await bot.verdict(watch, {"key": "sk-2"})).outcome is Outcome.TAKEN


async def test_silence_is_no_consent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reloads, "SEEN_WITHIN", 0.3)
    monkeypatch.setattr(reloads, "TAKEN_WITHIN", 0.3)
    bot = Bot(tmp_path)
    assert (await bot.verdict(Watch(bot.home), {"key": "sk-2"})).outcome is Outcome.UNSURE
    watch = Watch(bot.home)
    bot.says(SEEN, "config hot reload applied (all)", subsystem="gateway/agent")
    assert (await bot.verdict(watch, {"key": "sk-2"})).outcome is Outcome.UNSURE, "an agent's words are no witness"
    watch = Watch(bot.home)
    bot.says(SEEN)
    assert (await bot.verdict(watch, {"key": "sk-2"})).outcome is Outcome.UNSURE


async def test_a_log_that_was_begun_anew_is_read_from_its_start(tmp_path: Path) -> None:
    bot = Bot(tmp_path)
    bot.says("a long story " * 20)
    watch = Watch(bot.home)
    bot.log.unlink()
    bot.says(SEEN, "config hot reload applied (models)")
    assert (await bot.verdict(watch, {"key": "sk-2"})).outcome is Outcome.TAKEN


async def test_a_log_that_is_a_pipe_or_nonsense_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reloads, "SEEN_WITHIN", 0.3)
    bot = Bot(tmp_path)
    os.mkfifo(bot.log)
    assert (await bot.verdict(Watch(bot.home), {"key": "sk-2"})).outcome is Outcome.UNSURE
    bot.log.unlink()
    watch = Watch(bot.home)
    bot.log.write_bytes(b'reload\n{"0": 1, "x": "reload"}\n\xff reload {{{\n[["reload"]]\n"reload"\n')
    assert (await bot.verdict(watch, {"key": "sk-2"})).outcome is Outcome.UNSURE


def test_the_last_good_one_is_told_by_its_digest(tmp_path: Path) -> None:
    bot = Bot(tmp_path)
    owner = uuid4()
    assert lastgood.keep_in_use(bot.home, owner) is None
    config.write(bot.home / "config.json5", config.to_text(tree(NEW)))
    digest = lastgood.keep_in_use(bot.home, owner)
    assert digest == config.digest(tree(NEW))
    assert lastgood.read(bot.home, digest) == lastgood.Kept(owner, tree(NEW))
    kept = bot.home / lastgood.GOOD
    assert kept.stat().st_mode & 0o777 == 0o600
    kept.write_text(kept.read_text().replace("loopback", "lan"))
    assert lastgood.read(bot.home, digest) is None
    kept.unlink()
    kept.symlink_to(bot.home / "config.json5")
    assert lastgood.read(bot.home, digest) is None


@pytest.mark.parametrize("number", ["NaN", "1e999"])
def test_a_configuration_the_bot_put_no_number_in_is_not_kept(number: str, tmp_path: Path) -> None:
    bot = Bot(tmp_path)
    (bot.home / "config.json5").write_text(f'{{"x": {number}}}')
    assert lastgood.keep_in_use(bot.home, uuid4()) is None
    assert not lastgood.is_in_use(bot.home, {"x": 1})


def test_what_another_owner_left_is_removed(tmp_path: Path) -> None:
    bot = Bot(tmp_path)
    owner = uuid4()
    lastgood.keep(bot.home, tree(NEW), owner)
    lastgood.drop_foreign(bot.home, owner)
    assert (bot.home / lastgood.GOOD).exists()
    lastgood.drop_foreign(bot.home, uuid4())
    assert not (bot.home / lastgood.GOOD).exists()
    lastgood.drop_foreign(bot.home, owner)


@BOTH
def test_what_was_taken_away_is_told_from_what_was_merely_changed(dialect: Dialect) -> None:
    account = {"enabled": True, "botToken": "1:first-secret"}
    kept = tree(dialect, channels={"telegram": {"accounts": {"default": account}}, "irc": {"host": "a"}})

    def holds_more(**channels: Any) -> bool:
        return lastgood.holds_more(kept, tree(dialect, model="local/other", channels=channels))

    same = {"telegram": {"accounts": {"default": account, "new": {"botToken": "2"}}}, "irc": {"host": "b"}}
    assert not holds_more(**same)
    assert holds_more(irc={"host": "a"})
    assert holds_more(telegram=same["telegram"])
    assert holds_more(**same | {"telegram": {"accounts": {"default": {"enabled": True}}}})
    assert lastgood.holds_more(tree(dialect), tree(dialect, key="sk-2"))
