"""The whole chain past one machine, made small: photos in tars and scenes on S3, Dask, several processes, and kills.

    python -m experiments.cluster.run

Everything is done twice, with the commands that people would type:

`apart`   tiles cut by two Dask workers, of which one is killed on the way (SIGKILL); photos embedded by two processes;
          training by two processes, of which one is killed and the same command given again; field by Dask
`alone`   the same by one process, nothing killed

and compared file by file. The S3 server counts what it is asked for.
"""

from __future__ import annotations

import argparse
import filecmp
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pandas as pd
import rasterio
import yaml
from safetensors.numpy import load_file

from experiments.cluster.bucket import Counted, dask_cluster, serving_bucket
from experiments.performance.machine import machine_metadata
from grafalign.photos.exif import read_metadata
from grafalign.sandbox import TINY_CLIP_DIR
from grafalign.sandbox.world import SandboxSettings, make_sandbox
from grafalign.scenes import SceneSource, load_scenes

Weights = dict[str, npt.NDArray[np.float32]]
HERE = Path(__file__).resolve().parent
COMMAND = 'python -m experiments.cluster.run'
WORLD = SandboxSettings(seed=0, photos=3_000, rows=1_024, cols=1_280)
PHOTOS_PER_TAR = 500
BUCKET = 'example'
TRAIN = {'level': 'both', 'tau': 0.3, 'steps': 120, 'batch_tiles': 64, 'lr': 0.002, 'checkpoint_every': 20}
WORDS = 'forest,lake,town,farmland'


def upload(world: Path, folder: Path) -> tuple[str, Path, Path]:
    """Put photos on S3 as img2dataset leaves them, and scenes as they are; where photos, items and one item are."""
    store = fsspec.filesystem('s3')
    store.mkdir(BUCKET)
    photos = sorted((world / 'photos').rglob('*.jpg'))
    for first in range(0, len(photos), PHOTOS_PER_TAR):
        buffer, name = io.BytesIO(), f'{BUCKET}/photos/{first // PHOTOS_PER_TAR:05d}'
        rows = []
        with tarfile.open(fileobj=buffer, mode='w') as tar:
            for path in photos[first : first + PHOTOS_PER_TAR]:
                tar.add(path, path.name)
                metadata = read_metadata(path)
                columns = {k: getattr(metadata, k) for k in ('lon', 'lat', 'taken_at', 'heading_deg', 'accuracy_m')}
                rows.append({'key': path.stem, 'status': 'success', 'error_message': None, **columns})
        store.pipe_file(f'{name}.tar', buffer.getvalue())
        buffer = io.BytesIO()
        pd.DataFrame(rows).to_parquet(buffer, index=False)
        store.pipe_file(f'{name}.parquet', buffer.getvalue())
    catalog = SceneSource(catalog=world / 'catalog' / 'catalog.json', collections=['sandbox-ms'])
    items = []
    for scene in load_scenes(catalog, (-180, -90, 180, 90)):
        for asset in scene.item['assets'].values():
            path = Path(asset['href'])
            if path.is_file():
                asset['href'] = f's3://{BUCKET}/scenes/{path.parent.name}/{path.name}'
                store.pipe_file(asset['href'], path.read_bytes())
        items.append(scene.item)
    (folder / 'items.json').write_text(json.dumps({'type': 'FeatureCollection', 'features': items}))
    clear = min(items, key=lambda item: item['properties'].get('eo:cloud_cover', 100))
    (folder / 'scene.json').write_text(json.dumps(clear))
    return f's3://{BUCKET}/photos', folder / 'items.json', folder / 'scene.json'


def grafalign(*arguments: object) -> subprocess.Popen[str]:
    """Start a command."""
    command = [sys.executable, '-m', 'grafalign', *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, 'OMP_NUM_THREADS': '1'}, stderr=subprocess.PIPE, text=True)


def done(process: subprocess.Popen[str], *, fails: bool = False) -> None:
    """Wait for a command, which ends well unless it `fails`."""
    said = process.communicate()[1].strip()
    if (process.returncode != 0) != fails:
        raise SystemExit(f'{process.args} ended with {process.returncode}: {said[-2000:]}')


