"""The items of a static STAC catalog, on this machine or partly on the web.

A document from elsewhere is a stranger's: it may lead to public addresses and to its own origin, never to files of this
machine, and neither may the assets of its items. What a catalog on this machine names is its owner's own business.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from grafalign.errors import InputError, RemoteError
from grafalign.foreign import open_plain, parse_json
from grafalign.scenes.hrefs import absolute_assets, refused
from grafalign.scenes.local import NOT_AN_ITEM, Rejected, is_item
from grafalign.web.addresses import AddressError, WebError, joined, origin_of
from grafalign.web.follow import read_url

_MOST_BYTES = 64 << 20
"""Of one document."""
_TIMEOUT_S = 60.0
_REMOTE_SCHEMES = ['http', 'https', 's3', 'gs', 'az']


def from_catalog(path: Path, rejected: list[Rejected], private_addresses: bool = False) -> Iterator[dict[str, Any]]:
    """The items of a catalog and all its children, as they are written but with absolute assets.

    Args:
        path: a catalog.json or collection.json.
        rejected: gets a row for every item that cannot be read, or that names what it must not.
        private_addresses: whether documents from elsewhere may name private addresses.

    Raises:
        GrafalignError: the catalog or one of its children cannot be read.
    """
    if not path.is_file():
        raise InputError(f'There is no file {path}; set scenes.catalog to a catalog.json or collection.json.')
    todo, seen = [(str(path.resolve()), True)], set()
    while todo:
        document, trusted = todo.pop()
        if document in seen:
            continue
        seen.add(document)
        try:
            links = _links(_read(document, trusted))
            children = [_target(document, href) for rel, href in links if rel == 'child']
        except (OSError, ValueError, WebError) as error:
            name = path if document == str(path.resolve()) else f'{path}, its child {document},'
            raise (RemoteError if '://' in document else InputError)(
                f'{name} cannot be read as a STAC catalog ({_short(error)}); check it with a STAC validator.'
            ) from None
        # depth first, in the order of the links
        todo += [(c, private_addresses or _may_be_private(document, c, trusted)) for c in reversed(children)]
        for rel, href in links:
            if rel != 'item':
                continue
            target = href
            try:
                target = _target(document, href)
                if target in seen:
                    continue
                seen.add(target)
                item = _read(target, private_addresses or _may_be_private(document, target, trusted))
                if not is_item(item):
                    raise ValueError('it has no `id` or `assets`')
            except (OSError, ValueError, WebError) as error:
                rejected.append(('scene', target, NOT_AN_ITEM, _short(error)))
                continue
            whole = absolute_assets(item, target, not _is_remote(target))
            if _is_remote(target) and (detail := _not_allowed(whole, target, private_addresses)) is not None:
                rejected.append(('scene', str(item['id']), 'the address of an asset is not allowed', detail))
                continue
            yield whole


def _is_remote(document: str) -> bool:
    return '://' in document


def _may_be_private(document: str, target: str, trusted: bool) -> bool:
    """Whether a document may lead to a private host: one on this machine may, one that it names on its own origin."""
    return not _is_remote(document) or (trusted and _origin(document) == _origin(target))


def _read(document: str, trusted: bool) -> Any:
    """A JSON document.

    Raises:
        ValueError, OSError, WebError: it cannot be read.
    """
    if _is_remote(document):
        content = read_url(document, private=trusted, timeout_s=_TIMEOUT_S, most_bytes=_MOST_BYTES).content
    else:
        with open_plain(document, _MOST_BYTES) as file:
            content = file.read()
    return parse_json(content)


def _links(document: Any) -> list[tuple[str, str]]:
    """Relation and address of each link.

    Raises:
        ValueError: the document is no catalog.
    """
    links = document.get('links') if isinstance(document, dict) else None
    if not isinstance(links, list):
        raise ValueError('it has no `links`')
    return [(str(k.get('rel')), str(k['href'])) for k in links if isinstance(k, dict) and k.get('href')]


def _target(document: str, href: str) -> str:
    """Where a link of a document leads: a path, or an address.

    Raises:
        AddressError: a document from elsewhere leads to a file of this machine.
    """
    if _is_remote(document):
        target = joined(document, href)
        origin_of(target)
        return target
    if href.startswith('file:'):
        return unquote(urlsplit(href).path)
    if '://' in href:
        origin_of(href)
        return href
    literal = (Path(document).parent / href).resolve()
    return str(literal if literal.exists() else (Path(document).parent / unquote(href)).resolve())


def _not_allowed(item: dict[str, Any], document: str, private: bool) -> str | None:
    """Which asset of an item from elsewhere must not be read; its own origin may always be."""
    own = origin_of(document)
    others = {
        key: asset
        for key, asset in item['assets'].items()
        if not str(asset['href']).startswith(('http://', 'https://')) or _origin(str(asset['href'])) != own
    }
    return refused({**item, 'assets': others}, _REMOTE_SCHEMES, public_only=not private)


def _origin(href: str) -> tuple[str, str, int] | None:
    try:
        return origin_of(href)
    except AddressError:
        return None


def _short(error: Exception) -> str:
    return ' '.join(str(error).split())[:300] or type(error).__name__
