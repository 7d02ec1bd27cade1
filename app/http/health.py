"""Whether the server lives, and whether it can do its work."""

from typing import Any

from litestar import Response, get
from litestar.datastructures import State


@get("/healthz", sync_to_thread=False)
def healthz() -> dict[str, str]:
    """The process answers; nothing more is meant."""
    return {"status": "live"}


@get("/readyz")
async def readyz(state: State) -> Response[dict[str, Any]]:
    """200 once database, keys, supervisor and rooms are up; 503 with the reasons until then and while draining.

    A server that stands by while another one supervises is ready, and says why it does.
    """
    failing: dict[str, str] = await state.readiness.failing()
    body: dict[str, Any] = {"ready": not failing, "failing": failing}
    if state.readiness.standby:
        body["standby"] = state.readiness.standby
    return Response(body, status_code=503 if failing else 200)
