"""What the installed OpenClaw knows of channels, for services: they do not know which version it is."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from app.domain.ports import ChannelProvider
from app.gateway import channels
from app.gateway.channels import Provider, providers


class InstalledRules:
    """The catalogue of one version, looked up at each question: OpenClaw may be installed while the server runs."""

    def __init__(self, version: Callable[[], str]) -> None:
        self._version = version

    def catalogue(self) -> Mapping[str, Provider]:
        return channels.catalogue(self._version())

    def refused(
        self, provider: ChannelProvider, settings: Mapping[str, Any], credentials: Mapping[str, str]
    ) -> list[tuple[list[str], str]]:
        # A part may be looked at alone: what is missing can be given later.
        return channels.refused(self._known(provider), settings, credentials, complete=False)

    def missing(
        self, provider: ChannelProvider, settings: Mapping[str, Any], credentials: Iterable[str]
    ) -> list[tuple[list[str], str]]:
        found = providers.missing(self._known(provider), settings, dict.fromkeys(credentials))
        return [(list(path), why) for path, why in found]

    def led_elsewhere(self, old: Mapping[str, Any], new: Mapping[str, Any], secrets: Iterable[str]) -> str | None:
        return providers.led_elsewhere(old, new, secrets)

    def account_refused(self, provider: ChannelProvider, account_id: str) -> str | None:
        return channels.account_refused(self._known(provider), account_id)

    def _known(self, provider: ChannelProvider) -> Provider:
        return provider if isinstance(provider, Provider) else self.catalogue()[provider.name]
