"""The HTTP service: routes, the page's files, and errors as JSON. OpenAPI is at /openapi.json.

No route fetches an address, none takes a path, and no header lets another site read an answer. FastAPI's own
documentation pages load their scripts from elsewhere, so they are off.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import Field
from starlette.exceptions import HTTPException

from crawl2clip import __version__
from crawl2clip.errors import Crawl2ClipError
from data_pipeline.explorer.config import ExplorerConfig
from data_pipeline.explorer.engine import Explorer, NotHereError
from data_pipeline.explorer.export import MEDIA_TYPES
from data_pipeline.explorer.limits import UPLOADS, Gate
from data_pipeline.explorer.requests import ExportRequest, SearchRequest, Selection, Uid

STATIC = Path(__file__).with_name("static")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_BLOCK = 1 << 16


def make_service(config: ExplorerConfig, explorer: Explorer) -> Gate:
    """The ASGI application behind its limits."""
    names = {"127.0.0.1", "localhost", "::1", *(name.lower() for name in config.host_names)}
    if config.host not in ("0.0.0.0", "::"):  # every address of the machine, but no name of it
        names.add(config.host.lower())
    return Gate(make_application(explorer), config.limits, sorted(names))  # pyright: ignore[reportArgumentType]


def make_application(explorer: Explorer) -> FastAPI:
    """The routes."""
    app = FastAPI(title="crawl2clip explorer", version=__version__, docs_url=None, redoc_url=None)
    _handle_errors(app)
    _serve_page(app)

    @app.get("/api/info")
    def info() -> dict[str, Any]:
        """What there is to explore: rows, runs, model, columns, recipes, policy, limits."""
        return explorer.info()

    @app.post("/api/search")
    def search(asked: SearchRequest) -> dict[str, Any]:
        """Pairs like the query that pass the filters, best first; `next` is the cursor of the next page."""
        return explorer.search(asked)

    @app.post("/api/facets")
    def facets(asked: Selection) -> dict[str, Any]:
        """What the rows that pass the filters are like, by column, with counts."""
        return explorer.facets(asked.filters)

    @app.get("/api/samples/{uid}")
    def sample(uid: Uid) -> dict[str, Any]:
        """All about one pair: provenance, tags, why it was kept or dropped, near-duplicates."""
        return explorer.sample(uid)

    @app.get("/api/images/{uid}", response_class=Response)
    def image(uid: Uid, size: Annotated[Literal["128", "256", "512", "1024"], Field()] = "256") -> Response:
        """A picture of the pair's image as WebP, blurred where the policy says so."""
        picture = explorer.picture(uid, int(size))
        if picture is None:
            raise NotHereError(uid)
        # Private: a shared cache must not keep what may be taken down.
        return Response(picture, media_type="image/webp", headers={"cache-control": "private, max-age=300"})

    @app.post(UPLOADS)
    async def embed_image(request: Request) -> dict[str, Any]:
        """The embedding of the image in the body (JPEG, PNG, WebP, GIF, BMP), for a search."""
        from starlette.concurrency import run_in_threadpool

        body = await request.body()
        return {"embedding": await run_in_threadpool(explorer.embed_upload, body)}

    @app.post("/api/export", response_class=StreamingResponse)
    def export(asked: ExportRequest) -> StreamingResponse:
        """A search's results, or all rows that pass the filters, as a file that download or reshard reads."""
        folder = tempfile.TemporaryDirectory(prefix="crawl2clip-export-")
        path = Path(folder.name) / f"export.{asked.format}"
        try:
            rows = explorer.export(asked, path)
        except BaseException:
            folder.cleanup()
            raise
        headers = {
            "content-disposition": f'attachment; filename="explorer.{asked.format}"',
            "x-rows": str(rows),
            "content-length": str(path.stat().st_size),
        }
        return StreamingResponse(_file(path, folder), media_type=MEDIA_TYPES[asked.format], headers=headers)

    @app.get("/api/funnel")
    def funnel() -> list[dict[str, Any]]:
        """For each run, rows in and out of every stage by reason, and its recipes' rules."""
        return explorer.funnel()

    return app


def _file(path: Path, folder: "tempfile.TemporaryDirectory[str]") -> Iterator[bytes]:
    """A file's bytes; its folder is removed at the end."""
    with folder, open(path, "rb") as file:
        while block := file.read(_BLOCK):
            yield block


def _serve_page(app: FastAPI) -> None:
    """The page's files, read once: only these names exist, so no path can lead elsewhere."""
    files = {f"/{path.name}": path for path in sorted(STATIC.iterdir()) if path.suffix in _TYPES}
    files["/"] = STATIC / "index.html"
    for address, path in files.items():
        body, kind = path.read_bytes(), _TYPES[path.suffix]

        def answer(body: bytes = body, kind: str = kind) -> Response:
            return Response(body, media_type=kind, headers={"cache-control": "no-cache"})

        app.add_api_route(address, answer, include_in_schema=False, response_class=Response)


def _handle_errors(app: FastAPI) -> None:
    """Errors of the client's as one readable sentence."""

    @app.exception_handler(Crawl2ClipError)
    def cannot_be_done(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 422)

    @app.exception_handler(NotHereError)
    def not_here(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": f"no pair {error} can be shown here"}, 404)

    @app.exception_handler(HTTPException)
    def not_understood(_: Request, error: Exception) -> JSONResponse:
        """A body that is no JSON, an address or a method that there is not."""
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    def malformed(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(each) for each in first["loc"] if each != "body")
        return JSONResponse({"error": f"{where or 'the request'}: {first['msg']}"}, 422)
