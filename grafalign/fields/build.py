"""Make a field: one pass over scenes, window by window, that keeps the blended embeddings.

The unit of resuming and of sharing the work (`sharing.py`) is a band of 64 rows of cells: whoever makes a band makes
the same bytes.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from affine import Affine
from odc.geo.geobox import GeoBox

from grafalign import __version__, console
from grafalign.encoders.lattice import Lattice
from grafalign.encoders.windows import WindowEncoder, blended_rows
from grafalign.errors import InputError, StaleError, naming_full_disk
from grafalign.fields import arrays
from grafalign.fields.marker import MARKER, FieldDraft, FieldMarker, FieldPlan
from grafalign.fields.strips import Strip, Strips
from grafalign.files import file_digest
from grafalign.locks import LOCK, exclusive, refuse_other_files
from grafalign.processes import neighbours
from grafalign.scenes import BandSource, RangeReader

_DRAFT = 'draft.json'
_MOST_SATURATED = 0.5
"""Share of saturated pixels that is no scene any more."""
Rows = TypeVar('Rows', npt.NDArray[np.uint8], npt.NDArray[np.int64], arrays.Cells)


@dataclass(frozen=True)
class FieldInput:
    """What a field is made from."""

    plan: FieldPlan
    scenes: Sequence[Sequence[BandSource]]
    """Bands of each scene."""
    reader: RangeReader


def lattice_of(plan: FieldPlan) -> Lattice:
    """Where the windows of a field lie."""
    return Lattice(plan.height, plan.width, plan.window, plan.patch, plan.stride)


def geobox_of(plan: FieldPlan) -> GeoBox:
    """The grid of a field's pixels."""
    return GeoBox((plan.height, plan.width), Affine(*plan.transform), plan.crs)


def make_field(out: Path, source: FieldInput, encoder: WindowEncoder, model: str) -> FieldMarker:
    """Make a field, or go on with one that was begun.

    Args:
        out: its folder; one that holds the same field already is left as it is.
        source: scenes and plan.
        encoder: the model.
        model: how it is loaded again (`grafalign.models.load_model`), to ask for words.

    Raises:
        GrafalignError: the folder holds something else, no scene can be read, another process is writing to it, or the
            disk is full.
    """
    plan = source.plan
    with opened(out, plan, model) as done:
        if done is not None:
            return done
        with console.progress('encoding windows', lattice_of(plan).windows) as bar:
            for first, last in missing_runs(out, plan):
                make_bands(out, source, encoder, first, last, bar.advance)
        return finished(out, plan, model)


@contextlib.contextmanager
def opened(out: Path, plan: FieldPlan, model: str) -> Iterator[FieldMarker | None]:
    """Hold a field's folder and begin the field, or go on with it; gives the marker where it is finished already.

    Raises:
        GrafalignError: the folder holds something else, or another process is writing to it.
    """
    with naming_full_disk(out), exclusive(out):
        if (out / MARKER).is_file():
            marker = FieldMarker.read(out / MARKER)
            if marker.plan != plan:
                raise StaleError(f'{out} holds another field ({_difference(marker.plan, plan)}); {FieldMarker.REMEDY}.')
            yield marker
            return
        if not _begun(out, plan):
            refuse_other_files(out, (), 'the field')
            FieldDraft(format=FieldDraft.NEWEST, plan=plan).write(out / _DRAFT)
        arrays.write_layout(out, plan)  # again where a killed process had only begun to
        lattice = lattice_of(plan)
        console.log(
            f'{out}: {lattice.windows:,} windows of {plan.window} px, {lattice.passes:.2g} over each pixel; cells of '
            f'{plan.cell} px'
        )
        yield None


