"""GraphiQL at `/playground`, from files of our own: no request leaves for another host."""

from importlib.util import find_spec
from pathlib import Path

from litestar import MediaType, Response, Router, get
from litestar.static_files import create_static_files_router

from app.domain.errors import SettingsError

#: Only what the page itself needs: no other host, no plug-ins, no frames.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)

_HERE = Path(__file__).parent


def _assets() -> Path:
    # The package's own modules import Django, so its files are found without importing it.
    spec = find_spec("graphene_django_graphiql_static")
    if spec is None or not spec.submodule_search_locations:
        raise SettingsError("the package graphene-django-graphiql-static is missing: install clawnet again")
    return Path(spec.submodule_search_locations[0])


@get("/", media_type=MediaType.HTML, sync_to_thread=False)
def page() -> Response[str]:
    text = (_HERE / "playground.html").read_text(encoding="utf-8")
    return Response(text, headers={"content-security-policy": POLICY, "x-content-type-options": "nosniff"})


def router() -> Router:
    static = [p.parent for p in _assets().rglob("graphiql.min.js")] or [p.parent for p in _assets().rglob("*.js")]
    return Router(
        "/playground",
        route_handlers=[
            page,
            create_static_files_router("/assets", directories=[static[0]], name="graphiql"),
            create_static_files_router("/own", directories=[_HERE / "static"], name="playground"),
        ],
    )
