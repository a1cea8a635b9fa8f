"""Copy a caption set into WebDataset shards with a table beside each: what open_clip, img2dataset and others read.

OUT/00000.tar       KEY.jpg (or png, webp: the image's own bytes), KEY.txt (its first caption), KEY.json (all of them,
                    with the image's metadata; what only `captions import` reads, under `grafalign`)
OUT/00000.parquet   the same metadata, with key and status as img2dataset writes them

    python -m open_clip_train.main --train-data 'OUT/{00000..00041}.tar' --dataset-type webdataset ...
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from grafalign import console
from grafalign.captions.caption_set import CaptionSet
from grafalign.captions.packed_sample import KEY, PackedSample
from grafalign.captions.pictures import Pictures
from grafalign.errors import InputError, naming_full_disk
from grafalign.files import remove_parts, replacing, write_atomically
from grafalign.locks import exclusive, refuse_other_files
from grafalign.photos.exif import PhotoError
from grafalign.photos.fetch import RemoteSettings

_SUFFIX = (
    (b'\xff\xd8\xff', 'jpg'),
    (b'\x89PNG', 'png'),
    (b'RIFF', 'webp'),
    (b'GIF8', 'gif'),
    (b'II*\0', 'tif'),
    (b'MM\0*', 'tif'),
    (b'BM', 'bmp'),
)
_IN_NO_JSON = ('file', 'byte_offset', 'nbytes', 'scores')
_DONE = 'pack.json'


@dataclass(frozen=True)
class Packed:
    """What was packed."""

    shards: int
    images: int
    captions: int
    failed: int


def pack(
    captions: CaptionSet,
    out: Path,
    per_shard: int = 10_000,
    split: str | None = None,
    remote: RemoteSettings | None = None,
) -> Packed:
    """Write shards; those that are there already are not written again, so that a killed run goes on.

    Args:
        captions: the set; one of files or addresses.
        out: folder of the shards.
        per_shard: images in a shard.
        split: images of this split only.
        remote: how addresses are fetched.

    Raises:
        GrafalignError: the set has no such images, or `out` holds other files or shards of another set.
    """
    rows = np.arange(len(captions)) if split is None else captions.rows_of(split)
    if not len(rows):
        raise InputError(f'{captions.path} has no image of split {split}; its splits are {captions.marker.splits}.')
    settings = {'set': captions.digest, 'per_shard': per_shard, 'split': split}
    with naming_full_disk(out), exclusive(out):
        remove_parts(out)
        _check(out, settings)
        pictures = Pictures(captions, remote)
        by_image = _Captions(captions)
        parts = [rows[i : i + per_shard] for i in range(0, len(rows), per_shard)]
        failed = images = texts = 0
        with console.progress('packing images', len(rows)) as bar:
            for number, part in enumerate(parts):
                table = out / f'{number:05d}.parquet'
                if not table.is_file():
                    with replacing(out / f'{number:05d}.tar') as tar:
                        found = list(_write(tar, part, captions, pictures, by_image, number, bar))
                    with replacing(table) as path:
                        pq.write_table(pa.Table.from_pylist(found), path)
                else:
                    bar.advance(len(part))
                status = pq.read_table(table, columns=['status', 'captions'])
                good = [r for r in status.to_pylist() if r['status'] == 'success']
                failed, images = failed + len(status) - len(good), images + len(good)
                texts += sum(len(r['captions']) for r in good)
        pictures.close()
        return Packed(len(parts), images, texts, failed)


def _check(out: Path, settings: dict[str, Any]) -> None:
    """Keep what is being packed beside the shards."""
    path = out / _DONE
    if path.is_file():
        if json.loads(path.read_text()) != settings:
            raise InputError(f'{out} holds shards of another set or size; give a new folder.')
        return
    refuse_other_files(out, (), 'the shards')
    write_atomically(path, (json.dumps(settings) + '\n').encode())


class _Captions:
    """The captions of a set, by the row of their image."""

    def __init__(self, captions: CaptionSet) -> None:
        self._table = captions.captions
        image = self._table['image'].to_numpy()
        self._first = np.searchsorted(image, np.arange(len(captions) + 1))

    def of_image(self, row: int) -> list[dict[str, Any]]:
        """Columns of each caption of an image."""
        first, end = self._first[row : row + 2]
        return self._table.slice(first, end - first).to_pylist()


def _write(
    path: Path,
    rows: np.ndarray,
    captions: CaptionSet,
    pictures: Pictures,
    by_image: _Captions,
    shard: int,
    bar: console.Bar,
) -> Iterator[dict[str, Any]]:
    """Write a shard and yield the rows of its table."""
    table = captions.images.take(pa.array(rows)).to_pylist()
    with tarfile.open(path, 'w', format=tarfile.USTAR_FORMAT) as tar:
        for place, (row, metadata) in enumerate(zip(rows.tolist(), table, strict=True)):
            key = f'{shard:05d}{place:05d}'
            written = by_image.of_image(row)
            texts = [caption['text'] for caption in written]
            kept = {k: v for k, v in metadata.items() if v is not None and k not in _IN_NO_JSON}
            try:
                content = pictures.content(row)
            except PhotoError as error:
                bar.advance(1, failed=1)
                yield _row(key, metadata, texts, 'failed_to_download', str(error))
                continue
            suffix = next((name for head, name in _SUFFIX if content.startswith(head)), 'img')
            _member(tar, f'{key}.{suffix}', content)
            if texts:
                _member(tar, f'{key}.txt', texts[0].encode())
            packed = PackedSample.of_rows(metadata, written, str(captions.path))
            entry = {'key': key, 'captions': texts, **kept, KEY: packed.model_dump(mode='json', exclude_defaults=True)}
            _member(tar, f'{key}.json', json.dumps(entry).encode())
            bar.advance(1)
            yield _row(key, metadata, texts, 'success', None)


def _row(key: str, metadata: dict[str, Any], texts: list[str], status: str, error: str | None) -> dict[str, Any]:
    names = ('image_id', 'url', 'width', 'height', 'split', 'label', 'licence', 'author', 'lon', 'lat', 'gsd_m')
    return {
        'key': key,
        'status': status,
        'error_message': error,
        'caption': texts[0] if texts else None,
        'captions': texts,
        **{name: metadata[name] for name in names},
    }


def _member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)  # every other field keeps its fixed default: equal input gives equal bytes
    tar.addfile(info, io.BytesIO(content))
