"""How near is making a photo bank to decoding its photos?

    python -m experiments.performance.bank --data FOLDER

JPEGs of 640 x 480 pixels with the spectrum of photos, as files and in tars. In turns: reading, decoding and resizing
them for CLIP, with nothing else, in as many threads as there are workers (the limit); `embed` with an encoder that
takes no time; and `embed` with the tiny CLIP. `embed` includes planning, digests, the parts on disk and putting them
together, and starts anew in every turn.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor

from experiments.performance.machine import machine_metadata
from grafalign.encoders import ClipSettings, FrozenClip, embed, load_clip
from grafalign.sandbox import TINY_CLIP_DIR
from grafalign.store import PairStore

HERE = Path(__file__).parent
COMMAND = 'python -m experiments.performance.bank --data FOLDER'
PHOTOS, A_TAR, TURNS, SEED = 4_000, 1_000, 3, 0
HEIGHT, WIDTH, QUALITY, SIDE, CHUNK = 480, 640, 90, 224, 128


def photo(rng: np.random.Generator) -> bytes:
    """A JPEG whose amplitudes fall with 1 / frequency, as those of photos do."""
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None])
    frequency[0, 0] = np.inf
    planes = []
    for _ in range(3):
        noise = np.fft.rfft2(rng.standard_normal((HEIGHT, WIDTH)))
        plane = np.fft.irfft2(noise / frequency, (HEIGHT, WIDTH))
        planes.append((128 + 45 * plane / plane.std()).clip(0, 255).astype(np.uint8))
    out = io.BytesIO()
    Image.fromarray(np.stack(planes, -1)).save(out, 'JPEG', quality=QUALITY)
    return out.getvalue()


def material(folder: Path, photos: int) -> dict[str, PairStore]:
    """Stores of the same photos as files and in tars; every tenth photo is a picture of its own."""
    rng, stores = np.random.default_rng(SEED), folder / 'stores'
    if not stores.is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        (folder / 'photos').mkdir(parents=True)
        pictures = [photo(rng) for _ in range(photos // 10)]
        for number in range(photos):
            (folder / 'photos' / f'{number:06d}.jpg').write_bytes(pictures[number % len(pictures)])
        for first in range(0, photos, A_TAR):
            with tarfile.open(folder / f'{first // A_TAR:03d}.tar', 'w') as tar:
                for number in range(first, min(first + A_TAR, photos)):
                    tar.add(folder / 'photos' / f'{number:06d}.jpg', f'{number:06d}.jpg')
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(folder / 'tile.png')
        uris = [f'photos/{number:06d}.jpg' for number in range(photos)]
        pd.DataFrame({'photo': uris, 'tile': 'tile.png', 'place': 'p'}).to_csv(folder / 'pairs.csv', index=False)
        command = [*('import-pairs', folder / 'pairs.csv', stores / 'files'), '--gsd', 1]
        subprocess.run([sys.executable, '-m', 'grafalign', *map(str, command)], check=True, capture_output=True)
        shutil.copytree(stores / 'files', stores / 'tars')
        table = gpd.read_parquet(stores / 'tars' / 'photos.parquet')  # tables may not name members of tars
        number = table['uri'].str.extract(r'(\d{6})\.jpg', expand=False)
        table['uri'] = [f'tar://{n}.jpg::{folder.resolve()}/{int(n) // A_TAR:03d}.tar' for n in number]
        table.to_parquet(stores / 'tars' / 'photos.parquet')
    return {name: PairStore(stores / name) for name in ('files', 'tars')}


@dataclass(frozen=True)
class NoTime(FrozenClip):
    """An encoder that takes no time, behind CLIP's preprocessing to 224 pixels."""

    def encode_images(self, images: Tensor) -> Tensor:
        """The same unit vector for all."""
        return torch.full((len(images), self._width), self._width**-0.5)

    @cached_property
    def _width(self) -> int:
        return int(self.encode_text(['']).shape[1])

    @classmethod
    def like(cls, clip: FrozenClip) -> NoTime:
        """With the preprocessing of a CLIP of 224 pixels."""
        preprocess = image_transform_v2(PreprocessCfg(size=SIDE, mean=clip.mean, std=clip.std), is_train=False)
        return cls(clip.model, preprocess, clip.tokenizer, clip.settings, clip.mean, clip.std, SIDE)


