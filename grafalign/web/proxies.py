"""Which proxy the environment names for an address: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, but for the hosts of NO_PROXY.

The rules are those of requests, so that a STAC search, byte ranges, photos and tables take the same way.
"""

from __future__ import annotations

import os
from urllib.parse import unquote

import urllib3
from requests.utils import get_environ_proxies, select_proxy

from grafalign.web.addresses import AddressError

_NAMES = ('https_proxy', 'http_proxy', 'all_proxy')


def proxy_of(url: str) -> str | None:
    """The proxy through which an address is reached, or None for a direct connection.

    Raises:
        AddressError: it is a SOCKS proxy, or no address.
    """
    if not any(os.environ.get(name) or os.environ.get(name.upper()) for name in _NAMES):
        return None
    proxy: str | None = select_proxy(url, get_environ_proxies(url))
    if proxy is None:
        return None
    proxy = proxy if '://' in proxy else f'http://{proxy}'
    if not proxy.lower().startswith(('http://', 'https://')):
        scheme = proxy.partition(':')[0]
        raise AddressError(
            f'the proxy of the environment is of the kind {scheme}, and only http and https ones are used'
        )
    return proxy


def split_credentials(proxy: str) -> tuple[str, str]:
    """A proxy's address without its `user:password`, and those."""
    parts = urllib3.util.parse_url(proxy)
    return urllib3.util.Url(parts.scheme, None, parts.host, parts.port).url, unquote(parts.auth or '')
