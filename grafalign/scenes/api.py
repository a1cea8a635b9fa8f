"""One search of a STAC API, page by page, however the server behaves.

pystac-client makes the requests. Handled here: retries that also cover POST (a search changes nothing, so repeating it
is safe) and answers that break off or are no JSON; pages that are too large for the server; next links that lead back
to a page that was read already; filters that the server declares but refuses.
"""

from __future__ import annotations

import json
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin

import requests
from pystac_client import Client
from pystac_client.exceptions import APIError
from pystac_client.item_search import ItemSearch
from pystac_client.stac_api_io import StacApiIO
from pystac_client.warnings import PystacClientWarning
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, Retry
from urllib3.exceptions import MaxRetryError

from grafalign import console
from grafalign.errors import GrafalignError, RemoteError
from grafalign.foreign import parse_json
from grafalign.scenes.regions import Box
from grafalign.scenes.source import SceneSource
from grafalign.scenes.where import as_cql2, as_query
from grafalign.web.addresses import AddressError, PrivateAddressError, origin_of
from grafalign.web.connections import LIMITS, Connections
from grafalign.web.retries import WORTH_ANOTHER_TRY, CappedRetry

_TOO_MUCH = (413, 500, 502, 504)
"""Status codes of servers whose answer would be too large, such as 502 of a gateway with a limit of some MB."""
_FILTER_REFUSED = (400, 405, 422, 501)
_BOM = '\ufeff'
_ANSWER_BYTES = 256 << 20
"""Largest answer, unpacked: a page of 10,000 items with everything has 200 MB."""
_ANSWER_TIMES = 5
"""An answer must be whole after so many times `scenes.timeout_s`, however slowly it drips."""
_MOST_PAGES = 10_000
"""Pages of one search after which a server is taken to make them up."""
_BARREN_PAGES = 3
"""Pages in a row without anything new after which a search is taken to turn in circles."""


class _CountingRetry(CappedRetry):
    """Counts its retries in `counts`."""

    counts: Counter[str]

    def new(self, **changes: Any) -> _CountingRetry:
        copy = super().new(**changes)
        copy.counts = self.counts
        return copy

    def increment(self, *args: Any, **kwargs: Any) -> _CountingRetry:
        following = super().increment(*args, **kwargs)
        self.counts['retries'] += 1
        return following


class _Adapter(HTTPAdapter):
    """Sends requests of requests' sessions through the gate of addresses, and bounds what comes back.

    What the recipe names, the API's own origin, may be private; a link or redirect to another origin may not.
    """

    def __init__(self, source: SceneSource, retry: Retry) -> None:
        self._home = origin_of(str(source.api))
        self._private, self._timeout_s = source.private_addresses, source.timeout_s
        self._answer_s = _ANSWER_TIMES * source.timeout_s
        self._connections = Connections(4)
        super().__init__(max_retries=retry)

    def get_connection_with_tls_context(
        self, request: requests.PreparedRequest, *args: Any, **options: Any
    ) -> HTTPConnectionPool:
        """Connections that check the address they go to, or those through the proxy of the environment."""
        url = str(request.url)
        return self._connections.pools_for(url).connection_from_url(url)

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        """Send one request of a chain of redirects and read its answer whole."""
        if request.method not in ('GET', 'POST'):
            raise requests.exceptions.InvalidURL(f'a search makes no {request.method} requests')
        try:
            private = self._private or origin_of(str(request.url)) == self._home
        except AddressError as error:
            raise requests.exceptions.InvalidURL(str(error)) from None
        LIMITS.start(self._answer_s, private, self._timeout_s)
        try:
            response = super().send(request, *args, **{**options, 'stream': True})
        except PrivateAddressError as error:
            raise requests.exceptions.InvalidURL(str(error)) from None
        content = bytearray()
        for piece in response.iter_content(1 << 16):
            content += piece
            if len(content) > _ANSWER_BYTES:
                response.close()
                raise requests.exceptions.InvalidURL(f'it answers with more than {_ANSWER_BYTES >> 20} MB')
            if time.monotonic() > LIMITS.deadline:
                response.close()
                raise requests.exceptions.ReadTimeout(f'its answer takes longer than {self._answer_s:g} s')
        response._content = bytes(content)
        return response


