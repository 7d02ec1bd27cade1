"""The channels of the config: what their status says, and messages that tests let somebody send."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from . import ids
from .config import BUNDLED_ON_NEW
from .runs import Run

if TYPE_CHECKING:
    from .gateway import Gateway

#: Tokens that begin so are refused, as the service itself would.
REFUSED_TOKEN = "999:"
REFUSED = {
    "old": "Call to 'getMe' failed! (401: Unauthorized)",
    "new": 'Telegram bot token unauthorized for account "{account}" (getMe returned 401 from Telegram)',
}


HELD = (
    "gateway restart-loop breaker tripped: 3 unclean boot(s) within 300000ms; suppressing channel/provider account "
    "auto-start. Inspect the stability bundle and fix the startup crash before restarting the service."
)


class Channels:
    """Started with the gateway; `stopped` holds what channels.stop or channels.logout ended."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._started_at = ids.now_ms()
        self._seen: dict[str, dict[str, int]] = {}
        self.stopped: set[str] = set()
        self.started: set[str] = set()
        self.asked = 0

    def names(self) -> list[str]:
        """Configured channels whose plugin is there."""
        return [name for name in self._gateway.config.get("channels", {}) if name != "defaults" and self._loaded(name)]

    def start(self) -> None:
        for name in self._gateway.config.get("channels", {}):
            if name != "defaults" and not self._loaded(name):
                self._gateway.output.log("channels", f"{name}: no channel plugin is installed or loadable")
        for name in self.names():
            for account in self._accounts(name):
                if account["running"]:
                    self._gateway.output.log(name, f"[{account['accountId']}] starting provider (@claw_{os.getpid()})")
                elif account["lastError"]:
                    self._gateway.output.log(name, f"[{account['accountId']}] channel exited: {account['lastError']}")

    def status(self, probe: bool = False) -> dict:
        accounts = {name: self._accounts(name) for name in self.names()}
        for account in [one for listed in accounts.values() for one in listed] if probe else []:
            account.setdefault("probe", {"ok": account["running"], "status": None, "error": account["lastError"]})
        channels = {}
        for name, listed in accounts.items():
            kept = ("configured", "running", "lastError", "tokenSource", "mode", "lastStartAt", "lastStopAt")
            channels[name] = {key: listed[0][key] for key in kept}
        return {
            "ts": ids.now_ms(), "channelOrder": list(accounts), "channelLabels": {name: name for name in accounts},
            "channels": channels, "channelAccounts": accounts,
            "channelDefaultAccountId": {name: listed[0]["accountId"] for name, listed in accounts.items()},
        }  # fmt: skip

    def failing(self) -> list[str]:
        """Channels that are meant to run and do not; those held back by the crash breaker do not count."""
        down = {name: [a for a in self._accounts(name) if a["enabled"] and not a["running"]] for name in self.names()}
        down = {name: [a for a in each if a.get("stateReason") != "not linked"] for name, each in down.items()}
        return [name for name, accounts in down.items() if any(a["lastError"] != HELD for a in accounts)]

    def receive(self, said: dict) -> Run:
        """Somebody writes over a channel: {channel, account?, peer, name?, text, group?, title?, thread?}."""
        channel, account = said["channel"], said.get("account", "default")
        agent_id = self._gateway.config.agent_id
        self._seen.setdefault(channel, {}).update(lastInboundAt=ids.now_ms(), lastOutboundAt=ids.now_ms())
        key, origin = self._key(agent_id, said), self._origin(said, account)
        told = self._wrapped(said) if self._gateway.era.dialect == "old" else said["text"]
        return Run(self._gateway.sessions.open(key, origin), said["text"], "channel", told=told)

    def _key(self, agent_id: str, said: dict) -> str:
        channel, scope = said["channel"], self._gateway.config.get("session.dmScope", "main")
        if group := said.get("group"):
            topic = f":topic:{said['thread']}" if said.get("thread") else ""
            return f"agent:{agent_id}:{channel}:group:{group}{topic}"
        direct = "dm" if self._gateway.era.dialect == "old" else "direct"
        tail = {
            "per-peer": f"{direct}:{said['peer']}",
            "per-channel-peer": f"{channel}:{direct}:{said['peer']}",
            "per-account-channel-peer": f"{channel}:{said.get('account', 'default')}:{direct}:{said['peer']}",
        }
        return f"agent:{agent_id}:{tail.get(scope, 'main')}"

    def _origin(self, said: dict, account: str) -> dict[str, Any]:
        channel, group, peer = said["channel"], said.get("group"), str(said["peer"])
        name = said.get("name", peer)
        origin = {"provider": channel, "surface": channel, "channel": channel, "accountId": account}
        if not group:
            origin |= {"label": f"{name} id:{peer}", "chatType": "direct", "displayName": f"{name} id:{peer}"}
            return origin | {"from": f"{channel}:{peer}", "to": f"{channel}:{peer}"}
        title = said.get("title", str(group))
        topic = {"threadId": said["thread"]} if said.get("thread") else {}
        origin |= {"label": f"{title} id:{group}", "chatType": "group", "groupId": str(group), "subject": title}
        origin |= {"displayName": f"{channel}:g-{title.lower().replace(' ', '-')}"}
        return origin | topic | {"from": f"{channel}:group:{group}", "to": f"{channel}:{group}"}

    def _wrapped(self, said: dict) -> str:
        """A person's text as old keeps it and shows it to the model."""
        at, peer, name = time.strftime("+0s %Y-%m-%d %H:%M UTC", time.gmtime()), said["peer"], said.get("name", "")
        channel = said["channel"].capitalize()
        if group := said.get("group"):
            head = f"[{channel} {said.get('title', group)} id:{group} {at}] {name} ({peer}): "
        else:
            head = f"[{channel} {name} id:{peer} {at}] "
        return f"{head}{said['text']}\n[message_id: {said.get('messageId', ids.now_ms() % 100000)}]"

    def _loaded(self, name: str) -> bool:
        gateway = self._gateway
        if name in gateway.faults.channels_unloadable:
            return False
        enabled = gateway.config.get(f"plugins.entries.{name}.enabled")
        if gateway.era.dialect == "old" or name in BUNDLED_ON_NEW:
            return enabled is not False
        return bool(enabled) and (gateway.home / "npm" / "projects" / name).is_dir()

    def _accounts(self, name: str) -> list[dict]:
        block = self._gateway.config.get("channels", {})[name]
        # A top-level token serves the account "default"; named accounts bring their own.
        named = block.get("accounts") or {"default": {}}
        return [self._account(name, account, block | settings) for account, settings in named.items()]

    def _account(self, name: str, account_id: str, settings: dict) -> dict:
        enabled = settings.get("enabled") is not False
        token = str(settings.get("botToken") or settings.get("token") or "")
        new = self._gateway.era.dialect == "new"
        why = REFUSED["new" if new else "old"].format(account=account_id) if token.startswith(REFUSED_TOKEN) else None
        if new and self._gateway.faults.channels_held and name not in self.started:
            why = HELD
        logins = self._gateway.logins if name == "whatsapp" else None
        is_unlinked = logins is not None and not logins.is_linked
        if is_unlinked and not new:
            why = why or "not linked"
        running = enabled and why is None and not is_unlinked and name not in self.stopped
        status = {
            "accountId": account_id, "enabled": enabled, "configured": True, "running": running, "lastError": why,
            "tokenSource": "config" if token else "none", "mode": "polling" if running else None,
            "lastStartAt": self._started_at, "lastStopAt": None, "lastInboundAt": None, "lastOutboundAt": None,
        }  # fmt: skip
        if new:
            status |= {"connected": running, "lifecycle": "ready" if running else "stopped"}
            status |= {"lastConnectedAt": self._started_at if running else None}
            status |= {"stateReason": "not linked"} if is_unlinked else {}
            status |= {} if enabled else {"stateReason": "disabled"}
        status |= {"linked": logins.is_linked} if logins else {}
        if gossip := self._gateway.gossip():
            status |= {"running": True, "lastError": f"fetch failed:{gossip}"}
            status |= {"connected": False, "lifecycle": "recovering"} if new else {}
        return status | self._seen.get(name, {}) | self._gateway.faults.channels.get(name, {})
