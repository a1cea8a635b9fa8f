"""Connections that go to public addresses only, and whose reads end at a deadline however slowly bytes drip in.

The address is checked at the moment of connecting, so that neither DNS nor a redirect leads inside.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from typing import Any

import urllib3
from urllib3 import exceptions
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util.ssl_ import create_urllib3_context

_NAT64 = ipaddress.IPv6Network('64:ff9b::/96')
"""RFC 6052: the last 32 bits are an IPv4 address."""


class PrivateAddressError(Exception):
    """A host turned out to be at an address that is not public."""


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
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


class Limits(threading.local):
    """What holds for the request that this thread makes now."""

    deadline = 0.0
    private = False


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
    left = seconds_left()
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
            made.settimeout(seconds_left())
            made.connect(place)
            made.settimeout(seconds_left())
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
