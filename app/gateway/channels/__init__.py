"""Channels as OpenClaw knows them: which there are, what each needs, and how they are written into a configuration."""

from app.gateway.channels.bindings import Rule, render_bindings
from app.gateway.channels.providers import (
    Provider,
    account_refused,
    catalogue,
    edition,
    provider_names,
    refused,
    why_closed,
)
from app.gateway.channels.rendering import Account, Rendered, render

__all__ = [
    "Account",
    "Provider",
    "Rendered",
    "Rule",
    "account_refused",
    "catalogue",
    "edition",
    "provider_names",
    "refused",
    "render",
    "render_bindings",
    "why_closed",
]
