"""Short of descriptors, memory, disk or sense: one sentence, and what is whole is never called damaged."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from grafalign.config import load_settings
from grafalign.encoders import FrozenClip, PhotoBank
from grafalign.errors import GrafalignError
from grafalign.pairing.check import check_store
from grafalign.pairing.recipe import Recipe
from grafalign.search.catalog import Catalog
from grafalign.search.check import check_index
from grafalign.search.marker import IndexModel, IndexSource
from grafalign.store import PairStore, ShardWriter
from grafalign.training import train
from grafalign.training.optimizer import make_optimizer
from grafalign.training.worker_room import check_worker_room
from tests.training_world import settings, start

# ---- the store -------------------------------------------------------------------------------------------------------


@contextmanager
def files_at_most(count: int) -> Iterator[None]:
    """So many open files more than there are now."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path('/proc/self/fd').iterdir())) + count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def own_store(store: PairStore, tmp_path: Path) -> Path:
    """A copy of the small store."""
    return shutil.copytree(str(store.path), tmp_path / 'pairs')


def in_many_shards(path: Path, count: int) -> PairStore:
    """A store of `count` tiles with a shard each."""
    whole = PairStore(path)
    tiles = whole.tiles.iloc[np.arange(count) % len(whole.tiles)].reset_index(drop=True)
    shards, offsets, sizes = [], [], []
    for number in range(count):
        name = f'tiles/m{number:05d}.tar'
        with ShardWriter(path / name) as writer:
            offset, size = writer.add('t', whole.read_tile(number % len(whole.tiles)), {})
        shards.append(name)
        offsets.append(offset)
        sizes.append(size)
    whole.close()
    tiles.assign(shard=shards, byte_offset=offsets, nbytes=sizes).to_parquet(path / 'tiles.parquet')
    return PairStore(path)


def test_more_shards_than_open_files(own_store: Path) -> None:
    """A store of 300 shards is read, to and fro, by a process that may open 90 files."""
    store = in_many_shards(own_store, 300)
    first = store.read_tile(0)
    with files_at_most(90):
        for number in [*range(300), *range(299, -1, -1)]:
            store.read_tile(number)
        np.testing.assert_array_equal(store.read_tile(0), first)


@pytest.mark.parametrize(
    ('number', 'remedy'), [(errno.EMFILE, 'ulimit -n'), (errno.EIO, 'the disk'), (errno.ESTALE, 'network disk')]
)
def test_a_failure_that_says_nothing_of_the_file_is_not_called_damage(
    own_store: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    """Whoever obeys "pair again" would lose a whole store."""
    store = PairStore(own_store)
    store.tiles  # noqa: B018, read while files can be opened

    def fail(*_: object) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, 'pread', fail)
    with pytest.raises(GrafalignError, match=remedy) as error:
        store.read_tile(0)
    assert 'damaged' not in str(error.value) and 'pair again' not in str(error.value)


MARKERS = [
    '[' * 100_000,
    '{"schema_version": 1e999}',
    '[]',
    '{"schema_version": 1, "sensor": {}}',
    '{"schema_version": 1, "sensor": []}',
    '{"schema_version": true}',
]


@pytest.mark.parametrize('content', MARKERS)
def test_a_damaged_marker_is_one_sentence(own_store: Path, content: str) -> None:
    """Of a store; whatever it holds."""
    (own_store / 'dataset.json').write_text(content)
    with pytest.raises(GrafalignError, match=r'dataset\.json'):
        PairStore(own_store)


@pytest.mark.parametrize('column', ['shard', 'nbytes', 'byte_offset', 'split', 'scale'])
def test_a_table_without_a_column_is_one_sentence(own_store: Path, column: str) -> None:
    """Also in `check`, which must not end at the first damage."""
    store = PairStore(own_store)
    store.tiles.drop(columns=column).to_parquet(own_store / 'tiles.parquet')
    with pytest.raises(GrafalignError, match=f'no column {column}'):
        PairStore(own_store).tiles  # noqa: B018
    assert any(f.problems for f in check_store(PairStore(own_store)))


