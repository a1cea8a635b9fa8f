"""Addresses that data names: what their host is, whether it is public, and where a reference leads.

One parser, the one that connects, says what the host of an address is.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urljoin

import urllib3
from urllib3 import exceptions

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


class WebError(Exception):
    """A file on the web cannot be had; the text says why."""

    status: int | None = None
    """HTTP status of the answer, where that is the reason."""


class PrivateAddressError(WebError):
    """A host turned out to be at an address that is not public."""

    def __init__(self) -> None:
        super().__init__('its host has a private address, which data from elsewhere must not name')


class AddressError(WebError, ValueError):
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


def is_private_host(url: str) -> bool:
    """Whether an address names a private host by itself, without looking it up: `localhost`, or an IP address."""
    host = host_of(url)
    try:
        return not is_public(host)
    except ValueError:
        return host == 'localhost' or host.endswith('.localhost')
