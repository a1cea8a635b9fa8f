"""Both towers trained: gradients of micro-batches and processes add up to those of the whole batch, once."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from grafalign.encoders import FrozenClip
from grafalign.encoders.text_tower import TEXT_WEIGHTS
from grafalign.errors import DamagedError
from grafalign.exchange import publish
from grafalign.models import load_model
from grafalign.training import TrainSettings, load_satellite, train
from grafalign.training.accelerator import make_accelerator
from grafalign.training.data import PairSteps, Share
from grafalign.training.gather_data import TrainingData, gather_data
from grafalign.training.loop import fit
from grafalign.training.task import viewed
from grafalign.training.token_steps import TokenSteps
from grafalign.training.two_towers import TwoTowerTask
from tests.caption_world import COLOURS, captioned_set
from tests.caption_world import settings as caption_settings
from tests.training_world import kill_at_steps, run_processes
from tests.two_passes import contrast, gradients


@pytest.fixture(scope='module')
def web(tmp_path_factory: pytest.TempPathFactory, clip: FrozenClip) -> Path:
    """A set of 24 pictures with 12 distinct texts, two an image, and its bank."""
    return captioned_set(tmp_path_factory.mktemp('web'), clip)


def settings(clip: FrozenClip, web: Path, out: Path = Path('no/run'), **changes: object) -> TrainSettings:
    """A short training of both towers."""
    both: dict[str, object] = {'data': web, 'text_tower': 'trained', 'photo_to_tile': 1.0, 'learn_tau': True}
    return caption_settings(clip, out, **(both | changes))


def steps_of(
    data: TrainingData, clip: FrozenClip, wanted: TrainSettings, micro_batch: int | None = None, world: int = 1
) -> list[TokenSteps]:
    """The steps of a training in each of its processes."""
    return [
        TokenSteps(
            PairSteps(data.sources, wanted, Share(rank, world), micro_batch, 4, size_px=data.sensor.size_px),
            data.texts(),
            clip.tokenizer,
        )
        for rank in range(world)
    ]


def dropping(task: TwoTowerTask, share: float) -> TwoTowerTask:
    """A task in double precision whose towers drop a share of what they say."""
    torch.manual_seed(0)
    task = task.double()
    if share:
        task.text.model.ln_final = torch.nn.Sequential(task.text.model.ln_final, torch.nn.Dropout(share))
        task.encoder.visual.ln_post = torch.nn.Sequential(task.encoder.visual.ln_post, torch.nn.Dropout(share))
    return task.train()


def naive(task: TwoTowerTask, batches: list[dict[str, Any]]) -> tuple[Tensor, dict[str, Tensor]]:
    """The same from one graph over all images and texts, pair by pair."""
    task.zero_grad()
    images, texts = [], []
    for number, batch in enumerate(batches):
        torch.manual_seed(number)
        count, words = batch['own'].tolist()
        pixels = viewed(task.preprocess, batch, task.settings.augment)
        images.append(task.encoder(pixels).image[:count])
        texts.append(task.text(batch['tokens'])[:words])
    v, t = torch.cat(images), torch.cat(texts).double()
    loss = contrast(task, v, t, *batches[0]['whole'])
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in task.named_parameters() if p.grad is not None}


@pytest.mark.parametrize('form', ['softmax', 'sigmoid', 'focal'])
@pytest.mark.parametrize(('micro_batch', 'dropout'), [(10, 0.0), (10, 0.3), (4, 0.0), (4, 0.3), (3, 0.3), (1, 0.3)])
def test_micro_batches_have_the_gradient_of_the_whole_batch(
    form: str, micro_batch: int, dropout: float, web: Path, clip: FrozenClip
) -> None:
    """Of any size, even or not, with dropout: towers, temperature and bias, in double precision to 1e-11."""
    wanted = settings(clip, web, form=form, tau=0.3)
    data = gather_data(wanted, clip)
    steps = steps_of(data, clip, wanted, micro_batch)[0]
    task = dropping(TwoTowerTask.start(clip, data.sensor, wanted), dropout)
    batches = [steps[n] for n in range(steps.micro_batches)]
    loss, found = gradients(task, batches)
    expected_loss, expected = naive(task, batches)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-11, atol=1e-12)
    assert set(found) == set(expected)
    largest = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-11 * largest, msg=name)


def test_every_text_of_a_step_goes_through_the_tower_once(web: Path, clip: FrozenClip) -> None:
    """Whatever the processes and micro-batches, and in the order of the candidates."""
    wanted = settings(clip, web)
    data = gather_data(wanted, clip)
    texts = data.texts()
    for world, micro_batch in ((1, 10), (1, 3), (2, 2), (4, 3), (4, 1)):
        tokens, images = [], 0
        for steps in steps_of(data, clip, wanted, micro_batch, world):
            batches = [steps[n] for n in range(steps.micro_batches)]
            tokens += [p['tokens'][: int(p['own'][1])] for p in batches]
            images += sum(int(p['own'][0]) for p in batches)
            assert sum(float(p['share']) for p in batches) == pytest.approx(1)
        expected = clip.tokenizer(texts.take(batches[0]['candidates'].numpy()))
        assert images == 10 and torch.equal(torch.cat(tokens), expected)


def test_the_loop_takes_the_steps_of_the_whole_batch_whatever_the_micro_batch(web: Path, clip: FrozenClip) -> None:
    """Six steps in micro-batches of 3 end where those of whole batches do, but for rounding."""
    ends = []
    for micro_batch in (None, 3):
        wanted = settings(clip, web, photo_to_tile=1.0)
        data = gather_data(wanted, clip)
        torch.manual_seed(0)
        task = TwoTowerTask.start(clip, data.sensor, wanted).double()
        steps = steps_of(data, clip, wanted, micro_batch)[0]
        log = fit(task, steps, 6, 1e-4, wanted, make_accelerator('no'))
        ends.append((log, copy.deepcopy(task.state_dict())))
    (first, weights), (second, others) = ends
    assert [e['loss'] for e in first] == pytest.approx([e['loss'] for e in second], rel=1e-6)
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ('processes', 'micro_batch'),
    [(2, 2), (2, 5), (4, 2)],
)
@pytest.mark.slow
def test_processes_give_what_one_gives(
    processes: int, micro_batch: int, web: Path, clip: FrozenClip, tmp_path: Path
) -> None:
    """Losses, temperature and what both towers say agree to the rounding of single precision.

    Weights need not: the keys' biases of an attention have no gradient but rounding, which Adam brings to full length.
    """
    alone = settings(clip, web, tmp_path / 'alone', micro_batch=10)
    together = settings(clip, web, tmp_path / 'together', micro_batch=micro_batch)
    run_processes(alone, tmp_path / 'alone.yaml')
    run_processes(together, tmp_path / 'together.yaml', processes)
    models = [load_satellite(tmp_path / run) for run in ('together', 'alone')]
    pictures = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for ours, theirs in (
        [m.clip.encode_text([f'a {colour}' for colour in COLOURS]) for m in models],
        [m.embed_images(pictures) for m in models],
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)
    for key in ('loss', 'tau'):
        ours, theirs = (
            [json.loads(line)[key] for line in (tmp_path / run / 'log.jsonl').read_text().splitlines()]
            for run in ('together', 'alone')
        )
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(('processes', 'kills'), [(1, 10), (2, 10)])
def test_killed_trainings_of_both_towers_end_with_the_same_bits(
    processes: int, kills: int, web: Path, clip: FrozenClip, tmp_path: Path
) -> None:
    """A training goes on where its checkpoint was, both towers and the temperature with their moments."""
    changes: dict[str, object] = {'steps': 40, 'checkpoint_every': 2, 'micro_batch': 3, 'ema': 0.9, 'form': 'focal'}
    run_processes(settings(clip, web, tmp_path / 'whole', **changes), tmp_path / 'whole.yaml', processes)
    killed = settings(clip, web, tmp_path / 'killed', **changes)
    kill_at_steps(killed, tmp_path / 'killed.yaml', processes, kills)
    run_processes(killed, tmp_path / 'killed.yaml', processes)
    for name in ('model.safetensors', TEXT_WEIGHTS):
        whole, other = (load_file(tmp_path / run / name) for run in ('whole', 'killed'))
        assert all(torch.equal(other[key], value) for key, value in whole.items())


def test_a_run_is_a_model_with_its_own_text_tower(web: Path, clip: FrozenClip, tmp_path: Path) -> None:
    """What it says of texts is neither CLIP's nor lost when it is loaded again; without the file it is damaged."""
    train(settings(clip, web, tmp_path / 'run', steps=20, lr=5e-3))
    log = [json.loads(line) for line in (tmp_path / 'run' / 'log.jsonl').read_text().splitlines()]
    assert log[-1]['loss'] < log[0]['loss'] and 'image_text@1' in log[-1] and log[-1]['tau'] != log[0]['tau']
    model = load_satellite(tmp_path / 'run')
    trained, before = model.clip.encode_text(['a red field']), clip.encode_text(['a red field'])
    assert float((trained * before).sum()) < 0.999 and model.clip.digest != clip.digest
    spec = load_model(str(tmp_path / 'run'))
    assert np.allclose(np.asarray(spec.embed_texts(['a red field'])), trained.numpy(), atol=1e-3)
    publish(tmp_path / 'run', tmp_path / 'export')
    assert 'both towers being trained' in (tmp_path / 'export' / 'README.md').read_text()
    exported = load_model(str(tmp_path / 'export'))
    assert np.allclose(np.asarray(exported.embed_texts(['a red field'])), trained.numpy(), atol=1e-3)
    (tmp_path / 'run' / TEXT_WEIGHTS).unlink()
    with pytest.raises(DamagedError, match='train again'):
        load_satellite(tmp_path / 'run')


