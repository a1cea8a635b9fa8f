"""Write a part of a caption set as a set of its own: tables only, over the same images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from grafalign.captions import CaptionSet, CaptionSetMarker
from grafalign.captions.caption_set import check_folder
from grafalign.captions.write_set import SetWriter
from grafalign.errors import InputError, naming_full_disk
from grafalign.files import remove_parts
from grafalign.locks import exclusive

_BLOCK = 1 << 16
Scores = Mapping[str, npt.NDArray[np.float32]]


def select(
    captions: CaptionSet,
    out: Path,
    reasons: Mapping[int, str],
    settings: Mapping[str, Any],
    scores: Scores | None = None,
) -> CaptionSetMarker:
    """Write the images of a set but some, with their captions.

    Args:
        captions: the set.
        out: folder of the new set.
        reasons: row to reason of the images that are left out.
        settings: what was asked for, for the marker.
        scores: named numbers of all images, which go with them.

    Raises:
        GrafalignError: nothing is left, or `out` holds other files.
    """
    check_folder(out, captions.path)
    kept = np.ones(len(captions), dtype=bool)
    kept[list(reasons)] = False
    if not kept.any():
        raise InputError(f'Nothing of {captions.path} is left: {next(iter(reasons.values()))}.')
    scores = scores or {}
    with naming_full_disk(out), exclusive(out):
        remove_parts(out)
        with SetWriter(out) as writer:
            first = 0
            for batch in pq.ParquetFile(captions.path / 'images.parquet').iter_batches(_BLOCK):
                for row, columns in enumerate(batch.to_pylist(), first):
                    judged = {name: float(values[row]) for name, values in scores.items()}
                    if kept[row]:
                        columns['scores'] = [*(columns.get('scores') or []), *judged.items()]
                        writer.add_image(**columns)
                    else:
                        detail = ', '.join(f'{name} {value:+.2f}' for name, value in judged.items())
                        writer.reject('image', columns['image_id'], reasons[row], detail or None)
                first += len(batch)
            new_row = np.cumsum(kept) - 1
            for rows in _captions(captions, kept):
                for columns in rows:
                    writer.add_caption(**{**columns, 'image': int(new_row[columns['image']])})
            source = {'set': str(captions.path.resolve()), 'digest': captions.digest}
            where = captions.marker.store, captions.marker.store_digest
            store = (where[0], where[1]) if where[0] is not None and where[1] is not None else None
            return writer.finish({'from': source, **settings}, captions.marker.root, store)


def _captions(captions: CaptionSet, kept: npt.NDArray[np.bool_]) -> Iterator[list[dict[str, Any]]]:
    for batch in pq.ParquetFile(captions.path / 'captions.parquet').iter_batches(_BLOCK):
        yield batch.filter(pa.array(kept[batch['image'].to_numpy()])).to_pylist()
