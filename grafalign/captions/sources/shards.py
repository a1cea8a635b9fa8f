"""WebDataset shards, those of img2dataset among them: NAME.tar with KEY.jpg, KEY.txt, KEY.json.

Members that share a name up to its first dot are a sample (webdataset.github.io). A text is `KEY.txt`, or `caption`,
`captions` or `text` of `KEY.json`, whose list of several comes before. img2dataset writes NAME.parquet beside a shard,
with a row for what it could not download; those become rejected images.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from grafalign.captions.items import Item
from grafalign.captions.packed_sample import KEY, PackedSample
from grafalign.captions.sources.columns import GUESSES, metadata_of, texts_of
from grafalign.errors import InputError
from grafalign.foreign.files import ForeignFileError, open_plain, parse_object
from grafalign.foreign.images import HEIF_SUFFIXES, SUFFIXES
from grafalign.photos.exif import PhotoError
from grafalign.photos.tars import read_index

_IMAGES = tuple(s.removeprefix('.') for s in (*SUFFIXES, *HEIF_SUFFIXES))
_TEXTS = ('txt', 'text', 'caption')
_MOST_TEXT_BYTES = 1 << 20
_AHEAD = 1 << 16


def shards_of(folder: Path) -> list[Path]:
    """Archives of a folder (or the one that is given), by name.

    Raises:
        GrafalignError: there is none.
    """
    if folder.is_file():
        return [folder]
    found = sorted(p for p in folder.iterdir() if p.suffix == '.tar')
    if not found:
        raise InputError(f'{folder} holds no .tar shards; give the output folder of img2dataset, or another --form.')
    return found


def read_shards(folder: Path, columns: dict[str, str]) -> Iterator[Item]:
    """Samples of all shards, in the order of their names and of their members.

    Args:
        folder: where the shards are.
        columns: our names of metadata to the keys of `KEY.json`.
    """
    root = folder if folder.is_dir() else folder.parent
    unknown = next((ours for ours in columns if ours not in GUESSES), None)
    if unknown is not None:
        raise InputError(f'There is no column {unknown!r} to name; name one of {", ".join(GUESSES)}.')
    for shard in shards_of(folder):
        yield from _shard(shard, shard.relative_to(root).as_posix(), columns)
        yield from _not_downloaded(shard.with_suffix('.parquet'), shard.stem)


def _shard(path: Path, name: str, columns: dict[str, str]) -> Iterator[Item]:
    try:
        with open_plain(path) as file:

            def read(offset: int, size: int) -> bytes:
                file.seek(offset)
                return file.read(size)

            index = read_index(read, _AHEAD)
            size = path.stat().st_size
            for key, members in _samples(index).items():
                yield _item(f'{path.stem}/{key}', name, members, read, size, columns)
    except (PhotoError, ForeignFileError) as error:
        yield Item(f'{path.stem}/*', reason='shard cannot be read', metadata={'detail': f'{path}: {error}'})


_Member = tuple[int, int] | str


def _samples(index: dict[str, _Member]) -> dict[str, dict[str, _Member]]:
    """Members by sample and by what follows the first dot, lower case."""
    found: dict[str, dict[str, _Member]] = {}
    for name, place in index.items():
        path = PurePosixPath(name)
        stem, dot, suffix = path.name.partition('.')
        if dot and stem:
            found.setdefault((path.parent / stem).as_posix(), {})[suffix.lower()] = place
    return found


def _item(
    image_id: str, shard: str, members: dict[str, _Member], read: Any, size: int, columns: dict[str, str]
) -> Item:
    image = next((members[s] for s in members if s.rpartition('.')[2] in _IMAGES), None)
    texts: list[str | bytes] = []
    metadata: dict[str, Any] = {}
    dropped: tuple[tuple[str, str], ...] = ()
    packed: PackedSample | None = None
    for suffix, place in members.items():
        if isinstance(place, str) or (suffix not in _TEXTS and suffix != 'json'):
            continue
        content = read(place[0], min(place[1], _MOST_TEXT_BYTES))
        if suffix != 'json':
            texts.append(content)
            continue
        try:
            entry = parse_object(content)
        except ValueError:
            metadata['detail'] = f'{suffix} of the sample is damaged'
            continue
        metadata, dropped = metadata_of(entry, columns)
        listed = texts_of(entry, columns)
        try:
            packed = PackedSample.of_json(entry, len(listed))
        except ValueError as error:
            dropped += ((f'{KEY} key is damaged', str(error)),)
        if packed is not None or len(listed) > 1:  # all captions of an image, of which KEY.txt can hold one only
            texts = listed
            break
        if not any(s in members for s in _TEXTS):
            texts += listed
    image_id = image_id if packed is None else packed.image_id
    if image is None:
        return Item(image_id, tuple(texts), reason='no image in the shard', metadata=metadata)
    if isinstance(image, str):
        return Item(image_id, tuple(texts), reason=image, metadata=metadata)
    if image[0] + image[1] > size:
        return Item(image_id, tuple(texts), reason='the tar ends before this file does', metadata=metadata)
    return Item(image_id, tuple(texts), shard, image[0], image[1], metadata, dropped, packed)


def _not_downloaded(table: Path, stem: str) -> Iterator[Item]:
    if not table.is_file():
        return
    try:
        rows = pq.read_table(table)
    except (OSError, pa.ArrowException) as error:
        yield Item(
            f'{stem}/*', reason='table beside the shard cannot be read', metadata={'detail': f'{table}: {error}'}
        )
        return
    if not {'key', 'status'} <= set(rows.column_names):
        return
    for row in rows.select([n for n in ('key', 'status', 'error_message') if n in rows.column_names]).to_pylist():
        if row['status'] != 'success':
            reason = f'img2dataset: {row["status"]}'
            message = row.get('error_message')
            detail = None if message is None else str(message)[:200]
            yield Item(f'{stem}/{row["key"]}', reason=reason, metadata={'detail': detail})
