"""Administrators are notified of the end of a change of keys."""

from enum import StrEnum

from piccolo.apps.migrations.auto.migration_manager import MigrationManager
from piccolo.columns.column_types import Varchar
from piccolo.table import Table

ID = "2026-11-24T15:18:41:256440"
VERSION = "1.38.0"
DESCRIPTION = "Notifications of changes of keys"

Before = StrEnum(
    "NotificationKind", {"BOT_ERROR": "BOT_ERROR", "BOT_STOPPED": "BOT_STOPPED", "BOT_RECOVERED": "BOT_RECOVERED"}
)
After = StrEnum("NotificationKind", {**{it.name: it.value for it in Before}, "KEY_ROTATION": "KEY_ROTATION"})


class RawTable(Table):
    """Piccolo runs raw SQL through some table."""


async def _allow(kinds: type[StrEnum]) -> None:
    words = ", ".join(f"'{it.value}'" for it in kinds)
    await RawTable.raw("ALTER TABLE notification DROP CONSTRAINT notification_kind_word")
    await RawTable.raw(f"ALTER TABLE notification ADD CONSTRAINT notification_kind_word CHECK (kind IN ({words}))")


async def _forwards() -> None:
    await _allow(After)


async def _backwards() -> None:
    await RawTable.raw("DELETE FROM notification WHERE kind = 'KEY_ROTATION'")
    await _allow(Before)


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="clawnet", description=DESCRIPTION)
    manager.alter_column(
        table_class_name="Notification",
        tablename="notification",
        column_name="kind",
        db_column_name="kind",
        params={"choices": After},
        old_params={"choices": Before},
        column_class=Varchar,
        old_column_class=Varchar,
        schema=None,
    )
    manager.add_raw(_forwards)
    manager.add_raw_backwards(_backwards)
    return manager
