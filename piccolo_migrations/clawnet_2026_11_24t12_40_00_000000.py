"""Uniqueness and words of channels and bindings."""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager
from piccolo.table import Table

ID = "2026-11-24T12:40:00:000000"
VERSION = "1.38.0"
DESCRIPTION = "Uniqueness and words of channels and bindings"

#: Each statement with the one that takes it back.
STATEMENTS = [
    (
        "CREATE UNIQUE INDEX channel_account ON channel (bot, provider, account_id)",
        "DROP INDEX channel_account",
    ),
    # One exclusive credential serves one enabled channel in the whole fleet.
    (
        "CREATE UNIQUE INDEX channel_fingerprint ON channel (fingerprint) WHERE enabled AND fingerprint IS NOT NULL",
        "DROP INDEX channel_fingerprint",
    ),
    ("CREATE INDEX channel_created_at ON channel (bot, created_at, id)", "DROP INDEX channel_created_at"),
    (
        (
            "ALTER TABLE channel_state ADD CONSTRAINT channel_state_channel FOREIGN KEY (channel) REFERENCES channel (id) "
            "ON DELETE CASCADE"
        ),
        "ALTER TABLE channel_state DROP CONSTRAINT channel_state_channel",
    ),
    (
        (
            "ALTER TABLE channel_state ADD CONSTRAINT channel_state_status_word CHECK "
            "(status IN ('DISCONNECTED', 'CONNECTING', 'CONNECTED', 'ERROR'))"
        ),
        "ALTER TABLE channel_state DROP CONSTRAINT channel_state_status_word",
    ),
    ("CREATE UNIQUE INDEX binding_match ON binding (bot, match_key)", "DROP INDEX binding_match"),
    ("CREATE INDEX binding_created_at ON binding (bot, created_at, id)", "DROP INDEX binding_created_at"),
    ("CREATE INDEX binding_channel ON binding (channel)", "DROP INDEX binding_channel"),
    (
        (
            "ALTER TABLE key_rotation ADD CONSTRAINT key_rotation_state_word CHECK "
            "(state IN ('RUNNING', 'SUCCEEDED', 'FAILED'))"
        ),
        "ALTER TABLE key_rotation DROP CONSTRAINT key_rotation_state_word",
    ),
    (
        "CREATE UNIQUE INDEX key_rotation_one_running ON key_rotation (state) WHERE state = 'RUNNING'",
        "DROP INDEX key_rotation_one_running",
    ),
]


class RawTable(Table):
    """Piccolo runs raw SQL through some table."""


async def _forwards() -> None:
    for statement, _ in STATEMENTS:
        await RawTable.raw(statement)


async def _backwards() -> None:
    for _, statement in reversed(STATEMENTS):
        await RawTable.raw(statement)


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="clawnet", description=DESCRIPTION)
    manager.add_raw(_forwards)
    manager.add_raw_backwards(_backwards)
    return manager
