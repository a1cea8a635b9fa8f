"""The page's server: what a browser may ask for, and what it is refused.

It speaks to the page alone: the host of a request must be one that it was started for (a site elsewhere whose name
leads here is refused), nothing is allowed to other origins, and the page may load nothing but what lies here. A body,
a region, a picture and a number of answers have limits, and so has the number of tiles that are drawn at a time.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from collections.abc import Awaitable, Callable
from datetime import datetime
from importlib.resources import files
from typing import Annotated, Any
from urllib.parse import urlsplit

import anyio
import numpy as np
import numpy.typing as npt
import shapely
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException

from grafalign import __version__
from grafalign.errors import GrafalignError
from grafalign.explore.land import borders_and_land
from grafalign.explore.session import LONGEST_TEXT, MOST_ANSWERS, MOST_CORNERS, SearchQuery, Session
from grafalign.search.page import plain

MOST_BODY = 12 << 20
"""Bytes of a request: a picture of 8 MB in base64."""
MOST_REGION = 100_000
"""Characters of a region as GeoJSON."""
_KINDS = {
    'geojson': 'application/geo+json',
    'parquet': 'application/vnd.apache.parquet',
    'csv': 'text/csv; charset=utf-8',
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "worker-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    'Content-Security-Policy': _POLICY,
    'X-Content-Type-Options': 'nosniff',
    'Referrer-Policy': 'no-referrer',
    'Cross-Origin-Resource-Policy': 'same-origin',
    'Cross-Origin-Opener-Policy': 'same-origin',
}
_FRESH = {'Cache-Control': 'no-store'}
"""Rows and fields are numbers, which mean others when another index is served."""
Longitude = Annotated[float, Field(ge=-180, le=180)]
Latitude = Annotated[float, Field(ge=-90, le=90)]
Row = Annotated[int, PathParameter(ge=0)]


class SearchRequest(BaseModel):
    """A search, as the page sends it."""

    model_config = ConfigDict(extra='forbid')

    text: Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT)] | None = None
    picture: str | None = None
    """In base64."""
    lonlat: tuple[Longitude, Latitude] | None = None
    like: Annotated[int, Field(ge=0)] | None = None
    k: Annotated[int, Field(ge=1, le=MOST_ANSWERS)] = 50
    region: dict[str, Any] | None = None
    """GeoJSON geometry; across 180 degrees longitudes may go on beyond it."""
    begin: datetime | None = None
    end: datetime | None = None
    least: Annotated[float, Field(ge=-1, le=1)] = -1.0


def make_app(session: Session, hosts: list[str], token: str | None = None) -> FastAPI:
    """The application.

    Args:
        session: what it shows.
        hosts: names that requests may be addressed to, without ports.
        token: what the first request must have in its address; None for none.
    """
    app = FastAPI(title='grafalign explore', version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    app.mount('/static', StaticFiles(packages=[('grafalign.explore', 'static')]), name='static')
    _guard(app, hosts, token)
    _pages(app, session)
    _tiles(app, session)
    return app


def _guard(app: FastAPI, hosts: list[str], token: str | None) -> None:
    """Who may ask, how much, and what the browser is told of the answers."""

    @app.middleware('http')
    async def guard(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        response = _refused(request, hosts, token)
        if response is None and token is not None and 'token' in request.query_params:
            response = RedirectResponse('/', 303)  # so that the token stays in no address bar
            response.set_cookie(_cookie(request), token, httponly=True, samesite='lax')
        response = response or await go_on(request)
        for name, value in _HEADERS.items():
            response.headers[name] = value
        return response

    @app.exception_handler(GrafalignError)
    async def trouble(_request: Request, error: GrafalignError) -> Response:
        return JSONResponse({'error': str(error)}, 400)

    @app.exception_handler(RequestValidationError)
    async def unreadable(_request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return JSONResponse({'error': f'{".".join(map(str, first["loc"]))}: {first["msg"]}.'}, 422)

    @app.exception_handler(StarletteHTTPException)
    async def unknown(_request: Request, error: StarletteHTTPException) -> Response:
        return JSONResponse({'error': str(error.detail)}, error.status_code)


def _refused(request: Request, hosts: list[str], token: str | None) -> Response | None:
    if _host(request) not in hosts:
        return JSONResponse({'error': f'This page is at {hosts[0]} only.'}, 400)
    site, mode = (request.headers.get(f'sec-fetch-{name}') for name in ('site', 'mode'))
    followed = mode == 'navigate' and request.method == 'GET' and request.url.path == '/'  # a link to the page
    if site not in (None, 'same-origin', 'none') and not followed:
        return JSONResponse({'error': 'Other sites may not ask here.'}, 403)
    # without a length, or with one beside chunks, which then count, a body may be endless
    length = request.headers.get('content-length', '')
    endless = 'transfer-encoding' in request.headers or not length.isdigit() or int(length) > MOST_BODY
    if request.method not in ('GET', 'HEAD') and endless:
        return JSONResponse({'error': f'A request has at most {MOST_BODY >> 20} MB, and says how many.'}, 413)
    given = request.query_params.get('token') or request.cookies.get(_cookie(request)) or ''
    if token is not None and not hmac.compare_digest(given.encode(), token.encode()):
        return JSONResponse({'error': 'Open the address that `grafalign explore` printed, with its token.'}, 403)
    return None


def _host(request: Request) -> str:
    """The host that a request is addressed to, in lower case, without its port."""
    try:
        return (urlsplit(f'//{request.headers.get("host", "")}').hostname or '').lower()
    except ValueError:
        return ''


def _cookie(request: Request) -> str:
    """Name of the token's cookie; cookies are the same for all ports of a host."""
    return f'grafalign_token_{request.url.port or 80}'


