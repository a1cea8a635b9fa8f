"""Make an index, or bring one up to date: only what is new is embedded."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from grafalign import console
from grafalign.errors import InputError, StaleError, naming_full_disk
from grafalign.files import write_table
from grafalign.locks import LOCK, exclusive
from grafalign.models import Model
from grafalign.models.embedding import embed_pictures
from grafalign.models.load import split_name
from grafalign.models.model import Vectors
from grafalign.models.parts import embed_in_parts, read_part
from grafalign.models.pixels import Fit
from grafalign.processes import Team, this_team
from grafalign.retrieval.ann import Kind
from grafalign.search.catalog import MARKER, Catalog
from grafalign.search.marker import IndexModel
from grafalign.search.sources import Source, open_source

REJECTED = 'rejected.parquet'
PARTS = 'parts'
"""Below an index: embeddings that wait to be added."""
COMMIT_ROWS, _COMMIT_SHARE, _LARGEST_COMMIT = 1024, 16, 65_536
"""So many rows are added at a time, or this part of those that are there, or at most: every commit is a file of items,
and every later commit looks at all files."""
_TUNING = 512
_WORDS = (
    *('forest', 'lake', 'river', 'beach', 'mountain', 'desert', 'farmland', 'vineyard', 'greenhouse', 'orchard'),
    *('harbour', 'airport', 'railway station', 'motorway', 'bridge', 'roundabout', 'car park', 'stadium', 'school'),
    *('city centre', 'suburb', 'village', 'factory', 'warehouse', 'solar farm', 'wind farm', 'dam', 'quarry', 'mine'),
    *('golf course', 'park', 'cemetery', 'snow', 'clouds', 'island', 'wetland', 'grassland', 'burnt land', 'flood'),
)
_PHRASES = ('{}', 'a photo of a {}.', 'a satellite image of a {}', 'a {} seen from above')


def build_index(
    source: str,
    out: Path,
    model: Model,
    spec: str,
    *,
    recall: float | None = None,
    kind: Kind | None = None,
    most_bytes: int | None = None,
    fit: Fit = 'resize',
    bands: tuple[str, ...] | None = None,
    value_range: tuple[float, float] | None = None,
    workers: int | None = None,
    clip: str | None = None,
) -> Catalog:
    """Index the tiles of a store or of a field, or the pictures of a folder.

    An index that is there is brought up to date with this source: new items are added, changed ones replaced, and those
    that are gone taken out; what other sources brought stays. A run that was killed goes on where it last committed.

    Args:
        source: pair store, field, or folder of pictures.
        out: the index's folder.
        model: what embeds them.
        spec: how the model was named, for those who ask the index.
        recall: share of the true nearest that an approximate index must find; 0.99, or what it was made with.
        kind: of approximate index; by size and memory otherwise.
        most_bytes: memory that it may take.
        fit: `resize` or `pad`, see models/pixels.py.
        bands: names of the bands of pictures.
        value_range: physical values that become black and white.
        workers: threads that decode.
        clip: the CLIP that the model was loaded with, for those who ask the index.

    Raises:
        GrafalignError: the source cannot be read, the folder holds something else or the index of another model, or
            another process is writing to it.
    """
    if recall is not None and not 0 < recall <= 1:
        raise InputError(f'--recall {recall} makes no sense; give a share such as 0.99.')
    found = open_source(source, bands, value_range)
    if found.tiles is not None and found.tiles.field.plan.model_digest != model.digest:
        raise StaleError(
            f'{source} was made by another model ({found.tiles.field.marker.model}) than {model.name}; give that '
            'model, or make the field anew.'
        )
    team = this_team()
    with exclusive(out, team.first), naming_full_disk(out):
        pixels = {k: v for k, v in model.preprocessing.metadata(fit, (0, 1)).items() if k != 'value_range'}
        team.agree(out, f'an index of {source} by {model.digest}')
        named = _lasting(spec), None if clip is None else _lasting(clip)
        if team.first:  # where there is none it makes it
            _open(out, model, named, recall, pixels)
        team.wait()
        catalog = _open(out, model, named, recall, pixels)
        new = _new_items(catalog, found)
        parts = _embed(catalog, found, new, model, fit, workers, team) if found.tiles is None else []
        if team.first:
            _add(catalog, found, new, parts)
            catalog.optimise(tuning_queries(catalog, model), kind, most_bytes)
            shutil.rmtree(out / PARTS, ignore_errors=True)
        team.wait()
    return catalog if team.first else Catalog(out)


def _lasting(spec: str) -> str:
    """A model's words that hold in any folder."""
    where = split_name(spec)[1]
    architecture, colon, file = where.partition(':')
    if Path(where).exists():
        return str(Path(where).resolve())
    return f'{architecture}:{Path(file).resolve()}' if colon and Path(file).is_file() else where