def test_unreadable_images_are_no_negatives(web: Path, clip: FrozenClip) -> None:
    """The loss is that of a batch without them, but for its weights."""
    wanted = settings(clip, web)
    data = gather_data(wanted, clip)
    steps = steps_of(data, clip, wanted, 4)[0]
    task = dropping(TwoTowerTask.start(clip, data.sensor, wanted), 0)
    batches = [steps[n] for n in range(steps.micro_batches)]
    gone = batches[0]['tile'] == 1
    for key in ('tile', 'photo', 'weight'):
        batches[0][key] = batches[0][key][~gone]
    with torch.no_grad():
        vectors = [task({**p, 'vectors_only': torch.ones(())}) for p in batches]
    prepared = task.prepare(batches, vectors)
    assert not prepared[0]['image_gradient'][1].any() and prepared[0]['image_gradient'][0].any()


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        ({'negatives': {'bank': 5}}, 'leave `negatives` and `masks` out'),
        ({'masks': {'same_tile': True}}, 'leave `negatives` and `masks` out'),
        ({'text_tower': 'frozen', 'form': 'focal'}, 'use it with `text_tower: trained`'),
        ({'data': [{'store': 'pairs'}]}, 'give caption sets only'),
    ],
)
def test_settings_that_do_not_go_together_are_one_sentence(
    changes: dict[str, object], sentence: str, web: Path, clip: FrozenClip
) -> None:
    """What a trained text tower cannot do is said before anything is loaded."""
    with pytest.raises(ValueError, match=sentence):
        settings(clip, web, **changes)
