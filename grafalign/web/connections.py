"""Connections to public addresses only, whose reads end at a deadline; direct, or through the proxy of the environment.

The address is checked at the moment of connecting, so that neither DNS nor a redirect leads inside. What a person named
(a table, the root of an API) may lie in a private network; then so may what it names on the same origin, and nothing
else. A proxy looks names up itself, so through one only addresses that are private by themselves are refused here, and
the rest is the proxy's to refuse.
"""

from __future__ import annotations

import math
import socket
import ssl
import threading
import time
from typing import Any

import urllib3
from urllib3 import exceptions
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util.ssl_ import create_urllib3_context

from grafalign.web.addresses import PrivateAddressError, is_private_host, is_public
from grafalign.web.proxies import proxy_of, split_credentials

USER_AGENT = 'grafalign'


class Limits(threading.local):
    """What holds for the request that this thread makes now."""

    deadline = 0.0
    private = False
    read_s = math.inf

    def start(self, seconds: float, private: bool, read_s: float = math.inf) -> None:
        """Begin a request.

        Args:
            seconds: until its last byte must have come.
            private: whether its host may be private.
            read_s: longest silence.
        """
        self.deadline, self.private, self.read_s = time.monotonic() + seconds, private, read_s


LIMITS = Limits()


def seconds_left() -> float:
    """Seconds until the deadline.

    Raises:
        TimeoutError: there are none.
    """
    left = LIMITS.deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError('timed out')
    return left


def _keep_deadline(connection: socket.socket) -> None:
    """Let the next read end at the deadline; off by a twentieth, as setting it costs system calls."""
    left = min(seconds_left(), LIMITS.read_s)
    if not left <= (connection.gettimeout() or 0.0) <= 1.05 * left:
        connection.settimeout(1.02 * left)


class _Socket(socket.socket):
    """A socket whose reads end at the deadline: a time-out for each read alone would let a host drip for hours."""

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        _keep_deadline(self)
        return super().recv_into(*args, **kwargs)


class _TlsSocket(ssl.SSLSocket):
    """The same with TLS."""

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        _keep_deadline(self)
        return super().recv_into(*args, **kwargs)


def _connect(connection: HTTPConnection, private: bool) -> socket.socket:
    """Connect to the first address of the host that answers, if all of them may be talked to.

    What is checked is what is connected to: the name is looked up once, and every spelling of an address (decimal,
    octal, mapped into IPv6) has become plain by then.
    """
    host = connection.host.strip('[]')
    try:
        found = socket.getaddrinfo(host, connection.port or connection.default_port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise exceptions.NameResolutionError(host, connection, error) from error
    except UnicodeError:
        raise exceptions.LocationParseError(host) from None
    if not private and not all(is_public(str(place[0])) for *_, place in found):
        raise PrivateAddressError
    problem: OSError | None = None
    for family, kind, protocol, _, place in found:
        made = _Socket(family, kind, protocol)
        try:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.settimeout(min(seconds_left(), LIMITS.read_s))
            made.connect(place)
            made.settimeout(min(seconds_left(), LIMITS.read_s))
            return made
        except OSError as error:
            made.close()
            problem = error
    if isinstance(problem, TimeoutError):
        raise exceptions.ConnectTimeoutError(connection, 'timed out')
    raise exceptions.NewConnectionError(connection, str(problem))


class _Plain(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _connect(self, LIMITS.private)


class _Tls(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _connect(self, LIMITS.private)


class _PlainPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Plain


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _Tls


class _PlainProxy(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _connect(self, private=True)  # the person who set the proxy may have it anywhere


class _TlsProxy(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _connect(self, private=True)


class _PlainProxyPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _PlainProxy


class _TlsProxyPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsProxy


class Connections:
    """Connections that are kept open; used by any number of threads, each of which sets its `LIMITS` first.

    Args:
        per_host: how many to keep to each host.
    """

    def __init__(self, per_host: int) -> None:
        self._per_host, self._lock = per_host, threading.Lock()
        self._pools: dict[tuple[str | None, bool], urllib3.PoolManager] = {}

    def pools_for(self, url: str) -> urllib3.PoolManager:
        """The connections by which an address is reached.

        Those that may be private are kept apart, as one that is used again is not checked again.

        Raises:
            AddressError: the proxy of the environment is none that can be used.
            PrivateAddressError: the address names a private host, and must not.
        """
        proxy, private = proxy_of(url), LIMITS.private
        if proxy is not None and not private and is_private_host(url):
            raise PrivateAddressError
        with self._lock:
            if (proxy, private) not in self._pools:
                self._pools[proxy, private] = _make_pools(self._per_host, proxy)
            return self._pools[proxy, private]

    def get(self, url: str, headers: dict[str, str], **options: Any) -> urllib3.BaseHTTPResponse:
        """One GET request, without redirects and retries; the body is not read yet.

        Raises:
            PrivateAddressError, AddressError, urllib3.exceptions.HTTPError, TimeoutError: there is no answer.
        """
        return self.pools_for(url).urlopen(
            'GET', url, headers=headers, redirect=False, retries=False, preload_content=False, **options
        )

    def post(self, url: str, headers: dict[str, str], body: bytes) -> urllib3.BaseHTTPResponse:
        """One POST request; as `get`."""
        return self.pools_for(url).urlopen(
            'POST', url, headers=headers, body=body, redirect=False, retries=False, preload_content=False
        )

    def close(self) -> None:
        """Close all of them."""
        with self._lock:
            for pools in self._pools.values():
                pools.clear()


def _make_pools(per_host: int, proxy: str | None) -> urllib3.PoolManager:
    tls = create_urllib3_context()
    tls.load_default_certs()
    tls.sslsocket_class = _TlsSocket
    options: dict[str, Any] = {'num_pools': 256, 'maxsize': per_host, 'ssl_context': tls, 'retries': False}
    if proxy is None:
        pools = urllib3.PoolManager(**options)
        pools.pool_classes_by_scheme = {'http': _PlainPool, 'https': _TlsPool}
        return pools
    address, credentials = split_credentials(proxy)
    headers = urllib3.make_headers(proxy_basic_auth=credentials) if credentials else None
    through = urllib3.ProxyManager(address, proxy_headers=headers, **options)
    through.pool_classes_by_scheme = {'http': _PlainProxyPool, 'https': _TlsProxyPool}
    return through
