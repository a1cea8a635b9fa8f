"""Write a part of a caption set as a set of its own: tables only, over the same images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from grafalign.captions import CaptionSet, CaptionSetMarker
from grafalign.captions.caption_set import check_folder
from grafalign.captions.write_set import SetWriter
from grafalign.errors import InputError, naming_full_disk
from grafalign.files import parquet_batches, remove_parts
from grafalign.locks import exclusive

_BLOCK = 1 << 16
_SCORES = pa.map_(pa.string(), pa.float64())
Scores = Mapping[str, npt.NDArray[np.float32]]
Reasons = npt.NDArray[np.object_]


def select(
    captions: CaptionSet,
    out: Path,
    reasons: Reasons,
    settings: Mapping[str, Any],
    scores: Scores | None = None,
) -> CaptionSetMarker:
    """Write the images of a set but some, with their captions.

    Args:
        captions: the set.
        out: folder of the new set.
        reasons: why an image is left out, None where it stays, [N].
        settings: what was asked for, for the marker.
        scores: named numbers of all images, [N] each, which go with them.

    Raises:
        GrafalignError: nothing is left, or `out` holds other files.
    """
    check_folder(out, captions.path)
    kept = np.asarray(pd.isna(reasons), dtype=bool)
    if not kept.any():
        raise InputError(f'Nothing of {captions.path} is left: {reasons[0]}.')
    new_row = np.cumsum(kept) - 1
    with naming_full_disk(out), exclusive(out):
        remove_parts(out)
        with SetWriter(out) as writer:
            first = 0
            for images in _blocks(captions.path / 'images.parquet'):
                rows = slice(first, first + len(images))
                block_scores = {name: values[rows] for name, values in (scores or {}).items()}
                stays = pa.array(kept[rows])
                bare = 'scores' not in images.column_names
                earlier = pa.chunked_array([pa.nulls(len(images), _SCORES)]) if bare else images['scores']
                others = images if bare else images.drop_columns('scores')
                writer.add_images(others.append_column('scores', _joined_scores(earlier, block_scores)).filter(stays))
                writer.reject_many(_rejected(images['image_id'], reasons[rows], block_scores))
                first += len(images)
            for texts in _blocks(captions.path / 'captions.parquet'):
                texts = texts.filter(pa.array(kept[texts['image'].to_numpy()]))
                at = texts.column_names.index('image')
                writer.add_captions(texts.set_column(at, 'image', pa.array(new_row[texts['image'].to_numpy()])))
            source = {'set': str(captions.path.resolve()), 'digest': captions.digest}
            where = captions.marker.store, captions.marker.store_digest
            store = (where[0], where[1]) if where[0] is not None and where[1] is not None else None
            return writer.finish({'from': source, **settings}, captions.marker.root, store)


def _blocks(path: Path) -> Iterator[pa.Table]:
    for batch in parquet_batches(path, _BLOCK):
        yield pa.Table.from_batches([batch])


def _rejected(ids: pa.ChunkedArray, reasons: Reasons, scores: Scores) -> pa.Table:
    """Rows of `rejected.parquet` of the images that have a reason."""
    rows = np.flatnonzero(~pd.isna(reasons))
    details = [', '.join(f'{name} {values[row]:+.2f}' for name, values in scores.items()) or None for row in rows]
    columns = {
        'kind': pa.array(['image'] * len(rows), pa.string()),
        'id': ids.take(pa.array(rows)),
        'reason': pa.array(reasons[rows].tolist(), pa.string()),
        'detail': pa.array(details, pa.string()),
    }
    return pa.table(columns)


def _joined_scores(earlier: pa.ChunkedArray, scores: Scores) -> pa.Array:
    """What earlier filters said of images, and what this one says: maps from name to number.

    Worked example: two images, of which the second has {'a': 1.0}, and scores {'b': [0.5, 0.25]}. The maps begin at 0,
    1 and 3 of the flat lists of keys ['b', 'a', 'b'] and values [0.5, 1.0, 0.25].
    """
    before = pa.concat_arrays([chunk.cast(_SCORES) for chunk in earlier.chunks])
    had = np.diff(np.asarray(before.offsets)) * ~np.asarray(before.is_null()).astype(bool)
    first = np.concatenate([[0], np.cumsum(had + len(scores))])
    keys, values = np.empty(first[-1], dtype=object), np.empty(first[-1])
    row = np.repeat(np.arange(len(had)), had)
    at = first[row] + np.arange(len(row)) - np.repeat(np.cumsum(had) - had, had)
    flat = before.filter(before.is_valid())
    begin, end = (int(flat.offsets[k].as_py()) for k in (0, -1)) if len(flat) else (0, 0)
    keys[at], values[at] = flat.keys[begin:end].to_pylist(), flat.items[begin:end].to_numpy()
    for number, (name, judged) in enumerate(scores.items()):
        keys[first[:-1] + had + number], values[first[:-1] + had + number] = name, judged
    return pa.MapArray.from_arrays(pa.array(first, pa.int32()), pa.array(keys, pa.string()), pa.array(values))
