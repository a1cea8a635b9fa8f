"""Items from one file on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grafalign.errors import InputError
from grafalign.foreign import parse_json
from grafalign.scenes.hrefs import absolute_assets, self_link
from grafalign.scenes.table import read_items

Rejected = tuple[str, str, str, str]
"""`scene`, id, reason, detail: a row of the pair store's `rejected` table."""
NOT_AN_ITEM = 'is not a STAC item'


def from_file(path: Path, rejected: list[Rejected]) -> Iterator[dict[str, Any]]:
    """The items of a JSON, NDJSON or stac-geoparquet file, with absolute assets.

    Args:
        path: the file; its suffix tells what it is.
        rejected: gets a row for every entry that is no item.

    Raises:
        GrafalignError: the file cannot be read.
    """
    if not path.is_file():
        raise InputError(
            f'There is no file {path}; set scenes.items to a .json, .ndjson or .parquet file of STAC items.'
        )
    base = str(path.resolve())
    try:
        for number, item in enumerate(_entries(path, rejected)):
            if is_item(item):
                yield absolute_assets(item, base, True, self_link(item))
            else:
                rejected.append(('scene', f'entry {number}', NOT_AN_ITEM, 'it has no `id` or `assets`'))
    except Exception as error:  # JSON, Arrow and encoding errors: the user needs the file's name
        raise InputError(f'{path} cannot be read as STAC items ({error}); check that the file is whole.') from None


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
                    yield parse_json(line)
                except ValueError as error:
                    rejected.append(('scene', f'line {number}', NOT_AN_ITEM, str(error)))
    else:
        content = parse_json(path.read_text(encoding='utf-8-sig'))
        yield from content if isinstance(content, list) else content.get('features', [content])


def is_item(item: Any) -> bool:
    """Whether a JSON value is an item at first sight: it has an id and assets."""
    return isinstance(item, dict) and bool(item.get('id')) and isinstance(item.get('assets'), dict)