def finished(out: Path, plan: FieldPlan, model: str) -> FieldMarker:
    """Finish a field whose bands are all there, and tell what became of its scenes.

    Args:
        out: its folder.
        plan: what it holds.
        model: how the model is loaded again.
    """
    marker = _marker(out, plan, model)
    if marker.failed:
        reason, count = max(marker.failed.items(), key=lambda item: item[1])
        console.log(
            f'{sum(marker.failed.values()):,} pieces of scenes could not be read and are missing (most often, '
            f'{count:,} times: {reason})'
        )
    if marker.saturated > _MOST_SATURATED:
        low, high = plan.value_range
        console.log(
            f'{100 * marker.saturated:.0f} % of the pixels lie beyond the value range {low:g} to {high:g}, and '
            'look all black or white to the model; give the --value-range of the scene'
        )
    marker.write(out / MARKER)
    (out / _DRAFT).unlink()
    return marker


def _begun(out: Path, plan: FieldPlan) -> bool:
    """Whether a folder holds the beginning of this field, or all of it.

    Raises:
        GrafalignError: it holds another one.
    """
    for name, kind in ((MARKER, FieldMarker), (_DRAFT, FieldDraft)):
        if (out / name).is_file():
            theirs = kind.read(out / name).plan
            if theirs != plan:
                raise StaleError(
                    f'{out} holds the beginning of another field ({_difference(theirs, plan)}); delete it.'
                )
            return True
    return False


def _difference(theirs: FieldPlan, ours: FieldPlan) -> str:
    names = [name for name in FieldPlan.model_fields if getattr(theirs, name) != getattr(ours, name)]
    return f'other {", ".join(names)}'


def missing_runs(out: Path, plan: FieldPlan, first: int = 0, last: int | None = None) -> list[tuple[int, int]]:
    """Neighbouring bands that are not there yet, among `first` to `last`, as (first, behind the last)."""
    bands = range(first, arrays.bands_of(plan) if last is None else last)
    return neighbours([band for band in bands if not arrays.is_complete(out, band)])


def make_bands(
    out: Path, source: FieldInput, encoder: WindowEncoder, first: int, last: int, tell: Callable[[int], None]
) -> None:
    """Make bands of a field that was begun, from the top down.

    Args:
        out: the field's folder.
        source: scenes and plan.
        encoder: the model.
        first: the first band.
        last: the band to end before.
        tell: called with the number of windows as they are encoded.
    """
    plan, lattice = source.plan, lattice_of(source.plan)
    begin, end = first * arrays.CHUNK, min(last * arrays.CHUNK, lattice.shape[0])
    top = next(s for s in lattice.starts(plan.height) if s + plan.window > begin * plan.cell)
    bottom = min(plan.height, end * plan.cell + plan.window)
    strips = Strips(geobox_of(plan), source.scenes, plan.value_range, source.reader, top, bottom)
    bands = _Bands(out, plan, first)
    try:
        for start, mean, encoded in blended_rows(lattice, encoder, strips.rows, begin, end):
            tell(encoded)
            bands.note_windows(start, encoded)
            if len(mean):
                pixels = bands.pixel_rows(len(mean))
                bands.add(mean.cpu().numpy(), strips.strip(pixels.start, pixels.stop), strips.failed)
                strips.drop(pixels.stop)
    finally:
        strips.close()


