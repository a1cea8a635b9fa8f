"""Tables with an image and its texts in a row: LAION's Parquet, JSON lines, CSV; and published caption files (JSON).

A row names a file or an address; an image that comes in several rows has the captions of all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from grafalign.captions.items import Item
from grafalign.captions.sources.columns import GUESSES, chosen_columns, metadata_of, texts_of
from grafalign.captions.usable_text import TextError, decoded
from grafalign.datasets.captions import caption_entries, picture_finder
from grafalign.datasets.pictures import is_picture
from grafalign.datasets.tree import Tree
from grafalign.errors import InputError
from grafalign.photos.batches import line_blocks, read_batches
from grafalign.photos.opening import kind_of, open_seekable, open_stream

_ROWS = 1 << 13
Row = tuple[int, dict[str, Any] | None]
"""Its number, and its values by column; None for a row that is none."""


def read_table(path: Path, columns: Mapping[str, str], uncaptioned: bool = False) -> Iterator[Item]:
    """Stream the rows of a table.

    Args:
        path: .parquet, .jsonl, .csv or .tsv, perhaps compressed.
        columns: our names to the table's, where `columns.GUESSES` does not find them.
        uncaptioned: a table without texts will do.

    Raises:
        GrafalignError: the table cannot be read, or has no column for images or texts.
    """
    kind, compression = kind_of(str(path))
    rows = {'parquet': _parquet, 'jsonl': _jsonl}.get(kind or '', _text_table)(path, columns, compression, uncaptioned)
    for number, row in rows:
        if row is None:
            yield Item(f'{path.name} row {number}', reason='row cannot be read')
            continue
        lower = {k.lower(): v for k, v in row.items()}
        file = _first(row, lower, columns, 'file') or _first(row, lower, columns, 'url')
        name = _first(row, lower, columns, 'image_id') or file
        if not file or not name:
            yield Item(f'{path.name} row {number}', reason='row names no image')
            continue
        metadata, dropped = metadata_of(row, columns)
        yield Item(name, tuple(texts_of(row, columns)), file, metadata=metadata, dropped=dropped)


def read_caption_file(path: Path, images: Path) -> Iterator[Item]:
    """The images of a published caption file (Karpathy's JSON, NWPU-captions'), found below a folder by their names.

    Raises:
        GrafalignError: it is of no known form.
    """
    tree = Tree(images)
    find = picture_finder([n for n in tree.names if is_picture(n)], str(path))
    try:
        text = path.read_text('utf-8')
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f'{path} cannot be read ({error}); give the JSON of a caption set.') from None
    for entry in caption_entries(str(path), text):
        file = find(entry.file)
        metadata = {'split': entry.split} if entry.split in ('train', 'val', 'test') else {}
        if entry.label is not None:
            metadata['label'] = entry.label
        reason = None if file else 'file is missing'
        yield Item(file or entry.file, entry.captions, file, metadata=metadata, reason=reason)


def _first(row: Mapping[str, Any], lower: Mapping[str, Any], columns: Mapping[str, str], ours: str) -> str | None:
    names = (columns[ours],) if ours in columns else GUESSES[ours]
    value = next((v for n in names if (v := row.get(n, lower.get(n.lower()))) is not None), None)
    if isinstance(value, bytes):
        try:
            value = decoded(value)[0]
        except TextError:
            return None
    return str(value) if isinstance(value, str | int) and str(value).strip() else None


def _check(names: list[str], columns: Mapping[str, str], path: Path, bare: bool) -> dict[str, str]:
    chosen = chosen_columns(names, columns, str(path))
    for needed in (('file', 'url'), *(() if bare else (('text',),))):
        if not any(n in chosen for n in needed):
            raise InputError(
                f'{path} has no column for {" or ".join(needed)}; name it, for example --column {needed[0]}=COLUMN. '
                f'Its columns are {", ".join(names[:40])}.'
            )
    return chosen


def _parquet(path: Path, columns: Mapping[str, str], compression: str | None, bare: bool) -> Iterator[Row]:
    number = 0
    try:
        with open_seekable(str(path), compression) as opened:
            file = pq.ParquetFile(opened)
            chosen = _check(file.schema_arrow.names, columns, path, bare)
            for batch in file.iter_batches(_ROWS, columns=list(dict.fromkeys(chosen.values()))):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = ' '.join(str(error).split())[:200]
        raise InputError(f'{path} cannot be read behind row {number} ({reason}); get it whole.') from None


def _jsonl(path: Path, columns: Mapping[str, str], compression: str | None, bare: bool) -> Iterator[Row]:
    number, checked = 0, False
    with open_stream(str(path), compression) as stream:
        for lines in line_blocks(stream, str(path)):
            rows = [(number + place, _json_row(line)) for place, line in enumerate(lines, 1) if line.strip()]
            number += len(lines)
            if not checked and any(row is not None for _, row in rows):
                _check(list(dict.fromkeys(k for _, row in rows[:1000] for k in row or ())), columns, path, bare)
                checked = True
            yield from rows


def _json_row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(decoded(line)[0])
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _text_table(path: Path, columns: Mapping[str, str], _compression: str | None, bare: bool) -> Iterator[Row]:
    chosen: dict[str, str] = {}

    def choose(names: list[str]) -> list[str]:
        chosen.update(_check(names, columns, path, bare))
        return list(dict.fromkeys(chosen.values()))

    number = 0
    for batch in read_batches(str(path), choose):
        for _, _ in batch.malformed:
            number += 1
            yield number, None
        for row in batch.table.to_pylist():
            number += 1
            yield number, row
