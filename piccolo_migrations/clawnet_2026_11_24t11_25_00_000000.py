"""Indexes of the audit trail: the newest first, of everybody, of one person, about one thing."""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager
from piccolo.table import Table

ID = "2026-11-24T11:25:00:000000"
VERSION = "1.38.0"
DESCRIPTION = "Indexes of the audit trail"

#: Each statement with the one that takes it back.
STATEMENTS = [
    ("CREATE INDEX audit_entry_actor ON audit_entry (actor, id)", "DROP INDEX audit_entry_actor"),
    ("CREATE INDEX audit_entry_subject ON audit_entry (subject, id)", "DROP INDEX audit_entry_subject"),
    ("CREATE INDEX app_user_created_at ON app_user (created_at, id)", "DROP INDEX app_user_created_at"),
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
