"""Items from this machine: a static catalog, or one file of items."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pystac

from grafalign.errors import GrafalignError
from grafalign.scenes.hrefs import absolute_assets
from grafalign.scenes.table import read_items

Rejected = tuple[str, str, str, str]
"""`scene`, id, reason, detail: a row of the pair store's `rejected` table."""
NOT_AN_ITEM = 'is not a STAC item'


def from_catalog(path: Path, rejected: list[Rejected]) -> Iterator[dict[str, Any]]:
    """The items of a catalog and all its children, as they are written but with absolute assets.

    Args:
        path: a catalog.json or collection.json.
        rejected: gets a row for every item that cannot be read.

    Raises:
        GrafalignError: the catalog or one of its children cannot be read.
    """
    if not path.is_file():
        raise GrafalignError(f'There is no file {path}; set scenes.catalog to a catalog.json or collection.json.')
    try:
        for catalog, _, _ in pystac.Catalog.from_file(str(path)).walk():
            for link in catalog.get_links('item'):
                href = link.get_absolute_href() or str(link.href)
                try:
                    text = pystac.StacIO.default().read_text(href)
                    item = json.loads(text)
                    if not _is_item(item):
                        raise ValueError('it has no `id` or `assets`')
                except (OSError, ValueError) as error:
                    rejected.append(('scene', href, NOT_AN_ITEM, str(error)))
                else:
                    yield absolute_assets(item, href, '://' not in href)
    except Exception as error:  # pystac raises many types; all mean that some file of the catalog is unusable
        raise GrafalignError(
            f'{path} cannot be read as a STAC catalog ({error}); check it with a STAC validator.'
        ) from None


def from_file(path: Path, rejected: list[Rejected]) -> Iterator[dict[str, Any]]:
    """The items of a JSON, NDJSON or stac-geoparquet file, with absolute assets.

    Args:
        path: the file; its suffix tells what it is.
        rejected: gets a row for every entry that is no item.

    Raises:
        GrafalignError: the file cannot be read.
    """
    if not path.is_file():
        raise GrafalignError(
            f'There is no file {path}; set scenes.items to a .json, .ndjson or .parquet file of STAC items.'
        )
    base = str(path.resolve())
    try:
        for number, item in enumerate(_entries(path, rejected)):
            if _is_item(item):
                yield absolute_assets(item, base, True)
            else:
                rejected.append(('scene', f'entry {number}', NOT_AN_ITEM, 'it has no `id` or `assets`'))
    except Exception as error:  # JSON, Arrow and encoding errors: the user needs the file's name
        raise GrafalignError(f'{path} cannot be read as STAC items ({error}); check that the file is whole.') from None


def _entries(path: Path, rejected: list[Rejected]) -> Iterator[Any]:
    suffix = path.suffix.lower()
    if suffix in ('.parquet', '.geoparquet'):
        yield from read_items(path)
    elif suffix in ('.ndjson', '.jsonl'):
        with path.open(encoding='utf-8') as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    yield json.loads(line)
                except ValueError as error:
                    rejected.append(('scene', f'line {number}', NOT_AN_ITEM, str(error)))
    else:
        content = json.loads(path.read_text(encoding='utf-8'))
        yield from content if isinstance(content, list) else content.get('features', [content])


def _is_item(item: Any) -> bool:
    return isinstance(item, dict) and bool(item.get('id')) and isinstance(item.get('assets'), dict)
