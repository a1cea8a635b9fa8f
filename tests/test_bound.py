"""The supervised bound as a piece of work that another process may do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from grafalign.benchmarks.sandbox.bound import BoundSettings, bounds_of, load_bound, train_bound
from grafalign.encoders import FrozenClip
from grafalign.sandbox import TINY_CLIP_DIR
from grafalign.store import PairStore
from grafalign.training import TrainSettings
from tests.commands import finish, start


def settings(world: Path, store: PairStore, out: Path) -> list[BoundSettings]:
    """Bounds of both levels, of two steps."""
    run = {'store': store.path, 'out': out / 'run', 'clip': {'model': str(TINY_CLIP_DIR)}, 'batch_tiles': 4, 'lr': 0.01}
    runs = {level: TrainSettings.model_validate(run | {'level': level}) for level in ('image', 'patch')}
    return bounds_of(runs, {'image': 2, 'patch': 2}, world, Path(str(store.path)), out, per_class=2, seed=3)


@pytest.mark.slow
def test_a_bound_by_another_process_is_the_same(
    world: Path, store: PairStore, clip: FrozenClip, tmp_path: Path
) -> None:
    """Weights and class vectors are those of a training here, and it is not trained again."""
    torch.set_num_threads(1)
    for here, there in zip(settings(world, store, tmp_path / 'a'), settings(world, store, tmp_path / 'b'), strict=True):
        assert load_bound(here, clip) is None
        train_bound(here)
        code, said = finish(start('train-bound', there.write()))
        assert code == 0, said
        ours, theirs = load_bound(here, clip), load_bound(there, clip)
        assert ours is not None and theirs is not None
        np.testing.assert_array_equal(ours[1], theirs[1])
        for name, weights in ours[0].state_dict().items():
            torch.testing.assert_close(weights, theirs[0].state_dict()[name], rtol=0, atol=0)
        made = here.file.stat().st_mtime_ns
        train_bound(here)
        assert here.file.stat().st_mtime_ns == made


def test_a_bound_of_something_else_or_damaged_is_none(
    world: Path, store: PairStore, clip: FrozenClip, tmp_path: Path
) -> None:
    """Another seed, another length, another rate: each is another bound; a file cut short is trained again."""
    bound = settings(world, store, tmp_path)[0]
    train_bound(bound)
    moved = bound.model_copy(update={'sandbox': tmp_path / 'elsewhere'})
    assert load_bound(moved, clip) is not None
    for changes in ({'seed': 4}, {'steps': 3}, {'train': bound.train.model_copy(update={'lr': 0.1})}):
        assert load_bound(bound.model_copy(update=changes), clip) is None
    bound.file.write_bytes(bound.file.read_bytes()[:1000])
    assert load_bound(bound, clip) is None
