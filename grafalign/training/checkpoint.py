"""Checkpoints: safetensors and one small JSON, written beside their final name and moved there in one rename.

Weights and moments are whole and named by parameter, also where FSDP shards them: a run may be continued on another
number of processes.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from grafalign.artefacts import Marker
from grafalign.encoders.weights_file import save_tensors
from grafalign.errors import DamagedError, StaleError
from grafalign.files import to_disk


class CheckpointState(Marker):
    """`state.json`: the place in a training, two integers, and what resuming needs besides the tensors."""

    NEWEST: ClassVar[int] = 1
    OLDEST: ClassVar[int] = 0  # of before it said its format
    REMEDY: ClassVar[str] = 'delete this folder to begin again'

    format: int = 0
    digest: str
    """What the run follows from, see `RunMarker`."""
    epoch: int
    step: int
    """Steps done in this epoch."""
    micro_batch: int | None = None
    """Tiles that go through the encoder at a time: others would change the last bits of sums."""
    precision: str | None = None
    scaler: dict[str, float | int] | None = None
    """State of fp16's gradient scaler."""

    def steps_done(self, epoch_steps: int) -> int:
        """Steps done since the beginning."""
        return self.epoch * epoch_steps + self.step


def save_checkpoint(
    folder: Path,
    done: int,
    state: CheckpointState,
    task: nn.Module,
    optimizer: torch.optim.Optimizer,
    mean: Mapping[str, Tensor] | None = None,
    *,
    write: bool = True,
) -> None:
    """Write `folder/step_XXXXXXXX` and remove older ones. All processes must call it, as a sharded model is gathered.

    Args:
        folder: the run's `checkpoints` folder.
        done: steps done, for the name.
        state: where the training is.
        task: what is trained, itself rather than what DDP made of it.
        optimizer: its AdamW.
        mean: a running mean of the weights.
        write: whether this process writes.

    Raises:
        GrafalignError: the checkpoint cannot be written; older ones are kept.
    """
    tensors = {
        'model': full_state(task),
        'optimizer': {k: full(v) for k, v in _moments(task, optimizer).items()},
        'mean': {k: full(v) for k, v in (mean or {}).items()},
    }
    if not write:
        return
    final = folder / f'step_{done:08d}'
    part = folder / f'.{final.name}.part'
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        for name, values in tensors.items():
            save_tensors(values, part / f'{name}.safetensors')
        state.write(part / 'state.json')
        to_disk(part)
        shutil.rmtree(final, ignore_errors=True)
        part.replace(final)
        to_disk(folder)  # before older ones go
    finally:
        shutil.rmtree(part, ignore_errors=True)  # a full disk should not stay full of what cannot be used
    for old in folder.glob('step_*'):
        if old != final:
            shutil.rmtree(old, ignore_errors=True)


def full_state(task: nn.Module) -> dict[str, Tensor]:
    """All weights by name, whole. All processes must call it."""
    return {k: full(v) for k, v in task.state_dict().items()}


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor that FSDP may have sharded over processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _moments(task: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's state by parameter name; rates and decays follow from settings and step."""
    states = {n: optimizer.state[p] for n, p in task.named_parameters() if p.requires_grad}
    return {f'{name}.{key}': torch.as_tensor(value) for name, state in states.items() for key, value in state.items()}


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None."""
    found = sorted(folder.glob('step_*'))
    return found[-1] if found else None


def checkpoint_state(path: Path, digest: str) -> CheckpointState:
    """What a checkpoint says of itself.

    Raises:
        StaleError: it was made with other settings.
        DamagedError: it cannot be read.
    """
    state = CheckpointState.read(path / 'state.json')
    if state.digest != digest:
        raise StaleError(
            f'{path} was made with other settings, clip, store or photos; give the run another `out` or delete it.'
        )
    return state


@torch.no_grad()
def load_checkpoint(path: Path, task: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Load weights and moments in place; return the running mean of the weights, if there is one.

    Raises:
        GrafalignError: the checkpoint is damaged.
    """
    try:
        weights, moments, mean = (load_file(path / f'{n}.safetensors') for n in ('model', 'optimizer', 'mean'))
        for name, tensor in task.state_dict().items():
            tensor.copy_(like(weights.pop(name), tensor))
        if weights:
            raise ValueError(f'{next(iter(weights))} is not of this model')
        for name, parameter in task.named_parameters():
            if parameter.requires_grad:
                state = {k: moments[f'{name}.{k}'] for k in ('step', 'exp_avg', 'exp_avg_sq')}
                on_gpu = parameter.device if optimizer.defaults['fused'] else torch.device('cpu')
                step = state.pop('step').to(on_gpu)
                optimizer.state[parameter] = {'step': step, **{k: like(v, parameter) for k, v in state.items()}}
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _damaged(path, error) from None
    return mean


def like(value: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor with the device and the sharding of another."""
    if isinstance(tensor, DTensor):
        return distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements)
    return value.to(tensor.device)


def _damaged(path: Path, error: Exception) -> DamagedError:
    reason = ' '.join(str(error).split())[:200]
    return DamagedError(f'{path} is damaged ({reason}); delete this folder to begin again.')
