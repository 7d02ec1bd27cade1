import json
from pathlib import Path

from app.gateway import lastgood, reserved
from app.gateway.openclaw import Installation

CATALOGUE = """const ENTRIES = [{ "openclaw": { "plugin": { "id": "diffs" } } }, { plugin: { id: "exa", label: "Exa" },
  "legacyPluginIds": ["exa-search", "exa-find"] }];"""


def package(folder: Path, version: str, extensions: str, catalogue: str | None) -> Installation:
    for name, manifest in {
        "telegram": {"id": "telegram", "channels": ["telegram"]},
        "speech": {"id": "voice-call", "providers": ["Elevenlabs"]},
        "broken": None,
        "odd": [1],
    }.items():
        place = folder / extensions / name
        place.mkdir(parents=True)
        (place / "openclaw.plugin.json").write_text("{" if manifest is None else json.dumps(manifest))
    if catalogue is not None:
        (folder / "dist").mkdir(exist_ok=True)
        (folder / "dist" / "official-external-plugin-bundled-catalogs-x1.mjs").write_text(catalogue)
    return Installation(version, folder / "openclaw.mjs", (), None, folder)


def test_what_the_package_brings_or_would_install_is_reserved(tmp_path: Path) -> None:
    new = package(tmp_path / "new", "2026.9.6", "dist/extensions", CATALOGUE)
    old = package(tmp_path / "old", "2026.2.1", "extensions", None)
    for name in ("voice-call", "speech", "elevenlabs", "broken", "odd", "minimax-portal"):
        assert "no channel" in (reserved.why(new, name) or "")
        assert "no channel" in (reserved.why(old, name) or "")
    for name in ("diffs", "exa", "exa-search", "exa-find"):
        assert "no channel" in (reserved.why(new, name) or "")
        assert reserved.why(old, name) is None
    assert reserved.why(new, "acme-chat") is None


def test_a_known_provider_belongs_in_channels_of_ours(tmp_path: Path) -> None:
    new = package(tmp_path, "2026.9.6", "dist/extensions", CATALOGUE)
    for name in ("telegram", "discord"):
        assert "channelCreate" in (reserved.why(new, name) or "")
        assert "channelCreate" in (reserved.why(None, name) or "")
    assert "closed" in (reserved.why(new, "webchat") or "")


def test_where_the_plugins_cannot_be_listed_every_channel_is_reserved(tmp_path: Path) -> None:
    without_catalogue = package(tmp_path / "a", "2026.9.6", "dist/extensions", None)
    without_plugins = Installation("2026.2.1", tmp_path / "openclaw.mjs", (), None, tmp_path / "b")
    wrapper = Installation("2026.9.6", tmp_path / "openclaw", (), None, None)
    for each in (without_catalogue, without_plugins, wrapper):
        assert "cannot be told" in (reserved.why(each, "acme-chat") or "")


def test_a_channel_of_overrides_is_no_matter_of_rights_when_a_change_is_taken_back() -> None:
    kept = {"channels": {"acme-chat": {"enabled": True}, "telegram": {"accounts": {"a": {"enabled": True}}}}}
    assert lastgood.holds_more(kept, {})
    assert not lastgood.holds_more(kept, {"channels": {"telegram": kept["channels"]["telegram"]}})
