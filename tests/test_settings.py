"""What the environment and the settings file may say, and what is said back when they are wrong."""

import re
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from app import settings
from app.domain.errors import SettingsError
from app.vault import Secret

KEY = "00112233445566778899aabbccddeeff" * 2
URL = "postgresql://clawnet:hunter2@db.example:5432/clawnet"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path / "home"), "CLAWNET_DATA_DIR": str(tmp_path), "CLAWNET_NODE": "here"}


def test_nothing_needs_to_be_set(tmp_path: Path):
    found = settings.load({"HOME": str(tmp_path), "PATH": "/usr/bin"})
    assert found.clawnet_data_dir == tmp_path / ".local/share/clawnet"
    assert found.clawnet_cache_dir == tmp_path / ".cache/clawnet"
    assert found.openclaw_base_path == tmp_path / ".local/share/clawnet/openclaw"
    assert (found.database_url, found.encryption_key, found.encryption_key_file) == (None, None, None)
    assert (found.clawnet_host, found.clawnet_port) == ("127.0.0.1", 8000)
    assert (found.openclaw_base_port, found.openclaw_max_bots, found.openclaw_binary_path) == (18789, 50, None)
    assert (found.clawnet_openclaw_version, found.clawnet_shutdown) == ("2026.9.6", "stop")
    assert (found.clawnet_stop_grace, found.clawnet_health_interval, found.clawnet_start_budget) == (20, 10, 120)
    assert (found.clawnet_log_level, found.clawnet_backoff_scale) == ("info", 1)
    assert (found.clawnet_sockets_per_user, found.clawnet_sockets_per_address) == (20, 200)
    assert (found.clawnet_rate_query, found.clawnet_rate_mutation) == (6_000, 1_200)
    assert (found.clawnet_rate_sign_in, found.clawnet_rate_connect) == (20, 600)
    assert (found.clawnet_trusted_proxies, found.clawnet_allowed_origins) == ((), ())
    assert found.warnings == ()


def test_base_folders_of_the_desktop_count_when_they_are_absolute(tmp_path: Path):
    home = {"HOME": str(tmp_path)}
    found = settings.load({**home, "XDG_DATA_HOME": "/srv/data", "XDG_CACHE_HOME": "/srv/cache"})
    assert (found.clawnet_data_dir, found.clawnet_cache_dir) == (Path("/srv/data/clawnet"), Path("/srv/cache/clawnet"))
    found = settings.load({**home, "XDG_DATA_HOME": "data", "XDG_CACHE_HOME": ""})
    assert found.clawnet_data_dir == tmp_path / ".local/share/clawnet"


def test_the_environment_comes_before_the_file_and_the_file_before_the_default(environ: dict[str, str], tmp_path: Path):
    lines = ["clawnet_port = 9000", "openclaw_max_bots = 7", "clawnet_stop_grace = 1.5", 'clawnet_shutdown = "keep"']
    (tmp_path / "clawnet.toml").write_text("\n".join(lines))
    found = settings.load({**environ, "CLAWNET_PORT": "9001"})
    assert (found.clawnet_port, found.openclaw_max_bots, found.clawnet_stop_grace) == (9001, 7, 1.5)
    assert (found.clawnet_shutdown, found.clawnet_health_interval, found.warnings) == ("keep", 10, ())


def test_paths_are_made_whole(environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "clawnet.toml").write_text('clawnet_cache_dir = "../cache"')
    found = settings.load({**environ, "OPENCLAW_BASE_PATH": "~/bots"})
    assert found.openclaw_base_path == tmp_path / "home/bots"
    assert found.clawnet_cache_dir == tmp_path.parent / "cache"
    found = settings.load({**environ, "CLAWNET_DATA_DIR": "../data", "CLAWNET_CACHE_DIR": "./c"})
    assert (found.clawnet_data_dir, found.clawnet_cache_dir) == (tmp_path / "data", tmp_path / "work/c")
    assert found.openclaw_base_path == tmp_path / "data/openclaw"


