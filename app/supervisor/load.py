"""How busy this machine is, as its row says."""

import psutil

from app.services.nodes import Load


def look(capacity: int, start_slots: int) -> Load:
    """The load now; processors since the last look of the same thread, which is what psutil compares with."""
    memory = psutil.virtual_memory()
    return Load(
        capacity=capacity,
        start_slots=start_slots,
        cpu_ratio=min(1.0, max(0.0, psutil.cpu_percent(interval=None) / 100)),
        memory_bytes=memory.total - memory.available,
    )
