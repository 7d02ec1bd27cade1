"""The tables: what people edit, what machines write, and what was said in rooms.

User-edited columns (`Bot`) and machine-written ones (`BotProcess`) live apart, so that a status can never
look like a change of settings. Ids are UUIDv7, made by the application. Composite, partial and unique indexes
and every CHECK stand in the migrations, because Piccolo has no words for them.
"""

from piccolo.columns import (
    JSONB,
    UUID,
    Array,
    BigInt,
    BigSerial,
    Boolean,
    Bytea,
    DoublePrecision,
    ForeignKey,
    Integer,
    Serial,
    Text,
    Timestamptz,
    Varchar,
)
from piccolo.columns.base import OnDelete
from piccolo.columns.defaults.timestamptz import TimestamptzNow
from piccolo.table import Table

from app.db.engine import DB
from app.domain.states import (
    BotStatus,
    ChannelStatus,
    DesiredState,
    KeyRotationState,
    NotificationKind,
    RestartMode,
    UserRole,
)


class Installation(Table, db=DB):
    """One row: what makes this database itself and no other. Its lock guards the quota of bots."""

    id = UUID(primary_key=True)
    salt = Bytea()
    kdf = Varchar(length=16)
    created_at = Timestamptz(default=TimestamptzNow())
    #: The key of fingerprints, wrapped by the master key; never rotated, or nothing would be found again.
    fingerprint_kek_id = Bytea(null=True, default=None)
    fingerprint_nonce = Bytea(null=True, default=None)
    fingerprint_wrapped = Bytea(null=True, default=None)


class Keyring(Table, db=DB):
    """Data keys, wrapped by the master key."""

    key_id = Integer(primary_key=True)
    state = Varchar(length=16)
    kek_id = Bytea()
    nonce = Bytea()
    wrapped = Bytea()
    created_at = Timestamptz(default=TimestamptzNow())
    retired_at = Timestamptz(null=True, default=None)


class AppUser(Table, db=DB, tablename="app_user"):
    """A person with an account."""

    id = UUID(primary_key=True)
    email = Varchar(length=320, null=True, default=None)
    name = Varchar(length=100)
    role = Varchar(length=16, choices=UserRole)
    password_hash = Text(null=True, default=None, secret=True)
    disabled_at = Timestamptz(null=True, default=None)
    created_at = Timestamptz(default=TimestamptzNow())


class AccessToken(Table, db=DB, tablename="access_token"):
    """A bearer token; of the secret only its SHA-256 is kept."""

    id = Varchar(length=12, primary_key=True)
    user = ForeignKey(AppUser, on_delete=OnDelete.cascade, null=False)
    kind = Varchar(length=1)
    name = Varchar(length=100)
    secret_sha256 = Bytea(secret=True)
    scopes = Array(Varchar(length=32))
    created_at = Timestamptz(default=TimestamptzNow())
    expires_at = Timestamptz(null=True, default=None)
    last_used_at = Timestamptz(null=True, default=None)
    revoked_at = Timestamptz(null=True, default=None)
    public_id = UUID(unique=True)
    address = Varchar(length=64, null=True, default=None)


class Node(Table, db=DB):
    """A machine that supervises bots, leased by the folder that holds their homes; the load is what it last said."""

    name = Varchar(length=255, primary_key=True)
    state = Varchar(length=16, default="READY")
    epoch = BigInt(default=0)
    version = Varchar(length=32)
    heartbeat_at = Timestamptz(default=TimestamptzNow())
    holder = UUID(null=True, default=None)
    created_at = Timestamptz(default=TimestamptzNow())
    public_id = UUID(unique=True)
    capacity = Integer(default=0)
    start_slots = Integer(default=0)
    cpu_ratio = DoublePrecision(default=0.0)
    memory_bytes = BigInt(default=0)