def _open(
    out: Path, model: Model, named: tuple[str, str | None], recall: float | None, pixels: dict[str, Any]
) -> Catalog:
    if (out / MARKER).is_file():
        catalog = Catalog(out)
        catalog.check_model(model.digest, model.name)
        indexed_pixels = catalog.marker.model.pixels
        if indexed_pixels != pixels:
            differ = ', '.join(k for k in pixels if indexed_pixels.get(k) != pixels[k])
            raise StaleError(
                f'{out} was made from pixels that were prepared otherwise ({differ}); give the same '
                'options, or another folder.'
            )
        catalog.aim_at(recall or catalog.marker.target)
        return catalog
    if out.is_dir() and any(
        p.name not in (LOCK, REJECTED, PARTS) and not p.name.startswith('vectors-') and p.suffix != '.part'
        for p in out.iterdir()
    ):
        raise InputError(f'{out} is not empty and no index; give another folder.')
    width = model.embed_texts(['a place']).shape[1]
    made = IndexModel(
        spec=named[0], clip=named[1], name=model.name, kind=model.kind, digest=model.digest, pixels=pixels
    )
    return Catalog.create(out, width, made, recall or 0.99)


def _new_items(catalog: Catalog, source: Source) -> npt.NDArray[np.int64]:
    """Rows of the items of a source that are not in the index as they are now."""
    before, now = catalog.marker.sources.get(source.name), source.metadata
    if before is not None and before != now:
        differ = ', '.join(k for k, value in now if getattr(before, k) != value)
        raise StaleError(
            f'{source.name} was indexed with other {differ}; give the same options, or another folder for the index.'
        )
    indexed = catalog.items.iloc[_rows_there(catalog, source)]
    state = pd.Series(indexed['stamp'].to_numpy(), index=indexed['item_id'].to_numpy())
    known = source.items['item_id'].map(state)
    return np.flatnonzero((known != source.items['stamp']).to_numpy())


def _rows_there(catalog: Catalog, source: Source) -> npt.NDArray[np.int64]:
    """Rows of the index that are of a source."""
    return np.flatnonzero(catalog.alive & (catalog.items['source'] == source.name).to_numpy(dtype=bool))


def _embed(
    catalog: Catalog,
    source: Source,
    new: npt.NDArray[np.int64],
    model: Model,
    fit: Fit,
    workers: int | None,
    team: Team,
) -> list[Path]:
    """Embed new pictures, in parts that a killed run keeps."""
    items = source.items.iloc[new]
    stamps = pd.util.hash_pandas_object(items[['item_id', 'stamp']].astype(str), index=False).to_numpy().tobytes()
    question = hashlib.blake2b(source.name.encode() + stamps, digest_size=6).hexdigest()

    def embed(rows: range, reject: Callable[[int, str], None]) -> Iterator[tuple[list[int], Vectors]]:
        return embed_pictures(
            model,
            lambda row: source.read(int(new[row])),
            rows,
            source.bands,
            source.value_range,
            fit,
            label='embedding tiles',
            workers=workers,
            name=lambda row: str(items['item_id'].iloc[row]),
            reject=reject,
        )

    return embed_in_parts(catalog.path / PARTS / question, len(new), catalog.width, embed, team)