class _Bands:
    """Collects rows of cells and writes a band as soon as it is whole."""

    def __init__(self, out: Path, plan: FieldPlan, first: int) -> None:
        self._out, self._plan, self._number = out, plan, first
        self._row = first * arrays.CHUNK
        self._cells: list[arrays.Cells] = []
        self._previews: list[npt.NDArray[np.uint8]] = []
        self._sources: list[npt.NDArray[np.uint8]] = []
        self._saturated: list[npt.NDArray[np.int64]] = []
        self._windows: Counter[int] = Counter()

    def note_windows(self, start: int, encoded: int) -> None:
        """Count windows for the band in which they begin."""
        self._windows[start // (arrays.CHUNK * self._plan.cell)] += encoded

    def pixel_rows(self, rows: int) -> slice:
        """The pixels of the next rows of cells."""
        cell, height = self._plan.cell, self._plan.height
        return slice(self._row * cell, min((self._row + rows) * cell, height))

    def add(self, mean: arrays.Floats, strip: Strip, failed: list[tuple[int, str]]) -> None:
        """Take the next rows of cells with their pixels."""
        self._row += len(mean)
        self._cells.append(arrays.Cells.of(mean, self._plan.numbers))
        self._previews.append(cell_colours(strip, self._plan.cell))
        self._sources.append(strip.source)
        ends = ((strip.values <= 0) | (strip.values >= 1)).all(axis=0) & (strip.source > 0)
        self._saturated.append(ends.sum(axis=1))
        last = arrays.shape_of(self._plan)[0]
        while self._row >= (self._number + 1) * arrays.CHUNK or (self._row == last and self._cells):
            self._write(failed)

    def _write(self, failed: list[tuple[int, str]]) -> None:
        """Write the first band of what is held."""
        high = arrays.CHUNK * self._plan.cell
        band = arrays.Band(
            _first(self._cells, arrays.CHUNK),
            np.concatenate(_first(self._previews, arrays.CHUNK)),
            np.concatenate(_first(self._sources, high)),
            int(np.concatenate(_first(self._saturated, high)).sum()),
        )
        reasons = Counter(reason for top, reason in failed if top // high == self._number)
        arrays.write_band(self._out, self._plan, self._number, band, self._windows[self._number], reasons)
        self._number += 1


def _first(parts: list[Rows], count: int) -> list[Rows]:
    """Take the first rows out of parts, which keep the others.

    Example:
        >>> parts = [np.arange(3), np.arange(3, 5)]
        >>> _first(parts, 4), parts
        ([array([0, 1, 2]), array([3])], [array([4])])
    """
    taken: list[Rows] = []
    while count and parts:
        part = parts.pop(0)
        taken.append(part if len(part) <= count else part[:count])
        if len(part) > count:
            parts.insert(0, part[count:])
        count -= len(taken[-1])
    return taken


def cell_colours(strip: Strip, cell: int) -> npt.NDArray[np.uint8]:
    """The mean of the first three bands in each cell as 0 to 255, [rows, columns, 3]; 0 where all is missing."""
    bands = strip.values[:3] if len(strip.values) >= 3 else strip.values[[0, 0, 0]]
    there = (strip.source > 0).astype(np.float32)
    total, count = _sums(bands * there, cell), _sums(there[None], cell)
    mean = total / np.maximum(count, 1)
    return np.asarray(np.rint(255 * mean.transpose(1, 2, 0)), dtype=np.uint8)


def _sums(planes: arrays.Floats, cell: int) -> arrays.Floats:
    """Sums over squares of cell x cell pixels, [C, rows, columns]."""
    down = np.add.reduceat(planes, range(0, planes.shape[1], cell), axis=1)
    return np.asarray(np.add.reduceat(down, range(0, planes.shape[2], cell), axis=2))


def _marker(out: Path, plan: FieldPlan, model: str) -> FieldMarker:
    """What is said of a field when all its bands are there."""
    stats = [arrays.read_stats(out, band) for band in range(arrays.bands_of(plan))]
    failed: Counter[str] = Counter()
    for stat in stats:
        failed.update(stat.failed)
    missing = sum(stat.missing for stat in stats)
    if missing == plan.height * plan.width:
        reason = f'{failed.most_common(1)[0][0]}' if failed else 'all pixels are missing'
        raise InputError(f'{plan.scenes[0].item_id} shows nothing that can be encoded ({reason}); check the scene.')
    files = sorted(p for p in out.rglob('*') if p.is_file() and p.name not in (_DRAFT, LOCK))
    return FieldMarker(
        format=FieldMarker.NEWEST,
        plan=plan,
        model=model,
        error=max(stat.error for stat in stats),
        windows=sum(stat.windows for stat in stats),
        missing=round(missing / (plan.height * plan.width), 6),
        saturated=round(sum(stat.saturated for stat in stats) / (plan.height * plan.width - missing), 6),
        failed=dict(sorted(failed.items())),
        versions={'grafalign': __version__, 'torch': torch.__version__},
        files={p.relative_to(out).as_posix(): file_digest(p) for p in files},
    )