@pytest.mark.parametrize(
    'change',
    [
        {'shard': '../../../../../../etc/passwd'},
        {'shard': '/dev/zero'},
        {'nbytes': 2**62},
        {'byte_offset': -5},
        {'shard': 'tiles/pipe'},
    ],
)
def test_rows_of_a_foreign_store_lead_nowhere(own_store: Path, change: dict[str, object]) -> None:
    """Neither outside the store, nor to devices and pipes, nor to more memory than a tile takes."""
    os.mkfifo(own_store / 'tiles' / 'pipe')
    PairStore(own_store).tiles.assign(**change).to_parquet(own_store / 'tiles.parquet')
    store = PairStore(own_store)
    with pytest.raises(GrafalignError, match='cannot be read'):
        store.read_tile(0)
    assert any(f.problems for f in check_store(store))


def test_check_finds_numbers_that_are_not_finite(own_store: Path) -> None:
    """NaN in a tile is no pixel; an infinite scale no scale."""
    store = PairStore(own_store)
    tiles = store.tiles.copy()
    tiles['scale'] = [[float('inf')] * len(store.sensor.bands)] * len(tiles)
    tiles.to_parquet(own_store / 'tiles.parquet')
    with pytest.raises(GrafalignError, match='is no finite number'):
        PairStore(own_store).radiometry  # noqa: B018


def test_a_pipe_for_a_marker_or_table_does_not_hang(own_store: Path) -> None:
    """Of a store that somebody else made."""
    (own_store / 'tiles.parquet').unlink()
    os.mkfifo(own_store / 'tiles.parquet')
    with pytest.raises(GrafalignError, match='not a file'):
        PairStore(own_store).tiles  # noqa: B018
    (own_store / 'dataset.json').unlink()
    os.mkfifo(own_store / 'dataset.json')
    with pytest.raises(GrafalignError, match=r'dataset\.json'):
        PairStore(own_store)


# ---- the index -------------------------------------------------------------------------------------------------------


def index_of(path: Path, rows: int = 50, width: int = 8) -> Catalog:
    """A small index."""
    import geopandas as gpd

    catalog = Catalog.create(path, width, IndexModel(digest='a', name='m', spec='s', kind='run'), 0.99)
    for start_row in (0, rows):
        vectors = np.random.default_rng(start_row).normal(size=(rows, width)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        table = {'item_id': [str(start_row + i) for i in range(rows)], 'source': 's', 'stamp': ''}
        items = gpd.GeoDataFrame(table, geometry=[None] * rows, crs='EPSG:4326').assign(datetime=pd.NaT)
        catalog.append(items, vectors, source=IndexSource(bands=('red',), value_range=(0, 1)))
    return catalog


def test_check_finds_every_flipped_byte_of_an_index(tmp_path: Path) -> None:
    """In the vectors, the items and what was removed."""
    catalog = index_of(tmp_path / 'index')
    catalog.remove(np.array([3]))
    assert not any(f.problems for f in check_index(tmp_path / 'index'))
    rng = np.random.default_rng(0)
    for path in sorted((tmp_path / 'index').iterdir()):
        if path.suffix not in ('.f32', '.parquet', '.npy'):
            continue
        whole = path.read_bytes()
        for at in rng.integers(0, len(whole), 5).tolist():
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            assert any(f.problems for f in check_index(tmp_path / 'index')), (path.name, at)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    'change',
    [
        {'rows': 10**15},
        {'width': 0},
        {'width': -1},
        {'files': {}},
        {'sources': []},
        {'model': None},
        {'files': {'../../etc/passwd': 5}},
        {'format': 1e999},
        {'stretches': [[1]]},
        {'stretches': 5},
        {'digests': [1]},
    ],
)
def test_a_damaged_marker_of_an_index_is_one_sentence(tmp_path: Path, change: dict[str, object]) -> None:
    """No traceback, no allocation of what it claims."""
    index_of(tmp_path / 'index')
    marker = tmp_path / 'index' / 'index.json'
    marker.write_text(json.dumps({**json.loads(marker.read_text()), **change}))
    with pytest.raises(GrafalignError, match=r'index\.json'):
        Catalog(tmp_path / 'index')
    marker.write_text('[' * 100_000)
    with pytest.raises(GrafalignError, match='nested too deeply'):
        Catalog(tmp_path / 'index')


# ---- settings --------------------------------------------------------------------------------------------------------

