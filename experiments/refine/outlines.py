"""What refined outlines are worth in sandbox worlds: `map --refine none | guided | superpixels | sam`.

    python -m experiments.refine.outlines --data runs/map_worlds --seeds 0 1 2   # after experiments.maps.worlds
    python -m experiments.refine.outlines --table                                # results/table.md from the records

Of each world the field of patches of the patch-level run, the whole scene. Things are the ten classes of single
objects, stuff the others. Boundary F1 (Csurka et al. 2013): the harmonic mean of the share of the map's borders that
lie within two pixels (10 m) of a border of the truth, and of the share of the truth's that lie near one of the map;
pixels without a true class have no border. Intervals are 95 %, over blocks of land of 2 km. Settings were
chosen in world 7. SAM is the small one of `train_sam.py`, in the folder `sam` beside the worlds; it outlines things.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import rasterio
from scipy.ndimage import binary_dilation

from experiments.maps.worlds import Truth, clear_item, truth_of
from experiments.world_records import measure_worlds
from grafalign.benchmarks.sandbox.sandbox_set import SandboxTruth
from grafalign.benchmarks.statistics import MeanIou, Resampling, Statistic, confusion, estimates
from grafalign.console import log
from grafalign.fields import open_field
from grafalign.fields.source import scene_rows
from grafalign.labels import VOID
from grafalign.maps import MapFiles, load_classes, write_map
from grafalign.maps.outlines import outlines_of
from grafalign.maps.sam import Sam
from grafalign.models import load_model
from grafalign.models.thumbnails import shown_bands
from grafalign.sandbox.classes import CLASS_NAMES
from grafalign.sandbox.land import OBJECT_KINDS
from grafalign.store import PairStore

RESULTS = Path(__file__).parent / 'results'
KINDS = ('none', 'guided', 'superpixels', 'sam')
RUN = 'grafalign_patch'
NEAR_PX = 2
Masks = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class BoundaryF1(Statistic):
    """Harmonic mean of the shares of borders that lie near one of the other map."""

    kind: ClassVar[str] = 'boundary'
    counts: npt.NDArray[np.int64]
    """Borders of the map, those near the truth's, borders of the truth, those near the map's, of each block, [N, 4]."""

    def __call__(self, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """See `Statistic`."""
        mine, right, true, found = (weights @ self.counts).T
        precision, recall = right / np.maximum(mine, 1), found / np.maximum(true, 1)
        return np.asarray(2 * precision * recall / np.maximum(precision + recall, 1e-9))


@dataclass(frozen=True)
class ClassIou(Statistic):
    """Mean intersection over union over some classes."""

    kind: ClassVar[str] = 'class_iou'
    counts: npt.NDArray[np.int64]
    """Pixels by truth and guess of each block, [N, K, K]."""
    used: Masks
    """[K]"""

    def __call__(self, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """See `Statistic`."""
        blocks, classes, _ = self.counts.shape
        total = (weights @ self.counts.reshape(blocks, -1)).reshape(-1, classes, classes)
        hit, truth, called = np.einsum('bkk->bk', total), total.sum(2), total.sum(1)
        iou = np.where(truth > 0, hit / np.maximum(truth + called - hit, 1), np.nan)
        return np.asarray(np.nanmean(iou[:, self.used], axis=1))


def borders(labels: npt.NDArray[np.int64]) -> Masks:
    """Pixels whose right or lower neighbour has another class; pixels without a class have none."""
    out = np.zeros(labels.shape, bool)
    known = labels != VOID
    out[:, :-1] |= (labels[:, :-1] != labels[:, 1:]) & known[:, :-1] & known[:, 1:]
    out[:-1] |= (labels[:-1] != labels[1:]) & known[:-1] & known[1:]
    return out


def scores_of(truth: Truth, guess: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Mean IoU of all classes, of things, of stuff, and boundary F1."""
    classes, known = len(CLASS_NAMES), truth.labels != VOID
    blocks = int(truth.block.max()) + 1
    counts = np.stack(
        [confusion(truth.labels[m], guess[m], classes) for m in (known & (truth.block == b) for b in range(blocks))]
    )
    things = np.array([name in OBJECT_KINDS for name in CLASS_NAMES])
    mine, true = borders(np.where(known, guess, VOID)), borders(truth.labels)
    disk = np.hypot(*np.ogrid[-NEAR_PX : NEAR_PX + 1, -NEAR_PX : NEAR_PX + 1]) <= NEAR_PX
    near = [mine, mine & binary_dilation(true, disk), true, true & binary_dilation(mine, disk)]
    edges = np.stack([np.bincount(truth.block[mask], minlength=blocks) for mask in near], axis=1)
    statistics: dict[str, Statistic] = {
        'miou': MeanIou(counts),
        'miou_things': ClassIou(counts, things),
        'miou_stuff': ClassIou(counts, ~things),
        'boundary_f1': BoundaryF1(edges),
    }
    how = Resampling(np.arange(blocks), 'blocks of land')
    return {name: value.model_dump() for name, value in estimates(statistics, how).items()}


