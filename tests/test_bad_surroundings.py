"""What lies around a command and is wrong: another CLIP, a newer or damaged store, a full disk, a second process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from grafalign.locks import exclusive
from grafalign.sandbox import TINY_CLIP_DIR
from grafalign.store import SCHEMA_VERSION
from tests.commands import Command, contents, finish, refused, start, wait_for, write_recipe, write_yaml


@pytest.fixture
def config_of(tmp_path: Path) -> Callable[..., Path]:
    """Writes the settings of a short training on a store, with run folder `run`."""

    def write(store: Path, **more: object) -> Path:
        content = {
            'store': str(store),
            'out': str(tmp_path / 'run'),
            'clip': {'model': str(TINY_CLIP_DIR)},
            'steps': 4,
            'batch_tiles': 8,
            'checkpoint_every': 2,
            'log_every': 2,
            **more,
        }
        return write_yaml(tmp_path / 'train.yaml', content)

    return write


@pytest.fixture(scope='module')
def other_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of the same shape as the tiny one, with other weights."""
    folder = Path(shutil.copytree(TINY_CLIP_DIR, tmp_path_factory.mktemp('clip') / 'other'))
    weights = load_file(folder / 'open_clip_model.safetensors')
    save_file({k: v * 1.01 for k, v in weights.items()}, folder / 'open_clip_model.safetensors')
    return folder


def test_another_clip_than_the_banks_is_refused(own_store: Path, other_clip: Path, config_of, command: Command) -> None:
    """A bank serves its own CLIP only, in embedding and in training, and stays as it was."""
    bank = contents(own_store / 'bank')
    refused(command('embed', own_store, '--model', other_clip), own_store / 'bank', other_clip, 'another folder')
    config = config_of(own_store, clip={'model': str(other_clip)})
    refused(command('train', config), own_store / 'bank', other_clip, 'use that CLIP')
    assert contents(own_store / 'bank') == bank


def test_a_broken_clip_is_named(own_store: Path, other_clip: Path, tmp_path: Path, command: Command) -> None:
    """A CLIP that is no folder, lacks its weights, or whose file is cut short is named with the remedy."""
    folder = Path(shutil.copytree(other_clip, tmp_path / 'clip'))
    (folder / 'open_clip_model.safetensors').write_bytes(b'short')
    shutil.rmtree(own_store / 'bank')
    refused(command('embed', own_store, '--model', folder), folder, 'checkpoint')
    refused(command('embed', own_store, '--model', tmp_path / 'none'), tmp_path / 'none', 'existing folder')
    refused(command('embed', own_store, '--model', 'ViT-B-61'), 'ViT-B-61', 'list_models')


def test_a_checkpoint_of_other_settings_is_refused(own_store: Path, config_of, tmp_path: Path, command) -> None:
    """A run folder goes on with its own settings only, whether it is finished or not, and keeps its checkpoint."""
    code, err = command('train', config_of(own_store))
    assert code == 0, err
    kept = contents(tmp_path / 'run' / 'checkpoints')
    other = config_of(own_store, tau=0.5)
    refused(command('train', other), tmp_path / 'run', 'another `out`')
    (tmp_path / 'run' / 'model.json').unlink()
    refused(command('train', other), tmp_path / 'run' / 'checkpoints', 'another `out`')
    assert contents(tmp_path / 'run' / 'checkpoints') == kept
    weights = tmp_path / 'run' / 'checkpoints' / 'step_00000004' / 'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(command('train', config_of(own_store)), weights.parent, 'is damaged', 'delete this folder')


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'schema_version': SCHEMA_VERSION + 1}, 'upgrade grafalign'),
        ({'schema_version': 'one'}, 'is damaged'),
        ({'sensor': {}}, 'is damaged'),
    ],
    ids=['newer', 'no number', 'no sensor'],
)
def test_a_store_that_cannot_be_read_is_named(
    change: dict[str, object], words: str, own_store: Path, world: Path, config_of, tmp_path: Path, command: Command
) -> None:
    """Every command that opens a store of a newer schema, or with a damaged marker, names the marker and leaves it."""
    marker = own_store / 'dataset.json'
    marker.write_text(json.dumps(json.loads(marker.read_text()) | change))
    before = contents(own_store)
    recipe = write_recipe(tmp_path / 'recipe.yaml', world, {'folder': world / 'photos'})
    for words_of_command in (
        ('pair', recipe, own_store),
        ('embed', own_store, '--model', TINY_CLIP_DIR),
        ('train', config_of(own_store)),
    ):
        refused(command(*words_of_command), marker, words)
    assert contents(own_store) == before


