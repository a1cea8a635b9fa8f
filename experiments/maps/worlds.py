"""Maps of whole scenes in sandbox worlds: how good, how sure, and what they leave out.

    python -m experiments.maps.worlds --data runs/map_worlds --seeds 0 1 2   # makes what is missing: 10 minutes a world
    python -m experiments.maps.worlds --data runs/map_worlds --old 02e8d2e   # then: `segment` beside an older one
    python -m experiments.maps.worlds --table                                # results/table.md from the records

Of each world one scene, the western one with the fewest clouds, is made a field of both kinds by an image-level and by
a patch-level run of the quickstart, mapped with the 24 classes, calibrated on the photos that no training saw, and
mapped again 24 times, each time with one class's word taken away. Everything is read off the files of the maps.
Intervals are 95 %, over blocks of land of 2 km, the blocks of the splits. Settings were chosen in world 7.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import torch

from experiments.study import GRAFT, with_plan
from grafalign.benchmarks.sandbox.sandbox_set import SandboxTruth
from grafalign.benchmarks.statistics import MeanIou, Resampling, confusion, estimates
from grafalign.calibration import PhotoPlaces, collect_places, open_places
from grafalign.chain import Clock, run_experiment
from grafalign.console import log
from grafalign.encoders import load_bank
from grafalign.fields import Field, FieldOptions, field_input, make_field, open_field, window_encoder
from grafalign.fields.build import geobox_of
from grafalign.fields.strips import Strips
from grafalign.geo import blocks_touched, unproject
from grafalign.labels import VOID
from grafalign.maps import MapFiles, load_classes, write_map
from grafalign.models import Model, load_model
from grafalign.pairing.splits import split_of_blocks
from grafalign.quickstart import quickstart_experiment
from grafalign.sandbox.classes import CLASS_NAMES
from grafalign.sandbox.world import make_sandbox
from grafalign.store import PairStore
from grafalign.zeroshot import segment

RESULTS = Path(__file__).parent / 'results'
RUNS = ('grafalign_image', 'grafalign_patch')
LEAVE_OUT = 0.1
BINS = 15
NONE = 255
OLD_STRIDES = (24, 16)
Labels = npt.NDArray[np.int64]


def make_world(out: Path, seed: int) -> None:
    """A world by GRAFT's plan, and an image and a patch run that learn from photos alone; what is there stays."""
    settings, experiment = quickstart_experiment(out, seed)
    train = {name: experiment.train[name] for name in RUNS}
    train[RUNS[0]] = {**train[RUNS[0]], 'tau': 0.3, 'word_anchors': None}  # photos alone
    out.mkdir(parents=True, exist_ok=True)
    clock = Clock(out / 'seconds.json')
    clock.time('sandbox', lambda: make_sandbox(out / 'sandbox', settings))
    changes = {'sandbox': None, 'train': train, 'pair': with_plan(experiment.recipe, **GRAFT)}
    run_experiment(experiment.model_copy(update=changes), clock)


@dataclass(frozen=True)
class Truth:
    """The truth of a scene's pixels."""

    labels: Labels
    """[H, W] with `VOID`."""
    block: Labels
    """[H, W]: number of the block of land, from 0."""
    held_out: npt.NDArray[np.bool_]
    """[H, W]: in blocks of the test split."""

    def miou(self, guess: Labels, where: npt.NDArray[np.bool_]) -> dict[str, float]:
        """Mean IoU over the classes, with its interval over blocks."""
        classes = len(CLASS_NAMES)
        use = where & (self.labels != VOID) & (guess < classes)
        blocks = np.unique(self.block[use])
        counts = np.stack(
            [confusion(self.labels[m], guess[m], classes) for m in (use & (self.block == b) for b in blocks)]
        )
        how = Resampling(np.arange(len(blocks)), 'blocks of land')
        return estimates({'miou': MeanIou(counts)}, how)['miou'].model_dump()


def truth_of(field: Field, world: SandboxTruth) -> Truth:
    """The truth on a field's pixels."""
    box = field.geobox
    rows, columns = np.indices(box.shape).reshape(2, -1) + 0.5
    lon, lat = unproject(*(box.affine @ (columns, rows)), int(box.crs.epsg))
    numbers = blocks_touched(lon, lat, lon, lat, world.recipe.split.block_km)[:, 0]
    unique, block = np.unique(numbers, return_inverse=True)
    split = split_of_blocks(unique, world.recipe.split.shares, world.recipe.plan.seed)
    held_out = (split == 'test')[block].reshape(box.shape)
    return Truth(world.label_maps([box])[0].astype(np.int64), block.reshape(box.shape), held_out)


