"""Run by `test_sharded.py` in two processes: the gradient of a training's own task, sharded, against the whole one."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from grafalign.encoders import ClipSettings, load_bank, load_clip
from grafalign.sandbox import TINY_CLIP_DIR
from grafalign.store import PairStore
from grafalign.training.checkpoint import full
from grafalign.training.data import PairSteps, Share
from tests.training_world import gradient, settings, start


def main(folder: Path) -> None:
    """Both processes compute the whole gradient; then each its share, with the task sharded over both."""
    distributed.init_process_group('gloo')
    store, clip = PairStore(folder), load_clip(ClipSettings(model=str(TINY_CLIP_DIR)))
    bank = load_bank(store)
    wanted = settings(store, clip, level='both', learn_tau=True, form='sigmoid', negatives={'bank': 40})
    loss, whole = gradient(start(store, bank, clip, wanted), store, bank, wanted)
    task = start(store, bank, clip, wanted)
    fully_shard(task, mesh=init_device_mesh('cpu', (2,)))
    part = task(PairSteps.of_store(store, bank, wanted, Share(distributed.get_rank(), 2))[0])
    part.backward()
    mean = part.detach()
    distributed.all_reduce(mean)
    torch.testing.assert_close(mean / 2, loss, rtol=1e-5, atol=1e-6)
    found = {n: full(p.grad) for n, p in task.named_parameters() if p.grad is not None}
    assert found.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)
    distributed.destroy_process_group()


if __name__ == '__main__':
    main(Path(sys.argv[1]))
