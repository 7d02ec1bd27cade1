"""The catalogue of channels and how they are said to each version; what real OpenClaw says to it is tested apart."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.gateway import channels, config, lastgood, reloads
from app.gateway.channels import Account, Provider, Rule, providers, shape
from app.gateway.config import BotSettings, Dialect, ModelProvider
from tests.gateway import channel_samples as samples

OLD, NEW = Dialect(False, False, False, False, False), Dialect(True, True, True, True, True)
DIALECTS = {samples.OLD: OLD, samples.NEW: NEW}
SECRET = "hunter2-hunter2-hunter2"
TOKEN = {"botToken": "123456789:AAExample"}

ANY_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(SECRET),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10) | st.just(SECRET), inner),
    max_leaves=8,
)
RULES = st.builds(
    Rule,
    st.sampled_from(["telegram", "slack"]),
    st.none() | st.sampled_from(["default", "work"]),
    st.none() | st.sampled_from(["direct", "group", "channel"]),
    st.none() | st.text(min_size=1, max_size=5),
    st.integers(-2, 2),
)


def ids(provider: Provider) -> str:
    return f"{provider.edition}-{provider.name}"


SAMPLES = {ids(provider): list(samples.accounts(provider)) for provider in samples.PROVIDERS}


def version_of(provider: Provider) -> str:
    return samples.OLD if provider.edition == "old" else samples.NEW


def account(settings: dict[str, Any], credentials: dict[str, str] = TOKEN, provider: str = "telegram") -> Account:
    return Account(provider, "default", True, settings, credentials)


def rendered(version: str, *accounts: Account) -> dict[str, Any]:
    said = channels.render(accounts, DIALECTS[version], version)
    assert said.left_out == ()
    return said.channels


def leaves(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        for name, part in value.items():
            yield name
            yield from leaves(part)
    elif isinstance(value, list):
        for part in value:
            yield from leaves(part)
    else:
        yield value


def test_there_are_33_providers_and_each_version_opens_its_own() -> None:
    old, new = channels.catalogue(samples.OLD), channels.catalogue(samples.NEW)
    everything = json.loads(providers.DATA.read_text())["providers"]
    assert len(everything) == 33
    assert (len(old), len(new)) == (13, 29)
    closed = {name: channels.why_closed(name, samples.NEW) for name in everything.keys() - new.keys()}
    assert closed.keys() == {"bluebubbles", "reef", "wecom", "webchat"}
    assert all(closed.values())
    assert "does not load" in (channels.why_closed("matrix", samples.OLD) or "")
    assert channels.why_closed("icq", samples.NEW)


def test_a_package_is_named_with_the_version_of_the_installed_openclaw() -> None:
    new = channels.catalogue("2026.9.7")
    assert new["discord"].package == "@openclaw/discord@2026.9.7"
    assert new["qqbot"].package == "@tencent-connect/openclaw-qqbot@2.0.3"
    assert new["telegram"].package is None
    assert not [each.name for each in channels.catalogue(samples.OLD).values() if each.package]


@pytest.mark.parametrize("provider", samples.PROVIDERS, ids=ids)
def test_a_schema_needs_nothing_but_what_it_describes(provider: Provider) -> None:
    for schema in (provider.credential_schema, provider.settings_schema):
        assert json.loads(json.dumps(schema)) == schema
        assert set(schema["required"]) <= schema["properties"].keys()
        assert schema["additionalProperties"] is False
    assert provider.exclusive is None or provider.exclusive in provider.credential_schema["properties"]
    assert not provider.credential_schema["properties"].keys() & provider.settings_schema["properties"].keys()


@pytest.mark.parametrize("provider", samples.PROVIDERS, ids=ids)
def test_no_file_and_no_program_can_be_named(provider: Provider) -> None:
    for name in leaves([provider.settings_schema["properties"], provider.credential_schema["properties"]]):
        assert not re.fullmatch(r".*(?:File|Dir|dbPath|cliPath|CertPath|configPath|Roots)", str(name))
    for name in ("tokenFile", "authDir", "cliPath", "accounts", "configWrites", "defaultAccount"):
        assert channels.refused(provider, {name: "/etc/passwd"}, {}, complete=False)


@pytest.mark.parametrize("provider", samples.PROVIDERS, ids=ids)
def test_every_choice_is_taken_and_said_without_loss(provider: Provider) -> None:
    for each in SAMPLES[ids(provider)]:
        assert channels.refused(provider, each.settings, each.credentials) == []
        said = channels.render([each], DIALECTS[version_of(provider)], version_of(provider))
        assert said.left_out == ()
        assert set(each.credentials.values()) <= set(leaves(said.channels))
        texts = {str(leaf) for leaf in leaves(each.settings) if isinstance(leaf, str) and leaf.startswith("example")}
        assert texts <= {str(leaf) for leaf in leaves(said.channels)}


@pytest.mark.parametrize("provider", samples.PROVIDERS, ids=ids)
def test_a_channel_without_its_secrets_is_incomplete_and_is_left_out(provider: Provider) -> None:
    whole = SAMPLES[ids(provider)][0]
    lacks = channels.refused(provider, whole.settings, {})
    assert bool(lacks) == bool(provider.credential_schema["required"] or provider.name in ("slack", "matrix", "a2a"))
    assert channels.refused(provider, whole.settings, {}, complete=False) == []
    bare = Account(provider.name, "default", True, whole.settings, {})
    said = channels.render([bare], DIALECTS[version_of(provider)], version_of(provider))
    assert bool(said.left_out) == bool(lacks)
    assert (provider.name in said.channels) != bool(lacks)


def test_a_name_that_sounds_like_a_secret_hides_the_secret_in_it_and_nothing_else() -> None:
    peer = {"url": "https://peer.example", "token": SECRET, "outboundToken": f"{SECRET}-too"}
    a2a = Account(
        "a2a",
        "default",
        True,
        {"peers": {"token": {"url": "https://peer.example"}}, "exposeAgents": [f"not {SECRET}"]},
        {"peers.token.token": SECRET, "peers.token.outboundToken": f"{SECRET}-too"},
    )
    group = {"groups": {"secret-key": {"systemPrompt": f"Never say {SECRET}, nor {TOKEN['botToken']}."}}}
    telegram = Account("telegram", "api-token", True, group, TOKEN)
    said = rendered(samples.NEW, a2a, telegram)
    assert said["a2a"]["peers"] == {"token": peer}
    shown = config.redact(said)
    assert shown["a2a"]["peers"] == {"token": {"url": "https://peer.example", "token": "***", "outboundToken": "***"}}
    assert shown["a2a"]["exposeAgents"] == ["not ***"]
    account = shown["telegram"]["accounts"]["api-token"]
    assert account["botToken"] == "***"
    assert account["groups"]["secret-key"]["systemPrompt"] == "Never say ***, nor ***."
    # Words of a block that only sounds secret are hidden nowhere.
    assert account["dmPolicy"] == said["telegram"]["accounts"]["api-token"]["dmPolicy"]


@pytest.mark.parametrize("provider", samples.PROVIDERS, ids=ids)
def test_no_secret_of_a_channel_is_left_in_a_redacted_configuration(provider: Provider) -> None:
    each = SAMPLES[ids(provider)][0]
    secrets = {name: f"{text}canary" for name, text in each.credentials.items() if not text.startswith("{")}
    said = channels.render(
        [Account(provider.name, "default", True, each.settings, each.credentials | secrets)],
        DIALECTS[version_of(provider)],
        version_of(provider),
    )
    assert "canary" not in repr(said)
    assert len([leaf for leaf in leaves(said.channels) if "canary" in str(leaf)]) == len(secrets)
    assert "canary" not in json.dumps(config.redact(said.channels))


@given(st.sampled_from(samples.PROVIDERS), st.data())
def test_rendering_reads_back_the_same_and_does_not_depend_on_the_order(
    provider: Provider, data: st.DataObject
) -> None:
    accounts = SAMPLES[ids(provider)][: 1 if channels.account_refused(provider, "a1") else 4]
    version = version_of(provider)
    first = channels.render(accounts, DIALECTS[version], version)
    again = channels.render(data.draw(st.permutations(accounts)), DIALECTS[version], version)
    assert json.dumps(first.channels) == json.dumps(again.channels)
    assert json.dumps(first.plugins) == json.dumps(again.plugins)
    assert json.loads(json.dumps(first.channels)) == first.channels


@given(st.sampled_from(samples.PROVIDERS), st.data())
def test_no_reason_and_no_path_repeats_what_was_given(provider: Provider, data: st.DataObject) -> None:
    names = st.sampled_from([*provider.settings_schema["properties"], "x", SECRET])
    secrets = st.sampled_from([*provider.credential_schema["properties"], "x", SECRET])
    settings = data.draw(st.dictionaries(names, ANY_VALUES, max_size=4))
    credentials = data.draw(st.dictionaries(secrets, ANY_VALUES, max_size=3))
    for path, why in channels.refused(provider, settings, credentials):
        assert SECRET not in why
        assert path[0] in ("settings", "credentials")
        assert SECRET not in path[1:2]


@given(st.sampled_from(samples.PROVIDERS), st.data())
def test_what_is_told_of_an_unfit_account_fits_all_the_same(provider: Provider, data: st.DataObject) -> None:
    names = st.sampled_from([*provider.settings_schema["properties"], "x"])
    settings = SAMPLES[ids(provider)][0].settings | data.draw(st.dictionaries(names, ANY_VALUES, max_size=4))
    schema = {**provider.settings_schema, "required": ()}
    fits = shape.fitted(schema, settings)
    assert list(shape.problems(schema, fits)) == []
    assert shape.fitted(schema, fits) == fits
    odd = Account(provider.name, "default", True, settings, samples.credentials(provider))
    said = channels.render([odd], DIALECTS[version_of(provider)], version_of(provider))
    json.dumps(said.channels, allow_nan=False)


def test_a_list_that_has_too_little_left_is_left_out() -> None:
    schema = channels.catalogue(samples.NEW)["qqbot"].settings_schema["properties"]["allowFrom"]
    assert shape.fitted(schema, ["1", "*"]) == ["1"]
    assert shape.fitted(schema, ["*"]) is None


REFUSED = [
    ({"dmPolicy": "all"}, ["settings", "dmPolicy"]),
    ({"dmPolicy": "open"}, ["settings", "allowFrom"]),
    ({"dmPolicy": "open", "allowFrom": ["42"]}, ["settings", "allowFrom"]),
    ({"dmpolicy": "open"}, ["settings", "dmpolicy"]),
    ({"botToken": "123:abc"}, ["settings", "botToken"]),
    ({"tokenFile": "/etc/shadow"}, ["settings", "tokenFile"]),
    ({"proxy": {"source": "env", "provider": "default", "id": "PATH"}}, ["settings", "proxy"]),
    ({"proxy": "http://name:password@proxy"}, ["settings", "proxy"]),
    ({"apiRoot": "file:///etc/passwd"}, ["settings", "apiRoot"]),
    *[
        ({"apiRoot": f"http://{address}"}, ["settings", "apiRoot"])
        for address in ("ü.example", "h/é", "h/%zz", "h/[x]", "h/#a#b", "h:", "h:0", "h:65536", "[:::1]", "h|", "")
    ],
    ({"webhookUrl": "https://example.org/hook"}, ["credentials", "webhookSecret"]),
    ({"allowFrom": "*"}, ["settings", "allowFrom"]),
    ({"allowFrom": [True]}, ["settings", "allowFrom", "0"]),
    ({"allowFrom": ["a\x00b"]}, ["settings", "allowFrom", "0"]),
    ({"allowFrom": ["x"] * 1_001}, ["settings", "allowFrom"]),
    ({"groups": {"__proto__": {}}}, ["settings", "groups"]),
    ({"groups": {"constructor": {}}}, ["settings", "groups", "constructor"]),
    ({"groups": {"$include": {}}}, ["settings", "groups"]),
    ({"groups": {"1": {"requireMention": 1}}}, ["settings", "groups", "1", "requireMention"]),
    ({"groups": {"1": {"systemPrompt": "x" * 20_001}}}, ["settings", "groups", "1", "systemPrompt"]),
    ({"streaming": "partial"}, ["settings", "streaming"]),
    ({"streaming": {"mode": "loud"}}, ["settings", "streaming", "mode"]),
    ({"streamMode": "partial"}, ["settings", "streamMode"]),
    ({"historyLimit": -1}, ["settings", "historyLimit"]),
    ({"historyLimit": 1.5}, ["settings", "historyLimit"]),
]


@pytest.mark.parametrize(
    "address",
    ["h", "127.0.0.1:8081", "h_1.example./bot?x=1&y=", "[::1]:65535/", "[fd00::1]", "h/a%20b?c#d/e?f", "h?a", "h#a"],
)
def test_an_address_is_taken(address: str) -> None:
    telegram = channels.catalogue(samples.NEW)["telegram"]
    assert channels.refused(telegram, {"apiRoot": f"http://{address}"}, TOKEN) == []


@pytest.mark.parametrize(("settings", "path"), REFUSED, ids=[json.dumps(each)[:60] for each, _ in REFUSED])
def test_a_setting_that_does_not_fit_is_refused_at_its_place(settings: dict[str, Any], path: list[str]) -> None:
    found = channels.refused(channels.catalogue(samples.NEW)["telegram"], settings, TOKEN)
    assert [where for where, _ in found] == [path]
    assert all(why for _, why in found)


@pytest.mark.parametrize(
    "token",
    ["", "abc", "${TELEGRAM_BOT_TOKEN}", "123:a b", "123:abc\n", "1:" + "x" * 3_000, None, 5, {"source": "env"}, "1:é"],
)
def test_a_malformed_token_is_refused(token: Any) -> None:
    found = channels.refused(channels.catalogue(samples.NEW)["telegram"], {}, {"botToken": token})
    assert [path for path, _ in found] == [["credentials", "botToken"]]


@pytest.mark.parametrize("reference", ["${TOKEN}", "$TOKEN", "secretref-env:TOKEN", "__env__:TOKEN"])
def test_a_reference_is_no_secret(reference: str) -> None:
    found = channels.refused(channels.catalogue(samples.NEW)["discord"], {}, {"token": reference})
    assert found == [(["credentials", "token"], "give the secret itself, not a reference to it")]


def test_what_was_put_in_the_wrong_half_is_told_so() -> None:
    teams = channels.catalogue(samples.NEW)["msteams"]
    found = {tuple(path): why for path, why in channels.refused(teams, {"appPassword": "x"}, {"appId": "y"})}
    assert found["settings", "appPassword"] == "this is a secret: give it as a credential"
    assert found["credentials", "appId"] == "this is no secret: give it as a setting"


@pytest.mark.parametrize("name", ["peers.__proto__.token", "peers.constructor.x", "peers.a.token\n", "peers.a b.token"])
def test_the_secret_of_a_hostile_peer_is_refused(name: str) -> None:
    a2a = channels.catalogue(samples.NEW)["a2a"]
    assert channels.refused(a2a, {"peers": {}}, {"peers.ada.token": "x", "peers.ada.outboundToken": "y"}) == []
    assert channels.refused(a2a, {"peers": {}}, {name: "x"})


def test_a_slack_app_needs_the_secrets_of_its_mode() -> None:
    lacks = {
        (version, mode): [path[-1] for path, _ in channels.refused(slack, {"mode": mode}, {"botToken": "xoxb-1"})]
        for version in DIALECTS
        for slack in [channels.catalogue(version)["slack"]]
        for mode in slack.settings_schema["properties"]["mode"]["enum"]
    }
    assert lacks == {
        (samples.OLD, "socket"): ["appToken"],
        (samples.OLD, "http"): ["signingSecret", "appToken"],
        (samples.NEW, "socket"): ["appToken"],
        (samples.NEW, "http"): ["signingSecret"],
        (samples.NEW, "relay"): ["relay", "relay.authToken"],
    }


def test_telegram_is_said_in_each_dialect() -> None:
    streaming = {"mode": "partial", "chunkMode": "newline", "block": {"enabled": True, "coalesce": {"idleMs": 5}}}
    said = account({"allowFrom": [42, "@ada"], "groups": {"-100": {"requireMention": False}}, "streaming": streaming})
    common = {
        "enabled": True,
        "configWrites": False,
        "dmPolicy": "pairing",
        "allowFrom": ["42", "@ada"],
        "groupPolicy": "allowlist",
        "groups": {"-100": {"requireMention": False}},
        "botToken": "123456789:AAExample",
    }
    flat = {"streamMode": "partial", "chunkMode": "newline", "blockStreaming": True}
    flat |= {"blockStreamingCoalesce": {"idleMs": 5}}
    around = {"enabled": True, "configWrites": False}
    assert rendered(samples.NEW, said) == {
        "telegram": around | {"accounts": {"default": common | {"streaming": streaming}}}
    }
    assert rendered(samples.OLD, said) == {"telegram": around | {"accounts": {"default": common | flat}}}


@pytest.mark.parametrize(
    ("name", "secrets"), [("discord", {"token": "x"}), ("slack", {"botToken": "xoxb-1", "appToken": "xapp-1"})]
)
def test_the_policy_of_direct_chats_is_where_each_dialect_wants_it(name: str, secrets: dict[str, str]) -> None:
    said = account({"dmPolicy": "open", "allowFrom": ["*"], "dm": {"groupEnabled": True}}, secrets, name)
    new = rendered(samples.NEW, said)[name]["accounts"]["default"]
    assert (new["dmPolicy"], new["allowFrom"], new["dm"]) == ("open", ["*"], {"groupEnabled": True})
    old = rendered(samples.OLD, said)[name]["accounts"]["default"]
    assert old["dm"] == {"groupEnabled": True, "policy": "open", "allowFrom": ["*"]}
    assert not old.keys() & {"dmPolicy", "allowFrom"}


def test_signal_is_led_to_its_daemon_in_each_dialect() -> None:
    said = account({"account": "+491701234567", "httpUrl": "http://127.0.0.1:8080"}, {}, "signal")
    new = rendered(samples.NEW, said)["signal"]["accounts"]["default"]
    assert new["transport"] == {"kind": "external-native", "url": "http://127.0.0.1:8080"}
    old = rendered(samples.OLD, said)["signal"]["accounts"]["default"]
    assert (old["httpUrl"], old["autoStart"]) == ("http://127.0.0.1:8080", False)


def test_a_secret_with_a_dot_in_its_name_joins_the_setting_it_belongs_to() -> None:
    settings = {"host": "irc.example.org", "nick": "hana", "nickserv": {"service": "NickServ"}}
    said = account(settings, {"nickserv.password": "x"}, "irc")
    irc = rendered(samples.NEW, said)["irc"]["accounts"]["default"]
    assert irc["nickserv"] == {"service": "NickServ", "password": "x"}


def test_a_provider_without_accounts_is_said_flat() -> None:
    said = account({"appId": "a", "tenantId": "t"}, {"appPassword": "p"}, "msteams")
    teams = rendered(samples.NEW, said)["msteams"]
    assert (teams["appId"], teams["appPassword"], "accounts" in teams) == ("a", "p", False)
    second = Account("msteams", "second", True, said.settings, said.credentials)
    left = channels.render([said, second], NEW, samples.NEW).left_out
    assert [(name, which) for name, which, _ in left] == [("msteams", "second")]


def test_the_default_account_is_named_where_no_account_has_its_name() -> None:
    several = [Account("telegram", name, True, {}, TOKEN) for name in ("work", "home")]
    new = rendered(samples.NEW, *several)["telegram"]
    assert (new["defaultAccount"], list(new["accounts"])) == ("home", ["home", "work"])
    assert "defaultAccount" not in rendered(samples.OLD, *several)["telegram"]
    assert "defaultAccount" not in rendered(samples.NEW, account({}), *several)["telegram"]


def test_an_account_of_whatsapp_does_not_get_the_list_of_another_one() -> None:
    first = Account("whatsapp", "default", True, {"groupAllowFrom": ["1"]}, {})
    second = Account("whatsapp", "work", True, {"dmPolicy": "allowlist", "allowFrom": ["2"]}, {})
    said = rendered(samples.NEW, first, second)["whatsapp"]["accounts"]
    assert {name: each["groupAllowFrom"] for name, each in said.items()} == {"default": ["1"], "work": ["2"]}


def test_a_channel_that_is_switched_off_leaves_no_secret_in_the_file() -> None:
    off = Account("discord", "default", False, {}, {"token": SECRET})
    for version, dialect in DIALECTS.items():
        said = channels.render([off, replace(off, account_id="__proto__")], dialect, version)
        assert SECRET not in str(said.channels)
        assert said.left_out == ()
    # The old version would restart for a line that comes and goes; the new one would install a package for it.
    old = channels.render([off], OLD, samples.OLD)
    assert old.channels["discord"]["accounts"] == {"default": {"enabled": False, "configWrites": False}}
    assert old.plugins == {"entries": {"discord": {"enabled": True}}}
    new = channels.render([off], NEW, samples.NEW)
    assert (new.channels, new.plugins) == ({}, {})


@pytest.mark.parametrize("provider", samples.PROVIDERS, ids=ids)
def test_a_switch_restarts_nothing_on_either_version(provider: Provider) -> None:
    version = version_of(provider)
    dialect = DIALECTS[version]
    on = next(samples.accounts(provider))
    off = replace(on, enabled=False, credentials={})
    before, after = (
        {"channels": said.channels, "plugins": said.plugins}
        for said in (channels.render([each], dialect, version) for each in (on, off))
    )
    assert before != after
    assert reloads.needing_restart(before, after, dialect) == []
    assert reloads.needing_restart(after, before, dialect) == []
    assert lastgood.holds_more(before, after)
    assert not lastgood.holds_more(after, before)


def test_an_account_that_is_switched_off_is_nobodys_default() -> None:
    off, work = replace(account({}), enabled=False), Account("telegram", "work", True, {}, TOKEN)
    said = rendered(samples.NEW, off, work)["telegram"]
    assert said["defaultAccount"] == "work"
    assert said["accounts"]["default"] == {"enabled": False, "configWrites": False}
    lender = Account("whatsapp", "default", True, {"groupAllowFrom": ["1"]}, {})
    borrower = Account("whatsapp", "work", False, {}, {})
    assert rendered(samples.OLD, lender, borrower)["whatsapp"]["accounts"]["work"].keys() == {"enabled", "configWrites"}


def test_plugins_have_the_lines_that_each_version_needs() -> None:
    both = [account({}), account({}, {"token": "x"}, "discord")]
    entries = {version: channels.render(both, DIALECTS[version], version).plugins["entries"] for version in DIALECTS}
    assert entries[samples.OLD].keys() == {"telegram", "discord"}
    assert entries[samples.NEW].keys() == {"discord"}


def test_a_provider_that_is_gone_is_left_out_with_its_reason() -> None:
    said = account({"serverUrl": "http://mac.local"}, {"password": "p"}, "bluebubbles")
    assert rendered(samples.OLD, said)
    assert channels.render([said, account({})], NEW, samples.NEW).left_out == (
        ("bluebubbles", "default", "OpenClaw has dropped it; use iMessage."),
    )


def test_a_word_that_a_version_lacks_is_left_out_and_opens_no_door() -> None:
    said = rendered(samples.OLD, account({"apiRoot": "http://127.0.0.1:9", "replyToMode": "batched", "dmPolicy": "no"}))
    told = said["telegram"]["accounts"]["default"]
    assert not told.keys() & {"apiRoot", "replyToMode"}
    assert told["dmPolicy"] == "pairing"
    half_open = rendered(samples.OLD, account({"dmPolicy": "open", "allowFrom": [5]}))
    assert half_open["telegram"]["accounts"]["default"]["dmPolicy"] == "allowlist"


@pytest.mark.parametrize("name", ["", "Work", "a b", "__proto__", "constructor", "-a", "a/b", "x" * 65, "é", "a\n"])
def test_a_hostile_name_of_an_account_is_refused(name: str) -> None:
    assert channels.account_refused(channels.catalogue(samples.NEW)["telegram"], name)
    said = channels.render([Account("telegram", name, True, {}, TOKEN)], NEW, samples.NEW)
    assert said.channels == {}
    assert len(said.left_out) == 1


def test_a_variable_in_a_setting_is_plain_text() -> None:
    said = rendered(samples.NEW, account({"groups": {"1": {"systemPrompt": "I live in ${HOME}"}}}))
    provider = ModelProvider("local", "openai-completions", None, "sk-local", [])
    bot = BotSettings("hana", "Hana", "local/fake", "", Path("/srv/hana"), 20001, "tok-1", [provider], channels=said)
    group = config.render(bot, NEW)["channels"]["telegram"]["accounts"]["default"]["groups"]["1"]
    assert group == {"systemPrompt": "I live in $${HOME}"}


def test_an_account_shows_no_secret() -> None:
    assert SECRET not in repr(account({}, {"botToken": SECRET}))


@given(st.lists(RULES, max_size=6), st.data(), st.sampled_from([OLD, NEW]))
def test_bindings_are_in_one_order_and_each_once(rules: list[Rule], data: st.DataObject, dialect: Dialect) -> None:
    first = channels.render_bindings(rules, "hana", dialect)
    assert channels.render_bindings(data.draw(st.permutations(rules)), "hana", dialect) == first
    assert channels.render_bindings(rules * 2, "hana", dialect) == first
    assert json.loads(json.dumps(first)) == first
    texts = [json.dumps(each, sort_keys=True) for each in first]
    assert len(set(texts)) == len(texts)


def test_bindings_go_by_priority_and_then_by_how_much_they_say() -> None:
    rules = [
        Rule("telegram", None, None, None, 0),
        Rule("telegram", "work", None, None, 0),
        Rule("telegram", None, "group", None, 0),
        Rule("telegram", None, "direct", "42", 0),
        Rule("slack", None, None, None, 1),
    ]
    matches = [each["match"] for each in channels.render_bindings(rules, "hana", NEW)]
    assert matches == [
        {"channel": "slack", "accountId": "*"},
        {"channel": "telegram", "accountId": "*", "peer": {"kind": "direct", "id": "42"}},
        {"channel": "telegram", "accountId": "*", "peer": {"kind": "group", "id": "*"}},
        {"channel": "telegram", "accountId": "work"},
        {"channel": "telegram", "accountId": "*"},
    ]


def test_a_peer_is_said_in_each_dialect_and_for_every_kind_where_none_is_named() -> None:
    for dialect, word in ((OLD, "dm"), (NEW, "direct")):
        said = channels.render_bindings([Rule("telegram", "default", None, "42", 0)], "hana", dialect)
        assert [each["match"]["peer"] for each in said] == [
            {"kind": kind, "id": "42"} for kind in (word, "group", "channel")
        ]
        assert {each["agentId"] for each in said} == {"hana"}


@pytest.mark.parametrize(
    ("old", "new", "secrets", "wanted"),
    [
        ({}, {"baseUrl": "https://eve.example"}, ["botToken"], "baseUrl"),
        ({"baseUrl": "https://a.example"}, {}, ["botToken"], "baseUrl"),
        ({}, {"baseUrl": "https://eve.example"}, [], None),
        ({"tls": True}, {"tls": False}, ["password"], "tls"),
        ({}, {"relay": {"url": "wss://eve.example"}}, ["relay.authToken"], "relay.url"),
        ({}, {"relay": {"url": "wss://eve.example"}}, ["botToken"], None),
        ({}, {"webhookUrl": "https://eve.example"}, ["webhookSecret"], "webhookUrl"),
        ({}, {"webhookUrl": "https://eve.example"}, ["botToken"], None),
        ({"peers": {"b": {}}}, {"peers": {"b": {"url": "https://eve.example"}}}, ["peers.b.token"], "peers.b"),
        ({"peers": {"b": {}}}, {"peers": {}}, ["peers.b.token"], "peers.b"),
        ({"peers": {"b": {}}}, {"peers": {"b": {}, "c": {}}}, ["peers.b.token"], None),
    ],
)
def test_a_change_that_sends_a_secret_elsewhere_is_named(
    old: dict[str, Any], new: dict[str, Any], secrets: list[str], wanted: str | None
) -> None:
    assert providers.led_elsewhere(old, new, secrets) == wanted