class Bot(Table, db=DB):
    """What people edit. `generation` grows with each wish, `config_revision` with each change of settings."""

    id = UUID(primary_key=True)
    owner = ForeignKey(AppUser, on_delete=OnDelete.restrict, null=False)
    agent_id = Varchar(length=40)
    name = Varchar(length=100)
    description = Text(null=True, default=None)
    model = Varchar(length=200)
    system_prompt = Text(null=True, default=None)
    tags = Array(Varchar(length=50))
    restart_mode = Varchar(length=16, choices=RestartMode, default=RestartMode.ALWAYS)
    restart_max = Integer(default=5)
    restart_window = Integer(default=600)
    restart_backoff = DoublePrecision(default=1.0)
    config_overrides = JSONB(default="{}")
    config_revision = Integer(default=1)
    desired = Varchar(length=16, choices=DesiredState, default=DesiredState.STOPPED)
    generation = BigInt(default=1)
    restart_generation = BigInt(default=0)
    stop_grace = DoublePrecision(null=True, default=None)
    created_at = Timestamptz(default=TimestamptzNow())
    updated_at = Timestamptz(default=TimestamptzNow())


class BotProcess(Table, db=DB, tablename="bot_process"):
    """What machines write, one row a bot. Only `services.recorder` writes `status`."""

    bot = UUID(primary_key=True)
    status = Varchar(length=16, choices=BotStatus, default=BotStatus.INACTIVE)
    status_seq = BigInt(default=0)
    reason = Varchar(length=32, null=True, default=None)
    phase = Varchar(length=16, null=True, default=None)
    phase_progress = JSONB(null=True, default=None)
    error = Text(null=True, default=None)
    node_id = Varchar(length=255)
    lease_epoch = BigInt(default=0)
    nonce = UUID(null=True, default=None)
    pid = Integer(null=True, default=None)
    port = Integer(null=True, default=None)
    generation = BigInt(default=0)
    config_revision = Integer(default=0)
    config_sha256 = Varchar(length=64, null=True, default=None)
    config_rendered = JSONB(default="{}")
    config_synced_at = Timestamptz(null=True, default=None)
    config_error = Text(null=True, default=None)
    openclaw_version = Varchar(length=32, null=True, default=None)
    started_at = Timestamptz(null=True, default=None)
    ready_at = Timestamptz(null=True, default=None)
    ended_at = Timestamptz(null=True, default=None)
    last_seen_at = Timestamptz(null=True, default=None)
    exit_code = Integer(null=True, default=None)
    exit_signal = Varchar(length=16, null=True, default=None)
    failures = Integer(default=0)
    restart_count = Integer(default=0)
    next_retry_at = Timestamptz(null=True, default=None)
    memory_bytes = BigInt(null=True, default=None)
    good_revision = Integer(default=0)


class BotRun(Table, db=DB, tablename="bot_run"):
    """One incarnation of a bot's process."""

    nonce = UUID(primary_key=True)
    bot = ForeignKey(Bot, on_delete=OnDelete.cascade, null=False)
    started_at = Timestamptz(default=TimestamptzNow())
    ready_at = Timestamptz(null=True, default=None)
    ended_at = Timestamptz(null=True, default=None)
    reason = Varchar(length=32, null=True, default=None)
    is_failure = Boolean(default=False)
    exit_code = Integer(null=True, default=None)
    exit_signal = Varchar(length=16, null=True, default=None)
    tail = Text(null=True, default=None)
    max_rss_kb = BigInt(null=True, default=None)


class BotSecret(Table, db=DB, tablename="bot_secret"):
    """A bot's own secrets, sealed: the token of its gateway."""

    id = UUID(primary_key=True)
    bot = ForeignKey(Bot, on_delete=OnDelete.cascade, null=False)
    name = Varchar(length=50)
    sealed = Text(secret=True)
    key_id = Integer(index=True)
    row_version = Integer(default=1)
    created_at = Timestamptz(default=TimestamptzNow())


class Channel(Table, db=DB):
    """A place a bot can be talked to. `credentials` are sealed leaves by name, `settings` what is not secret."""

    id = UUID(primary_key=True)
    bot = ForeignKey(Bot, on_delete=OnDelete.cascade, null=False)
    provider = Varchar(length=64)
    account_id = Varchar(length=64)
    name = Varchar(length=100)
    enabled = Boolean(default=True)
    settings = JSONB(default="{}")
    credentials = JSONB(default="{}", secret=True)
    credentials_key_id = Integer(null=True, default=None, index=True)
    credentials_updated_at = Timestamptz(null=True, default=None)
    row_version = Integer(default=1)
    fingerprint = Bytea(null=True, default=None)
    created_at = Timestamptz(default=TimestamptzNow())
    updated_at = Timestamptz(default=TimestamptzNow())


