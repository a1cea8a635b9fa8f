"""Attention over what a photo may show: its formula, the run that is asked, and the order of runs that ask another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn import functional

from grafalign.chain import Experiment, _next, _run_config, _training
from grafalign.encoders import FrozenClip, PhotoBank, SatelliteEncoder
from grafalign.errors import GrafalignError, InputError, StaleError
from grafalign.sandbox import TINY_CLIP_DIR
from grafalign.store import PairStore
from grafalign.training import TrainSettings, train
from grafalign.training.data import PairSteps
from grafalign.training.objective import Candidates
from grafalign.training.placement import Where, attend, place
from grafalign.training.task import AlignmentTask, viewed


@given(st.integers(1, 4), st.integers(1, 3), st.sampled_from([0.02, 0.1, 1.0]), st.integers(0, 30))
def test_attention_is_its_formula(photos: int, side: int, tau: float, seed: int) -> None:
    """Patch by patch in float64: weight times exp(cosine / tau), over their sum; what weighed nothing still does."""
    g = torch.Generator().manual_seed(seed)
    weights = torch.rand(photos, side, side, generator=g, dtype=torch.float64)
    weights[:, 0, 0] += 0.1
    if side > 1:
        weights[:, 1, 1] = 0
    weights = weights / weights.sum((1, 2), keepdim=True)
    patches = functional.normalize(torch.randn(photos, side, side, 5, generator=g, dtype=torch.float64), dim=-1)
    embeddings = functional.normalize(torch.randn(photos, 5, generator=g, dtype=torch.float64), dim=-1)
    attended = attend(weights, torch.einsum('nhwd,nd->nhw', patches, embeddings), tau)
    for n in range(photos):
        scores = {
            (r, c): float(weights[n, r, c]) * float(torch.exp(patches[n, r, c] @ embeddings[n] / tau))
            for r in range(side)
            for c in range(side)
        }
        for (r, c), score in scores.items():
            assert float(attended[n, r, c]) == pytest.approx(score / sum(scores.values()), abs=1e-9)


def test_the_worked_example_holds() -> None:
    """Cosines that differ by 0.1 at a temperature of 0.1 are a factor of e."""
    found = attend(torch.full((1, 1, 2), 0.5), torch.tensor([[[0.6, 0.5]]]), 0.1)
    assert found.flatten().tolist() == pytest.approx([0.731, 0.269], abs=1e-3)


def settings_of(store: PairStore, out: Path, **changes: Any) -> TrainSettings:
    """A short training at patch level."""
    values = {
        'store': store.path, 'out': out, 'clip': {'model': str(TINY_CLIP_DIR)}, 'steps': 2, 'batch_tiles': 8,
        'level': 'patch', 'log_every': 1, 'trackers': (), 'placement': {'kind': 'view_cone'},
    }  # fmt: skip
    return TrainSettings.model_validate(values | changes)


def attending(run: Path) -> dict[str, Any]:
    """The setting, of a run."""
    return {'placement': {'kind': 'view_cone', 'attention': {'run': run}}}


def test_anchors_are_means_under_the_weights_that_the_run_sees(
    store: PairStore, bank: PhotoBank, clip: FrozenClip, tmp_path: Path
) -> None:
    """Pair by pair: place the photo alone, weigh its tile's patches by the run's cosines, take their mean."""
    settings = settings_of(store, tmp_path, tau=0.2, **attending(tmp_path))
    rows = torch.from_numpy(bank.embeddings.astype('float32'))
    teacher = SatelliteEncoder(clip, store.sensor.bands, store.sensor.size_px).eval()
    teacher.requires_grad_(False)
    for values in teacher.parameters():  # not the encoder that is trained
        values += 0.02 * torch.randn(values.shape, generator=torch.Generator().manual_seed(0))
    task = AlignmentTask.start(clip, store.sensor, settings, rows, teacher=teacher)
    batch = PairSteps.of_store(store, bank, settings, side=task.encoder.side)[0]
    images = viewed(task.preprocess, batch, settings.augment)
    patches, teacher_patches = task.encoder(images).patches, task._teacher_patches(images)
    assert teacher_patches is not None and len(batch['tile']) > 8
    anchors = task._placed(patches, teacher_patches, Candidates(rows, batch['candidates']), batch)
    reach = settings.placement.reach_m / store.sensor.gsd_m
    for n, tile in enumerate(batch['tile'].tolist()):
        names = ('row', 'col', 'sigma_px', 'heading', 'field_of_view')
        where = Where(*(batch[name][n : n + 1] for name in names), torch.tensor([reach]))  # type: ignore[literal-required]
        weights = place(where, settings.placement, task.encoder.side, task.encoder.patch_px).patches[0]
        photo = rows[batch['candidates'][batch['photo'][n]]]
        weights = weights * torch.exp(teacher_patches[tile] @ photo / 0.1)
        mean = (patches[tile] * (weights / weights.sum())[..., None]).sum((0, 1))
        torch.testing.assert_close(anchors[n], functional.normalize(mean, dim=0), rtol=1e-4, atol=1e-5)


def test_a_run_learns_where_another_one_looks(store: PairStore, bank: PhotoBank, tmp_path: Path) -> None:
    """Its weights are other ones and hold nothing of the run that is asked, which counts by its content."""
    train(settings_of(store, tmp_path / 'first'))
    train(settings_of(store, tmp_path / 'other', steps=3))
    train(settings_of(store, tmp_path / 'second', **attending(tmp_path / 'first')))
    first, second = (load_file(tmp_path / name / 'model.safetensors') for name in ('first', 'second'))
    assert first.keys() == second.keys() and any((first[k] != second[k]).any() for k in first)
    (tmp_path / 'first').rename(tmp_path / 'moved')
    train(settings_of(store, tmp_path / 'second', **attending(tmp_path / 'moved')))  # is done already
    with pytest.raises(StaleError, match='other settings'):
        train(settings_of(store, tmp_path / 'second', **attending(tmp_path / 'other')))


def test_micro_batches_do_not_matter(store: PairStore, bank: PhotoBank, tmp_path: Path) -> None:
    """Eight tiles at once or three at a time give the same weights."""
    train(settings_of(store, tmp_path / 'first'))
    for size in (8, 3):
        train(settings_of(store, tmp_path / str(size), micro_batch=size, **attending(tmp_path / 'first')))
    once, parts = (load_file(tmp_path / name / 'model.safetensors') for name in ('8', '3'))
    for name, values in once.items():
        torch.testing.assert_close(parts[name], values, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_one_sentence(store: PairStore, bank: PhotoBank, tmp_path: Path) -> None:
    """No run, one of whole images, other bands; a point, and whole images, have nothing to choose."""
    with pytest.raises(GrafalignError, match='not a finished run'):
        train(settings_of(store, tmp_path / 'a', **attending(tmp_path)))
    train(settings_of(store, tmp_path / 'image', level='image'))
    with pytest.raises(InputError, match=r'level: image.*give a run that learned patches'):
        train(settings_of(store, tmp_path / 'a', **attending(tmp_path / 'image')))
    with pytest.raises(InputError, match=r"bands \('red', 'green', 'blue'\)"):
        bands = ('blue', 'green', 'red')
        train(settings_of(store, tmp_path / 'a', bands=bands, **attending(tmp_path / 'image')))
    with pytest.raises(ValueError, match='gaussian'):
        settings_of(store, tmp_path / 'a', placement={'attention': {'run': tmp_path}})
    with pytest.raises(ValueError, match='level: patch'):
        settings_of(store, tmp_path / 'a', level='image', **attending(tmp_path))


def test_runs_of_an_experiment_wait_for_those_they_ask(store: PairStore, tmp_path: Path) -> None:
    """A run is called by its name in the file; one that is asked starts first, one that asks when it is finished."""
    run = {'level': 'patch', 'steps': 1}
    asks = run | {'placement': {'kind': 'view_cone', 'attention': {'run': 'plain'}}}
    experiment = Experiment.model_validate(
        {'title': 't', 'out': tmp_path, 'pair': 'x.yaml', 'clip': {'model': 'm'}, 'train': {'asks': asks, 'plain': run}}
    )
    asking, plain = (_run_config(experiment, name, store.path) for name in ('asks', 'plain'))
    asks_plain, asked = _training(asking), _training(plain)
    assert asks_plain.after == asked.out == tmp_path / 'plain'
    assert _next([asks_plain, asked], []) == asked
    assert _next([asks_plain], [asked]) is None
    third = _training(_run_config(experiment.model_copy(update={'train': {'third': run}}), 'third', store.path))
    assert _next([third, asks_plain, asked], []) == asked and _next([third, asks_plain], [asked]) == third
    assert _next([asks_plain], []) == asks_plain
    with pytest.raises(InputError, match='The runs plain ask each other or themselves'):
        _next([replace(asks_plain, out=tmp_path / 'plain')], [])
