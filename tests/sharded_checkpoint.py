"""Run by `test_sharded.py` in two processes: train a sharded model a little, save it, go on; and load it again."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from grafalign.training.checkpoint import CheckpointState, full_state, load_checkpoint, save_checkpoint
from grafalign.training.ema import RunningMean
from grafalign.training.optimizer import make_optimizer


def model() -> nn.Module:
    """A few layers, the same in every process."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3))


def train(task: nn.Module, optimizer: torch.optim.Optimizer, mean: RunningMean, first: int, last: int) -> None:
    """Some steps on the same data in every process."""
    for step in range(first, last):
        inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        task(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        mean.update(step)


def ready(sharded: bool) -> tuple[nn.Module, torch.optim.Optimizer, RunningMean]:
    """A model with its optimizer and running mean, sharded over both processes or whole."""
    task = model()
    if sharded:
        mesh = init_device_mesh('cpu', (2,))
        for layer in (task[0], task[2]):  # type: ignore[index]
            fully_shard(layer, mesh=mesh)
        fully_shard(task, mesh=mesh)
    return task, make_optimizer(task, 0.05, 0.1, torch.device('cpu')), RunningMean(task, 0.5)


def main(folder: Path) -> None:
    """Three steps sharded, save; then two more from the checkpoint, once sharded and once whole: they must agree."""
    distributed.init_process_group('gloo')
    first = distributed.get_rank() == 0
    task, optimizer, mean = ready(sharded=True)
    train(task, optimizer, mean, 0, 3)
    state = CheckpointState(format=1, digest='', epoch=0, step=3)
    save_checkpoint(folder, 3, state, task, optimizer, mean.mean, write=first)
    distributed.barrier()
    ends = []
    for sharded in (True, False):
        task, optimizer, mean = ready(sharded)
        with torch.no_grad():
            for parameter in task.parameters():
                parameter.zero_()
        mean.load(load_checkpoint(folder / 'step_00000003', task, optimizer))
        train(task, optimizer, mean, 3, 5)
        mean.into_place()
        ends.append(full_state(task))
    whole, optimizer, mean = ready(sharded=False)
    train(whole, optimizer, mean, 0, 5)
    mean.into_place()
    for end in ends:
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(end[name], value)
    distributed.destroy_process_group()


if __name__ == '__main__':
    main(Path(sys.argv[1]))
