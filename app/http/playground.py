"""GraphiQL at `/playground`, from files of our own: no request leaves for another host."""

from importlib.util import find_spec
from pathlib import Path

from litestar import MediaType, Response, Router, get
from litestar.static_files import create_static_files_router  # pyright: ignore[reportUnknownVariableType]

from app.domain.errors import SettingsError

#: Only what the page itself needs: no other host, no plug-ins, no frames. GraphiQL's dialogs bring inline styles.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)

_HERE = Path(__file__).parent


def _graphiql() -> Path:
    """The folder of GraphiQL's scripts and styles."""
    # The package's own modules import Django, so its files are found without importing it.
    spec = find_spec("graphene_django_graphiql_static")
    for place in (spec and spec.submodule_search_locations) or ():
        for script in Path(place).rglob("graphiql.min.js"):
            return script.parent
    raise SettingsError("the package graphene-django-graphiql-static is missing: install clawnet again")


@get("/", media_type=MediaType.HTML, sync_to_thread=False)
def page() -> Response[str]:
    text = (_HERE / "playground.html").read_text(encoding="utf-8")
    return Response(text, headers={"content-security-policy": POLICY, "x-content-type-options": "nosniff"})


def router() -> Router:
    return Router(
        "/playground",
        route_handlers=[
            page,
            create_static_files_router("/assets", directories=[_graphiql()], name="graphiql"),
            create_static_files_router("/own", directories=[_HERE / "static"], name="playground"),
        ],
    )
