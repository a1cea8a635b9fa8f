"""What is trained: a CLIP with random weights, a store of noise, and settings; all but the loss use it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import geopandas as gpd
import numpy as np
import open_clip
import pandas as pd
import shapely
import torch
import yaml
from safetensors.torch import save_file

from experiments.performance.training.measuring import SEED, THREADS
from experiments.performance.training.watching import Line, watch
from grafalign.encoders import ClipSettings, load_clip
from grafalign.encoders.bank import BankMarker, identity_of
from grafalign.files import write_table
from grafalign.store import MARKER, SCHEMA_VERSION, ShardWriter, shard_name
from grafalign.store_marker import Sensor, StoreMarker
from grafalign.training import TrainSettings


class Sizes(NamedTuple):
    """How much is measured."""

    vision: Mapping[str, int]
    """Image tower of the CLIP; the text tower is as wide and as deep."""
    tiles: int
    batch: int
    steps: int
    turns: int
    warm_up: int
    """Steps that are not counted: processes start, caches fill."""
    block: int
    """Steps of one loop before the other has its turn."""
    bank: int


PHOTOS = 10
PX = 224
VIT_S_32 = {'image_size': PX, 'layers': 12, 'width': 384, 'patch_size': 32}
TINY = {'image_size': PX, 'layers': 2, 'width': 64, 'patch_size': 32}
FULL = Sizes(VIT_S_32, 7168, 64, 12, 2, 4, 8, 65536)
QUICK = Sizes(TINY, 256, 8, 8, 2, 4, 2, 1024)
SHARD_TILES = 256
BANDS = ('red', 'green', 'blue')
RANGES = {'uint8': (0.0, 255.0), 'uint16': (0.0, 3000.0)}


def sizes_of(data: Path) -> Sizes:
    """The sizes of this run, which its data folder tells."""
    return QUICK if data.name.endswith('quick') else FULL


def make_clip(data: Path, vision: Mapping[str, int]) -> Path:
    """A CLIP with random weights, saved as open_clip saves it."""
    folder = data / 'clip'
    if (folder / 'open_clip_model.safetensors').is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    width = vision['width']
    text = {'context_length': 77, 'vocab_size': 49408, 'width': width, 'heads': width // 64, 'layers': vision['layers']}
    model = {'embed_dim': width, 'vision_cfg': dict(vision), 'text_cfg': text}
    (folder / 'open_clip_config.json').write_text(json.dumps({'model_cfg': model, 'preprocess_cfg': {}}))
    torch.manual_seed(SEED)
    made = open_clip.create_model(f'local-dir:{folder}', load_weights=False)
    save_file(made.state_dict(), str(folder / 'open_clip_model.safetensors'))
    return folder


def make_store(data: Path, dtype: str) -> Path:
    """A pair store of noise with ten photos a tile and a bank of random unit vectors, written without pairing."""
    sizes, out = sizes_of(data), data / f'store_{dtype}'
    clip = load_clip(ClipSettings(model=str(make_clip(data, sizes.vision))))
    if (out / 'bank' / 'bank.json').is_file():
        return out
    rng = np.random.default_rng(SEED)
    names, rows = [f'tile_{n:07d}' for n in range(sizes.tiles)], []
    for shard in range(-(-sizes.tiles // SHARD_TILES)):
        with ShardWriter(out / shard_name(shard)) as writer:
            for name in names[shard * SHARD_TILES : (shard + 1) * SHARD_TILES]:
                pixels = rng.integers(0, int(RANGES[dtype][1]), (len(BANDS), PX, PX)).astype(dtype)
                rows.append((shard_name(shard), *writer.add(name, pixels, {'tile_id': name})))
    lon, lat = rng.uniform(-100, -90, sizes.tiles), rng.uniform(30, 40, sizes.tiles)
    tiles = pd.DataFrame(rows, columns=['shard', 'byte_offset', 'nbytes']).assign(
        tile_id=names, split='train', scale=[[1.0] * 3] * sizes.tiles, offset=[[0.0] * 3] * sizes.tiles
    )
    outlines = shapely.box(lon, lat, lon + 0.002, lat + 0.002)
    write_table(gpd.GeoDataFrame(tiles, geometry=outlines, crs='EPSG:4326'), out / 'tiles.parquet')
    count = sizes.tiles * PHOTOS
    photos = pd.DataFrame({'photo_id': [f'photo_{n:09d}' for n in range(count)], 'uri': '', 'accuracy_m': 10.0})
    points = gpd.points_from_xy(np.repeat(lon, PHOTOS) + 0.001, np.repeat(lat, PHOTOS) + 0.001)
    write_table(gpd.GeoDataFrame(photos, geometry=points, crs='EPSG:4326'), out / 'photos.parquet')
    row, col = rng.uniform(0, PX, (2, count))
    pairs = {'tile_id': np.repeat(names, PHOTOS), 'photo_id': photos['photo_id'], 'row': row, 'col': col}
    write_table(pd.DataFrame(pairs).assign(days_apart=0.0), out / 'pairs.parquet')
    sensor = Sensor('noise', BANDS, 1.0, PX, RANGES[dtype])
    StoreMarker(schema_version=SCHEMA_VERSION, sensor=sensor, digest=f'noise {dtype} {sizes.tiles}').write(out / MARKER)
    bank = out / 'bank'
    bank.mkdir(exist_ok=True)
    vectors = rng.normal(size=(count, sizes.vision['width'])).astype(np.float32)
    np.save(bank / 'embeddings.npy', (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16))
    known = {'width': 640, 'height': 480, 'digest': '', 'dhash': '', 'transient': False}
    problem = pd.Series(pd.NA, index=photos.index, dtype='string')
    rows = photos[['photo_id']].assign(**identity_of(photos), **known, problem=problem)
    write_table(rows, bank / 'photos.parquet')
    settings = clip.settings.model_dump()
    BankMarker(format=BankMarker.NEWEST, clip=clip.digest, clip_settings=settings, photos=count).write(
        bank / 'bank.json'
    )
    return out


def train_settings(data: Path, dtype: str = 'uint8', **changes: Any) -> Any:
    """A training on the store: ViT-S/32, image level, the paper's loss, full precision."""
    sizes = sizes_of(data)
    values = {
        'store': data / f'store_{dtype}',
        'out': data / 'run',
        'clip': {'model': str(data / 'clip')},
        'steps': sizes.steps,
        'batch_tiles': sizes.batch,
        'micro_batch': changes.get('batch_tiles', sizes.batch),
        'precision': 'no',
        'workers': THREADS,
        'trackers': [],
        'validate_every': 10**6,
        'checkpoint_every': 10**6,
        'log_every': 2,
    }
    return TrainSettings.model_validate(values | changes)


def run_training(data: Path, settings: Any) -> tuple[list[Line], list[dict[str, float]]]:
    """`grafalign train` in a fresh folder: the lines it showed and its log."""
    shutil.rmtree(settings.out, ignore_errors=True)
    config = data / 'train.yaml'
    config.write_text(yaml.safe_dump(settings.model_dump(mode='json')))
    command = [sys.executable, '-m', 'grafalign', 'train', str(config)]
    lines = watch(command, r'step +(\d+)/', data, settings.batch_tiles)
    log = [json.loads(entry) for entry in (settings.out / 'log.jsonl').read_text().splitlines()]
    shutil.rmtree(settings.out)
    return lines, log


def warm_files(store: Path) -> None:
    """Read all shards once."""
    for path in sorted(store.glob('tiles/*.tar')):
        with path.open('rb') as file:
            while file.read(1 << 24):
                pass
