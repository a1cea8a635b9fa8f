"""What goes wrong in a training is named, the last good checkpoint is kept, and the exit code is not zero."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from grafalign.encoders import FrozenClip, PhotoBank, load_bank
from grafalign.errors import GrafalignError
from grafalign.store import PairStore
from grafalign.training import train
from grafalign.training.data import PairSteps
from grafalign.training.memory import kept_bytes, largest_micro_batch, naming_full_memory
from grafalign.training.validation import photo_tile_recall
from tests.training_world import launch, launch_rank, run_processes, settings, start


def damage(store: Path, rows: list[int]) -> None:
    """Make some tiles of a store unreadable."""
    tiles = PairStore(store).tiles
    for row in rows:
        with (store / tiles['shard'].iloc[row]).open('r+b') as file:
            file.seek(int(tiles['byte_offset'].iloc[row]))
            file.write(b'nonsense')


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_checkpoint(
    store: PairStore, bank: PhotoBank, clip: FrozenClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rate that blows up ends in one sentence that names the step; the checkpoint before it is there and sound."""
    monkeypatch.setattr('grafalign.training.loop.rate_at', lambda step, *rest: 1e30 if step >= 5 else 1e-3)
    with pytest.raises(GrafalignError, match=r'The norm of the weights is inf at step 6; the last checkpoint is kept'):
        train(settings(store, clip, tmp_path / 'run', steps=60, log_every=7, checkpoint_every=2))
    [path] = (tmp_path / 'run' / 'checkpoints').glob('step_*/model.safetensors')
    assert path.parent.name == 'step_00000004' and all(v.isfinite().all() for v in load_file(path).values())


def test_unreadable_tiles_are_skipped_counted_and_listed(own_store: Path, clip: FrozenClip, tmp_path: Path) -> None:
    """A few of them do not end a training; too many do, in one sentence that says where they are listed."""
    rows = PairStore(own_store).tiles_of('train')[:3].tolist()
    damage(own_store, rows)
    names = set(PairStore(own_store).tiles['tile_id'].iloc[rows])
    store = PairStore(own_store)
    run = train(settings(store, clip, tmp_path / 'run', max_bad_tiles=3, steps=14, workers=1))
    assert run.final['bad_tiles'] == 3
    assert set((tmp_path / 'run' / 'bad_tiles.txt').read_text().split()) == names
    with pytest.raises(GrafalignError, match=r'3 tiles are unreadable, more than max_bad_tiles \(2\).*bad_tiles\.txt'):
        train(settings(store, clip, tmp_path / 'strict', max_bad_tiles=2, steps=14))


@pytest.mark.slow
def test_an_unreadable_tile_counts_once(own_store: Path, clip: FrozenClip, tmp_path: Path) -> None:
    """Whichever processes meet it, in whichever epoch, and also after the run was resumed."""
    rows = PairStore(own_store).tiles_of('train')[:2].tolist()
    damage(own_store, rows)
    store = PairStore(own_store)
    wanted = settings(store, clip, tmp_path / 'run', max_bad_tiles=2, steps=40, batch_tiles=20, micro_batch=4)
    run_processes(wanted, tmp_path / 'run.yaml', 2)
    assert json.loads((wanted.out / 'model.json').read_text())['final']['bad_tiles'] == 2
    (wanted.out / 'model.json').unlink()
    assert train(wanted).steps == 40
    assert sorted((wanted.out / 'bad_tiles.txt').read_text().split()) == sorted(store.tiles['tile_id'].iloc[rows])


def test_unreadable_tiles_of_the_val_split_are_left_out(own_store: Path, clip: FrozenClip, tmp_path: Path) -> None:
    """They are counted, the others are measured as if they were all, and the run ends as it should."""
    store = PairStore(own_store)
    held_out = store.tiles_of('val').tolist()
    damage(own_store, held_out)
    last = train(settings(store, clip, tmp_path / 'run', max_bad_tiles=0)).final
    assert last['unreadable_val_tiles'] == len(held_out) and 'tile_photo@10' not in last
    wanted, known, rows = settings(store, clip), load_bank(store), store.tiles_of('train')
    task = start(store, known, clip, wanted).eval()
    damage(own_store, rows[:3].tolist())
    store.tiles.loc[rows[:3], 'split'] = 'none'
    without = photo_tile_recall(task, store, known, wanted, 'train')
    store.tiles.loc[rows[:3], 'split'] = 'train'
    assert photo_tile_recall(task, store, known, wanted, 'train') == without | {'unreadable_val_tiles': 3}


@pytest.mark.slow
def test_a_dead_worker_is_named(store: PairStore, bank: PhotoBank, clip: FrozenClip, tmp_path: Path) -> None:
    """Where a data worker is killed the command ends with one sentence, and the next start finishes the run."""
    wanted = settings(store, clip, tmp_path / 'run', steps=400, workers=1, checkpoint_every=20)
    process = launch(wanted, tmp_path / 'run.yaml')
    while not (tmp_path / 'run' / 'log.jsonl').is_file() or not (tmp_path / 'run' / 'log.jsonl').read_text():
        assert process.poll() is None
        time.sleep(0.02)
    for child in psutil.Process(process.pid).children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
    output = process.communicate(timeout=120)[0].decode()
    assert process.returncode != 0 and 'Traceback' not in output, output
    assert 'A data worker died' in output.splitlines()[-1] and 'same command again' in output
    run_processes(wanted, tmp_path / 'run.yaml')
    assert (tmp_path / 'run' / 'model.json').is_file()