def when(there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until something is there; it is an error if the process has ended before."""
    while not there():
        if process.poll() is not None:
            raise SystemExit(f'{process.args} ended too soon: {process.communicate()[1][-2000:]}')
        time.sleep(0.01)


def children(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of what a process has started."""
    return [int(p) for p in Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()]


class Chain:
    """One way through all steps, with the seconds of each and what S3 was asked for.

    Args:
        out: folder of its results.
        bucket: counts.
        recipe: of the pairs.
        scene: the item that becomes a field.
    """

    def __init__(self, out: Path, bucket: Counted, recipe: Path, scene: Path) -> None:
        self.out, self._bucket, self._recipe, self._scene = out, bucket, recipe, scene
        self.steps: dict[str, dict[str, Any]] = {}
        self.kills: list[str] = []
        out.mkdir()
        config = {'store': str(out / 'pairs'), 'clip': {'model': str(TINY_CLIP_DIR)}, 'out': str(out / 'run')}
        self.config = out / 'train.yaml'
        self.config.write_text(yaml.safe_dump({**config, **TRAIN, 'trackers': []}))

    def step(self, name: str, work: Callable[[], object]) -> None:
        """Do a step and note its seconds and its share of S3."""
        self._bucket.take()
        started = time.perf_counter()
        work()
        self.steps[name] = {'seconds': round(time.perf_counter() - started, 1), 's3': self._bucket.take()}
        print(self.out.name, name, self.steps[name], flush=True)

    def alone(self) -> None:
        """All steps by one process."""
        out = self.out
        self.step('pair', lambda: done(grafalign('pair', self._recipe, out / 'pairs')))
        self.step('embed', lambda: done(grafalign('embed', out / 'pairs', '--model', TINY_CLIP_DIR)))
        self.step('train', lambda: done(grafalign('train', self.config)))
        self.step(
            'field', lambda: done(grafalign('field', self._scene, out / 'field', '--model', out / 'run')) and None
        )
        self.step('map', self._map)

    def apart(self) -> None:
        """All steps by several, some of which are killed."""
        out = self.out
        with dask_cluster(out, 2) as (address, workers):

            def pair() -> None:
                dask = ('--set', 'run.engine=dask', '--set', f'run.scheduler={address}')
                process = grafalign('pair', self._recipe, out / 'pairs', *dask)
                when(lambda: any((out / 'pairs').glob('tiles/*.tar')), process)
                workers[0].kill()
                self.kills.append('pair: one of two Dask workers, after the first shard; the other took over its jobs')
                done(process)

            self.step('pair', pair)
        embed = ('embed', out / 'pairs', '--model', TINY_CLIP_DIR, '--processes', 2)
        self.step('embed', lambda: done(grafalign(*embed)))
        self.step('train', self._train)
        with dask_cluster(out, 2) as (address, _):
            dask = ('--engine', 'dask', '--scheduler', address)
            field = ('field', self._scene, out / 'field', '--model', out / 'run')
            self.step('field', lambda: done(grafalign(*field, *dask)))
        self.step('map', self._map)

    def _train(self) -> None:
        process = grafalign('train', self.config, '--processes', 2)
        when(lambda: any((self.out / 'run').glob('checkpoints/*')), process)
        os.kill(children(process)[-1], signal.SIGKILL)
        done(process, fails=True)
        self.kills.append('train: one of two processes, after a checkpoint; the same command then went on from there')
        done(grafalign('train', self.config, '--processes', 2))

    def _map(self) -> None:
        done(grafalign('map', self.out / 'field', '--words', WORDS, '--out', self.out / 'map.tif'))


def same_files(one: Path, other: Path) -> tuple[int, list[str]]:
    """How many files two folders have, and the names of those that differ or are in one alone."""
    names = {p.relative_to(f) for f in (one, other) for p in f.rglob('*') if p.is_file() and not p.name.startswith('.')}
    differ = [
        str(name)
        for name in sorted(names)
        if not ((one / name).is_file() and (other / name).is_file() and filecmp.cmp(one / name, other / name, False))
    ]
    return len(names), differ


def compare(apart: Path, alone: Path) -> dict[str, Any]:
    """Where two ways through all steps differ."""
    files, differ = same_files(apart / 'pairs', alone / 'pairs')
    weights = [load_file(folder / 'run' / 'model.safetensors') for folder in (apart, alone)]
    maps = []
    for folder in (apart, alone):
        with rasterio.open(folder / 'map.tif') as raster:
            maps.append(raster.read(1))
    return {
        'store_and_bank_files': files,
        'store_and_bank_files_that_differ': differ,
        'largest_difference_of_a_weight': max(_difference(*weights, name) for name in weights[0]),
        'share_of_map_pixels_that_agree': float((maps[0] == maps[1]).mean()),
    }


def _difference(one: Weights, other: Weights, name: str) -> float:
    """The largest difference of a weight, but for the biases of attention's keys.

    A softmax does not change when all its logits rise alike, so nothing depends on those and their gradient is
    rounding, which AdamW makes steps of.
    """
    apart = np.abs(one[name].astype(np.float64) - other[name])
    if name.endswith('in_proj_bias'):
        queries, _, values = np.split(apart, 3)
        apart = np.concatenate([queries, values])
    return float(apart.max())


def table(result: dict[str, Any]) -> str:
    """A row a step: seconds, and what S3 was asked for, both ways."""
    lines = [
        f'`{result["command"]}`: {result["settings"]["world"]["photos"]:,} photos in tars of '
        f'{result["settings"]["photos_per_tar"]}; {result["machine"]["cores"]} cores, load '
        f'{result["machine"]["load_at_start"]} at the start.',
        '',
        '| step | apart, s | alone, s | requests apart / alone | MB apart / alone |',
        '|---|---|---|---|---|',
    ]
    for name, apart in result['steps']['apart'].items():
        alone = result['steps']['alone'][name]
        counts = [[sum(v[k] for v in way['s3'].values()) for way in (apart, alone)] for k in ('requests', 'bytes')]
        cells = [f'{counts[0][0]} / {counts[0][1]}', f'{counts[1][0] / 1e6:.1f} / {counts[1][1] / 1e6:.1f}']
        lines.append(f'| {name} | {apart["seconds"]} | {alone["seconds"]} | {cells[0]} | {cells[1]} |')
    same = result['comparison']
    files, differ = same['store_and_bank_files'], len(same['store_and_bank_files_that_differ'])
    lines += [
        '',
        f'Of {files} files of pair store and bank {differ} differ. The largest difference of a weight is '
        f'{same["largest_difference_of_a_weight"]:.1e}, and {100 * same["share_of_map_pixels_that_agree"]:.2f} % of '
        'the pixels of the map agree.',
        '',
        'Killed on the way:',
        '',
        *(f'- {kill}' for kill in result['kills']),
    ]
    return '\n'.join([*lines, ''])


def main() -> None:
    """Both ways, compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('runs/cluster'))
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True)
    make_sandbox(out / 'world', WORLD)
    with serving_bucket() as bucket:
        photos, items, scene = upload(out / 'world', out)
        recipe = yaml.safe_load((HERE.parent.parent / 'data_recipes' / 'sandbox.yaml').read_text())
        recipe['photos'] = {'webdataset': photos}
        recipe['scenes'] = {'items': str(items), 'max_cloud_percent': 10}
        recipe['shard_tiles'] = 32
        (out / 'recipe.yaml').write_text(yaml.safe_dump(recipe))
        apart, alone = (Chain(out / name, bucket, out / 'recipe.yaml', scene) for name in ('apart', 'alone'))
        apart.apart()
        alone.alone()
    result = {
        'command': COMMAND,
        'settings': {'world': asdict(WORLD), 'photos_per_tar': PHOTOS_PER_TAR, 'train': TRAIN, 'words': WORDS},
        'versions': {name: version(name) for name in ('grafalign', 'torch', 'distributed', 's3fs', 'moto')},
        'machine': machine_metadata(),
        'kills': apart.kills,
        'steps': {'apart': apart.steps, 'alone': alone.steps},
        'comparison': compare(apart.out, alone.out),
    }
    (HERE / 'results').mkdir(exist_ok=True)
    (HERE / 'results' / 'cluster.json').write_text(json.dumps(result, indent=2) + '\n')
    (HERE / 'results' / 'table.md').write_text(table(result))


if __name__ == '__main__':
    main()