BOMB = '\n'.join(f'a{n}: &a{n} [{", ".join([f"*a{n - 1}"] * 9)}]' if n else 'a0: &a0 [x, x]' for n in range(9))


@pytest.mark.parametrize(
    'content', [BOMB, '[' * 20_000, 'photos: ' + '9' * 5000, 'a: !!python/object/apply:os.system [ls]'], ids='abcd'
)
def test_hostile_yaml_is_one_short_sentence(tmp_path: Path, content: str) -> None:
    """Aliases of aliases, brackets, integers of thousands of digits, tags of Python."""
    (tmp_path / 'recipe.yaml').write_text(content)
    with pytest.raises(GrafalignError, match=r'recipe\.yaml') as error:
        load_settings(tmp_path / 'recipe.yaml', Recipe)
    assert len(str(error.value)) < 1000


# ---- training --------------------------------------------------------------------------------------------------------


def test_temperature_and_bias_move_as_siglips_do(store: PairStore, bank: PhotoBank, clip: FrozenClip) -> None:
    """At default rates: after 150 steps of a steady gradient each has gone 0.15, and the encoder as its own rate says.

    Adam moves a parameter by about its rate a step while the sign of the gradient holds (Kingma and Ba 2015, section
    2.1), and SigLIP trains both at 1e-3.
    """
    wanted = settings(store, clip, form='sigmoid', learn_tau=True, lr=None)
    task = start(store, bank, clip, wanted)
    optimizer = make_optimizer(task, wanted.peak_lr, wanted.weight_decay, torch.device('cpu'), wanted.lr_scalars)
    before = {n: p.detach().clone() for n, p in task.named_parameters() if p.requires_grad}
    for _ in range(150):
        for parameter in task.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    moved = {n: float((p.detach() - before[n]).abs().median()) for n, p in task.named_parameters() if n in before}
    assert moved['log_scale'] == pytest.approx(0.15, rel=0.05) and moved['bias'] == pytest.approx(0.15, rel=0.05)
    others = [v for n, v in moved.items() if n not in ('log_scale', 'bias')]
    assert max(others) <= 150 * wanted.peak_lr * 1.1


def test_a_tile_of_nan_is_left_out_and_named(
    own_store: Path, clip: FrozenClip, bank: PhotoBank, tmp_path: Path
) -> None:
    """Three tiles with NaN (as earlier stores may hold) neither end a training nor take part in it."""
    whole = PairStore(own_store)
    rows = whole.tiles_of('train')[:3].tolist()
    name = 'tiles/nan.tar'
    tiles = whole.tiles.copy()
    shape = (len(whole.sensor.bands), whole.sensor.size_px, whole.sensor.size_px)
    shards, offsets, sizes = [], [], []
    with ShardWriter(own_store / name) as writer:
        for row in range(len(tiles)):
            pixels = np.full(shape, np.nan, 'float32') if row in rows else whole.read_tile(row).astype('float32')
            offset, size = writer.add(str(row), pixels, {})
            shards.append(name)
            offsets.append(offset)
            sizes.append(size)
    tiles.assign(shard=shards, byte_offset=offsets, nbytes=sizes).to_parquet(own_store / 'tiles.parquet')
    wanted = settings(PairStore(own_store), clip, tmp_path / 'run', max_bad_tiles=3, steps=14)
    final = train(wanted).final
    assert final['bad_tiles'] == 3 and np.isfinite(final['loss'])
    assert set((tmp_path / 'run' / 'bad_tiles.txt').read_text().split()) == set(tiles['tile_id'].iloc[rows])


class Steps:
    """Batches of one size."""

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        """A batch of 40 MB in ten tensors."""
        return {str(n): torch.zeros(1_000_000) for n in range(10)}


def test_data_workers_without_room_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker's 64 MB of shared memory, or few descriptors: a sentence with the remedy instead of waiting for ever."""
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: shutil._ntuple_diskusage(64 << 20, 0, 64 << 20))
    with pytest.raises(GrafalignError, match=r'/dev/shm.*--shm-size.*workers: 0'):
        check_worker_room(Steps(), 0, 2)
    monkeypatch.undo()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))  # however many this process has open already
    try:
        with pytest.raises(GrafalignError, match='ulimit -n'):
            check_worker_room(Steps(), 0, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