def test_damaged_files_of_a_store_are_named(own_store: Path, config_of, command: Command) -> None:
    """A table, a bank or a shard that was cut short is named with the remedy."""
    config = config_of(own_store)
    bank, table, shard = own_store / 'bank', own_store / 'pairs.parquet', own_store / 'tiles' / '00000.tar'
    for path, named, remedy in (
        (table, table, 'again'),
        (bank / 'bank.json', bank, 'again'),
        (bank / 'embeddings.npy', bank, 'again'),
        (shard, 'bad_tiles.txt lists them', 'Run `grafalign check`'),
    ):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        refused_at_last(command('train', config, '--set', 'batch_tiles=200', '--set', 'max_bad_tiles=0'), named, remedy)
        path.write_bytes(whole)


def refused_at_last(result: tuple[int, str], *names: object) -> None:
    """As `refused`, for a command that has said something before."""
    code, err = result
    assert 'Traceback' not in err, err
    refused((code, err.strip().splitlines()[-1]), *names)


def test_a_folder_that_is_something_else_is_left_alone(world: Path, tmp_path: Path, command: Command) -> None:
    """Pairing writes neither into a folder of other things nor into the store of another recipe."""
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.txt').write_text('all of it')
    recipe = write_recipe(tmp_path / 'recipe.yaml', world, {'folder': world / 'photos'}, shard_tiles=64)
    refused(command('pair', recipe, tmp_path / 'mine'), tmp_path / 'mine', 'empty folder')
    assert contents(tmp_path / 'mine') == {'thesis.txt': b'all of it'}
    code, err = command('pair', recipe, tmp_path / 'pairs')
    assert code == 0, err
    before = contents(tmp_path / 'pairs')
    changed = ('--set', 'plan.seed=1')
    refused(command('pair', recipe, tmp_path / 'pairs', *changed), tmp_path / 'pairs', 'another recipe')
    assert contents(tmp_path / 'pairs') == before


