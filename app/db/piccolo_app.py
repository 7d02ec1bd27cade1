"""Where Piccolo finds the tables and their migrations."""

from pathlib import Path

from piccolo.conf.apps import AppConfig, table_finder

APP_CONFIG = AppConfig(
    app_name="clawnet",
    migrations_folder_path=str(Path(__file__).resolve().parents[2] / "piccolo_migrations"),
    table_classes=table_finder(["app.db.tables"], exclude_imported=True),
    migration_dependencies=[],
    commands=[],
)