WRONG = [
    ("CLAWNET_PORT", "eighty", "'eighty'; expected a whole number from 0 to 65535"),
    ("CLAWNET_PORT", "65536", "'65536'; expected a whole number from 0 to 65535"),
    ("CLAWNET_PORT", "-1", "'-1'; expected a whole number"),
    ("CLAWNET_PORT", "8_0", "'8_0'; expected a whole number"),
    ("CLAWNET_PORT", "٨٠", "'٨٠'; expected a whole number"),
    ("CLAWNET_PORT", "  ", "empty; expected a value, or no such setting at all"),
    ("CLAWNET_PORT", "18789", "18789, which is one of the bots' ports; expected one outside 18789 to 24788"),
    ("OPENCLAW_BASE_PORT", "80", "'80'; expected a whole number from 1024 to 65535"),
    ("OPENCLAW_MAX_BOTS", "0", "'0'; expected a whole number from 1"),
    ("OPENCLAW_MAX_BOTS", "390", "390, but from OPENCLAW_BASE_PORT 18789 there are ports for 389 bots"),
    ("CLAWNET_HOST", "http://localhost", "'http://localhost'; expected an address or a host's name"),
    ("CLAWNET_HOST", "127.0.0.256", "'127.0.0.256'; expected an address"),
    ("CLAWNET_HOST", "localhost:8000", "'localhost:8000'; expected an address"),
    ("CLAWNET_SHUTDOWN", "Stop", "'Stop'; expected one of stop, keep"),
    ("CLAWNET_STOP_GRACE", "20s", "'20s'; expected a number of seconds from 0 to 3600"),
    ("CLAWNET_STOP_GRACE", "inf", "'inf'; expected a number of seconds"),
    ("CLAWNET_HEALTH_INTERVAL", "0", "'0'; expected a number of seconds from 0.05"),
    ("CLAWNET_START_BUDGET", "1e9", "'1e9'; expected a number of seconds"),
    ("CLAWNET_BACKOFF_SCALE", "x", "'x'; expected a factor from 0 to 100"),
    ("CLAWNET_LOG_FORMAT", "yaml", "'yaml'; expected one of console, json"),
    ("CLAWNET_LOG_LEVEL", "trace", "'trace'; expected one of debug, info, warning, error"),
    ("CLAWNET_OPENCLAW_VERSION", "latest", "'latest'; expected a version such as 2026.9.6"),
    ("CLAWNET_NODE", "two words", "'two words'; expected a name of up to 63"),
    ("CLAWNET_RATE_QUERY", "-1", "'-1'; expected a whole number from 0 to 100000000"),
    ("CLAWNET_RATE_MUTATION", "many", "'many'; expected a whole number from 0"),
    ("CLAWNET_RATE_SIGN_IN", "1.5", "'1.5'; expected a whole number from 0"),
    ("CLAWNET_RATE_CONNECT", "100000001", "'100000001'; expected a whole number from 0 to 100000000"),
    ("CLAWNET_SOCKETS_PER_USER", "off", "'off'; expected a whole number from 0"),
    ("CLAWNET_SOCKETS_PER_ADDRESS", "", "empty; expected a value"),
    ("CLAWNET_TRUSTED_PROXIES", "*", "'*', with which every client could say that it is another; expected addresses"),
    ("CLAWNET_TRUSTED_PROXIES", "10.0.0.1, *", "'*', with which every client could say that it is another"),
    ("CLAWNET_TRUSTED_PROXIES", "0.0.0.0/0", "'0.0.0.0/0', with which every client could say that it is another"),
    ("CLAWNET_TRUSTED_PROXIES", "::/0", "'::/0', with which every client could say that it is another"),
    ("CLAWNET_TRUSTED_PROXIES", "10.0.0.1/8", "'10.0.0.1/8'; expected addresses and networks such as 127.0.0.1, 10"),
    ("CLAWNET_TRUSTED_PROXIES", "10.0.0.1:80", "'10.0.0.1:80'; expected addresses and networks"),
    ("CLAWNET_TRUSTED_PROXIES", "[::1]", "'[::1]'; expected addresses and networks"),
    ("CLAWNET_TRUSTED_PROXIES", "10.0.0.1 10.0.0.2", "'10.0.0.1 10.0.0.2'; expected addresses and networks"),
    ("CLAWNET_TRUSTED_PROXIES", "proxy.example.com", "'proxy.example.com'; expected addresses and networks"),
    ("CLAWNET_ALLOWED_ORIGINS", "*", "'*', with which any page could ask in its visitor's name; expected origins"),
    ("CLAWNET_ALLOWED_ORIGINS", "https://*.example.com", "'https://*.example.com'; expected origins such as https"),
    ("CLAWNET_ALLOWED_ORIGINS", "app.example.com", "'app.example.com'; expected origins"),
    ("CLAWNET_ALLOWED_ORIGINS", "null", "'null'; expected origins"),
    ("CLAWNET_ALLOWED_ORIGINS", "https://app.example.com/", "'https://app.example.com/'; expected origins"),
    ("CLAWNET_ALLOWED_ORIGINS", "https://app.example.com/x?y#z", "'https://app.example.com/x?y#z'; expected origins"),
    ("CLAWNET_ALLOWED_ORIGINS", "https://me@app.example.com", "'https://me@app.example.com'; expected origins"),
    ("CLAWNET_ALLOWED_ORIGINS", "https://app.example.com:x", "'https://app.example.com:x'; expected origins"),
    ("CLAWNET_ALLOWED_ORIGINS", "https://app.example.com:", "'https://app.example.com:'; expected origins"),
    ("CLAWNET_ALLOWED_ORIGINS", "wss://app.example.com", "'wss://app.example.com'; expected origins"),
    ("CLAWNET_ALLOWED_ORIGINS", "https://", "'https://'; expected origins"),
    ("CLAWNET_ALLOWED_ORIGINS", "http://[::1", "'http://[::1'; expected origins"),
    ("CLAWNET_ALLOWED_ORIGINS", "https://ä.example", "'https://ä.example'; expected origins"),
    ("CLAWNET_DATA_DIR", " ", "empty; expected the path of a folder"),
    ("CLAWNET_DATA_DIR", "/dev/null", "'/dev/null', which is a file; expected a folder"),
    ("CLAWNET_CACHE_DIR", "/dev/null", "'/dev/null', which is a file; expected a folder"),
    ("OPENCLAW_BINARY_PATH", "/no/such/openclaw", "'/no/such/openclaw', where no file is; expected the path of a file"),
    ("ENCRYPTION_KEY_FILE", "/no/such/key", "'/no/such/key', which cannot be read (No such file or directory)"),
    ("ENCRYPTION_KEY", "", "empty; expected a value"),
    ("DATABASE_URL", "mysql://clawnet:hunter2@db/x", "no address of a PostgreSQL server; expected postgresql://"),
    (
        "DATABASE_URL",
        "postgresql://clawnet:hunter2@db:port/x",
        "an address that cannot be read; expected postgresql://",
    ),
]