def decode(files: list[Path], clip: FrozenClip, workers: int) -> None:
    """Read, decode and resize, and nothing else, into an array that is used again and again."""
    images = torch.zeros(CHUNK, 3, clip.image_px, clip.image_px)

    def one(number: int) -> None:
        with Image.open(io.BytesIO(files[number].read_bytes())) as image:
            image.draft('RGB', (2 * clip.image_px, 2 * clip.image_px))
            image.load()
            factor = min(image.size) // (2 * clip.image_px)
            images[number % CHUNK] = clip.preprocess(image.reduce(factor) if factor > 1 else image)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, range(len(files))))


def measure(folder: Path, photos: int) -> list[dict[str, Any]]:
    """Photos a second of all ways in turns, by encoder and workers."""
    stores, tiny = material(folder, photos), load_clip(ClipSettings(model=str(TINY_CLIP_DIR)))
    files = sorted((folder / 'photos').iterdir())
    rows = []
    for name, clip in (('no time, 224 px', NoTime.like(tiny)), ('tiny CLIP, 64 px', tiny)):
        for workers in (1, 2):
            torch.set_num_threads(workers)
            ways: dict[str, Callable[[], object]] = {
                'decode': lambda c=clip, w=workers: decode(files, c, w),
                **{k: lambda s=s, c=clip, w=workers: embed(s, c, folder / 'bank', w) for k, s in stores.items()},
            }
            spent: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(TURNS):
                for way, work in ways.items():
                    shutil.rmtree(folder / 'bank', ignore_errors=True)
                    started = time.perf_counter()
                    work()
                    spent[way].append(time.perf_counter() - started)
            ratios = {k: [d / t for d, t in zip(spent['decode'], spent[k], strict=True)] for k in stores}
            rows.append(
                {
                    'encoder': name,
                    'workers': workers,
                    'photos_a_second': {way: round(photos / statistics.median(s)) for way, s in spent.items()},
                    'of_decoding': {
                        k: [round(f(r), 3) for f in (statistics.median, min, max)] for k, r in ratios.items()
                    },
                }
            )
            print(rows[-1], flush=True)
    return rows


def write_page(content: dict[str, Any], path: Path) -> None:
    """The result as a page."""
    settings, machine = content['settings'], content['machine']
    lines = [
        '# A photo bank, and decoding its photos',
        '',
        f'`{content["command"]}`, on {machine["cores"]} cores (load {machine["load_at_start"]} before). '
        f'{settings["photos"]:,} JPEGs of {settings["pixels"]}, of {settings["kb_a_photo"]} kB; median of '
        f'{settings["turns"]} turns, and the least and largest in brackets. The limit is to read, decode and resize '
        'them in as many threads, with nothing else.',
        '',
        '| encoder | workers | decoding alone, photos/s | `embed`, files | tars | of decoding: files | tars |',
        '|---|---|---|---|---|---|---|',
    ]
    for row in content['rows']:
        speed, share = row['photos_a_second'], row['of_decoding']
        files, tars = (f'**{m:.2f}** ({a:.2f} to {b:.2f})' for m, a, b in (share['files'], share['tars']))
        lines.append(
            f'| {row["encoder"]} | {row["workers"]} | {speed["decode"]} | {speed["files"]} | {speed["tars"]} | {files} '
            f'| {tars} |'
        )
    lines += [
        '',
        '`embed` includes planning, the digests of all photos, parts on disk, and putting them together. The tiny CLIP '
        'shares the cores with decoding.',
        '',
    ]
    path.write_text('\n'.join(lines))


def main() -> None:
    """Measure in turns and write the result and its page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--photos', type=int, default=PHOTOS)
    args = parser.parse_args()
    machine = machine_metadata()
    rows = measure(args.data, args.photos)
    size = sum(p.stat().st_size for p in (args.data / 'photos').iterdir()) / args.photos
    content = {
        'command': COMMAND,
        'settings': {
            'photos': args.photos,
            'pixels': f'{WIDTH} x {HEIGHT}',
            'kb_a_photo': round(size / 1000),
            'turns': TURNS,
            'seed': SEED,
        },
        'versions': {name: version(name) for name in ('grafalign', 'torch', 'pillow', 'open_clip_torch')},
        'machine': machine,
        'rows': rows,
    }
    (HERE / 'results' / 'bank.json').write_text(json.dumps(content, indent=2) + '\n')
    write_page(content, HERE / 'bank.md')


if __name__ == '__main__':
    main()