def _pages(app: FastAPI, session: Session) -> None:
    """The page, searches, items and photos."""

    @app.get('/')
    def page() -> Response:
        text = (files('grafalign.explore') / 'static' / 'index.html').read_text(encoding='utf-8')
        return Response(text, media_type='text/html; charset=utf-8')

    @app.get('/api/about')
    def about() -> dict[str, Any]:
        return session.about()

    @app.get('/api/land')
    def land() -> Response:
        return Response(borders_and_land(), media_type='application/geo+json', headers=_FRESH)

    @app.post('/api/search')
    async def find(request: Request) -> Response:
        body = await request.body()  # its length was checked before
        return await run_in_threadpool(_search, session, body)

    @app.get('/api/export/{key}.{ending}')
    def export(key: str, ending: str) -> Response:
        if ending not in _KINDS:
            raise HTTPException(404, f'There is no export as {ending[:20]}.')
        name = {'Content-Disposition': f'attachment; filename="answers.{ending}"'}
        return Response(session.export(_result(session, key), f'.{ending}'), media_type=_KINDS[ending], headers=name)

    @app.get('/api/thumb/{row}.jpg')
    def thumb(row: Row) -> Response:
        return _picture(lambda: session.thumbnail(row), 'image/jpeg')

    @app.get('/api/photos/{row}')
    def photos(row: Row) -> list[dict[str, Any]]:
        if row >= len(session.items):
            raise HTTPException(404, f'There is no item {row}.')
        return session.photos_at(row)

    @app.get('/api/photo/{row}.jpg')
    def photo(row: Row) -> Response:
        ground = session.photos
        if ground is None:
            raise HTTPException(404, 'There are no photos.')
        return _picture(lambda: ground.picture(row), 'image/jpeg')

    @app.get('/api/doubts/{field}')
    def doubts(field: int, words: Annotated[str, Field(max_length=5000)]) -> list[dict[str, Any]]:
        _check_field(session, field)
        return session.doubts(field, [word.strip() for word in words.split(',') if word.strip()])


