"""Training: micro-batches and processes make one batch, and runs are found again."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from grafalign.encoders import FrozenClip, PhotoBank, SatelliteEncoder
from grafalign.errors import GrafalignError, StaleError
from grafalign.store import PairStore
from grafalign.training import load_satellite, train
from grafalign.training.checkpoint import checkpoint_state, latest_checkpoint
from grafalign.training.data import PairSteps
from grafalign.training.ema import RunningMean
from grafalign.training.optimizer import make_optimizer, rate_at
from grafalign.training.run_marker import RunMarker
from grafalign.training.validation import photo_tile_recall
from tests.training_world import gradient, run_processes, settings, start

KINDS = {
    'image': {},
    'patch': {'level': 'patch', 'placement': {'kind': 'view_cone'}},
    'both': {'level': 'both', 'learn_tau': True},
    'bank': {'negatives': {'bank': 60}, 'masks': {'same_tile': True, 'closer_than': 0.9, 'within_m': 40}},
    'bank of patches': {'level': 'patch', 'negatives': {'bank': 60}, 'masks': {'same_tile': True, 'within_m': 40}},
    'sigmoid': {'form': 'sigmoid', 'negatives': {'bank': 'all'}},
    'views': {'level': 'both', 'augment': {'turn': True, 'zoom': 1.3, 'shift': 0.1, 'haze': 0.2, 'band_dropout': 0.2}},
    'patch dropout': {'patch_dropout': 0.5},
}


@pytest.mark.parametrize('kind', KINDS)
def test_micro_batches_and_processes_give_the_gradient_of_the_whole_batch(
    store: PairStore, bank: PhotoBank, clip: FrozenClip, kind: str
) -> None:
    """In micro-batches, and over three processes, the gradient is that of one pass to 1e-6; in short batches too."""
    wanted = settings(store, clip, batch_tiles=20, **KINDS[kind])
    task = start(store, bank, clip, wanted).double()  # what differs in float32 is the order of sums
    task._bank[0] = task._bank[0].double()
    for module in task.modules():
        if hasattr(module, 'positional_embedding') and module.training:
            module.eval()
    last = PairSteps.of_store(store, bank, wanted).steps_per_epoch - 1
    for step in (0, last):
        loss, whole = gradient(task, store, bank, wanted, step)
        scale = max(float(g.abs().max()) for g in whole.values())
        for micro_batch, processes in ((8, 1), (3, 1), (8, 3)):
            again, parts = gradient(task, store, bank, wanted, step, micro_batch, processes)
            torch.testing.assert_close(again, loss, rtol=1e-6, atol=1e-9)
            assert parts.keys() == whole.keys()
            for name, value in whole.items():
                torch.testing.assert_close(parts[name], value, rtol=1e-6, atol=1e-6 * scale)


def test_the_rate_rises_then_falls_to_zero() -> None:
    """Linear warm-up to the peak, then a cosine down to nothing."""
    rates = [rate_at(s, 100, 1.0, 0.1) for s in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == pytest.approx(1.0)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:])) and rates[100] == pytest.approx(0)


def test_the_patch_share_weighs_the_losses_of_both_levels(store: PairStore, bank: PhotoBank, clip: FrozenClip) -> None:
    """At level `both` with a share of 0.2 the loss is 0.8 of the images' and 0.2 of the patches'."""
    losses = {}
    for level in ('image', 'patch', 'both'):
        wanted = settings(store, clip, level=level, patch_share=0.2)
        task = start(store, bank, clip, wanted).eval()
        losses[level] = float(task(PairSteps.of_store(store, bank, wanted, side=task.encoder.side)[0]))
    assert losses['image'] != pytest.approx(losses['patch'], rel=0.01)
    assert losses['both'] == pytest.approx(0.8 * losses['image'] + 0.2 * losses['patch'], rel=1e-5)


def test_a_checkpoint_of_other_settings_is_not_taken(
    store: PairStore, bank: PhotoBank, clip: FrozenClip, tmp_path: Path
) -> None:
    """Even where the run folder would let it pass: a checkpoint knows what it was made with."""
    train(settings(store, clip, tmp_path / 'run', steps=3, checkpoint_every=3))
    newest = latest_checkpoint(tmp_path / 'run' / 'checkpoints')
    assert newest is not None
    digest = RunMarker.read(tmp_path / 'run' / 'model.json').digest
    assert checkpoint_state(newest, digest).steps_done(1) == 3
    with pytest.raises(StaleError, match='other settings'):
        checkpoint_state(newest, 'another')


def test_training_lowers_the_loss_and_leaves_a_run_that_loads(
    store: PairStore, bank: PhotoBank, clip: FrozenClip, tmp_path: Path
) -> None:
    """A run ends with weights, log, TensorBoard events and label-free recall, and loads as a satellite encoder."""
    run = train(settings(store, clip, tmp_path / 'run', steps=24))
    log = [json.loads(line) for line in (tmp_path / 'run' / 'log.jsonl').read_text().splitlines()]
    assert np.mean([e['loss'] for e in log[-5:]]) < np.mean([e['loss'] for e in log[:5]])
    assert {'tile_photo@1', 'photo_tile@10', 'data_ms', 'step_ms', 'grad_norm'} <= set(log[-1])
    assert run.final['step'] == 24 and run.micro_batch == 12 and run.wire_bytes_per_step == 0
    assert list((tmp_path / 'run').rglob('events.out.tfevents.*'))
    model = load_satellite(tmp_path / 'run', clip)
    vectors = model.embed_images(torch.randn(2, 3, 64, 64))
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2))


def test_only_what_the_level_uses_is_trained(store: PairStore, bank: PhotoBank, clip: FrozenClip) -> None:
    """Every parameter that is trained gets a gradient, at all levels: no process waits for one that never comes."""
    for kind in ('image', 'patch', 'both', 'sigmoid'):
        wanted = settings(store, clip, **KINDS[kind])
        task = start(store, bank, clip, wanted)
        _, found = gradient(task, store, bank, wanted)
        assert set(found) == {n for n, p in task.named_parameters() if p.requires_grad}


def test_norms_and_temperatures_do_not_decay(store: PairStore, bank: PhotoBank, clip: FrozenClip) -> None:
    """Weight decay acts on matrices only."""
    task = start(store, bank, clip, settings(store, clip, learn_tau=True))
    groups = make_optimizer(task, 1e-3, 0.5, torch.device('cpu')).param_groups
    assert all(p.ndim > 1 for p in groups[0]['params']) and groups[0]['weight_decay'] == 0.5
    assert all(p.ndim <= 1 for p in groups[1]['params']) and groups[1]['weight_decay'] == 0


def test_a_learned_temperature_moves_and_is_kept(
    store: PairStore, bank: PhotoBank, clip: FrozenClip, tmp_path: Path
) -> None:
    """A run with `learn_tau` ends with another temperature, which its metadata tell; without it, with the same."""
    assert train(settings(store, clip, tmp_path / 'fixed')).tau == pytest.approx(0.07)
    assert train(settings(store, clip, tmp_path / 'learned', learn_tau=True)).tau != pytest.approx(0.07, abs=1e-5)


def test_a_learned_temperature_leaves_its_bound_again(store: PairStore, bank: PhotoBank, clip: FrozenClip) -> None:
    """One that was pushed below 0.01 is brought back to it, with a gradient; a fixed one may be as small as it is."""
    wanted = settings(store, clip, learn_tau=True)
    task = start(store, bank, clip, wanted)
    task.log_scale.data.fill_(6)
    _, found = gradient(task, store, bank, wanted)
    assert task.tau == pytest.approx(0.01) and float(found['log_scale'].abs()) > 0
    assert start(store, bank, clip, settings(store, clip, tau=0.005)).tau == pytest.approx(0.005)


def test_the_running_mean_is_what_is_kept(store: PairStore, bank: PhotoBank, clip: FrozenClip, tmp_path: Path) -> None:
    """Weights of a run with `ema` are the running mean, by its formula, of the weights that each step leaves."""
    train(settings(store, clip, tmp_path / 'run', steps=3, ema=0.5, checkpoint_every=1))
    log = [json.loads(line) for line in (tmp_path / 'run' / 'log.jsonl').read_text().splitlines()]
    train(settings(store, clip, tmp_path / 'plain', steps=3))
    assert [e['loss'] for e in log] == [
        json.loads(line)['loss'] for line in (tmp_path / 'plain' / 'log.jsonl').read_text().splitlines()
    ]
    kept = {p.stem: load_file(p) for p in (tmp_path / 'run' / 'checkpoints').glob('step_00000003/*.safetensors')}
    final, last = (load_file(tmp_path / n / 'model.safetensors') for n in ('run', 'plain'))
    for name, value in final.items():
        assert torch.equal(kept['mean'].get(f'encoder.{name}', value), value)
        assert torch.equal(kept['model'][f'encoder.{name}'], last[name])
    assert not torch.equal(final['visual.conv1.weight'], last['visual.conv1.weight'])


def test_a_running_mean_is_its_formula() -> None:
    """The mean becomes d mean + (1 - d) now, d = min(decay, (1 + t) / (10 + t)); in its context it is the weights."""
    layer = torch.nn.Linear(2, 2, bias=False)
    mean, expected = RunningMean(layer, 0.6), layer.weight.detach().clone()
    for step in range(20):
        with torch.no_grad():
            layer.weight.add_(torch.randn(2, 2))
        mean.update(step)
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * layer.weight.detach()
    now = layer.weight.detach().clone()
    with mean.in_place():
        torch.testing.assert_close(layer.weight.detach(), expected)
    assert torch.equal(layer.weight.detach(), now)


@pytest.mark.parametrize(
    'changes',
    [
        {'tune': {'lora': {'rank': 4}}},
        {'tune': {'freeze_blocks': 2, 'grad_checkpointing': True}, 'level': 'both'},
        {'precision': 'bf16'},
        {'patch_dropout': 0.5},
        pytest.param({'compile': True}, marks=pytest.mark.slow),
    ],
    ids=['lora', 'freeze', 'bf16', 'patch dropout', 'compile'],
)
def test_runs_load_however_they_were_trained(
    store: PairStore, bank: PhotoBank, clip: FrozenClip, tmp_path: Path, changes: dict[str, object]
) -> None:
    """What is kept is a plain encoder that has learned something and gives what the trained one gave in validation."""
    wanted = settings(store, clip, tmp_path / 'run', **changes)
    run = train(wanted)
    model = load_satellite(tmp_path / 'run', clip)
    fresh = SatelliteEncoder(clip, store.sensor.bands).eval()
    images = torch.randn(2, 3, 64, 64)
    assert not torch.allclose(model.encoder(images).image, fresh(images).image, atol=1e-4)
    task = start(store, bank, clip, settings(store, clip, level=wanted.level)).eval()
    task.encoder.load_state_dict(model.encoder.state_dict())
    found = photo_tile_recall(task, store, bank, wanted)
    assert found == pytest.approx({k: v for k, v in run.final.items() if '@' in k}, abs=0.02)


def test_a_run_folder_of_other_settings_is_refused(
    store: PairStore, bank: PhotoBank, clip: FrozenClip, tmp_path: Path
) -> None:
    """A finished run is returned at once, also where its store has moved; with another temperature it is an error."""
    done = train(settings(store, clip, tmp_path / 'run', steps=2))
    assert train(settings(store, clip, tmp_path / 'run', steps=2)) == done
    elsewhere = PairStore(Path(shutil.copytree(store.path, tmp_path / 'elsewhere')))
    assert train(settings(elsewhere, clip, tmp_path / 'run', steps=2)) == done
    with pytest.raises(GrafalignError, match='other settings'):
        train(settings(store, clip, tmp_path / 'run', steps=2, tau=0.3))


def test_data_workers_change_nothing(store: PairStore, bank: PhotoBank, clip: FrozenClip, tmp_path: Path) -> None:
    """Batches read by other processes give the weights of batches read here, bit for bit."""
    for count in (0, 2):
        train(settings(store, clip, tmp_path / str(count), workers=count, micro_batch=5))
    one, two = ((tmp_path / str(c) / 'model.safetensors').read_bytes() for c in (0, 2))
    assert one == two


@pytest.mark.parametrize(
    'changes',
    [
        {'augment': {'turn': True}, 'micro_batch': 2},
        pytest.param(
            {'level': 'both', 'negatives': {'bank': 50}, 'photo_to_tile': 0.5, 'max_bad_tiles': 0},
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.parametrize('processes', [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_follow_the_loss_curve_of_one(
    store: PairStore,
    bank: PhotoBank,
    clip: FrozenClip,
    tmp_path: Path,
    processes: int,
    changes: dict[str, object],
) -> None:
    """Processes joined over gloo give the losses of one with the whole batch, to 1e-5, through short last batches."""
    curves, wire = {}, {}
    for count in (1, processes):
        wanted = settings(store, clip, tmp_path / str(count), steps=14, lr=1e-4, **changes)
        if count == 1:
            run = train(wanted)
        else:
            run_processes(wanted, tmp_path / f'{count}.yaml', count)
            run = RunMarker.read(wanted.out / 'model.json')
        assert run.processes == count
        wire[count] = run.wire_bytes_per_step
        curves[count] = [json.loads(line)['loss'] for line in (wanted.out / 'log.jsonl').read_text().splitlines()]
    np.testing.assert_allclose(curves[1], curves[processes], rtol=1e-5)
    assert wire[1] == 0 and 4 * run.trained_parameters <= wire[processes] < 4.1 * run.trained_parameters


@pytest.mark.slow
def test_gradients_cross_the_wire_once_a_step(
    store: PairStore, bank: PhotoBank, clip: FrozenClip, tmp_path: Path
) -> None:
    """However many micro-batches a step has, collectives add up the trained weights' numbers once a step."""
    wanted = settings(store, clip, tmp_path / 'run', steps=4, micro_batch=2)
    run_processes(wanted, tmp_path / 'run.yaml', 2, ('tests.counted_wire',))
    run = RunMarker.read(wanted.out / 'model.json')
    elements = sum(json.loads((wanted.out / 'wire_2.json').read_text()))
    assert elements == pytest.approx(4 * run.trained_parameters, rel=0.001)
    assert run.wire_bytes_per_step == 4 * run.trained_parameters
