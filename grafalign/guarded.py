"""The gate for addresses that data names: connections to public addresses only, whose reads end at a deadline.

The address is checked at the moment of connecting, so that neither DNS nor a redirect leads inside. What a person named
(a table, the root of an API) may lie in a private network; then so may what it names on the same origin, and nothing
else. One parser, the one that connects, says what the host of an address is.
"""

from __future__ import annotations

import ipaddress
import math
import socket
import ssl
import threading
import time
from typing import Any
from urllib.parse import urljoin

import urllib3
from urllib3 import exceptions
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util.ssl_ import create_urllib3_context

USER_AGENT = 'grafalign'
_NAT64 = ipaddress.IPv6Network('64:ff9b::/96')
"""RFC 6052: the last 32 bits are an IPv4 address."""
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(n)
    for n in ('192.0.0.0/24', '168.63.129.16/32', 'fec0::/10', '3fff::/20', '5f00::/16', '100::/64', '2001:db8::/32')
)
"""What older Pythons, or the registries, call global and is not: protocol assignments (Oracle's metadata service), the
host service of Azure, site-local addresses, documentation."""
_ISATAP = (0x00005EFE, 0x02005EFE)
"""RFC 5214: the upper half of an interface identifier whose lower half is an IPv4 address."""
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 5


class PrivateAddressError(Exception):
    """A host turned out to be at an address that is not public."""

    def __init__(self) -> None:
        super().__init__('its host has a private address, which data from elsewhere must not name')


class AddressError(ValueError):
    """An address cannot be used; the text says why."""


def host_of(url: str) -> str:
    """The host of an address, in lower case and as the connection will understand it; empty where there is none."""
    try:
        return (urllib3.util.parse_url(url).host or '').strip('[]').lower()
    except exceptions.LocationParseError:
        return ''


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of an address (RFC 6454).

    Raises:
        AddressError: it is no http or https address with a host.
    """
    try:
        parts = urllib3.util.parse_url(url)
    except exceptions.LocationParseError:
        raise AddressError(f'{url!r} is no valid address') from None
    if parts.scheme not in ('http', 'https') or not parts.host:
        raise AddressError(f'{parts.scheme or "nothing"}: is not followed, only http and https are')
    return parts.scheme, parts.host.lower(), parts.port or (443 if parts.scheme == 'https' else 80)


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet; those that carry an IPv4 address are judged by it.

    Args:
        address: as `getaddrinfo` gives it, perhaps with an IPv6 zone (`fe80::1%eth0`).
    """
    ip = ipaddress.ip_address(address.partition('%')[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64 or ip in ipaddress.IPv6Network('::/96'):
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if int(ip) >> 32 & 0xFFFFFFFF in _ISATAP:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    if any(ip.version == network.version and ip in network for network in _NOT_PUBLIC):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def joined(base: str, reference: str) -> str:
    """An address from a reference that a document or an answer has.

    Raises:
        AddressError: it makes none.
    """
    try:
        return urljoin(base, reference)
    except ValueError as error:
        raise AddressError(f'{reference[:80]!r} is no valid address ({error})') from None


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


def _connect(connection: HTTPConnection) -> socket.socket:
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
    if not LIMITS.private and not all(is_public(str(place[0])) for *_, place in found):
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
        return _connect(self)


class _Tls(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _connect(self)


class _PlainPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Plain


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _Tls


def guarded_pools(per_host: int) -> urllib3.PoolManager:
    """Pools of such connections; `LIMITS` is to be set by the thread that makes a request.

    Args:
        per_host: connections to keep to each host.
    """
    tls = create_urllib3_context()
    tls.load_default_certs()
    tls.sslsocket_class = _TlsSocket
    pools = urllib3.PoolManager(num_pools=256, maxsize=per_host, ssl_context=tls, retries=False)
    pools.pool_classes_by_scheme = {'http': _PlainPool, 'https': _TlsPool}
    return pools


_POOLS: dict[bool, urllib3.PoolManager] = {}
_POOLS_LOCK = threading.Lock()


def _shared_pools(private: bool) -> urllib3.PoolManager:
    """Connections that are kept: those that may be private apart, as one that is used again is not checked again."""
    with _POOLS_LOCK:
        return _POOLS.setdefault(private, guarded_pools(4))


def open_url(url: str, *, timeout_s: float, trusted: bool) -> urllib3.BaseHTTPResponse:
    """Open a file on the web, following redirects one by one.

    Args:
        url: http or https.
        timeout_s: seconds for each hop; reads of the body need a deadline of their own (`LIMITS.deadline`).
        trusted: whether a person named the address: then it, and redirects within its origin, may be private.

    Returns:
        A response whose body has not been read; close it.

    Raises:
        AddressError: an address is no address, leads to another scheme, or redirects go round in circles.
        PrivateAddressError: a host is private that must not be.
        urllib3.exceptions.HTTPError, TimeoutError: there is no answer.
    """
    home = origin_of(url)
    for _ in range(_MOST_REDIRECTS + 1):
        private = trusted and origin_of(url) == home
        LIMITS.start(timeout_s, private)
        headers = {'User-Agent': USER_AGENT}
        response = _shared_pools(private).urlopen(
            'GET', url, headers=headers, redirect=False, retries=False, preload_content=False, timeout=timeout_s
        )
        where = response.headers.get('Location')
        if response.status not in _REDIRECTS or not where:
            return response
        response.close()
        url = joined(url, where)
    raise AddressError('too many redirects')


def read_url(url: str, *, timeout_s: float, trusted: bool, most_bytes: int) -> bytes:
    """The whole content of a small file on the web.

    Raises:
        AddressError: it is larger than `most_bytes`, or as `open_url`.
        PrivateAddressError, urllib3.exceptions.HTTPError, TimeoutError: as `open_url`.
    """
    response = open_url(url, timeout_s=timeout_s, trusted=trusted)
    try:
        if response.status != 200:
            raise AddressError(f'HTTP {response.status}')
        LIMITS.deadline = time.monotonic() + timeout_s
        content = bytearray()
        while piece := response.read(1 << 16, decode_content=True):
            content += piece
            if len(content) > most_bytes:
                raise AddressError(f'more than {most_bytes / 1e6:g} MB')
            seconds_left()
        return bytes(content)
    finally:
        response.close()