def _tiles(app: FastAPI, session: Session) -> None:
    """Heat and scenes."""
    limiter = anyio.CapacityLimiter(session.drawing)

    async def drawn(request: Request, draw: Callable[[], bytes | None]) -> Response:
        """A tile, unless the map has moved on before its turn came."""
        async with limiter:
            if await request.is_disconnected():
                return Response(status_code=204)
            try:
                content = await run_in_threadpool(draw)
            except ValueError as error:
                raise HTTPException(404, str(error)) from None
        return (
            Response(status_code=204) if content is None else Response(content, media_type='image/png', headers=_FRESH)
        )

    @app.get('/heat/{key}/{field}/{z}/{x}/{y}.png')
    async def heat(request: Request, key: str, field: int, z: int, x: int, y: int) -> Response:
        _check_field(session, field)
        try:
            vector = session.vector(key)
        except KeyError:
            raise HTTPException(404, 'That search is no longer kept; search again.') from None
        return await drawn(request, lambda: session.heats[field].tile(key, vector, z, x, y))

    @app.get('/scene/{field}/{z}/{x}/{y}.png')
    async def scene(request: Request, field: int, z: int, x: int, y: int) -> Response:
        _check_field(session, field)
        return await drawn(request, lambda: session.backdrops[field].tile(z, x, y))


def _search(session: Session, body: bytes) -> Response:
    try:
        query = SearchRequest.model_validate_json(body)
        picture = None if query.picture is None else base64.b64decode(query.picture, validate=True)
        region = None if query.region is None else _region(query.region)
    except (ValueError, OverflowError, binascii.Error) as error:  # pydantic's, too
        reason = ' '.join(str(error).split())[:200]
        return JSONResponse({'error': f'The search cannot be read ({reason}).'}, 400)
    result = session.search(
        SearchQuery(
            text=query.text,
            picture=picture,
            lonlat=query.lonlat,
            like=query.like,
            k=query.k,
            region=region,
            begin=query.begin,
            end=query.end,
            least=query.least,
        )
    )
    answers = plain(result.answers).to_json(drop_id=True)
    content = f'{{"query": "{result.id}", "heat": "{result.heat}", "answers": {answers}}}'
    return Response(content, media_type='application/json')


def _region(given: dict[str, Any]) -> shapely.Geometry:
    """A region as a valid geometry within the world; what goes on beyond 180 degrees comes back on the other side.

    Raises:
        ValueError: it is none, or has too many corners.
    """
    if len(json.dumps(given)) > MOST_REGION:
        raise ValueError(f'a region has at most {MOST_REGION:,} characters')
    try:
        shape = shapely.geometry.shape(given)
    except (shapely.errors.ShapelyError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f'the region is no GeoJSON geometry: {error}') from None
    corners = shapely.get_num_coordinates(shape)
    if corners > MOST_CORNERS:
        raise ValueError(f'the region has {corners:,} corners; at most {MOST_CORNERS:,}')
    if shape.is_empty or shape.geom_type not in ('Polygon', 'MultiPolygon'):
        raise ValueError('the region is no polygon')
    left, bottom, right, top = shape.bounds
    if not (-540 <= left <= right <= 540 and -90 <= bottom <= top <= 90):
        raise ValueError('the region is not on Earth')
    if right - left >= 360:  # a map that shows the whole world
        return shapely.box(-180, bottom, 180, top)
    valid = shapely.make_valid(shape)
    parts = [
        shapely.transform(shapely.intersection(valid, shapely.box(turn - 180, -90, turn + 180, 90)), _turned(-turn))
        for turn in (-360, 0, 360)
    ]
    return shapely.union_all(parts)


def _turned(degrees: float) -> Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]:
    """What turns corners around the Earth."""
    return lambda corners: corners + np.array([degrees, 0.0])


def _result(session: Session, key: str) -> Any:
    try:
        return session.found(key)
    except KeyError:
        raise HTTPException(404, 'That search is no longer kept; search again.') from None


def _check_field(session: Session, field: int) -> None:
    if not 0 <= field < len(session.heats):
        raise HTTPException(404, f'There is no field {field}.')


def _picture(read: Callable[[], bytes], kind: str) -> Response:
    try:
        content = read()
    except IndexError:
        content = b''
    if not content:
        raise HTTPException(404, 'There is no such picture.')
    return Response(content, media_type=kind, headers=_FRESH)