@pytest.mark.parametrize(("name", "value", "said"), WRONG)
def test_a_wrong_value_is_named_with_what_is_expected(environ: dict[str, str], name: str, value: str, said: str):
    with pytest.raises(SettingsError) as refused:
        settings.load({**environ, name: value})
    assert str(refused.value).startswith(f"{name} is {said}")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("clawnet_port = true", "clawnet_port in {file} is a TOML bool; expected a text or a number"),
        ("clawnet_port = [8000]", "clawnet_port in {file} is a TOML list; expected a text or a number"),
        ("clawnet_port = 80.5", "clawnet_port in {file} is '80.5'; expected a whole number"),
        ("clawnet_port = ", "{file} is not TOML (Invalid value"),
        ("clawnet_port = 1\nclawnet_port = 2", "{file} is not TOML (Cannot overwrite a value"),
    ],
)
def test_a_wrong_line_of_the_file_is_named(environ: dict[str, str], tmp_path: Path, line: str, said: str):
    (tmp_path / "clawnet.toml").write_text(line)
    with pytest.raises(SettingsError) as refused:
        settings.load(environ)
    assert str(refused.value).startswith(said.format(file=tmp_path / "clawnet.toml"))


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_a_file_that_cannot_be_read_is_named(environ: dict[str, str], tmp_path: Path, content: bytes | None):
    file = tmp_path / "clawnet.toml"
    file.mkdir() if content is None else file.write_bytes(content)
    with pytest.raises(SettingsError, match=re.escape(str(file))):
        settings.load(environ)


