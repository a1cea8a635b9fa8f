"""A small STAC API over HTTP that pages, filters, and misbehaves in the ways it is told.

It answers `/search` by POST (next links with a body to merge) or GET (next links with everything in the address), with
bbox, datetime, collections, ids of pages as tokens, and the query extension where it declares it.
"""

from __future__ import annotations

import json
import operator
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import shapely
from shapely.geometry import shape

from tests.serving import running

Item = dict[str, Any]
Fault = Callable[['Handler'], bool]
"""Answers a search in its own way; False to leave it to the server."""
CONFORMS = 'https://api.stacspec.org/v1.0.0'
_COMPARE = {'lt': operator.lt, 'lte': operator.le, 'gt': operator.gt, 'gte': operator.ge, 'eq': operator.eq}


class StacServer(ThreadingHTTPServer):
    """Serves items; `faults` are used up one per search request, before the request is answered."""

    daemon_threads = True

    def __init__(self, items: list[Item]) -> None:
        super().__init__(('127.0.0.1', 0), Handler)
        self.items = items
        self.faults: list[Fault] = []
        self.always: Fault | None = None
        self.methods = ('POST',)
        self.advertised: tuple[str, ...] | None = None
        """Methods that the landing page names, where these are not `methods`."""
        self.conforms = ['core', 'item-search']
        self.page: Callable[[dict[str, Any]], dict[str, Any]] = lambda page: page
        """Changes a page before it is sent."""
        self.merge = True
        self.searches: list[dict[str, Any]] = []
        """What was asked, in the order of asking."""
        self.landing: list[str] = []
        self.root = f'http://127.0.0.1:{self.server_port}'
        """The API's address, as its links have it."""

    def matching(self, asked: dict[str, Any]) -> list[Item]:
        """The items that a search asks for, by plain loops."""
        found = [i for i in self.items if i.get('collection') in asked['collections']]
        if 'bbox' in asked:
            box = shapely.box(*asked['bbox'])
            found = [i for i in found if not i.get('geometry') or shape(i['geometry']).intersects(box)]
        if 'datetime' in asked:
            first, last = (_time(t) for t in asked['datetime'].split('/'))
            found = [i for i in found if not _time_of(i) or first <= _time_of(i) <= last]
        for name, conditions in asked.get('query', {}).items():
            for key, value in conditions.items():
                compare = _COMPARE.get(key) or (lambda a, b: a in b)
                found = [i for i in found if name in i['properties'] and compare(i['properties'][name], value)]
        return found


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace('Z', '+00:00'))


def _time_of(item: Item) -> Any:
    try:
        return _time(item['properties']['datetime'])
    except (KeyError, ValueError, AttributeError):
        return None


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: StacServer
    protocol_version = 'HTTP/1.1'
    asked: dict[str, Any]

    def log_message(self, *args: object) -> None:
        pass

    def send(self, status: int, body: bytes, **headers: str) -> None:
        """A whole answer."""
        self.send_response(status)
        for name, value in {'Content-Type': 'application/json', 'Content-Length': str(len(body)), **headers}.items():
            self.send_header(name.replace('_', '-'), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path != '/search':
            self.server.landing.append(self.path)
            return self.send(200, json.dumps(self._landing()).encode())
        if 'GET' not in self.server.methods:
            return self.send(405, b'{}')
        asked: dict[str, Any] = dict(parse_qsl(parts.query))
        asked['collections'] = asked.get('collections', '').split(',')
        if 'bbox' in asked:
            asked['bbox'] = [float(v) for v in asked['bbox'].split(',')]
        if 'query' in asked:
            asked['query'] = json.loads(asked['query'])
        return self._search(asked, 'GET')

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        if 'POST' not in self.server.methods:
            return self.send(405, b'{}')
        return self._search(asked, 'POST')

    def _landing(self) -> dict[str, Any]:
        root = self.server.root
        links = [{'rel': 'self', 'href': root}, {'rel': 'root', 'href': root}]
        for method in self.server.advertised or self.server.methods:
            links.append({'rel': 'search', 'href': f'{root}/search', 'method': method, 'type': 'application/geo+json'})
        conforms = [f'{CONFORMS}/{c}' for c in self.server.conforms]
        kind = {'type': 'Catalog', 'id': 'api', 'stac_version': '1.0.0', 'description': 'test'}
        return {**kind, 'conformsTo': conforms, 'links': links}

    def _search(self, asked: dict[str, Any], method: str) -> None:
        server = self.server
        self.asked = asked
        server.searches.append(asked)
        if server.always is not None and server.always(self):
            return
        if server.faults and server.faults.pop(0)(self):
            return
        self.send(200, json.dumps(self.page(method)).encode())

    def page(self, method: str = 'POST') -> dict[str, Any]:
        """The page that was asked for."""
        asked, server = self.asked, self.server
        found = server.matching(asked)
        start, limit = int(asked.get('token', 0)), int(asked.get('limit', 10))
        links: list[dict[str, Any]] = []
        if start + limit < len(found):
            token = {'token': str(start + limit)}
            if method == 'GET':
                rest = {k: ','.join(map(str, v)) if isinstance(v, list) else v for k, v in asked.items()}
                rest = {k: json.dumps(v) if isinstance(v, dict) else v for k, v in rest.items()}
                links = [{'rel': 'next', 'href': f'/search?{urlencode({**rest, **token})}'}]
            else:
                body = token if server.merge else {**asked, **token}
                links = [{'rel': 'next', 'href': f'{server.root}/search', 'method': 'POST', 'body': body}]
                links[0] |= {'merge': True} if server.merge else {}
        page = {'type': 'FeatureCollection', 'features': found[start : start + limit], 'links': links}
        return server.page(page)


def status(code: int, body: str = '{}', **headers: str) -> Fault:
    """Answer with a status and headers."""

    def fault(handler: Handler) -> bool:
        handler.send(code, body.encode(), **headers)
        return True

    return fault


def reset_in_the_middle(handler: Handler) -> bool:
    """Send half a page and close."""
    _send_half(handler)
    return reset_at_once(handler)


def _send_half(handler: Handler) -> None:
    body = json.dumps(handler.page()).encode()
    handler.send_response(200)
    handler.send_header('Content-Length', str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.wfile.flush()


def reset_at_once(handler: Handler) -> bool:
    """Close without an answer."""
    handler.close_connection = True
    return True


def silence(seconds: float) -> Fault:
    """Say nothing for a while, then close."""

    def fault(handler: Handler) -> bool:
        time.sleep(seconds)
        handler.close_connection = True
        return True

    return fault


def stall_in_the_middle(seconds: float) -> Fault:
    """Send half a page, then nothing for a while."""

    def fault(handler: Handler) -> bool:
        _send_half(handler)
        return silence(seconds)(handler)

    return fault


@contextmanager
def stac_server(items: list[Item]) -> Iterator[StacServer]:
    """A running server."""
    with running(StacServer(items)) as server:
        yield server