# --- full disks -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path):
    """A real file system of 400 KiB, where this user may mount one."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    mount = shutil.which('mount')
    words = [str(mount), '-t', 'tmpfs', '-o', 'size=400k', 'tmpfs', str(folder)]
    if mount is None or subprocess.run(words, capture_output=True).returncode:
        pytest.skip('mounting a small file system takes root')
    yield folder
    subprocess.run(['umount', str(folder)], check=True)


def test_pairing_goes_on_after_a_full_disk(small_disk: Path, world: Path, tmp_path: Path, command: Command) -> None:
    """A disk that fills up while shards are written is named, whole shards stay; with room the store is the same."""
    recipe = write_recipe(tmp_path / 'recipe.yaml', world, {'folder': world / 'photos'})
    store = small_disk / 'pairs'
    refused(command('pair', recipe, store), store, 'disk is full', 'same command again')
    kept = {p: p.stat().st_ino for p in store.glob('tiles/*')}
    assert kept
    assert all(p.suffix == '.tar' for p in kept)
    subprocess.run(['mount', '-o', 'remount,size=64m', str(small_disk)], check=True)
    code, err = command('pair', recipe, store)
    assert code == 0, err
    assert kept == {p: p.stat().st_ino for p in kept}
    command('pair', recipe, tmp_path / 'roomy')
    assert contents(store) == contents(tmp_path / 'roomy')


def limited(kib: int) -> tuple[str, ...]:
    """Words before a command that let no file grow beyond a size: what a full disk is where nothing can be mounted."""
    return 'sh', '-c', f'ulimit -f {2 * kib}; exec "$@"', 'sh'


@pytest.mark.skipif(os.name != 'posix', reason='limits of files are POSIX')
def test_pairing_goes_on_after_a_full_shard(world: Path, tmp_path: Path, command: Command) -> None:
    """A shard that meets the limit of its file leaves nothing behind, and without the limit the store is the same."""
    recipe = write_recipe(tmp_path / 'recipe.yaml', world, {'folder': world / 'photos'}, shard_tiles=16)
    store = tmp_path / 'pairs'
    refused(finish(start('pair', recipe, store, before=limited(200))), store, 'disk is full', 'same command again')
    assert not any(name.startswith('tiles') or name.endswith('.part') for name in contents(store))
    for out in (store, tmp_path / 'roomy'):
        code, err = command('pair', recipe, out)
        assert code == 0, err
    assert contents(store) == contents(tmp_path / 'roomy')


@pytest.mark.slow
@pytest.mark.skipif(os.name != 'posix', reason='limits of files are POSIX')
def test_embedding_and_training_name_a_full_disk(own_store: Path, config_of, tmp_path: Path, command: Command) -> None:
    """A bank or a checkpoint that finds no room is named, leaves no parts, and is finished once there is room."""
    shutil.rmtree(own_store / 'bank')
    embedding = ('embed', own_store, '--model', TINY_CLIP_DIR)
    refused(finish(start(*embedding, before=limited(16))), own_store / 'bank', 'disk is full', 'same command again')
    code, err = command(*embedding)
    assert code == 0, err
    config, run = config_of(own_store), tmp_path / 'run'
    result = finish(start('train', config, before=limited(5000)))
    refused_at_last(result, run / 'checkpoints', 'free some space', 'same command again')
    assert not any('part' in name for name in contents(run))
    code, err = command('train', config)
    assert code == 0, err
    assert (run / 'model.json').is_file()


# --- two processes ----------------------------------------------------------------------------------------------------


def test_a_second_pairing_waits_outside(world: Path, tmp_path: Path, command: Command) -> None:
    """While a process writes a store a second one is told so and changes nothing; the first one finishes."""
    recipe = write_recipe(tmp_path / 'recipe.yaml', world, {'folder': world / 'photos'}, shard_tiles=1)
    store = tmp_path / 'pairs'
    first = start('pair', recipe, store, '--workers', 1)
    wait_for(first, store, 'tiles/00002.tar')
    first.send_signal(signal.SIGSTOP)
    os.waitpid(first.pid, os.WUNTRACED)  # until all of its threads stand still
    before = contents(store)
    refused(command('pair', recipe, store), store, 'Another process', 'wait for it')
    assert contents(store) == before
    first.send_signal(signal.SIGCONT)
    code, err = finish(first)
    assert code == 0, err
    assert not (store / '.lock').exists()


def test_a_folder_in_use_is_refused(own_store: Path, config_of, tmp_path: Path, command: Command) -> None:
    """A bank or a run that another process holds is refused, and the lock of a dead process holds nothing."""
    shutil.rmtree(own_store / 'bank')
    embedding, training = ('embed', own_store, '--model', TINY_CLIP_DIR), ('train', config_of(own_store))
    with exclusive(own_store / 'bank'):
        refused(command(*embedding), own_store / 'bank', 'Another process')
    (own_store / 'bank' / '.lock').touch()
    code, err = command(*embedding)
    assert code == 0, err
    with exclusive(tmp_path / 'run'):
        refused(command(*training), tmp_path / 'run', 'Another process')
