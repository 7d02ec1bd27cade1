"""Which config keys each era accepts, strict where ClawNet renders.

A rule is a type, a set of words, a list with the rule of its items, or a dict of known keys ("*" for any name);
ANY takes everything. `Keys` marks the keys that must be there.
"""

from __future__ import annotations

from typing import Any

ANY: Any = object
TEXT, FLAG, NUMBER = str, bool, (int, float)


class Keys(dict):
    """Known keys, some of which are required."""

    def __init__(self, known: dict, *required: str) -> None:
        super().__init__(known)
        self.required = required


def free(*names: str) -> dict:
    """Keys that may be there, whatever they hold."""
    return dict.fromkeys(names, ANY)


POLICY = {"pairing", "allowlist", "open", "disabled"}
GROUP_POLICY = {"open", "disabled", "allowlist"}

#: Blocks neither era's ClawNet config goes into.
ELSEWHERE = free(
    "meta", "env", "wizard", "diagnostics", "browser", "ui", "auth", "nodeHost", "broadcast", "audio", "messages",
    "commands", "approvals", "hooks", "web", "talk", "skills", "memory", "cron",
)  # fmt: skip

#: The keys of a channel block, per era; "dm" holds the policy on old Discord and Slack.
CHANNEL_KEYS = {
    "telegram": (
        (
            "botToken tokenFile webhookSecret webhookUrl enabled dmPolicy allowFrom groupPolicy groupAllowFrom groups"
            " historyLimit mediaMaxMb network proxy reactionNotifications replyToMode textChunkLimit configWrites name"
        ),
        "blockStreaming streamMode heartbeat webhookPath capabilities dms chunkMode draftChunk",
        "apiRoot joinIntro streaming heartbeatVisibility webhookPath webhookPort webhookHost defaultAccount",
    ),
    "discord": (
        "token allowBots configWrites dm enabled groupPolicy guilds historyLimit intents pluralkit replyToMode name",
        "blockStreaming heartbeat",
        "activities allowFrom applicationId dmPolicy joinIntro proxy streaming heartbeatVisibility defaultAccount",
    ),
    "slack": (
        (
            "appToken botToken userToken signingSecret allowBots channels configWrites dm enabled groupPolicy"
            " historyLimit mode reactionNotifications replyToMode requireMention webhookPath name"
        ),
        "blockStreaming heartbeat",
        "allowFrom dmPolicy postAs relay streaming heartbeatVisibility defaultAccount",
    ),
}

#: Channel ids whose block is taken as it comes.
OTHER_CHANNELS = (
    "whatsapp signal imessage googlechat msteams mattermost matrix line nextcloud-talk nostr twitch tlon zalo zalouser",
    "bluebubbles",
    "irc feishu synology-chat sms buzz clickclack raft reef a2a qqbot yuanbao openclaw-weixin openclaw-zaloclawbot",
)


def channels(new: bool) -> dict:
    rules: dict[str, Any] = {"defaults": ANY} | free(*f"{OTHER_CHANNELS[0]} {OTHER_CHANNELS[1 + new]}".split())
    for channel, keys in CHANNEL_KEYS.items():
        account = free(*f"{keys[0]} {keys[1 + new]}".split())
        if "dmPolicy" in account:
            account["dmPolicy"] = POLICY
        account["groupPolicy"] = GROUP_POLICY
        account["enabled"] = FLAG
        rules[channel] = account | {"accounts": {"*": account}}
    return rules


def gateway(new: bool) -> dict:
    auth = {"mode": {"token", "password"}, "token": TEXT, "password": TEXT, "allowTailscale": FLAG}
    if new:
        auth |= {"mode": {"token", "password", "none", "trusted-proxy"}} | free("rateLimit", "trustedProxy")
    known = {
        "mode": {"local", "remote"},
        "port": int,
        "bind": {"loopback", "lan", "tailnet", "auto", "custom"},
        "auth": auth,
        "http": {"endpoints": {"chatCompletions": {"enabled": FLAG}, "responses": ANY}} | free("securityHeaders"),
        "controlUi": {"enabled": FLAG} | free("basePath", "root", "allowedOrigins", "allowInsecureAuth"),
        "reload": {"mode": {"off", "hybrid"} if new else {"off", "hybrid", "hot", "restart"}, "debounceMs": int},
    }
    return known | free("customBindHost", "trustedProxies", "tailscale", "remote", "tls", "nodes", *(("tools",) * new))


def models(new: bool) -> dict:
    model = {"id": TEXT, "name": TEXT, "contextWindow": NUMBER, "maxTokens": NUMBER, "reasoning": FLAG}
    model |= free("api", "input", "cost", "headers", "compat", *(("contextTokens", "params") * new))
    provider = {"baseUrl": TEXT, "apiKey": ANY, "models": [Keys(model, "id", "name")]}
    provider |= free("auth", "api", "headers", "authHeader", *(("request", "timeoutSeconds") * new))
    known = {"mode": {"merge", "replace"}, "providers": {"*": Keys(provider, "baseUrl", "models")}}
    return known | free("bedrockDiscovery") | ({"catalogRefresh": {"enabled": FLAG}, "pricing": ANY} if new else {})