class _Io(StacApiIO):
    """Requests that are counted, tried again, and answered in JSON."""

    def __init__(self, source: SceneSource, counts: Counter[str]) -> None:
        retry = _CountingRetry(
            total=source.retries,
            connect=min(2, source.retries),  # a name that is wrong stays wrong
            allowed_methods=None,
            status_forcelist=WORTH_ANOTHER_TRY,
            backoff_factor=0.5,
            backoff_max=60,
            raise_on_status=False,
        )
        retry.counts = counts
        super().__init__(timeout=source.timeout_s, max_retries=retry)
        for scheme in ('http://', 'https://'):
            self.session.mount(scheme, _Adapter(source, retry))
        self._tries = source.retries + 1
        self.counts = counts

    def request(
        self,
        href: str,
        method: str | None = None,
        headers: dict[str, str] | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> str:
        """The text of an answer that is JSON.

        Raises:
            APIError: the server refuses, or every try breaks off or brings something else.
        """
        for left in reversed(range(self._tries)):
            self.counts['requests'] += 1
            try:
                text = super().request(href, method, headers, parameters).removeprefix(_BOM)
                parse_json(text)
            except APIError as error:
                if not left or not _broke_off(error.__context__):
                    raise
            except ValueError:
                if not left:
                    start = ' '.join(text.split())[:60]
                    raise APIError(f'{href} answered something that is not JSON: {start!r}') from None
            else:
                return text
            self.counts['retries'] += 1
        raise AssertionError


def _status(error: APIError) -> int | None:
    """Status code of an answer; None where there was none."""
    return getattr(error, 'status_code', None)


def _broke_off(error: BaseException | None) -> bool:
    """Whether an answer began and did not end; urllib3 tries again only before the answer begins."""
    if isinstance(error, requests.ConnectionError):
        return not (error.args and isinstance(error.args[0], MaxRetryError))
    return isinstance(error, requests.exceptions.ChunkedEncodingError | requests.exceptions.ContentDecodingError)


class Api:
    """A STAC API that is searched region by region.

    Args:
        source: address, filters, page size, timeout and retries.
        period: RFC 3339 interval; None for all times.
        counts: gets requests, retries, pages and repeated pages.
    """

    def __init__(self, source: SceneSource, period: str | None, counts: Counter[str]) -> None:
        self._source, self._period, self._counts = source, period, counts
        self._io = _Io(source, counts)
        self._client: Client | None = None
        self._refused: set[str] = set()

    def search(self, region: Box) -> list[dict[str, Any]]:
        """All items of the collections over a region and in the period, each once, as the server gave them.

        Filters are pushed to the server where it declares to understand them, to save the download; nobody may rely on
        it.

        Raises:
            GrafalignError: the API does not answer, refuses the search, or turns in circles before it gave everything.
        """
        limit = self._source.page_items
        while True:
            try:
                return self._search(region, limit)
            except APIError as error:
                status = _status(error)
                if self._client is None:  # not even the landing page
                    raise self._failure(error) from None
                if status in _FILTER_REFUSED and (filters := self._filters()):
                    self._refused.add(next(iter(filters)))
                    self._counts['filters refused by the server'] += 1
                elif status in _TOO_MUCH and limit > 10:
                    limit = max(10, limit // 4)
                    self._counts['searches with smaller pages'] += 1
                else:
                    raise self._failure(error) from None
            except GrafalignError:
                raise
            except Exception as error:  # whatever pystac says of answers that are JSON but no STAC
                raise self._failure(error) from None

    def check(self) -> None:
        """See whether the API answers at all.

        Raises:
            GrafalignError: it does not.
        """
        try:
            self._open()
        except Exception as error:  # whatever pystac says of answers that are JSON but no STAC
            raise self._failure(error) from None

    def sample(self) -> list[dict[str, Any]]:
        """At most one item of the collections, wherever, without filters: what its properties are called."""
        try:
            search = self._open().search(method=self._method(), collections=self._source.collections, limit=1)
            page = json.loads(self._io.request(search.url, search.method, None, search.get_parameters()))
            return list(page.get('features') or [])[:1]
        except Exception:  # it only helps to word another error
            return []

    def _failure(self, error: Exception) -> GrafalignError:
        status = getattr(error, 'status_code', None)
        why = f'status {status}: {_short(error)}' if status else _short(error)
        pages = ', scenes.page_items (servers cap it)' if status == 400 else ''
        return RemoteError(
            f'The STAC API {self._source.api} did not answer the search ({why}); check scenes.api, '
            f'scenes.collections{pages}, and try again: what was found so far is kept.'
        )

    def _open(self) -> Client:
        if self._client is None:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore', PystacClientWarning)  # an API that declares nothing may still search
                # opening takes the timeout away from a StacIO that is not told again
                self._client = Client.open(str(self._source.api), stac_io=self._io, timeout=self._source.timeout_s)
        return self._client

    def _method(self) -> str:
        """POST where it is offered or nothing is said: bodies have no length limit."""
        offered = {
            str(link.extra_fields.get('method', 'GET')).upper() for link in self._open().links if link.rel == 'search'
        }
        return 'GET' if offered == {'GET'} else 'POST'

    def _filters(self) -> dict[str, Any]:
        """The filters in words that the server declares and has not refused; empty where there are none.

        CQL2 goes first only where the query extension cannot say all. That a server declares one of them does not mean
        that it knows all operators: stac-fastapi refuses `in` and `startsWith` in a query, and takes them in CQL2.
        """
        declared = {
            str(uri).rpartition('#')[2] for uri in self._open().get_conforms_to() if '/item-search#' in str(uri)
        }
        where, cloud = self._source.where, self._source.max_cloud_percent
        for word in ('filter', 'query') if cloud is not None else ('query', 'filter'):
            if word in declared - self._refused:
                said = as_query(where) if word == 'query' else as_cql2(where, cloud)
                if said:
                    return {word: said, **({'filter_lang': 'cql2-json'} if word == 'filter' else {})}
        return {}

    def _search(self, region: Box, limit: int) -> list[dict[str, Any]]:
        search = self._open().search(
            method=self._method(),
            collections=self._source.collections,
            bbox=region,
            datetime=self._period,
            limit=limit,
            **self._filters(),
        )
        items: dict[tuple[str, str], dict[str, Any]] = {}
        barren, total, repeated, pages = 0, 0, self._counts['repeated pages'], self._counts['pages']
        for page in self._pages(search):
            self._counts['pages'] += 1
            before = len(items)
            for number, item in enumerate(page['features']):
                if not isinstance(item, dict):
                    item = {'id': None, 'not an item': item}
                nameless = '' if item.get('id') else f'{self._counts["pages"]}.{number}'  # none is taken for another
                key = (str(item.get('collection') or ''), str(item.get('id') or nameless))
                if items.setdefault(key, item) is not item:
                    self._counts['duplicates'] += 1
            total = _matched(page) or total
            barren = 0 if len(items) > before else barren + 1
            if barren == _BARREN_PAGES:
                break
            if self._counts['pages'] - pages > _MOST_PAGES:
                raise RemoteError(
                    f'The STAC API {self._source.api} gives pages without end ({_MOST_PAGES:,} so far); set a larger '
                    'scenes.page_items or a smaller scenes.search_cell_deg.'
                )
        self._counts['repeated pages'] += barren
        circled = self._counts['repeated pages'] > repeated
        if circled and total > len(items):
            raise RemoteError(
                f'The STAC API {self._source.api} repeats its pages and gave {len(items)} of {total} items; set '
                'another scenes.page_items or a smaller scenes.search_cell_deg.'
            )
        if total > len(items):
            self._counts['matched and not given'] += total - len(items)
            console.log(
                f'The STAC API matched {total:,} items and gave {len(items):,} of them without a link to more; if its '
                f'pages are capped, set a smaller scenes.page_items (it is {self._source.page_items}).'
            )
        return list(items.values())

    def _pages(self, search: ItemSearch) -> Iterator[dict[str, Any]]:
        """Pages of a search; ends where a next link is missing or was followed before."""
        first = search.get_parameters()
        href, method, headers, body = search.url, str(search.method), None, first
        seen = set()
        while True:
            seen.add(json.dumps([href, method, body], sort_keys=True, default=str))
            try:
                text = self._io.request(href, method, headers, body)
            except APIError as error:
                if _status(error) != 405 or method != 'POST' or len(seen) > 1:
                    raise
                search.method = method = 'GET'
                first = body = search.get_parameters()
                continue
            page = parse_json(text)
            if not isinstance(page, dict) or not isinstance(page.get('features'), list):
                raise APIError(f'{href} answered JSON that is no list of items: {text[:60]!r}')
            yield page
            link = next((k for k in page.get('links') or [] if isinstance(k, dict) and k.get('rel') == 'next'), None)
            if link is None or not link.get('href'):
                return
            before, href = href, urljoin(href, str(link['href']))
            method = str(link.get('method') or 'GET').upper()
            headers = link.get('headers')
            body = {}  # a GET link holds its parameters
            if method == 'POST':
                body = {**(first if link.get('merge') else {}), **(link.get('body') or {})}
            if origin_of(href) != origin_of(before) and (headers or method != 'GET'):
                raise APIError(f'its next page, {href}, lies elsewhere and wants more than a GET; that is not followed')
            headers = {str(k): str(v) for k, v in headers.items()} if isinstance(headers, dict) else None
            if json.dumps([href, method, body], sort_keys=True, default=str) in seen:
                self._counts['repeated pages'] += 1
                return


def _matched(page: dict[str, Any]) -> int:
    """How many items the server says there are; 0 where it does not."""
    context = page.get('context') if isinstance(page.get('context'), dict) else {}
    number = page.get('numberMatched') or page.get('numMatched') or (context or {}).get('matched')
    return number if isinstance(number, int) else 0


def _short(error: Exception) -> str:
    text = ' '.join(str(error).split()) or type(error).__name__
    return text if len(text) < 300 else text[:300] + ' ...'
