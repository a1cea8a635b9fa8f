"""Maps by others around the same encoder, on the same scene: memory, seconds, the scene's border, seams.

    python experiments/performance/maps_peers.py --world runs/map_worlds/world0 --old 02e8d2e --geoai GEOAI

The world is one of `experiments/maps/worlds.py`; its patch-level run maps the scene by the 24 words, with windows of 64
px that move by 32. Each in a process of its own, on one thread:

    ours        `grafalign.fields` and `grafalign.maps`, files written: class map, confidence
    segment     `zeroshot.segment` of today, the whole scene in memory
    old         the same as it was before fields, from this repository's history
    geoai       `predict_geotiff` of geoai (GEOAI is the folder `geoai` of its wheel, of which `inference.py` stands
                alone), spline blending

Peak memory is the operating system's. The border is the outermost 16 px, the ring the outermost one. Seams: the mean
step of the scores between pixels on both sides of a window's edge, over the mean step elsewhere. Results go to
`results/maps_peers.json`, and the page `maps_peers.md` is made from them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import torch
from machine import machine_metadata

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.maps.worlds import clear_item, old_segment, truth_of
from grafalign.benchmarks.sandbox.sandbox_set import SandboxTruth
from grafalign.fields import FieldOptions, field_input, make_field, open_field, window_encoder
from grafalign.fields.build import geobox_of
from grafalign.fields.strips import Strips
from grafalign.labels import VOID
from grafalign.maps import MapFiles, load_classes, write_map
from grafalign.models import Model, load_model
from grafalign.sandbox.classes import CLASS_NAMES
from grafalign.store import PairStore
from grafalign.zeroshot import segment

HERE = Path(__file__).resolve().parent
RESULTS = HERE / 'results' / 'maps_peers.json'
WINDOW, STRIDE, BATCH = 64, 32, 32
BORDER = 16
NAMES = ('ours', 'segment', 'old', 'geoai')
Floats = npt.NDArray[np.float32]


def prepare(world: Path, copies: int, folder: Path) -> Path:
    """The scene as one GeoTIFF of numbers from 0 to 1, `copies` times one below the other, each mirrored."""
    model = load_model(str(world / 'grafalign_patch'))
    source = field_input(str(clear_item(world / 'sandbox', 'west')), model, FieldOptions())
    box, height = geobox_of(source.plan), source.plan.height
    strips = Strips(box, source.scenes, source.plan.value_range, source.reader, 0, height)
    unit = strips.rows(0, height)[0].numpy()
    strips.close()
    whole = np.concatenate([unit if i % 2 == 0 else unit[:, ::-1] for i in range(copies)], axis=1)
    path = folder / f'scene_{copies}_2021-07-19.tif'
    profile = {
        'driver': 'GTiff', 'count': 3, 'dtype': 'float32', 'height': whole.shape[1], 'width': whole.shape[2],
        'crs': str(box.crs), 'transform': box.affine, 'tiled': True, 'blockxsize': 512, 'blockysize': 512,
    }  # fmt: skip
    with rasterio.open(path, 'w', **profile) as file:
        file.write(whole)
        file.descriptions = ('red', 'green', 'blue')
    return path


class Segmenter(torch.nn.Module):
    """The run as others want a model: pictures from 0 to 1 [B, 3, S, S] to scores of every pixel [B, K, S, S]."""

    def __init__(self, model: Model, vectors: Floats) -> None:
        super().__init__()
        self._encoder, self._vectors = model.encoder(), torch.from_numpy(vectors)
        self._mean, self._std = (
            torch.tensor(v)[:, None, None] for v in (model.preprocessing.mean, model.preprocessing.std)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """See the class."""
        scores = (self._encoder((images - self._mean) / self._std).patches @ self._vectors.T).permute(0, 3, 1, 2)
        return torch.nn.functional.interpolate(scores, images.shape[-2:], mode='bilinear', align_corners=False)


def work(name: str, scene: Path, world: Path, out: Path, old: str, geoai: Path) -> None:
    """Map the scene; scores of pixels are left in `scores.npy` by those that have them at hand."""
    torch.set_num_threads(1)
    model = load_model(str(world / 'grafalign_patch'))
    vectors = model.embed_texts([f'a photo of {n}.' for n in CLASS_NAMES])
    started = time.perf_counter()
    if name == 'ours':
        options = FieldOptions(stride=STRIDE, value_range=(0.0, 1.0), batch=BATCH)
        source = field_input(str(scene), model, options)
        make_field(out / 'field', source, window_encoder(model, source.plan), str(world / 'grafalign_patch'))
        write_map(
            open_field(out / 'field'),
            load_classes([','.join(CLASS_NAMES)]),
            model,
            MapFiles(out / 'm.tif', out / 'c.tif'),
        )
    elif name == 'geoai':
        for part in ('geoai', 'geoai.utils'):  # without what importing all of it needs; the device is given below
            sys.modules[part] = ModuleType(part)
        sys.modules['geoai'].__path__ = [str(geoai)]
        sys.modules['geoai.utils'].get_device = None  # type: ignore[attr-defined]
        predict = importlib.import_module('geoai.inference').predict_geotiff
        predict(
            Segmenter(model, vectors), str(scene), str(out / 'scores.tif'), WINDOW, WINDOW - STRIDE, BATCH,
            num_classes=len(CLASS_NAMES), preprocess_fn=lambda tile: tile, device='cpu', verbose=False,
        )  # fmt: skip
    else:
        function = segment if name == 'segment' else old_segment(old).segment
        with rasterio.open(scene) as file:
            unit = torch.from_numpy(file.read())
        mean, std = (torch.tensor(v)[:, None, None] for v in (model.preprocessing.mean, model.preprocessing.std))
        scores = function(model.encoder(), ((unit - mean) / std)[None], vectors, STRIDE)[0]
        np.save(out / 'labels.npy', scores.argmax(0).numpy().astype(np.uint8))
        report(started)
        np.save(out / 'scores.npy', scores[:, :2048].numpy())
        return
    report(started)


def report(started: float) -> None:
    """Tell seconds and peak memory; `ru_maxrss` would begin with that of the process which started this one."""
    lines = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines())
    peak = int(lines['VmHWM'].split()[0]) // 1024
    print(json.dumps({'seconds': round(time.perf_counter() - started, 1), 'peak_mb': peak}), flush=True)


def labels_and_scores(name: str, out: Path, vectors: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    """Classes of all pixels [H, W], and scores of the upper ones [K, 2048, W]."""
    if name == 'ours':
        with rasterio.open(out / 'm.tif') as file:
            return file.read(1).astype(np.int64), open_field(out / 'field').scores(vectors, rows=slice(0, 2048)).values
    if name == 'geoai':
        with rasterio.open(out / 'scores.tif') as file:
            scores = file.read()
        missing = (scores == -9999).any(axis=0)
        return np.where(missing, 255, scores.argmax(axis=0)), np.where(missing, np.nan, scores)[:, :2048]
    return np.load(out / 'labels.npy').astype(np.int64), np.load(out / 'scores.npy')


def seams(scores: Floats) -> float:
    """Mean step across the edges of windows over the mean step elsewhere, along rows; the outermost window left out."""
    steps = np.abs(np.diff(scores[:, WINDOW:-WINDOW], axis=2))
    columns = np.arange(1, scores.shape[2])
    inside = (columns >= WINDOW) & (columns < scores.shape[2] - WINDOW)
    edge = columns % STRIDE == 0
    return float(np.nanmean(steps[..., inside & edge]) / np.nanmean(steps[..., inside & ~edge]))


def quality(labels: npt.NDArray[np.int64], truth: npt.NDArray[np.int64]) -> dict[str, float]:
    """Share of right pixels at the border and inside; pixels without a class are wrong."""
    border = np.ones(labels.shape, dtype=bool)
    border[BORDER:-BORDER, BORDER:-BORDER] = False
    ring = np.ones(labels.shape, dtype=bool)
    ring[1:-1, 1:-1] = False
    scored = truth != VOID
    hit = labels == truth
    return {
        'border': round(float(hit[border & scored].mean()), 4),
        'inside': round(float(hit[~border & scored].mean()), 4),
        'outermost_without_class': round(float((labels[ring] == 255).mean()), 4),
    }


def page(content: dict[str, Any]) -> str:
    """The page of the results."""
    lines = [
        '# Maps by others around the same encoder',
        '',
        'Made from `results/maps_peers.json`; the head of `maps_peers.py` says how. 24 words, windows of '
        f'{WINDOW} px, stride {STRIDE} px, one thread.',
        '',
        '| scene, px | by | peak memory, MB | seconds | right at the border | inside | ring without class | seams |',
        '|---|---|---:|---:|---:|---:|---:|---:|',
    ]
    for row in content['rows']:
        lines.append(
            f'| {row["px"]} | {row["name"]} | {row["peak_mb"]:,} | {row["seconds"]} | {row["border"]:.3f} | '
            f'{row["inside"]:.3f} | {row["outermost_without_class"]:.0%} | {row["seams"]:.3f} |'
        )
    return '\n'.join(lines) + '\n'


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--world', type=Path, required=True)
    parser.add_argument('--old', required=True, help='revision of this repository with the old `segment`')
    parser.add_argument('--geoai', type=Path, required=True, help="the folder `geoai` of geoai's wheel")
    parser.add_argument('--work', nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        name, scene, out = arguments.work
        work(name, Path(scene), arguments.world, Path(out), arguments.old, arguments.geoai)
        return
    vectors = load_model(str(arguments.world / 'grafalign_patch')).embed_texts(
        [f'a photo of {n}.' for n in CLASS_NAMES]
    )
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for copies in (1, 2):
            scene = prepare(arguments.world, copies, Path(temporary))
            truth = None
            for name in NAMES:
                out = Path(temporary) / f'{name}_{copies}'
                out.mkdir()
                done = subprocess.run(
                    [sys.executable, __file__, *sys.argv[1:], '--work', name, str(scene), str(out)],
                    capture_output=True, text=True,
                )  # fmt: skip
                if done.returncode:
                    raise SystemExit(done.stderr[-2000:])
                row = {'name': name, 'copies': copies, **json.loads(done.stdout.strip().splitlines()[-1])}
                labels, scores = labels_and_scores(name, out, vectors)
                if truth is None:
                    world = SandboxTruth(arguments.world / 'sandbox', PairStore(arguments.world / 'pairs'))
                    one = truth_of(open_field(out / 'field'), world).labels[: len(labels) // copies]
                    truth = np.concatenate([one if i % 2 == 0 else one[::-1] for i in range(copies)])
                row |= {'px': f'{labels.shape[0]:,} x {labels.shape[1]:,}', 'seams': round(seams(scores), 4)}
                row |= quality(labels, truth)
                print(json.dumps(row), flush=True)
                rows.append(row)
    packages = ('grafalign', 'torch', 'rasterio', 'numpy')
    content = {
        'command': f'python experiments/performance/maps_peers.py --world WORLD --old {arguments.old} --geoai FILE',
        'machine': machine_metadata(), 'versions': {p: version(p) for p in packages}, 'geoai': '0.43.1', 'rows': rows,
    }  # fmt: skip
    RESULTS.write_text(json.dumps(content, indent=1) + '\n')
    (HERE / 'maps_peers.md').write_text(page(content))


if __name__ == '__main__':
    main()
