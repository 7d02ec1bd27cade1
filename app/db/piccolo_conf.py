"""What Piccolo looks for by the name in PICCOLO_CONF: the engine and the list of apps."""

from piccolo.conf.apps import AppRegistry

from app.db.engine import DB

__all__ = ["APP_REGISTRY", "DB"]

APP_REGISTRY = AppRegistry(apps=["app.db.piccolo_app"])
