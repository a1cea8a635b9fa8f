"""Training: batches follow from the step, processes share a batch exactly, and runs are found again."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from grafalign.encoders import FrozenClip, GroundBank
from grafalign.errors import GrafalignError
from grafalign.store import PairStore
from grafalign.training import TrainSettings, load_satellite, train
from grafalign.training.data import PairSteps, Share
from grafalign.training.loop import rate_at
from grafalign.training.task import AlignmentTask


def settings(store: PairStore, clip: FrozenClip, out: Path, **changes: object) -> TrainSettings:
    """A short training on the small store."""
    values = {
        'store': store.path,
        'out': out,
        'clip': clip.settings,
        'steps': 6,
        'batch_tiles': 12,
        'photos_per_tile': 4,
        'lr': 1e-3,
        'log_every': 1,
        'validate_every': 6,
        'checkpoint_every': 3,
    }
    return TrainSettings.model_validate(values | changes)


def steps(store: PairStore, bank: GroundBank, share: Share | None = None, batch: int = 10) -> PairSteps:
    """Steps over the training tiles."""
    return PairSteps(store, bank, 'train', batch, 4, seed=3, share=share)


def test_an_epoch_visits_every_tile_once(store: PairStore, bank: GroundBank) -> None:
    """An epoch holds each training tile exactly once, its last batch being smaller, in a new order each time."""
    data = steps(store, bank)
    orders = []
    for epoch in (0, 1):
        seen = [len(data[epoch * data.steps_per_epoch + i]['pixels']) for i in range(data.steps_per_epoch)]
        assert sum(seen) == len(data.tiles) and set(seen[:-1]) == {10}
        orders.append(np.random.default_rng((3, 0, epoch)).permutation(len(data.tiles)).tolist())
    assert orders[0] != orders[1]


def test_a_step_is_the_same_whenever_it_is_asked_for(store: PairStore, bank: GroundBank) -> None:
    """A batch depends on its number alone."""
    first, again = steps(store, bank)[7], steps(store, bank)[7]
    for key, value in first.items():
        assert torch.equal(value, again[key]), key  # type: ignore[literal-required]


@pytest.mark.parametrize('level', ['image', 'patch'])
def test_shares_of_processes_make_the_whole_batch(
    store: PairStore, bank: GroundBank, clip: FrozenClip, level: str
) -> None:
    """Loss and gradient, averaged over three processes, are those of one, for the short last batch too."""
    task = AlignmentTask.start(clip, store.sensor, level, 0.07).train()  # type: ignore[arg-type]
    last = steps(store, bank).steps_per_epoch - 1
    for step in (0, last):
        whole = task(steps(store, bank)[step])
        parts = [task(steps(store, bank, Share(rank, 3))[step]) for rank in range(3)]
        torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-5, atol=1e-6)
        weights = [p for p in task.parameters() if p.requires_grad]
        one = torch.autograd.grad(whole, weights)
        three = torch.autograd.grad(torch.stack(parts).mean(), weights)
        for a, b in zip(one, three, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_the_rate_rises_then_falls_to_zero() -> None:
    """Linear warm-up to the peak, then a cosine down to nothing."""
    rates = [rate_at(s, 100, 1.0, 0.1) for s in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == pytest.approx(1.0)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:])) and rates[100] == pytest.approx(0)


def test_training_lowers_the_loss_and_leaves_a_run_that_loads(
    store: PairStore, bank: GroundBank, clip: FrozenClip, tmp_path: Path
) -> None:
    """A run ends with weights, log, TensorBoard events and label-free recall, and loads as a satellite encoder."""
    facts = train(settings(store, clip, tmp_path / 'run', steps=24))
    log = [json.loads(line) for line in (tmp_path / 'run' / 'log.jsonl').read_text().splitlines()]
    assert np.mean([e['loss'] for e in log[-5:]]) < np.mean([e['loss'] for e in log[:5]])
    assert {'tile_photo@1', 'photo_tile@10'} <= set(log[-1]) and facts['final']['step'] == 24
    assert list((tmp_path / 'run').rglob('events.out.tfevents.*'))
    model = load_satellite(tmp_path / 'run', clip)
    vectors = model.embed_images(torch.randn(2, 3, 64, 64))
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2))


def test_only_the_head_of_the_level_is_trained(store: PairStore, bank: GroundBank, clip: FrozenClip) -> None:
    """Every parameter that is trained gets a gradient, at both levels: no process waits for one that never comes."""
    for level in ('image', 'patch'):
        task = AlignmentTask.start(clip, store.sensor, level, 0.07)  # type: ignore[arg-type]
        task(steps(store, bank)[0]).backward()
        for name, parameter in task.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, (level, name)


def test_a_run_folder_of_other_settings_is_refused(
    store: PairStore, bank: GroundBank, clip: FrozenClip, tmp_path: Path
) -> None:
    """A finished run is returned at once; with another temperature it is an error that names the folder."""
    done = train(settings(store, clip, tmp_path / 'run', steps=2))
    assert train(settings(store, clip, tmp_path / 'run', steps=2)) == done
    with pytest.raises(GrafalignError, match='other settings'):
        train(settings(store, clip, tmp_path / 'run', steps=2, tau=0.3))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_checkpoint(
    store: PairStore, bank: GroundBank, clip: FrozenClip, tmp_path: Path
) -> None:
    """A rate that blows up ends in one sentence that names the step, and no checkpoint holds such weights."""
    with pytest.raises(GrafalignError, match=r'The loss is .* at step \d+'):
        train(settings(store, clip, tmp_path / 'run', steps=60, lr=1e30, log_every=7, checkpoint_every=2, tau=0.001))
    for path in (tmp_path / 'run' / 'checkpoints').glob('step_*/model.safetensors'):
        from safetensors.torch import load_file

        assert all(v.isfinite().all() for v in load_file(path).values())


@pytest.mark.parametrize('workers', [2])
def test_data_workers_change_nothing(
    store: PairStore, bank: GroundBank, clip: FrozenClip, tmp_path: Path, workers: int
) -> None:
    """Batches read by other processes give the weights of batches read here, bit for bit."""
    for count in (0, workers):
        train(settings(store, clip, tmp_path / str(count), workers=count))
    one, two = ((tmp_path / str(c) / 'model.safetensors').read_bytes() for c in (0, workers))
    assert one == two


@pytest.mark.slow
def test_two_processes_follow_the_loss_curve_of_one(
    store: PairStore, bank: GroundBank, clip: FrozenClip, tmp_path: Path
) -> None:
    """`accelerate launch`, and two processes over gloo, give the same losses from the same file."""
    # without MPI, accelerate's launcher starts one CPU process only; torch's starts two, which Accelerate then joins
    launchers = {
        1: [
            'accelerate.commands.launch',
            '--cpu',
            '--num_processes=1',
            '--num_machines=1',
            '--mixed_precision=no',
            '--dynamo_backend=no',
        ],
        2: ['torch.distributed.run', '--standalone', '--nproc-per-node=2'],
    }
    curves = {}
    for count, launcher in launchers.items():
        config = tmp_path / f'{count}.yaml'
        config.write_text(yaml.safe_dump(settings(store, clip, tmp_path / str(count)).facts()))
        command = [sys.executable, '-m', *launcher, '-m', 'grafalign', 'train', str(config)]
        environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'ACCELERATE_USE_CPU': 'true'}
        subprocess.run(command, check=True, env=environment, timeout=300)
        lines = (tmp_path / str(count) / 'log.jsonl').read_text().splitlines()
        curves[count] = [json.loads(line)['loss'] for line in lines]
        assert json.loads((tmp_path / str(count) / 'model.json').read_text())['processes'] == count
    np.testing.assert_allclose(curves[1], curves[2], rtol=1e-4)