def agents(new: bool) -> dict:
    defaults = {"skipBootstrap": FLAG, "workspace": TEXT, "heartbeat": {"every": TEXT} | free(
        "activeHours", "model", "session", "target", "to", "prompt", "ackMaxChars", "includeReasoning")}  # fmt: skip
    defaults |= free(
        "thinkingDefault", "model", "models", "imageModel", "repoRoot", "bootstrapMaxChars", "userTimezone",
        "timeFormat", "contextTokens", "contextPruning", "compaction", "memorySearch", "verboseDefault",
        "elevatedDefault", "blockStreamingDefault", "blockStreamingBreak", "blockStreamingChunk", "timeoutSeconds",
        "mediaMaxMb", "typingIntervalSeconds", "typingMode", "maxConcurrent", "subagents", "sandbox", "humanDelay",
        "envelopeTimezone", "cliBackends",
    )  # fmt: skip
    agent = {"name": TEXT, "workspace": TEXT, "identity": {"name": TEXT, "emoji": TEXT} | free("theme", "avatar")}
    agent |= free("default", "model", "agentDir", "memorySearch", "skills", "humanDelay", "heartbeat", "groupChat")
    agent |= free("subagents", "sandbox", "tools", *(("thinkingDefault", "params", "runtime") * new))
    known = {"defaults": defaults, "list": [Keys(agent | {"id": TEXT}, "id")]}
    return known | ({"entries": {"*": agent}, "ownership": {"explicit"}} if new else {})


def bindings(new: bool) -> list:
    peer = {"kind": {"direct" if new else "dm", "group", "channel"}, "id": TEXT}
    match = {"channel": TEXT, "accountId": TEXT, "peer": Keys(peer, "kind", "id"), "guildId": TEXT, "teamId": TEXT}
    if new:
        match["roles"] = [TEXT]
    binding = {"agentId": TEXT, "match": Keys(match, "channel")} | free(*(("type", "comment", "session") * new))
    return [Keys(binding, "agentId", "match")]


def plugins(new: bool) -> dict:
    entry = {"enabled": FLAG, "config": ANY} | free(*(("hooks", "apiKey", "env") * new))
    return {"enabled": FLAG, "entries": {"*": entry}} | free("allow", "deny", "load", "slots", "installs")


def every(new: bool) -> dict:
    """The rules of the whole file."""
    session = {"dmScope": {"main", "per-peer", "per-channel-peer", "per-account-channel-peer"}} | free(
        "scope", "identityLinks", "resetTriggers", "idleMinutes", "reset", "resetByType", "resetByChannel", "store",
        "typingIntervalSeconds", "typingMode", "mainKey", "sendPolicy", "agentToAgent",
    )  # fmt: skip
    tools = free("profile", "allow", "alsoAllow", "deny", "byProvider", "web", "media", "links", "message", "exec")
    tools |= free("agentToAgent", "elevated", "subagents", "sandbox", *(("fs", "sessions", "loopDetection") * new))
    logging = free("level", "consoleLevel", "consoleStyle", "redactSensitive", "redactPatterns")
    if new:
        logging |= free("maxFileBytes")
    return ELSEWHERE | free(*(("$schema", "secrets", "acp", "mcp") * new)) | {
        "gateway": gateway(new),
        "logging": logging | {"file": TEXT},
        "update": {"checkOnStart": FLAG} | free("channel", "auto"),
        "discovery": {"mdns": {"mode": {"off", "minimal", "full"}}, "wideArea": ANY},
        "models": models(new),
        "agents": agents(new),
        "plugins": plugins(new),
        "channels": channels(new),
        "bindings": bindings(new),
        "session": session,
        "tools": tools,
    }  # fmt: skip


def issues(value: Any, rule: Any, path: str = "") -> list[tuple[str, str]]:
    """Where a value breaks its rule, as (path, why) in OpenClaw's words."""
    if rule is ANY:
        return []
    if isinstance(rule, dict):
        return of_object(value, rule, path)
    if isinstance(rule, list):
        return of_list(value, rule[0], path)
    if isinstance(rule, set):
        words = "|".join(f'"{word}"' for word in sorted(rule))
        return [] if isinstance(value, str) and value in rule else [(path, f"Invalid option: expected one of {words}")]
    fits = isinstance(value, rule) and (rule is bool or not isinstance(value, bool))
    expected = {bool: "boolean", str: "string"}.get(rule, "number")
    return [] if fits else [(path, f"Invalid input: expected {expected}, received {kind(value)}")]


def of_object(value: Any, rule: dict, path: str) -> list[tuple[str, str]]:
    if not isinstance(value, dict):
        return [(path, f"Invalid input: expected object, received {kind(value)}")]
    found = [(join(path, key), "Invalid input: expected value, received undefined")
             for key in getattr(rule, "required", ()) if key not in value]  # fmt: skip
    unknown = [] if "*" in rule else [key for key in value if key not in rule]
    for key, item in value.items():
        if key not in unknown:
            found += issues(item, rule.get(key, rule.get("*")), join(path, key))
    if unknown:
        names = ", ".join(f'"{key}"' for key in unknown)
        found.append((path, f"Unrecognized key{'s' * (len(unknown) > 1)}: {names}"))
    return found


def of_list(value: Any, rule: Any, path: str) -> list[tuple[str, str]]:
    if not isinstance(value, list):
        return [(path, f"Invalid input: expected array, received {kind(value)}")]
    return [issue for at, item in enumerate(value) for issue in issues(item, rule, join(path, str(at)))]


def join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def kind(value: Any) -> str:
    if value is None:
        return "null"
    return {bool: "boolean", str: "string", dict: "object", list: "array"}.get(type(value), "number")
