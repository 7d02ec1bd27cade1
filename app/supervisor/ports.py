"""Ports for gateways: families far enough apart that no derived port of one bot is another's."""

import socket
from uuid import UUID

import structlog

from app.domain.errors import PortInUse
from app.services import processes
from app.services.nodes import Lease

log = structlog.get_logger()

#: Ports from one bot's to the next; OpenClaw uses derived ports up to its own plus 110.
STRIDE = 120
#: Highest port there is.
LAST = 65_535


async def claim(lease: Lease, bot_id: UUID, base: int, kept: int | None) -> int:
    """A port for the bot, free in the database and on the machine; its last one if it can be had.

    Raises:
        PortInUse: Every family is another bot's or a stranger's.
    """
    taken = await processes.claimed_ports(lease.node)
    families = [port for port in range(base, LAST - STRIDE + 2, STRIDE) if port == kept or port not in taken]
    if kept in families:
        families.insert(0, families.pop(families.index(kept)))
    strangers: list[int] = []
    for port in families:
        if not is_free(port):
            strangers.append(port)
        elif await processes.claim_port(lease, bot_id, port):
            if strangers:
                log.warning("ports_held_by_strangers", ports=strangers[:10])
            return port
    held = f"; other programs listen on {', '.join(map(str, strangers[:5]))}" if strangers else ""
    raise PortInUse(
        f"no port is free from {base} in steps of {STRIDE}{held}: end what listens there, or set OPENCLAW_BASE_PORT"
    )


def is_free(port: int) -> bool:
    """Nobody listens there, on IPv4 or on IPv6."""
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                # As OpenClaw's own listener does: a connection in TIME_WAIT is no listener.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((address, port))
        except OSError as error:
            if family is socket.AF_INET6 and error.errno in (97, 99):
                continue  # EAFNOSUPPORT, EADDRNOTAVAIL: the machine has no IPv6.
            return False
    return True
