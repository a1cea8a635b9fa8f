"""Short-lived tokens for assets on Azure Blob Storage, as the Planetary Computer gives them out.

`GET {tokens}/ACCOUNT/CONTAINER` answers `{"msft:expiry": "2024-05-01T12:34:56Z", "token": "st=...&sig=..."}`, and
`HREF?token` may be read until then. Source: planetary_computer/sas.py and utils.py of
https://github.com/microsoft/planetary-computer-sdk-for-python, which also fetches a token anew in its last minute.
Tokens are never written to disk: scenes and stores hold the unsigned addresses.
"""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime

import pandas as pd
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from grafalign.errors import RemoteError
from grafalign.scenes.source import SignSettings
from grafalign.web.addresses import WebError
from grafalign.web.follow import read_url

_MARGIN_S = 60.0
"""A token is fetched anew when it is valid for less than this, or than a fifth of its life where that is shorter."""
_MIN_LIFE_S = 0.05
_MOST_BYTES = 1 << 20
"""Largest answer of a token service."""
_NAME = re.compile(r'[a-z0-9$][a-z0-9-]{2,62}', re.IGNORECASE)
"""Names of accounts and containers: nothing that leads to another path of the token service."""


@dataclass(frozen=True)
class _Token:
    query: str
    until: float
    """Seconds of the monotonic clock."""


class Signer:
    """Signs the addresses of assets; one signer serves all threads.

    Args:
        settings: token service and the hosts it is for.
        timeout_s: seconds to wait for the token service.
        retries: how often a request for a token that failed for the moment is made again.
    """

    def __init__(self, settings: SignSettings, timeout_s: float = 30.0, retries: int = 5) -> None:
        self._tokens_url = settings.tokens.rstrip('/')
        self._hosts = settings.blob_hosts.lower()
        self._tokens: dict[tuple[str, str], _Token] = {}
        self._locks: dict[tuple[str, str], threading.Lock] = {}
        self._lock = threading.Lock()
        self._timeout_s, self._retries = timeout_s, retries

    def sign(self, href: str) -> str:
        """An address that can be read now; addresses of other hosts come back as they are.

        Raises:
            GrafalignError: the token service does not answer, or gives no token.
        """
        place = self._place(href)
        if place is None:
            return href
        return f'{href}{"&" if "?" in href else "?"}{self._token(place).query}'

    def refresh(self, href: str, failed: str) -> str:
        """Sign an address again after the host refused it (403).

        However many threads are refused with one token, it is fetched anew once.

        Args:
            href: the unsigned address.
            failed: the signed address that was refused.

        Raises:
            GrafalignError: as `sign`.
        """
        place = self._place(href)
        if place is None:
            return href
        with self._lock_of(place):
            token = self._tokens.get(place)
            if token is not None and failed.endswith(token.query):
                del self._tokens[place]
        return self.sign(href)

    def _place(self, href: str) -> tuple[str, str] | None:
        """Account and container of an address; None where it needs no token."""
        try:
            parts = parse_url(href)  # the parser that connects: a host that others read otherwise gets no token
        except LocationParseError:
            return None
        host, path = (parts.host or '').lower(), [p for p in (parts.path or '').split('/') if p]
        place: tuple[str, ...] = ()
        if f'{host}:{parts.port}' == self._hosts or (host == self._hosts and parts.port is None):
            place = tuple(path[:2]) if parts.scheme in ('http', 'https') and len(path) > 2 else ()
        elif parts.scheme == 'https' and self._hosts.startswith('.') and host.endswith(self._hosts) and len(path) > 1:
            place = host.removesuffix(self._hosts), path[0]
        return (place[0], place[1]) if place and all(_NAME.fullmatch(p) for p in place) else None

    def _lock_of(self, place: tuple[str, str]) -> threading.Lock:
        with self._lock:
            return self._locks.setdefault(place, threading.Lock())

    def _token(self, place: tuple[str, str]) -> _Token:
        token = self._tokens.get(place)
        if token is None or time.monotonic() >= token.until:
            with self._lock_of(place):
                token = self._tokens.get(place)  # another thread may have fetched it while this one waited
                if token is None or time.monotonic() >= token.until:
                    token = self._tokens[place] = self._fetch(place)
        return token

    def _fetch(self, place: tuple[str, str]) -> _Token:
        url = f'{self._tokens_url}/{place[0]}/{place[1]}'
        requested_at = time.monotonic()
        try:
            content, headers = read_url(
                url, private=True, timeout_s=self._timeout_s, most_bytes=_MOST_BYTES, retries=self._retries
            )
            answer = json.loads(content)
            query, expiry = answer['token'], pd.Timestamp(answer['msft:expiry'])
            if not isinstance(query, str) or not query:
                raise ValueError('its token is empty')
            expiry = expiry.tz_localize('UTC') if expiry.tzinfo is None else expiry
            life_s = (expiry - _server_time(headers.get('Date'))).total_seconds()
        except (WebError, ValueError, TypeError, KeyError, AttributeError) as error:
            text = ' '.join(str(error).split())[:200]
            raise RemoteError(
                f'The token service {url} gave no token ({type(error).__name__}: {text}); check scenes.sign and the '
                'addresses of the assets, and try again.'
            ) from None
        # from when it was asked for, and at least for a moment: an expired token is the host's to refuse
        return _Token(query.lstrip('?'), requested_at + max(life_s - min(_MARGIN_S, life_s / 5), _MIN_LIFE_S))


def _server_time(date: str | None) -> datetime:
    """What time it is for the token service, so that a wrong clock here does not matter.

    A Date header is cut to whole seconds, so it is taken to be the end of its second.
    """
    now = datetime.now(timezone.utc)
    try:
        server = parsedate_to_datetime(date or '')
    except ValueError:
        return now
    server = server.replace(tzinfo=timezone.utc) if server.tzinfo is None else server
    return now if abs((now - server).total_seconds()) < 2 else server + timedelta(seconds=1)