def test_a_weak_key_is_refused_without_being_shown(environ: dict[str, str], tmp_path: Path):
    with pytest.raises(SettingsError, match="ENCRYPTION_KEY has 9 characters; expected 64 hex digits") as refused:
        settings.load({**environ, "ENCRYPTION_KEY": "qwertzuio"})
    assert "qwertzuio" not in str(refused.value)
    (tmp_path / "key").write_text("qwertzuio\n")
    with pytest.raises(SettingsError, match="ENCRYPTION_KEY_FILE has 9 characters"):
        settings.load({**environ, "ENCRYPTION_KEY_FILE": str(tmp_path / "key")})


def test_a_key_comes_from_the_environment_or_from_one_file(environ: dict[str, str], tmp_path: Path):
    (tmp_path / "key").write_text(f"{KEY}\n")
    (tmp_path / "key").chmod(0o600)
    of_file = settings.load({**environ, "ENCRYPTION_KEY_FILE": str(tmp_path / "key")})
    assert of_file.encryption_key == settings.load({**environ, "ENCRYPTION_KEY": KEY}).encryption_key == Secret(KEY)
    assert of_file.encryption_key_file == tmp_path / "key"
    assert of_file.warnings == ()
    with pytest.raises(SettingsError, match="ENCRYPTION_KEY is set and ENCRYPTION_KEY_FILE too; expected only one"):
        settings.load({**environ, "ENCRYPTION_KEY": KEY, "ENCRYPTION_KEY_FILE": str(tmp_path / "key")})


def test_the_master_key_before_is_given_as_the_one_now_is(environ: dict[str, str], tmp_path: Path):
    (tmp_path / "old").write_text(f"{KEY}\n")
    (tmp_path / "old").chmod(0o600)
    given = {**environ, "ENCRYPTION_KEY_PREVIOUS_FILE": str(tmp_path / "old")}
    found = settings.load(given)
    assert (found.encryption_key, found.encryption_key_previous, found.warnings) == (None, Secret(KEY), ())
    assert KEY not in repr(found)
    with pytest.raises(SettingsError, match="ENCRYPTION_KEY_PREVIOUS is set and ENCRYPTION_KEY_PREVIOUS_FILE too"):
        settings.load({**given, "ENCRYPTION_KEY_PREVIOUS": KEY})
    with pytest.raises(SettingsError, match="ENCRYPTION_KEY_PREVIOUS has 9 characters"):
        settings.load({**environ, "ENCRYPTION_KEY_PREVIOUS": "qwertzuio"})


def test_an_outside_database_needs_a_key_that_is_not_lost_with_this_machine(environ: dict[str, str]):
    with pytest.raises(SettingsError, match="ENCRYPTION_KEY is not set although DATABASE_URL is; expected a key"):
        settings.load({**environ, "DATABASE_URL": URL})


def test_secrets_do_not_show(environ: dict[str, str]):
    found = settings.load({**environ, "ENCRYPTION_KEY": KEY, "DATABASE_URL": URL})
    assert "hunter2" not in repr(found)
    assert KEY not in repr(found)
    assert "database_url=<secret>" in repr(found)
    assert found.database_url == Secret(URL)


def test_a_host_that_others_reach_is_said(environ: dict[str, str]):
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        assert settings.load({**environ, "CLAWNET_HOST": host}).warnings == ()
    for host in ("0.0.0.0", "::", "10.0.0.4", "claw.example.org"):
        (warning,) = settings.load({**environ, "CLAWNET_HOST": host}).warnings
        assert warning.startswith(f"CLAWNET_HOST is {host}: other machines can reach this server")


def test_a_name_that_is_no_setting_is_said_with_the_one_meant(environ: dict[str, str], tmp_path: Path):
    file = tmp_path / "clawnet.toml"
    file.write_text('clawnet_prot = 8001\nCLAWNET_PORT = 1\nclawnet_data_dir = "/x"\nwarnings = "x"')
    found = settings.load({**environ, "CLAWNET_STOP_GRAVE": "1", "CLAWNET_XYZZY": "1", "OTHER": "1"})
    assert found.warnings == (
        "CLAWNET_STOP_GRAVE is not a setting; did you mean CLAWNET_STOP_GRACE?",
        "CLAWNET_XYZZY is not a setting.",
        f"CLAWNET_PORT in {file} is not a setting; did you mean clawnet_port?",
        f"clawnet_prot in {file} is not a setting; did you mean clawnet_port?",
        f"warnings in {file} is not a setting.",
        f"clawnet_data_dir in {file} does nothing: the file is found through CLAWNET_DATA_DIR.",
    )


