"""Says which peers lead to a bot, in an order that is always the same for the same rules."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from app.gateway.config import Dialect

#: Kinds of peers, in our words; one-to-one chats have another name in some versions.
KINDS = ("direct", "group", "channel")


@dataclass(frozen=True, slots=True)
class Rule:
    """Leads a peer to the bot; null is any."""

    provider: str
    account_id: str | None
    peer_kind: str | None
    """`direct`, `group` or `channel`."""
    peer_id: str | None
    priority: int


def render_bindings(rules: Sequence[Rule], agent_id: str, dialect: Dialect) -> list[dict[str, Any]]:
    """Entries for `bindings`: a higher priority first, then the more specific one; each match once."""
    rendered: list[dict[str, Any]] = []
    for rule in sorted(rules, key=_order):
        for match in _matches(rule, dialect):
            entry = {"agentId": agent_id, "match": match}
            if entry not in rendered:
                rendered.append(entry)
    return rendered


def _order(rule: Rule) -> tuple[int, int, str, str, str, str]:
    named = (rule.peer_id, rule.peer_kind, rule.account_id)
    specific = sum(weight for weight, part in zip((4, 2, 1), named, strict=True) if part is not None)
    return (-rule.priority, -specific, rule.provider, rule.account_id or "", rule.peer_kind or "", rule.peer_id or "")


def _matches(rule: Rule, dialect: Dialect) -> Iterator[dict[str, Any]]:
    """One match, or one for each kind of peer where an id is given without its kind."""
    # Without an account OpenClaw would take the one named "default" alone.
    match = {"channel": rule.provider, "accountId": rule.account_id or "*"}
    if rule.peer_kind is None and rule.peer_id is None:
        yield match
        return
    for kind in (rule.peer_kind,) if rule.peer_kind else KINDS:
        word = "dm" if kind == "direct" and not dialect.direct_peers else kind
        yield match | {"peer": {"kind": word, "id": rule.peer_id or "*"}}