@pytest.mark.slow
def test_a_dead_process_of_several_ends_the_run(
    store: PairStore, bank: PhotoBank, clip: FrozenClip, tmp_path: Path
) -> None:
    """Where one of two processes is killed the other does not wait for ever, and says what happened.

    Each has no launcher, as on two machines: torchrun may end the other one before it can say anything.
    """
    wanted = settings(store, clip, tmp_path / 'run', steps=4000, checkpoint_every=20)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    first, second = (launch_rank(wanted, tmp_path / 'run.yaml', rank, 2, port) for rank in range(2))
    while not (tmp_path / 'run' / 'log.jsonl').is_file() or not (tmp_path / 'run' / 'log.jsonl').read_text():
        assert first.poll() is None
        time.sleep(0.02)
    second.kill()
    second.communicate(timeout=120)
    output = first.communicate(timeout=120)[0].decode()
    assert first.returncode not in (0, None) and 'Traceback' not in output, output
    assert 'Another process of this training is gone' in output, output


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'trackers': ['notebook']}, r"trackers: Accelerate knows no tracker 'notebook'; known are .*wandb"),
        ({'trackers': ['aim']}, r'trackers: aim is not installed; `pip install aim`'),
        ({'photo_to_tile': 1, 'max_bad_tiles': 0, 'micro_batch': 4}, '`photo_to_tile` needs the whole batch at once'),
        ({'bands': ['red', 'nir']}, 'nir'),
        ({'precision': 'fp16'}, 'precision: fp16 needs a GPU'),
    ],
)
def test_settings_that_cannot_be_met_are_one_sentence(
    store: PairStore, bank: PhotoBank, clip: FrozenClip, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    """Each names the key and the remedy before anything is trained."""
    with pytest.raises(GrafalignError, match=words):
        train(settings(store, clip, tmp_path / 'run', **changes))
    assert not list((tmp_path / 'run').glob('checkpoints/*'))


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'level': 'patch', 'patch_dropout': 0.5}, 'patch_dropout'),
        ({'level': 'patch', 'photo_to_tile': 1, 'max_bad_tiles': 0}, 'photo_to_tile'),
        ({'micro_batch': 0}, 'micro_batch'),
        ({'learn_tau': True, 'tau': 0.005}, 'learn_tau'),
        ({'negatives': {'bank': 0}}, 'bank'),
        ({'negatives': 'bank'}, 'negatives'),
        ({'augment': {'zoom': 0.5}}, 'zoom'),
        ({'placement': {'kind': 'cone'}}, 'kind'),
        ({'masks': {'closer_than': 1.5}}, 'closer_than'),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    store: PairStore, clip: FrozenClip, changes: dict[str, object], words: str
) -> None:
    """The key is named when the file is read."""
    with pytest.raises(ValidationError, match=words):
        settings(store, clip, **changes)


def test_the_largest_micro_batch_is_found_by_counting(
    store: PairStore, bank: PhotoBank, clip: FrozenClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept bytes grow in a straight line with the tiles, and the micro-batch is what fits into the memory there is."""
    wanted = settings(store, clip, level='both', negatives={'bank': 60})
    task = start(store, bank, clip, wanted)

    def forward(tiles: int) -> torch.Tensor:
        return task(PairSteps.of_store(store, bank, wanted, micro_batch=tiles)[0])

    one, two, ten = (kept_bytes(forward, n) for n in (1, 2, 10))
    assert ten == pytest.approx(one + 9 * (two - one), rel=0.1)
    device = torch.device('cpu')
    assert largest_micro_batch(forward, 12, task, device) == 12
    weights = 4 * sum(p.numel() for p in task.parameters() if p.requires_grad)
    room = psutil.virtual_memory()._replace(available=int(2 * (3 * weights + one + 4.5 * (two - one))))
    monkeypatch.setattr(psutil, 'virtual_memory', lambda: room)
    assert largest_micro_batch(forward, 12, task, device, copies=3) == 5
    assert largest_micro_batch(forward, 12, task, device, copies=2) > 5
    monkeypatch.setattr(psutil, 'virtual_memory', lambda: room._replace(available=0))
    with pytest.raises(GrafalignError, match='Not even one tile fits'):
        largest_micro_batch(forward, 12, task, device)


def test_memory_that_runs_out_is_named() -> None:
    """What torch says when it gets no memory becomes one sentence with the remedy; other errors stay what they are."""
    with pytest.raises(GrafalignError, match=r'Memory ran out.*smaller `micro_batch`'), naming_full_memory():
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match='mat1 and mat2'), naming_full_memory():
        torch.ones(2, 3) @ torch.ones(2, 3)


def test_a_resumed_run_keeps_its_micro_batch(
    store: PairStore, bank: PhotoBank, clip: FrozenClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fitted when a run began is kept, so that less free memory later does not change the last bits."""
    train(settings(store, clip, tmp_path / 'run', steps=3, checkpoint_every=3))
    (tmp_path / 'run' / 'model.json').unlink()
    room = psutil.virtual_memory()._replace(available=0)
    monkeypatch.setattr(psutil, 'virtual_memory', lambda: room)
    assert train(settings(store, clip, tmp_path / 'run', steps=3)).micro_batch == 12


def test_trackers_get_the_log(store: PairStore, bank: PhotoBank, clip: FrozenClip, tmp_path: Path) -> None:
    """TensorBoard's events hold the loss of every logged step, under the names of the log."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(settings(store, clip, tmp_path / 'run'))
    log = [json.loads(line) for line in (tmp_path / 'run' / 'log.jsonl').read_text().splitlines()]
    events = EventAccumulator(str(next((tmp_path / 'run').rglob('events.out.*')).parent)).Reload()
    found = {e.step: e.value for e in events.Scalars('loss')}
    assert found == pytest.approx({e['step']: e['loss'] for e in log})