def measure(world: Path, _seed: int) -> dict[str, Any]:
    """All kinds of outlines of one world."""
    field = open_field(world / 'fields' / f'{RUN}_patches')
    model = load_model(str(world / RUN))
    scene = clear_item(world / 'sandbox', 'west')
    truth = truth_of(field, SandboxTruth(world / 'sandbox', PairStore(world / 'pairs')))
    things = [i for i, name in enumerate(CLASS_NAMES) if name in OBJECT_KINDS]
    content = load_classes([','.join(CLASS_NAMES)])
    segmenter = Sam.load(str(world.parent / 'sam'))
    height, width = field.geobox.shape
    km2 = height * width * field.plan.pixel_m**2 / 1e6
    out: dict[str, Any] = {'near_px': NEAR_PX, 'scene': scene.stem, 'km2': km2, 'kinds': {}}
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
            outlines = None
            if kind != 'none':
                rows = stack.enter_context(contextlib.closing(scene_rows(field, str(scene), model)))
                outlines = outlines_of(
                    kind,  # type: ignore[arg-type]
                    rows,
                    field.plan.cell,
                    sam=segmenter,
                    things=things,
                    colours=shown_bands(field.plan.bands),
                )
            files = MapFiles(Path(temporary) / 'map.tif')
            started = time.perf_counter()
            write_map(field, content, model, files, outlines=outlines)
            seconds = time.perf_counter() - started
            with rasterio.open(files.map) as raster:
                guess = raster.read(1).astype(np.int64)
        out['kinds'][kind] = {'seconds': round(seconds, 1), **scores_of(truth, guess)}
        log(f'{world.name} {kind}: mIoU {out["kinds"][kind]["miou"]["value"]:.3f}, {seconds:.0f} s')
    return out


def table(records: list[dict[str, Any]]) -> str:
    """The page of the records."""

    def cell(value: dict[str, float]) -> str:
        return f'{value["value"]:.3f} ({value["low"]:.3f} to {value["high"]:.3f})'

    lines = [
        '# Outlines that follow the scene',
        '',
        'Made by `python -m experiments.refine.outlines --table` from the records beside it; the head of the script',
        'says how. Seconds are of the whole map, on one thread.',
        '',
        '| world | outlines | mIoU | things | stuff | boundary F1 | s | s a km² |',
        '|---|---|---|---|---|---|---:|---:|',
    ]
    for record in records:
        for kind, value in record['kinds'].items():
            cells = ' | '.join(cell(value[name]) for name in ('miou', 'miou_things', 'miou_stuff', 'boundary_f1'))
            seconds = value['seconds']
            lines.append(f'| {record["seed"]} | {kind} | {cells} | {seconds:.0f} | {seconds / record["km2"]:.2f} |')
    return '\n'.join(lines) + '\n'


def main() -> None:
    """Command line."""
    packages = 'scipy', 'scikit-image', 'transformers'
    measure_worlds('experiments.refine.outlines', __doc__, RESULTS, measure, table, packages)


if __name__ == '__main__':
    main()
