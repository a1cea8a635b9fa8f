"""From fields and a photo bank to photos whose ground the fields show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from pyproj import Transformer
from safetensors.numpy import save

from grafalign import __version__, console
from grafalign.calibration.places import ARRAYS, MARKER, CalibrationMarker
from grafalign.calibration.views import points_in_view
from grafalign.encoders import PhotoBank
from grafalign.errors import InputError, StaleError, naming_full_disk
from grafalign.fields import Field
from grafalign.files import file_digest, write_atomically
from grafalign.locks import exclusive
from grafalign.store import PairStore

POINTS = 16
"""Points in the view of each photo."""
FEWEST = 100
"""Photos that say anything about probabilities."""
_MOST = 4000
_BANK = 20_000
_ROWS = 64
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
    heading, accuracy = (
        photos[name].to_numpy(dtype=float, na_value=np.nan)[rows] if name in photos else np.full(len(rows), np.nan)
        for name in ('heading_deg', 'accuracy_m')
    )
    points = points_in_view(lonlat, heading, accuracy, POINTS, rng)
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
        places = _cells(field, points)
        inside = np.flatnonzero(free & places.inside.all(axis=1))
        inside = np.sort(rng.permutation(inside)[: _MOST // len(fields)])
        vectors, known = _embeddings(field, places.row[inside], places.column[inside])
        rows.append(inside[known])
        parts.append(vectors[known])
        free[inside[known]] = False
    chosen = np.concatenate(rows)
    order = np.argsort(chosen)
    return chosen[order], np.concatenate(parts)[order]


@dataclass(frozen=True)
class _Cells:
    """Where points lie in a field, in cells from the middle of the first one."""

    row: Floats
    column: Floats
    inside: npt.NDArray[np.bool_]


def _cells(field: Field, points: Floats) -> _Cells:
    grid = field.geobox
    to_field = Transformer.from_crs('EPSG:4326', grid.crs.to_wkt(), always_xy=True)
    x, y = to_field.transform(points[..., 0], points[..., 1])
    inverse = ~grid.affine
    column = inverse.a * x + inverse.b * y + inverse.c
    row = inverse.d * x + inverse.e * y + inverse.f
    height, width = grid.shape
    inside = (row >= 0) & (column >= 0) & (row < height) & (column < width)  # False for infinite ones too
    cell = field.plan.cell
    return _Cells(row / cell - 0.5, column / cell - 0.5, inside)


def _embeddings(field: Field, row: Floats, column: Floats) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.bool_]]:
    """Embeddings between middles of cells, as on a map: bilinear, [n, points, D]; and where all of them are known."""
    rows, columns = field.shape
    row, column = row.clip(0, rows - 1), column.clip(0, columns - 1)
    out = np.zeros((*row.shape, field.plan.dimensions), dtype=np.float16)
    known = np.ones(row.shape, dtype=bool)
    above, left = np.floor(row).astype(int), np.floor(column).astype(int)
    down, right = (row - above)[..., None], (column - left)[..., None]
    with console.progress('looking up photos', rows) as bar:
        for top in range(0, rows, _ROWS):
            last = min(top + _ROWS, rows)
            mine = (above >= top) & (above < last)
            if mine.any():
                cells = field.embeddings(slice(top, min(last + 1, rows)))
                r, c = above[mine] - top, left[mine]
                corners = [
                    (cells[rr, cc], wr * wc)
                    for rr, wr in ((r, 1 - down[mine]), (np.minimum(r + 1, len(cells) - 1), down[mine]))
                    for cc, wc in ((c, 1 - right[mine]), (np.minimum(c + 1, columns - 1), right[mine]))
                ]
                out[mine] = sum(vectors * weight for vectors, weight in corners)
                known[mine] = np.logical_and.reduce([(vectors != 0).any(-1) for vectors, _ in corners])
            bar.advance(last - top)
    return out, np.asarray(known.all(axis=1))
