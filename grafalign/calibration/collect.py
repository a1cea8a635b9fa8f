"""From fields and a photo bank to photos whose ground the fields show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save

from grafalign import __version__
from grafalign.calibration.places import ARRAYS, MARKER, CalibrationMarker
from grafalign.calibration.views import points_in_view
from grafalign.encoders import PhotoBank
from grafalign.errors import InputError, StaleError, naming_full_disk
from grafalign.fields import Field
from grafalign.fields.points import embeddings_at, positions_of
from grafalign.files import file_digest, write_atomically
from grafalign.locks import exclusive
from grafalign.store import PairStore

POINTS = 16
"""Points in the view of each photo."""
FEWEST = 100
"""Photos that say anything about probabilities."""
_MOST = 4000
_BANK = 20_000
Floats = npt.NDArray[np.float64]


def collect_places(
    fields: Sequence[Field], store: PairStore, bank: PhotoBank, out: Path, seed: int = 0
) -> CalibrationMarker:
    """Collect the photos that no training saw and whose ground fields show.

    Held out is a photo that is on no tile of the split `train`.

    Args:
        fields: of one model.
        store: the pair store.
        bank: its photo bank, of the model's CLIP.
        out: folder to write.
        seed: of the points of view, and of the choice where there are more photos than needed.

    Raises:
        GrafalignError: the fields are of several models or of another CLIP than the bank, or they show the ground of
            too few held-out photos.
    """
    first = fields[0]
    for field in fields:
        if (field.plan.model_digest, field.plan.of) != (first.plan.model_digest, first.plan.of):
            raise InputError(f'{first.path} and {field.path} are fields of different models; calibrate each by itself.')
    if first.plan.clip_digest != bank.clip_digest:
        raise StaleError(
            f'The photo bank of {store.path} is of another CLIP than the model of {first.path}; embed the photos with '
            'the CLIP of that model.'
        )
    rng = np.random.default_rng(seed)
    rows = _held_out(store, bank)
    photos = store.photos
    lonlat = np.stack([photos.geometry.x, photos.geometry.y], axis=1)[rows]
    heading, view, accuracy = (
        photos[name].to_numpy(dtype=float, na_value=np.nan)[rows] if name in photos else np.full(len(rows), np.nan)
        for name in ('heading_deg', 'field_of_view_deg', 'accuracy_m')
    )
    points = points_in_view(lonlat, heading, view, accuracy, POINTS, rng)
    chosen, vectors = _shown(fields, points, rng)
    if len(chosen) < FEWEST:
        raise InputError(
            f'The fields show the ground of {len(chosen)} held-out photos of {store.path}, and {FEWEST} are needed; '
            'add fields of the same model of land where more photos were held out (split.shares).'
        )
    valid = np.flatnonzero(bank.valid)
    sample = np.sort(rng.permutation(valid)[:_BANK])
    arrays = {
        'photos': np.asarray(bank.embeddings[rows[chosen]], np.float16),
        'view': vectors,
        'bank': np.asarray(bank.embeddings[sample], np.float16),
    }
    with naming_full_disk(out), exclusive(out):
        content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        write_atomically(out / ARRAYS, content)
        marker = CalibrationMarker(
            format=CalibrationMarker.NEWEST,
            model=first.marker.model,
            model_digest=first.plan.model_digest,
            of=first.plan.of,
            fields=tuple(str(field.path) for field in fields),
            store=str(store.path),
            photos=len(chosen),
            without=len(rows) - len(chosen),
            seed=seed,
            versions={'grafalign': __version__, 'torch': torch.__version__},
            digest=file_digest(out / ARRAYS),
        )
        marker.write(out / MARKER)
    return marker


def _held_out(store: PairStore, bank: PhotoBank) -> npt.NDArray[np.int64]:
    """Rows of the photos that are on tiles, but on none of the training."""
    split = store.tiles['split'].to_numpy()[store.pairs['tile'].to_numpy()]
    photo = store.pairs['photo'].to_numpy()
    rows = np.setdiff1d(photo[split != 'train'], photo[split == 'train'])
    return np.asarray(rows[bank.valid[rows]], dtype=np.int64)


def _shown(
    fields: Sequence[Field], points: Floats, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float16]]:
    """Which photos have all their points in one of the fields, and the embeddings there, [n, points, D].

    Args:
        fields: the first that shows a photo's ground gives it.
        points: degrees, [P, points, 2].
        rng: chooses photos where there are too many.
    """
    free = np.ones(len(points), dtype=bool)
    rows: list[npt.NDArray[np.int64]] = []
    parts: list[npt.NDArray[np.float16]] = []
    for field in fields:
        places = positions_of(field, points)
        inside = np.flatnonzero(free & places.inside.all(axis=1))
        inside = np.sort(rng.permutation(inside)[: _MOST // len(fields)])
        vectors, there = embeddings_at(field, places.row[inside], places.column[inside], 'looking up photos')
        known = there.all(axis=1)
        rows.append(inside[known])
        parts.append(vectors[known])
        free[inside[known]] = False
    chosen = np.concatenate(rows)
    order = np.argsort(chosen)
    return chosen[order], np.concatenate(parts)[order]