def test_files_with_secrets_that_others_read_are_said(environ: dict[str, str], tmp_path: Path):
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "key").chmod(0o644)
    (warning,) = settings.load({**environ, "ENCRYPTION_KEY_FILE": str(tmp_path / "key")}).warnings
    assert warning.startswith(f"ENCRYPTION_KEY_FILE: every user of this machine can reach {tmp_path / 'key'}")
    file = tmp_path / "clawnet.toml"
    file.write_text(f'encryption_key = "{KEY}"')
    file.chmod(0o644)
    assert settings.load(environ).warnings == (
        f"{file} holds secrets and others can read it; `chmod 600` would end that.",
    )
    file.chmod(0o600)
    assert settings.load(environ).warnings == ()


def test_lists_are_written_in_one_way(environ: dict[str, str], tmp_path: Path):
    environ["CLAWNET_TRUSTED_PROXIES"] = " 127.0.0.1,10.0.0.0/8 ,, FD00:0::/8, ::1, 127.0.0.1,192.0.2.7/32"
    environ["CLAWNET_ALLOWED_ORIGINS"] = (
        "https://App.Example.com, http://localhost:3000, HTTPS://app.example.com:443, http://[::1]:3000, http://x:443"
    )
    found = settings.load(environ)
    assert found.clawnet_trusted_proxies == ("127.0.0.1", "10.0.0.0/8", "fd00::/8", "::1", "192.0.2.7/32")
    assert found.clawnet_allowed_origins == (
        "https://app.example.com",
        "http://localhost:3000",
        "http://[::1]:3000",
        "http://x:443",
    )


def test_limits_can_be_switched_off(environ: dict[str, str], tmp_path: Path):
    (tmp_path / "clawnet.toml").write_text("clawnet_rate_query = 0\nclawnet_sockets_per_user = 0")
    found = settings.load({**environ, "CLAWNET_RATE_SIGN_IN": "0"})
    assert (found.clawnet_rate_query, found.clawnet_sockets_per_user, found.clawnet_rate_sign_in) == (0, 0, 0)


def test_as_many_bots_as_there_are_ports(environ: dict[str, str]):
    assert settings.load({**environ, "OPENCLAW_MAX_BOTS": "389"}).openclaw_max_bots == 389
    found = settings.load({**environ, "OPENCLAW_BASE_PORT": "65415", "OPENCLAW_MAX_BOTS": "1"})
    assert found.openclaw_base_port == 65415
    with pytest.raises(SettingsError, match="ports for 0 bots"):
        settings.load({**environ, "OPENCLAW_BASE_PORT": "65416", "OPENCLAW_MAX_BOTS": "1"})


@pytest.mark.parametrize("platform", ["darwin", "win32", "freebsd14"])
def test_another_system_than_linux_is_refused(platform: str):
    with pytest.raises(SettingsError, match=f"ClawNet runs on Linux; found {platform}"):
        settings.require_linux(platform)
    settings.require_linux("linux")


def test_settings_do_not_change(environ: dict[str, str]):
    found = settings.load(environ)
    with pytest.raises(FrozenInstanceError):
        found.clawnet_port = 1  # pyright: ignore


def test_secrets_are_taken_out_of_the_environment(tmp_path: Path) -> None:
    environ = {
        "CLAWNET_DATA_DIR": str(tmp_path),
        "DATABASE_URL": "postgresql://a:b@127.0.0.1/c",
        "ENCRYPTION_KEY": KEY,
        "ENCRYPTION_KEY_PREVIOUS": KEY[::-1],
        "PATH": "/bin",
    }
    found = settings.take(environ)
    assert found.database_url is not None
    assert environ == {"CLAWNET_DATA_DIR": str(tmp_path), "PATH": "/bin"}
