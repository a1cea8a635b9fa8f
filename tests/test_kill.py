"""kill -9 at random steps of a training, with everything on: the weights are the same bits in the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grafalign.encoders import FrozenClip, PhotoBank
from grafalign.store import PairStore
from tests.training_world import kill_at_steps, run_processes, settings

EVERYTHING = {
    'steps': 40,
    'checkpoint_every': 2,
    'workers': 2,
    'micro_batch': 5,
    'level': 'both',
    'learn_tau': True,
    'ema': 0.9,
    'negatives': {'bank': 50},
    'masks': {'same_tile': True},
    'placement': {'kind': 'gaussian'},
    'tune': {'lora': {'rank': 4, 'dropout': 0.2}},
    'augment': {'turn': True, 'zoom': 1.2, 'haze': 0.1},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ('processes', 'kills'),
    [(1, 10), (2, 10)],
)
def test_killed_trainings_end_with_the_same_bits(
    store: PairStore, bank: PhotoBank, clip: FrozenClip, tmp_path: Path, processes: int, kills: int
) -> None:
    """However often it is killed, a training goes on where its checkpoint was and ends as if nothing had happened."""
    whole = settings(store, clip, tmp_path / 'whole', **EVERYTHING)
    run_processes(whole, tmp_path / 'whole.yaml', processes)
    killed = settings(store, clip, tmp_path / 'killed', **EVERYTHING)
    kill_at_steps(killed, tmp_path / 'killed.yaml', processes, kills)
    run_processes(killed, tmp_path / 'killed.yaml', processes)
    for name in ('model.safetensors', 'log.jsonl'):
        one, two = ((run.out / name).read_bytes() for run in (whole, killed))
        if name == 'log.jsonl':
            one, two = ([(e['step'], e['loss']) for e in map(json.loads, v.splitlines())] for v in (one, two))
        assert one == two, name