def calibration_error(chance: npt.NDArray[np.float64], hit: npt.NDArray[np.bool_]) -> float:
    """Expected calibration error: mean over pixels of |confidence - accuracy| of its bin (Guo et al. 2017)."""
    number = np.minimum((chance * BINS).astype(int), BINS - 1)
    count, sure, right = (np.bincount(number, w, BINS) for w in (None, chance, hit))
    used = count > 0
    return float((np.abs(sure - right)[used]).sum() / len(chance))


def risk_at(chance: npt.NDArray[np.float64], hit: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Share of wrong pixels among the surest ones, by coverage, and its mean over all coverages (AURC)."""
    order = np.argsort(-chance, kind='stable')
    risk = 1 - np.cumsum(hit[order]) / np.arange(1, len(hit) + 1)
    at = {f'{c:.0%}': float(risk[int(c * len(hit)) - 1]) for c in (0.25, 0.5, 0.75, 1.0)}
    return {**at, 'mean': float(risk.mean())}


class Measured:
    """Maps of one field, read back from their files."""

    def __init__(self, field: Field, model: Model, folder: Path) -> None:
        self._field, self._model, self._folder = field, model, folder

    def map(
        self, names: tuple[str, ...], places: PhotoPlaces | None = None, leave_out: float | None = None
    ) -> tuple[Labels, npt.NDArray[np.float64]]:
        """Values of a map [H, W], numbered as `CLASS_NAMES`, `NONE` for none of these; and its confidence."""
        files = MapFiles(self._folder / 'map.tif', self._folder / 'sure.tif')
        write_map(self._field, load_classes([','.join(names)]), self._model, files, places=places, leave_out=leave_out)
        with rasterio.open(files.map) as labels, rasterio.open(self._folder / 'sure.tif') as sure:
            values, chance = labels.read(1), sure.read(1) / 250
        number = np.full(256, NONE)
        number[: len(names)] = [CLASS_NAMES.index(name) for name in names]
        return number[values], chance


def measure(world: Path, run: str) -> dict[str, Any]:
    """Everything about one run of one world."""
    store = PairStore(world / 'pairs')
    truth_source = SandboxTruth(world / 'sandbox', store)
    model = load_model(str(world / run))
    item = clear_item(world / 'sandbox', 'west')
    out: dict[str, Any] = {'scene': item.stem, 'kinds': {}}
    for of in ('patches', 'windows'):
        source = field_input(str(item), model, FieldOptions(of=of))
        folder = world / 'fields' / f'{run}_{of}'
        started = time.perf_counter()
        make_field(folder, source, window_encoder(model, source.plan), str(world / run))
        seconds = time.perf_counter() - started
        field = open_field(folder)
        truth = truth_of(field, truth_source)
        everywhere = np.ones_like(truth.held_out)
        with tempfile.TemporaryDirectory() as temporary:
            maps = Measured(field, model, Path(temporary))
            labels, _ = maps.map(CLASS_NAMES)
            kind: dict[str, Any] = {
                'stride': field.plan.stride,
                'seconds': round(seconds, 1),
                'miou': truth.miou(labels, everywhere),
                'miou_held_out': truth.miou(labels, truth.held_out),
            }
            if of == ('patches' if model.level == 'patch' else 'windows'):
                kind |= surety(maps, truth, field, store, world / 'calibration' / run)
        out['kinds'][of] = kind
        log(f'{world.name} {run} {of}: mIoU {kind["miou"]["value"]:.3f}, held out {kind["miou_held_out"]["value"]:.3f}')
    return out


def surety(maps: Measured, truth: Truth, field: Field, store: PairStore, folder: Path) -> dict[str, Any]:
    """How right the probabilities are before and after calibration, and what is left out of a missing class."""
    if not folder.is_dir():
        collect_places([field], store, load_bank(store), folder)
    places = open_places(folder)
    out: dict[str, Any] = {'photos': places.marker.photos}
    for name, given in (('plain', None), ('calibrated', places)):
        labels, chance = maps.map(CLASS_NAMES, given)
        out[name] = {}
        for where, mask in (('whole', np.ones_like(truth.held_out)), ('held_out', truth.held_out)):
            use = mask & (truth.labels != VOID) & (labels < len(CLASS_NAMES))
            hit = labels[use] == truth.labels[use]
            out[name][where] = {
                'ece': calibration_error(chance[use], hit),
                'accuracy': float(hit.mean()),
                'confidence': float(chance[use].mean()),
                'risk_at_coverage': risk_at(chance[use], hit),
                'miou': truth.miou(labels, mask),
            }
    out['taken_away'] = {}
    for number, name in enumerate(CLASS_NAMES):
        its, others = truth.labels == number, (truth.labels != number) & (truth.labels != VOID)
        if its.sum() < 1000:
            continue
        labels, _ = maps.map(tuple(n for n in CLASS_NAMES if n != name), places, LEAVE_OUT)
        out['taken_away'][name] = {
            'left_out': float((labels == 255)[its].mean()),
            'lost': float((labels == 255)[others].mean()),
        }
    return out


def clear_item(sandbox: Path, side: str) -> Path:
    """The item of the scene of a side of the world with the fewest clouds."""
    items = sorted((sandbox / 'catalog' / 'sandbox-ms').glob(f'*_{side}/*.json'))
    return min(items, key=lambda path: json.loads(path.read_text())['properties']['eo:cloud_cover'])


def against_old(world: Path, old: ModuleType, stride: int) -> dict[str, Any]:
    """Mean IoU of `segment` of today and of an older one, by the patch-level run on a whole scene in memory."""
    model = load_model(str(world / RUNS[1]))
    source = field_input(str(clear_item(world / 'sandbox', 'west')), model, FieldOptions())
    height = source.plan.height
    strips = Strips(geobox_of(source.plan), source.scenes, source.plan.value_range, source.reader, 0, height)
    mean, std = (torch.tensor(v)[:, None, None] for v in (model.preprocessing.mean, model.preprocessing.std))
    images = ((strips.rows(0, height)[0] - mean) / std)[None]
    strips.close()
    truth_source = SandboxTruth(world / 'sandbox', PairStore(world / 'pairs'))
    truth = truth_of(open_field(world / 'fields' / f'{RUNS[1]}_patches'), truth_source)
    vectors = model.embed_texts([f'a photo of {name}.' for name in CLASS_NAMES])
    out = {}
    for name, function in (('old', old.segment), ('today', segment)):
        guess = function(model.encoder(), images, vectors, stride)[0].argmax(0).numpy()
        out[name] = truth.miou(guess, np.ones_like(truth.held_out))
    return out


def old_segment(revision: str) -> ModuleType:
    """`zeroshot/segment.py` as it was at a revision of this repository."""
    text = subprocess.run(
        ['git', 'show', f'{revision}:grafalign/zeroshot/segment.py'],
        cwd=Path(__file__).parent, check=True, capture_output=True,
    ).stdout  # fmt: skip
    with tempfile.NamedTemporaryFile(suffix='.py') as file:
        file.write(text)
        file.flush()
        spec = importlib.util.spec_from_file_location('old_segment', file.name)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def table(records: list[dict[str, Any]]) -> str:
    """The page of the records."""

    def cell(value: dict[str, float]) -> str:
        return f'{value["value"]:.3f} ({value["low"]:.3f} to {value["high"]:.3f})'

    lines = [
        '# Maps of whole scenes in sandbox worlds',
        '',
        'Made by `python -m experiments.maps.worlds --table` from the records beside it. Intervals: 95 %, over blocks',
        'of land of 2 km. "Held out" is the land of the test split; the whole scene contains land that was trained on.',
        '',
        '| world | run | field of | stride | mIoU, whole scene | mIoU, held out |',
        '|---|---|---|---|---|---|',
    ]
    for r in records:
        for run, content in r['runs'].items():
            for of, kind in content['kinds'].items():
                lines.append(
                    f'| {r["seed"]} | {run} | {of} | {kind["stride"]} px | {cell(kind["miou"])} '
                    f'| {cell(kind["miou_held_out"])} |'
                )
    lines += [
        '',
        'Probabilities, before and after `grafalign calibrate` (sure: mean confidence; ECE of 15 bins; risk: share of',
        'wrong pixels among the surest; AURC: its mean over all coverages), pixels of the held-out land:',
        '',
        '| world | run | photos | | mIoU | accuracy | sure | ECE | ECE, whole | risk at 25, 50, 75, 100 % | AURC |',
        '|---|---|---|---|---|---|---|---|---|---|---|',
    ]
    sure = [
        (r['seed'], run, k)
        for r in records
        for run, c in r['runs'].items()
        for k in c['kinds'].values()
        if 'plain' in k
    ]
    for seed, run, kind in sure:
        for name in ('plain', 'calibrated'):
            held, risk = kind[name]['held_out'], kind[name]['held_out']['risk_at_coverage']
            at = ', '.join(f'{risk[c]:.3f}' for c in ('25%', '50%', '75%', '100%'))
            numbers = (
                held['miou']['value'], held['accuracy'], held['confidence'], held['ece'], kind[name]['whole']['ece']
            )  # fmt: skip
            shown = ' | '.join(f'{number:.3f}' for number in numbers)
            lines.append(f'| {seed} | {run} | {kind["photos"]:,} | {name} | {shown} | {at} | {risk["mean"]:.3f} |')
    lines += [
        '',
        f'One class taken away, `--leave-out {LEAVE_OUT}`: share of its pixels that are left out, and of all others',
        'that are lost with them; mean over the classes, and the class of which least is left out:',
        '',
        '| world | run | left out | lost | least of |',
        '|---|---|---|---|---|',
    ]
    for seed, run, kind in sure:
        away = kind['taken_away']
        least = min(away, key=lambda n: away[n]['left_out'])
        left, lost = (np.mean([v[k] for v in away.values()]) for k in ('left_out', 'lost'))
        lines.append(f'| {seed} | {run} | {left:.3f} | {lost:.3f} | {least}, {away[least]["left_out"]:.2f} |')
    strides = [(r['seed'], s, v) for r in records for s, v in r.get('strides', {}).items()]
    if strides:
        revision = next(r['old'] for r in records if 'old' in r)
        lines += [
            '',
            f'The patch-level run by `zeroshot.segment`, and by the one of before fields ({revision}), which',
            'blended scores by pixels; mIoU of the whole scene:',
            '',
            '| world | stride | before | today | difference |',
            '|---|---|---|---|---|',
        ]
        for seed, stride, v in strides:
            moved = v['today']['value'] - v['old']['value']
            lines.append(f'| {seed} | {stride} px | {cell(v["old"])} | {cell(v["today"])} | {moved:+.4f} |')
    return '\n'.join(lines) + '\n'


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, help='folder of the worlds')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--old', help='measure only `segment`, beside that of this revision')
    parser.add_argument('--table', action='store_true', help='only write the table')
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    if not arguments.table:
        if arguments.data is None:
            parser.error('give --data, a folder for the worlds')
        old = None if arguments.old is None else old_segment(arguments.old)
        for seed in arguments.seeds:
            world = arguments.data / f'world{seed}'
            path = RESULTS / f'world{seed}.json'
            command = f'python -m experiments.maps.worlds --data FOLDER --seeds {seed}'
            versions = {name: version(name) for name in ('grafalign', 'torch', 'numpy', 'rasterio')}
            if old is None:
                make_world(world, seed)
                runs = {run: measure(world, run) for run in RUNS}
                before = json.loads(path.read_text()) if path.is_file() else {}
                record = {'command': command, 'seed': seed, 'leave_out': LEAVE_OUT, 'versions': versions, 'runs': runs}
                record |= {key: before[key] for key in ('old', 'strides', 'old_command') if key in before}
            else:
                strides = {str(stride): against_old(world, old, stride) for stride in OLD_STRIDES}
                record = json.loads(path.read_text()) | {'old': arguments.old, 'strides': strides}
                record['old_command'] = f'{command} --old {arguments.old}'
            path.write_text(json.dumps(record, indent=1) + '\n')
    records = [json.loads(path.read_text()) for path in sorted(RESULTS.glob('world*.json'))]
    (RESULTS / 'table.md').write_text(table(records))


if __name__ == '__main__':
    main()
