"""Ctrl-C and kill -9 in every step, at moments that the step's own files show; then the same command again.

What stands in the end must be what an uninterrupted run leaves, byte for byte. Each step is stopped several times in a
row, so the resumed runs are stopped too.
"""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pandas as pd
import pytest

from grafalign.config import load_settings
from grafalign.encoders import PhotoBank
from grafalign.pairing import Recipe, pair
from grafalign.sandbox import TINY_CLIP_DIR
from grafalign.store import PairStore
from tests.commands import (
    contents,
    finish,
    interrupted,
    photo_table,
    refused,
    start,
    wait_for,
    write_recipe,
    write_yaml,
)

CTRL_C, KILL_9 = signal.SIGINT, signal.SIGKILL
SIGNALS = pytest.mark.parametrize(
    'how', [pytest.param(CTRL_C, id='ctrl-c', marks=pytest.mark.slow), pytest.param(KILL_9, id='kill-9')]
)


def uninterrupted(*args: object) -> None:
    """Run a command from start to end."""
    code, err = finish(start(*args))
    assert code == 0, err


@pytest.fixture(scope='module')
def whole_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world that was made in one go."""
    out = tmp_path_factory.mktemp('whole') / 'world'
    uninterrupted('sandbox', out, '--seed', 7, '--photos', 60, '--rows', 512, '--cols', 512)
    return out


@pytest.mark.slow
@SIGNALS
def test_a_stopped_sandbox_is_made_anew(how: signal.Signals, whole_world: Path, tmp_path: Path) -> None:
    """A world that was stopped while scenes, photos and truth were written is in the end the same world."""
    out = tmp_path / 'world'
    moments = ['catalog/*/*/*.tif', 'photos/00/*.jpg', 'truth/classes.tif']
    stops = [(pattern, how) for pattern in moments]
    interrupted(out, stops, 'sandbox', out, '--seed', 7, '--photos', 60, '--rows', 512, '--cols', 512)
    assert contents(out) == contents(whole_world)


@pytest.fixture(scope='module')
def whole_store(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe of many small shards, and its store made in one go."""
    folder = tmp_path_factory.mktemp('whole')
    recipe = write_recipe(folder / 'recipe.yaml', world, {'folder': world / 'photos'}, shard_tiles=4)
    uninterrupted('pair', recipe, folder / 'pairs')
    return recipe, folder / 'pairs'


@SIGNALS
def test_a_stopped_pairing_goes_on(how: signal.Signals, whole_store: tuple[Path, Path], tmp_path: Path) -> None:
    """All files of a store are the same bytes after stops in planning, in cutting and in writing the tables."""
    recipe, whole = whole_store
    out = tmp_path / 'pairs'
    moments = ['_work/recipe.txt', '_work/candidates.parquet', 'tiles/00001.tar', 'tiles/00009.tar', 'tiles.parquet']
    interrupted(out, [(pattern, how) for pattern in moments], 'pair', recipe, out)
    assert contents(out) == contents(whole)


def test_finished_shards_are_not_cut_again(whole_store: tuple[Path, Path], tmp_path: Path) -> None:
    """What a killed pairing had finished is kept: the shards that stood then are the same files in the end."""
    recipe, whole = whole_store
    out = tmp_path / 'pairs'
    process = start('pair', recipe, out)
    wait_for(process, out, 'tiles/00004.tar')
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    kept = {p.name: p.stat().st_ino for p in out.glob('tiles/*.tar')}
    uninterrupted('pair', recipe, out)
    after = {p.name: p.stat().st_ino for p in out.glob('tiles/*.tar')}
    assert len(kept) < len(after)
    assert kept.items() <= after.items()
    assert contents(out) == contents(whole)


