"""What Piccolo has no words for: composite, partial and unique indexes, and a CHECK for every enum column."""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager
from piccolo.table import Table

ID = "2026-11-24T08:10:00:000000"
VERSION = "1.38.0"
DESCRIPTION = "Indexes, uniqueness and checks of the first tables"

#: Table, column, and the words the column may hold. Frozen here: later words come in later migrations.
CHECKS = [
    ("keyring", "state", ["active", "decrypt", "retired"]),
    ("app_user", "role", ["ADMIN", "MEMBER", "OBSERVER"]),
    ("access_token", "kind", ["s", "p", "i"]),
    ("node", "state", ["READY", "DRAINING", "LOST"]),
    ("bot", "restart_mode", ["NEVER", "ON_FAILURE", "ALWAYS"]),
    ("bot", "desired", ["RUNNING", "STOPPED", "DELETED"]),
    ("bot_process", "status", ["INACTIVE", "STARTING", "ACTIVE", "STOPPING", "BACKOFF", "ERROR"]),
    ("notification", "kind", ["BOT_ERROR", "BOT_STOPPED", "BOT_RECOVERED"]),
    (
        "model_provider",
        "api",
        ["openai-completions", "openai-responses", "anthropic-messages", "google-generative-ai"],
    ),
]

#: Each statement with the one that takes it back.
STATEMENTS = [
    (
        "CREATE UNIQUE INDEX keyring_one_active ON keyring (state) WHERE state = 'active'",
        "DROP INDEX keyring_one_active",
    ),
    ("CREATE UNIQUE INDEX app_user_email ON app_user (lower(email))", "DROP INDEX app_user_email"),
    ('CREATE INDEX access_token_user ON access_token ("user")', "DROP INDEX access_token_user"),
    ("CREATE UNIQUE INDEX bot_agent_id ON bot (agent_id)", "DROP INDEX bot_agent_id"),
    ("CREATE INDEX bot_owner_desired ON bot (owner, desired)", "DROP INDEX bot_owner_desired"),
    ("CREATE INDEX bot_created_at ON bot (created_at, id)", "DROP INDEX bot_created_at"),
    ("CREATE INDEX bot_name ON bot (name, id)", "DROP INDEX bot_name"),
    (
        "ALTER TABLE bot ADD CONSTRAINT bot_agent_id_form CHECK (agent_id ~ '^[a-z0-9]([a-z0-9-]*[a-z0-9])?$')",
        "ALTER TABLE bot DROP CONSTRAINT bot_agent_id_form",
    ),
    (
        "ALTER TABLE bot_process ADD CONSTRAINT bot_process_bot FOREIGN KEY (bot) REFERENCES bot (id) ON DELETE CASCADE",
        "ALTER TABLE bot_process DROP CONSTRAINT bot_process_bot",
    ),
    ("CREATE INDEX bot_process_status ON bot_process (status)", "DROP INDEX bot_process_status"),
    (
        "CREATE UNIQUE INDEX bot_process_port ON bot_process (node_id, port) WHERE port IS NOT NULL",
        "DROP INDEX bot_process_port",
    ),
    ("CREATE INDEX bot_run_bot ON bot_run (bot, ended_at)", "DROP INDEX bot_run_bot"),
    ("CREATE UNIQUE INDEX bot_secret_name ON bot_secret (bot, name)", "DROP INDEX bot_secret_name"),
    (
        "CREATE UNIQUE INDEX model_provider_own ON model_provider (owner, name) WHERE owner IS NOT NULL",
        "DROP INDEX model_provider_own",
    ),
    (
        "CREATE UNIQUE INDEX model_provider_shared ON model_provider (name) WHERE owner IS NULL",
        "DROP INDEX model_provider_shared",
    ),
    ("CREATE UNIQUE INDEX room_event_seq ON room_event (room, seq)", "DROP INDEX room_event_seq"),
    ("CREATE INDEX room_event_at ON room_event (at)", "DROP INDEX room_event_at"),
    (
        'CREATE INDEX notification_user ON notification ("user", created_at DESC, id)',
        "DROP INDEX notification_user",
    ),
    (
        'CREATE INDEX notification_unread ON notification ("user") WHERE read_at IS NULL',
        "DROP INDEX notification_unread",
    ),
]


class RawTable(Table):
    """Piccolo runs raw SQL through some table."""


def _checks() -> list[tuple[str, str]]:
    made: list[tuple[str, str]] = []
    for table, column, words in CHECKS:
        name = f"{table}_{column}_word"
        allowed = ", ".join(f"'{word}'" for word in words)
        made.append(
            (
                f"ALTER TABLE {table} ADD CONSTRAINT {name} CHECK ({column} IN ({allowed}))",
                f"ALTER TABLE {table} DROP CONSTRAINT {name}",
            )
        )
    return made


async def _forwards() -> None:
    for statement, _ in STATEMENTS + _checks():
        await RawTable.raw(statement)


async def _backwards() -> None:
    for _, statement in reversed(STATEMENTS + _checks()):
        await RawTable.raw(statement)


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="clawnet", description=DESCRIPTION)
    manager.add_raw(_forwards)
    manager.add_raw_backwards(_backwards)
    return manager
