"""Addresses of assets: made absolute against where their item came from, and refused where they must not be read.

An item of an API is a stranger's text: without a check it could name /etc/passwd or a service of the internal network,
and the reader would open it. Here whole items are refused early, with a reason; what is connected to in the end, also
after a redirect, is checked by `grafalign.web`.
"""

from __future__ import annotations

import contextlib
import socket
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from grafalign.web.addresses import host_of, is_public


def self_link(item: dict[str, Any]) -> str | None:
    """Where an item says that it is published, if that is on the web."""
    links = item.get('links')
    for link in links if isinstance(links, list) else []:
        if isinstance(link, dict) and link.get('rel') == 'self' and isinstance(link.get('href'), str):
            return str(link['href'])
    return None


def absolute_assets(item: dict[str, Any], base: str, local: bool, published: str | None = None) -> dict[str, Any]:
    """An item with the addresses of its assets made absolute.

    Addresses are URI references (RFC 3986), so a relative one of a local item has its percent escapes undone: it
    becomes a path, which has none. A file whose name really holds the escape is found all the same.

    Args:
        item: a STAC item; not changed.
        base: the file or URL that relative addresses start from.
        local: whether the item was read from this machine. Plain paths and file:// of other items stay as they are, for
            `refused` to find.
        published: of a local item, where it says that it is published: its relative addresses start there where no such
            file lies beside it, as in a search that was saved.
    """
    assets = {}
    for key, asset in (item.get('assets') or {}).items():
        if not isinstance(asset, dict):
            continue  # a band that is looked for here is then reported as missing
        href = str(asset.get('href') or '')
        try:
            absolute = _absolute(href, base, local)
        except ValueError:  # `http://[`
            absolute = href
        if local and published and '://' in published and not _names_itself(href) and not Path(absolute).exists():
            with contextlib.suppress(ValueError):
                absolute = urljoin(published, href)
        assets[key] = {**asset, 'href': absolute}
    return {**item, 'assets': assets}


def _names_itself(href: str) -> bool:
    """Whether an address is absolute, or none."""
    return not href or '://' in href or href.startswith(('/', 'file:'))


def _absolute(href: str, base: str, local: bool) -> str:
    if href.startswith('file:'):
        return unquote(urlsplit(href).path) if local else href  # GDAL takes the path as it is, escapes and all
    if '://' in href or not href:
        return href
    if '://' in base:
        return href if href.startswith('/') and not href.startswith('//') else urljoin(base, href)
    return str(_path(Path(base).parent, href))


def _path(folder: Path, href: str) -> Path:
    """The file of a relative reference or a plain path."""
    literal = folder / href
    if '%' in href and not literal.exists():
        return (folder / unquote(href)).absolute().resolve() if not href.startswith('/') else _unescaped(literal)
    return literal if href.startswith('/') else literal.resolve()


def _unescaped(path: Path) -> Path:
    """A plain path is no URI; its escapes are undone only if that file is there."""
    other = Path(unquote(str(path)))
    return other if other.exists() else path


def refused(item: dict[str, Any], schemes: list[str], public_only: bool) -> str | None:
    """Which asset of an item must not be read, and why; None where all may.

    Args:
        item: a STAC item with absolute addresses.
        schemes: allowed schemes in lower case; a plain path counts as `file`.
        public_only: whether http and https addresses must lie outside loopback, link-local and private networks.
    """
    for key, asset in (item.get('assets') or {}).items():
        href = str(asset.get('href') or '') if isinstance(asset, dict) else ''
        try:
            scheme = (urlsplit(href).scheme if ':' in href and not href.startswith('/') else '').lower() or 'file'
        except ValueError as error:
            return f'{key}: {href} (no valid address: {error})'
        if scheme not in schemes:
            return f'{key}: {href or "no address"} ({"a path" if "://" not in href else scheme} is not allowed here)'
        if public_only and scheme in ('http', 'https') and is_private(host_of(href)):
            return f'{key}: {href} (an address of a private network)'
    return None


@lru_cache(maxsize=4096)
def is_private(host: str) -> bool:
    """Whether a host name or address is, or resolves to, an address that is not public.

    A name that cannot be resolved here is not private: it cannot be read either, or a proxy resolves it.
    """
    if not host:
        return True
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return host.lower() == 'localhost' or host.lower().endswith('.localhost')
    return not all(is_public(address) for address in found)
