"""Embeddings of a set by a model, kept on disk: each image is embedded once, for all tasks and all later runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from grafalign import console, engine
from grafalign.datasets import ImageSet
from grafalign.errors import GrafalignError, InputError, MachineError
from grafalign.files import replacing, write_atomically
from grafalign.locks import exclusive
from grafalign.models import Model
from grafalign.models.embedding import embed_pictures
from grafalign.models.model import Vectors
from grafalign.models.parts import embed_in_parts, read_part
from grafalign.models.pixels import PIXELS_VERSION, Fit, band_places
from grafalign.processes import Team


def embed_set(
    model: Model,
    data: ImageSet,
    cache: Path,
    fit: Fit = 'resize',
    workers: int | None = None,
    team: Team | None = None,
) -> npt.NDArray[np.float32]:
    """Unit embeddings [N, D] of all images; a run that was killed goes on where it stopped.

    Args:
        model: the model.
        data: the set.
        cache: folder of the kept embeddings: `KEY.f32`, rows in the order of the set, and `KEY.json`, written when all
            are there; until then their parts are in `KEY.parts`.
        fit: see models/pixels.py.
        workers: threads that decode.
        team: processes that share the images, all of which call this.

    Raises:
        GrafalignError: an image cannot be read, a band is missing, or another process embeds the same.
    """
    team = team or Team()
    question = [PIXELS_VERSION, model.digest, data.pixels_digest, model.preprocessing.metadata(fit, data.value_range)]
    key = hashlib.blake2b(json.dumps(question, sort_keys=True).encode(), digest_size=12).hexdigest()
    path, done, parts = cache / f'{key}.f32', cache / f'{key}.json', cache / f'{key}.parts'
    cache.mkdir(parents=True, exist_ok=True)
    if done.is_file():
        width = int(json.loads(done.read_text())['width'])
        if path.is_file() and path.stat().st_size == 4 * width * len(data):
            return np.fromfile(path, dtype=np.float32).reshape(len(data), width)
    with exclusive(parts, team.first):
        team.agree(parts, key)
        width = model.embed_texts(['a place']).shape[1]
        band_places(model.preprocessing, data.bands)  # a band that lacks is no fault of any image

        def embed(rows: range, _reject: Callable[[int, str], None]) -> Iterator[tuple[list[int], Vectors]]:
            label = f'embedding {data.name} with {model.name}'
            return embed_pictures(
                model, data.read, rows, data.bands, data.value_range, fit, label=label, workers=workers
            )

        try:
            files = embed_in_parts(parts, len(data), width, embed, team)
        except MachineError:
            raise
        except GrafalignError as error:
            if not team.first:
                raise
            raise _all_unreadable(data, error) from None

        def join() -> None:
            with replacing(path) as whole, whole.open('wb') as file:
                for part in files:
                    file.write(read_part(part)[1].tobytes())
            record = {'width': width, 'model': model.name, 'set': data.name}
            write_atomically(done, (json.dumps(record) + '\n').encode())
            for part in files:
                part.unlink()

        team.alone(join)
    if team.first:
        with contextlib.suppress(OSError):
            parts.rmdir()
    return np.fromfile(path, dtype=np.float32).reshape(len(data), width)


_NAMED = 10


def _all_unreadable(data: ImageSet, first: GrafalignError) -> GrafalignError:
    """The sentence for images that cannot be read: all are looked for at once, not one a run."""

    def reason(row: int) -> str | None:
        try:
            data.read(row)
        except GrafalignError as error:
            return str(error)
        return None

    reasons = [
        r
        for _, r in console.track(engine.run(reason, range(len(data))), 'looking for others', len(data))
        if r is not None
    ]
    if len(reasons) < 2:
        return first
    more = f' and {len(reasons) - _NAMED} more' if len(reasons) > _NAMED else ''
    return InputError(
        f'{len(reasons)} images of {data.name} cannot be used: {" | ".join(sorted(reasons)[:_NAMED])}{more}'
    )
