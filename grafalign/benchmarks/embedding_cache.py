"""Embeddings of a set by a model, kept on disk: each image is embedded once, for all tasks and all later runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from grafalign import console, engine
from grafalign.datasets import ImageSet
from grafalign.errors import GrafalignError, InputError
from grafalign.files import write_atomically
from grafalign.locks import exclusive
from grafalign.models import Model
from grafalign.models.embedding import embed_pictures
from grafalign.models.pixels import PIXELS_VERSION, Fit, band_places


def embed_set(
    model: Model, data: ImageSet, cache: Path, fit: Fit = 'resize', workers: int | None = None
) -> npt.NDArray[np.float32]:
    """Unit embeddings [N, D] of all images; a run that was killed goes on where it stopped.

    Args:
        model: the model.
        data: the set.
        cache: folder of the kept embeddings: `KEY.f32`, rows in the order of the set, and `KEY.json`, written when all
            are there.
        fit: see models/pixels.py.
        workers: threads that decode.

    Raises:
        GrafalignError: an image cannot be read, a band is missing, or another process embeds the same.
    """
    question = [PIXELS_VERSION, model.digest, data.pixels_digest, model.preprocessing.metadata(fit, data.value_range)]
    key = hashlib.blake2b(json.dumps(question, sort_keys=True).encode(), digest_size=12).hexdigest()
    path, done = cache / f'{key}.f32', cache / f'{key}.json'
    cache.mkdir(parents=True, exist_ok=True)
    if done.is_file():
        width = int(json.loads(done.read_text())['width'])
        if path.is_file() and path.stat().st_size == 4 * width * len(data):
            return np.fromfile(path, dtype=np.float32).reshape(len(data), width)
    with exclusive(cache / f'{key}.lock'):
        width = model.embed_texts(['a place']).shape[1]
        start = path.stat().st_size // (4 * width) if path.is_file() else 0
        with path.open('r+b' if start else 'wb') as file:
            file.truncate(start * 4 * width)
            file.seek(0, os.SEEK_END)
            label = f'embedding {data.name} with {model.name}'
            rows = range(start, len(data))
            found = embed_pictures(
                model, data.read, rows, data.bands, data.value_range, fit, label=label, workers=workers
            )
            band_places(model.preprocessing, data.bands)  # a band that lacks is no fault of any image
            try:
                for _, vectors in found:
                    file.write(np.ascontiguousarray(vectors, dtype=np.float32).tobytes())
            except GrafalignError as error:
                raise _all_unreadable(data, rows, error) from None
            file.flush()
            os.fsync(file.fileno())
        record = {'width': width, 'model': model.name, 'set': data.name}
        write_atomically(done, (json.dumps(record) + '\n').encode())
    with contextlib.suppress(OSError):
        (cache / f'{key}.lock').rmdir()
    return np.fromfile(path, dtype=np.float32).reshape(len(data), width)


_NAMED = 10


def _all_unreadable(data: ImageSet, rows: range, first: GrafalignError) -> GrafalignError:
    """The sentence for images that cannot be read: all are looked for at once, not one a run."""

    def reason(row: int) -> str | None:
        try:
            data.read(row)
        except GrafalignError as error:
            return str(error)
        return None

    reasons = [r for _, r in console.track(engine.run(reason, rows), 'looking for others', len(rows)) if r is not None]
    if len(reasons) < 2:
        return first
    more = f' and {len(reasons) - _NAMED} more' if len(reasons) > _NAMED else ''
    return InputError(
        f'{len(reasons)} images of {data.name} cannot be used: {" | ".join(sorted(reasons)[:_NAMED])}{more}'
    )