class ChannelState(Table, db=DB, tablename="channel_state"):
    """What machines write of a channel, one row each, apart from what people edit."""

    channel = UUID(primary_key=True)
    status = Varchar(length=16, choices=ChannelStatus, default=ChannelStatus.DISCONNECTED)
    error = Text(null=True, default=None)
    last_connected_at = Timestamptz(null=True, default=None)
    changed_at = Timestamptz(default=TimestamptzNow())


class Binding(Table, db=DB):
    """A rule that leads a peer to a bot. `match_key` is what it matches, so that no rule is there twice."""

    id = UUID(primary_key=True)
    bot = ForeignKey(Bot, on_delete=OnDelete.cascade, null=False)
    channel = ForeignKey(Channel, on_delete=OnDelete.cascade, null=True, default=None)
    peer_kind = Varchar(length=16, null=True, default=None)
    peer_id = Varchar(length=200, null=True, default=None)
    account_id = Varchar(length=64, null=True, default=None)
    priority = Integer(default=0)
    match_key = Text()
    created_at = Timestamptz(default=TimestamptzNow())


class KeyRotation(Table, db=DB, tablename="key_rotation"):
    """A change of data keys: what is left to do is found in the sealed rows themselves."""

    id = UUID(primary_key=True)
    state = Varchar(length=16, choices=KeyRotationState, default=KeyRotationState.RUNNING)
    from_key = Integer()
    to_key = Integer()
    total = BigInt(default=0)
    done = BigInt(default=0)
    failed = BigInt(default=0)
    reason = Text(null=True, default=None)
    started_at = Timestamptz(default=TimestamptzNow())
    finished_at = Timestamptz(null=True, default=None)


class ModelProvider(Table, db=DB, tablename="model_provider"):
    """Where models are and how they are spoken to; without an owner it is everybody's."""

    id = UUID(primary_key=True)
    owner = ForeignKey(AppUser, on_delete=OnDelete.cascade, null=True, default=None)
    name = Varchar(length=50)
    api = Varchar(length=32)
    base_url = Text(null=True, default=None)
    models = JSONB(default="[]")
    api_key = Text(null=True, default=None, secret=True)
    api_key_key_id = Integer(null=True, default=None, index=True)
    api_key_updated_at = Timestamptz(null=True, default=None)
    row_version = Integer(default=1)
    created_at = Timestamptz(default=TimestamptzNow())


class Room(Table, db=DB):
    """Where events are heard. `seq` is contiguous; what is at or below `floor` is forgotten."""

    id = Serial(primary_key=True)
    name = Varchar(length=100, unique=True)
    epoch = Integer()
    seq = BigInt(default=0)
    floor = BigInt(default=0)
    owner = UUID(null=True, default=None)
    created_at = Timestamptz(default=TimestamptzNow())


class RoomEvent(Table, db=DB, tablename="room_event"):
    """One thing said in a room."""

    id = BigSerial(primary_key=True)
    room = ForeignKey(Room, on_delete=OnDelete.cascade, null=False, index=False)
    seq = BigInt()
    type = Varchar(length=50)
    payload = JSONB()
    at = Timestamptz(default=TimestamptzNow())


class Notification(Table, db=DB):
    """Something a person should know."""

    id = UUID(primary_key=True)
    user = ForeignKey(AppUser, on_delete=OnDelete.cascade, null=False)
    kind = Varchar(length=32, choices=NotificationKind)
    title = Varchar(length=200)
    body = Text(null=True, default=None)
    bot = ForeignKey(Bot, on_delete=OnDelete.set_null, null=True, default=None)
    read_at = Timestamptz(null=True, default=None)
    created_at = Timestamptz(default=TimestamptzNow())


class AuditEntry(Table, db=DB, tablename="audit_entry"):
    """Who did what, written in the transaction of what it tells. Ids are UUIDv7, so they sort by time."""

    id = UUID(primary_key=True)
    actor = ForeignKey(AppUser, on_delete=OnDelete.set_null, null=True, default=None)
    token = Varchar(length=12, null=True, default=None)
    action = Varchar(length=64)
    subject_type = Varchar(length=32, null=True, default=None)
    subject = UUID(null=True, default=None)
    refusal = Varchar(length=32, null=True, default=None)
    detail = JSONB(default="{}")
    address = Varchar(length=64, null=True, default=None)
    created_at = Timestamptz(default=TimestamptzNow())
