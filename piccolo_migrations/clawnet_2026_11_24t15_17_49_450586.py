from piccolo.apps.migrations.auto.migration_manager import MigrationManager
from piccolo.columns.column_types import JSONB
from piccolo.columns.indexes import IndexMethod

ID = "2026-11-24T15:17:49:450586"
VERSION = "1.38.0"
DESCRIPTION = "How far a phase of a start is"


async def forwards():
    manager = MigrationManager(migration_id=ID, app_name="clawnet", description=DESCRIPTION)

    manager.add_column(
        table_class_name="BotProcess",
        tablename="bot_process",
        column_name="phase_progress",
        db_column_name="phase_progress",
        column_class_name="JSONB",
        column_class=JSONB,
        params={
            "default": None,
            "null": True,
            "primary_key": False,
            "unique": False,
            "index": False,
            "index_method": IndexMethod.btree,
            "choices": None,
            "db_column_name": None,
            "secret": False,
        },
        schema=None,
    )

    return manager
