"""A server that ends itself with SIGKILL at a step of its choosing: `DIES_AT=moved python -m tests.dying serve`."""

import functools
import inspect
import os
import signal
from collections.abc import Callable
from typing import Any

from app.__main__ import main
from app.domain.states import BotStatus, Reason
from app.gateway import trash
from app.gateway.process import Process
from app.services import processes
from app.services.bots import Bots
from app.services.recorder import Recorder


def _is_stopping(*given: Any, **_: Any) -> bool:
    return given[-2:] == (BotStatus.STOPPING, Reason.DELETED)


def _is_down(*given: Any, **_: Any) -> bool:
    return given[-2] is BotStatus.INACTIVE


def _is_half_way() -> Callable[..., bool]:
    seen = iter(range(1000))
    return lambda *_, **__: next(seen) == 5


def _always(*_: Any, **__: Any) -> bool:
    return True


#: The steps of a bot's deletion in their order: where, which function, before or after it, and when only.
STEPS: dict[str, tuple[Any, str, str, Callable[..., bool]]] = {
    "wished": (Bots, "delete", "after", _always),
    "said that it stops": (Recorder, "transition", "after", _is_stopping),
    "before the process ends": (Process, "terminate", "before", _always),
    "process ended": (Process, "terminate", "after", _always),
    "said that it is down": (Recorder, "transition", "after", _is_down),
    "before it is moved": (trash, "take", "before", _always),
    "moved": (trash, "take", "after", _always),
    "in the transaction": (processes, "remove", "before", _always),
    "at the end of the transaction": (processes, "remove", "after", _always),
    "rows gone": (Recorder, "delete", "after", _always),
}
#: What comes after them; a server that dies earlier leaves it to the next one, which begins with it.
LATER: dict[str, tuple[Any, str, str, Callable[..., bool]]] = {
    "half removed": (trash, "_bring_up", "after", _is_half_way()),
    "removed": (trash, "remove", "after", _always),
}


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _deadly(act: Callable[..., Any], when: str, is_it: Callable[..., bool]) -> Callable[..., Any]:
    @functools.wraps(act)
    async def later(*given: Any, **named: Any) -> Any:
        if when == "before" and is_it(*given, **named):
            _die()
        result = await act(*given, **named)
        if when == "after" and is_it(*given, **named):
            _die()
        return result

    @functools.wraps(act)
    def now(*given: Any, **named: Any) -> Any:
        if when == "before" and is_it(*given, **named):
            _die()
        result = act(*given, **named)
        if when == "after" and is_it(*given, **named):
            _die()
        return result

    return later if inspect.iscoroutinefunction(act) else now


if __name__ == "__main__":
    if step := os.environ.get("DIES_AT"):
        owner, name, when, is_it = (STEPS | LATER)[step]
        setattr(owner, name, _deadly(getattr(owner, name), when, is_it))
    main()
