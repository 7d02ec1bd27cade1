"""Rows name data keys that are in the keyring, and a key that a row names stays there."""

import structlog
from piccolo.apps.migrations.auto.migration_manager import MigrationManager
from piccolo.table import Table

log = structlog.get_logger()

ID = "2026-11-24T16:40:00:000000"
VERSION = "1.38.0"
DESCRIPTION = "Data keys of sealed rows"

#: Tables with sealed values, and the column that says which key they need.
COLUMNS = {"bot_secret": "key_id", "model_provider": "api_key_key_id", "channel": "credentials_key_id"}


class RawTable(Table):
    """Piccolo runs raw SQL through some table."""


async def _forwards() -> None:
    for table, column in COLUMNS.items():
        # A row whose key is gone can be read by nobody, and does not keep the server down: only what is written from
        # now on is checked where there is one.
        await RawTable.raw(
            f"ALTER TABLE {table} ADD CONSTRAINT {table}_keyring FOREIGN KEY ({column}) REFERENCES keyring (key_id) "
            "ON DELETE RESTRICT NOT VALID"
        )
        found: list[dict[str, int]] = await RawTable.raw(
            f"SELECT count(*) AS n FROM {table} t WHERE t.{column} IS NOT NULL "
            f"AND NOT EXISTS (SELECT FROM keyring k WHERE k.key_id = t.{column})"
        )
        if lost := found[0]["n"]:
            log.warning("rows_without_key", table=table, rows=lost, remedy="`clawnet keys verify` names them")
        else:
            await RawTable.raw(f"ALTER TABLE {table} VALIDATE CONSTRAINT {table}_keyring")


async def _backwards() -> None:
    for table in COLUMNS:
        await RawTable.raw(f"ALTER TABLE {table} DROP CONSTRAINT {table}_keyring")


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="clawnet", description=DESCRIPTION)
    manager.add_raw(_forwards)
    manager.add_raw_backwards(_backwards)
    return manager
