"""ClawNet: a GraphQL control plane for fleets of OpenClaw bots."""

import os

__version__ = "0.1.0"

# Piccolo's tables look their engine up through this module.
os.environ.setdefault("PICCOLO_CONF", "app.db.piccolo_conf")