@pytest.fixture(scope='module')
def many_photos(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose bank takes several parts: every photo of the world is listed twice."""
    folder = tmp_path_factory.mktemp('many')
    once = photo_table(world, 480)
    table = pd.concat([once.assign(photo_id=f'{i}_' + once['photo_id']) for i in range(2)])
    table.to_csv(folder / 'table.csv', index=False)
    photos = {'table': folder / 'table.csv', 'verify': False}
    recipe = write_recipe(folder / 'recipe.yaml', world, photos, plan={'max_photos': 1000}, shard_tiles=64)
    pair(load_settings(recipe, Recipe), folder / 'pairs')
    uninterrupted('embed', shutil.copytree(folder / 'pairs', folder / 'whole'), '--model', TINY_CLIP_DIR)
    return folder


@pytest.mark.slow
def test_a_stopped_embedding_goes_on(many_photos: Path, tmp_path: Path) -> None:
    """The bank is the same bytes after stops between its parts and before its marker."""
    out = shutil.copytree(many_photos / 'pairs', tmp_path / 'pairs')
    stops = [('parts-*/*.parquet', CTRL_C), ('next/embeddings.npy', KILL_9)]
    interrupted(out / 'bank', stops, 'embed', out, '--model', TINY_CLIP_DIR)
    assert contents(out / 'bank') == contents(many_photos / 'whole' / 'bank')


def test_a_part_that_a_disk_has_spoilt_is_named(many_photos: Path, tmp_path: Path) -> None:
    """One sentence with the file and what to do; after it the bank is the same bytes."""
    out = shutil.copytree(many_photos / 'pairs', tmp_path / 'pairs')
    process = start('embed', out, '--model', TINY_CLIP_DIR)
    wait_for(process, out / 'bank', 'parts-*/00001.parquet')
    process.kill()
    finish(process)
    part = next((out / 'bank').glob('parts-*/00000.parquet'))
    part.write_bytes(part.read_bytes()[:100])
    line = refused(finish(start('embed', out, '--model', TINY_CLIP_DIR)), part, 'is damaged', 'delete it and')
    assert 'Traceback' not in line
    part.unlink()
    uninterrupted('embed', out, '--model', TINY_CLIP_DIR)
    assert contents(out / 'bank') == contents(many_photos / 'whole' / 'bank')


@pytest.fixture(scope='module')
def whole_run(store: PairStore, bank: PhotoBank, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Settings of a short training, and its run made in one go."""
    folder = tmp_path_factory.mktemp('whole')
    settings = {
        'store': str(store.path),
        'out': str(folder / 'run'),
        'clip': {'model': str(TINY_CLIP_DIR)},
        'level': 'patch',
        'steps': 30,
        'batch_tiles': 32,
        'checkpoint_every': 5,
        'log_every': 5,
        'validate_every': 10,
        'precision': 'no',
    }
    config = write_yaml(folder / 'train.yaml', settings)
    uninterrupted('train', config)
    return config, folder / 'run'


@pytest.mark.slow
def test_a_stopped_training_goes_on(whole_run: tuple[Path, Path], tmp_path: Path) -> None:
    """The weights are the same bits after stops between checkpoints; the log has every entry once."""
    config, whole = whole_run
    out = tmp_path / 'run'
    stops = [('checkpoints/step_*05', CTRL_C), ('checkpoints/step_*2?', KILL_9)]
    interrupted(out, stops, 'train', config, '--set', f'out={out}')
    assert (out / 'model.safetensors').read_bytes() == (whole / 'model.safetensors').read_bytes()
    log, whole_log = (pd.read_json(run / 'log.jsonl', lines=True)[['step', 'loss']] for run in (out, whole))
    assert log.equals(whole_log)


@pytest.mark.slow
def test_a_killed_experiment_goes_on_at_once(world: Path, tmp_path: Path) -> None:
    """After kill -9 of `run` while its trainings run, the same command finishes: no orphan holds the run folders."""
    recipe = write_recipe(tmp_path / 'recipe.yaml', world, {'folder': world / 'photos'}, shard_tiles=64)
    run = {'steps': 60, 'batch_tiles': 16, 'log_every': 2, 'checkpoint_every': 10}
    experiment = {
        'title': 'killed',
        'out': str(tmp_path / 'out'),
        'pair': str(recipe),
        'clip': {'model': str(TINY_CLIP_DIR)},
        'train': {'a': {'level': 'image', **run}, 'b': {'level': 'patch', **run}},
    }
    config = write_yaml(tmp_path / 'experiment.yaml', experiment)
    interrupted(tmp_path / 'out', [('a/checkpoints/step_*', KILL_9)], 'run', config)
    report = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert [report['runs'][name]['steps'] for name in ('a', 'b')] == [60, 60]
