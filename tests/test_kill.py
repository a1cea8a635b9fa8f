"""kill -9 at random steps of a training, with everything on: the weights are the same bits in the end."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from grafalign.encoders import FrozenClip, PhotoBank
from grafalign.store import PairStore
from grafalign.training import TrainSettings
from tests.training_world import launch, run_processes, settings

STEPS = 40
EVERYTHING = {
    'steps': STEPS,
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


def steps_done(run: TrainSettings) -> int:
    """The last step in the log."""
    try:
        return int(json.loads((run.out / 'log.jsonl').read_text().splitlines()[-1])['step'])
    except (OSError, ValueError, IndexError):
        return 0


@pytest.mark.parametrize(
    ('processes', 'kills'),
    [(1, 1), pytest.param(1, 10, marks=pytest.mark.slow), pytest.param(2, 10, marks=pytest.mark.slow)],
)
def test_killed_trainings_end_with_the_same_bits(
    store: PairStore, bank: PhotoBank, clip: FrozenClip, tmp_path: Path, processes: int, kills: int
) -> None:
    """However often it is killed, a training goes on where its checkpoint was and ends as if nothing had happened."""
    whole = settings(store, clip, tmp_path / 'whole', **EVERYTHING)
    run_processes(whole, tmp_path / 'whole.yaml', processes)
    killed = settings(store, clip, tmp_path / 'killed', **EVERYTHING)
    moments = sorted(random.Random(processes * kills).sample(range(1, STEPS), kills))
    for moment in moments:
        process = launch(killed, tmp_path / 'killed.yaml', processes)
        while steps_done(killed) < moment:
            assert process.poll() is None, process.communicate()[0].decode()
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    run_processes(killed, tmp_path / 'killed.yaml', processes)
    for name in ('model.safetensors', 'log.jsonl'):
        one, two = ((run.out / name).read_bytes() for run in (whole, killed))
        if name == 'log.jsonl':
            one, two = ([(e['step'], e['loss']) for e in map(json.loads, v.splitlines())] for v in (one, two))
        assert one == two, name