def _add(catalog: Catalog, source: Source, new: npt.NDArray[np.int64], parts: list[Path]) -> None:
    """Bring an index up to date with what was embedded, commit by commit."""
    rejected = dict(source.rejected)
    there = _rows_there(catalog, source)
    # looked up once: a look at all items with every commit would cost the square of their number
    row_of = pd.Index(catalog.items['item_id'].iloc[there])
    _drop_gone(catalog, source)
    if not len(new):
        console.log(f'{source.name}: nothing new')
        _keep_rejected(catalog, source, rejected)
        return
    if len(there):
        console.log(f'{source.name}: {len(new):,} items are new or have changed')
    waiting: list[np.ndarray] = []
    rows: list[int] = []

    def commit() -> None:
        items = source.items.iloc[new[rows]].reset_index(drop=True)
        earlier = row_of.get_indexer(items['item_id'])
        catalog.append(items, np.concatenate(waiting), there[earlier[earlier >= 0]], source.metadata)
        waiting.clear()
        rows.clear()

    for batch, vectors, reasons in _vectors(source, new, parts):
        rejected |= {str(source.items['item_id'].iloc[new[row]]): reason for row, reason in reasons.items()}
        if len(batch):
            waiting.append(vectors)
            rows += batch
        if len(rows) >= max(COMMIT_ROWS, min(catalog.total // _COMMIT_SHARE, _LARGEST_COMMIT)):
            commit()
    if rows:
        commit()
    _keep_rejected(catalog, source, rejected)
    if not len(catalog):
        name, reason = next(iter(rejected.items()))
        raise InputError(f'{source.name}: none of its {len(rejected)} pictures can be used ({name}: {reason}).')


def _vectors(
    source: Source, new: npt.NDArray[np.int64], parts: list[Path]
) -> Iterator[tuple[list[int], Vectors, dict[int, str]]]:
    """Embeddings of some items of a source by their positions in `new`, and why others have none."""
    if source.tiles is not None:
        for batch, vectors in source.tiles.vectors(new):
            yield batch, vectors, {}
    for part in parts:
        embedded, vectors, reasons = read_part(part)
        yield embedded.tolist(), vectors, reasons


def _drop_gone(catalog: Catalog, source: Source) -> None:
    """Take out the items that the source no longer has."""
    ours = catalog.alive & (catalog.items['source'] == source.name).to_numpy(dtype=bool)
    gone = np.flatnonzero(ours & ~catalog.items['item_id'].isin(source.items['item_id']).to_numpy(dtype=bool))
    if len(gone):
        catalog.remove(gone)
        console.log(f'{source.name}: {len(gone):,} items are gone and were taken out')


def _keep_rejected(catalog: Catalog, source: Source, rejected: dict[str, str]) -> None:
    """Write down what of this source is not in the index and why; what other sources lack stays written."""
    path = catalog.path / REJECTED
    columns = ['kind', 'source', 'id', 'reason']
    table = pd.DataFrame(
        [('picture', source.name, i, r) for i, r in sorted(rejected.items())], columns=columns, dtype='str'
    )
    if path.is_file():
        before = pd.read_parquet(path)
        table = pd.concat([before[before['source'] != source.name], table], ignore_index=True)
    if len(table) or path.is_file():
        write_table(table, path)
    if rejected:
        console.log(f'{len(rejected):,} of {source.name} cannot be used; {path} has the reasons')


def tuning_queries(catalog: Catalog, model: Model) -> np.ndarray:
    """What an index of this model will be asked: words, and images like those it holds.

    Words lie apart from images in CLIP's space, so an index that was tuned with images alone would promise them too
    much. Images are means of two of its own, brought to unit length: near the others, and equal to none.
    """
    words = model.embed_texts([p.format(w) for w in _WORDS for p in _PHRASES])
    rng = np.random.default_rng(0)
    rows = np.flatnonzero(catalog.alive)
    some = catalog.vectors[np.sort(rng.choice(rows, min(_TUNING, len(rows)), replace=False))]
    if not len(some):
        return words
    scores = some @ some.T
    np.fill_diagonal(scores, -2)
    mixed = some + some[scores.argmax(1)]
    return np.concatenate([words, mixed / np.linalg.norm(mixed, axis=1, keepdims=True)]).astype(np.float32)
