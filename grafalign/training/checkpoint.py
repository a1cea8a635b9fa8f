"""Checkpoints: safetensors and one small JSON, written beside their final name and moved there in one rename."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from grafalign.errors import GrafalignError


def save_checkpoint(folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, digest: str) -> None:
    """Write `folder/step_XXXXXXXX` and remove older ones.

    Args:
        folder: the run's `checkpoints` folder.
        step: steps done.
        model: the bare task module.
        optimizer: an AdamW.
        digest: digest of the settings, checked on resuming.

    Raises:
        GrafalignError: the checkpoint cannot be written; older ones are kept.
    """
    final = folder / f'step_{step:08d}'
    part = folder / f'.{final.name}.part'
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        save_tensors(model.state_dict(), part / 'model.safetensors')
        moments = {}
        for index, values in optimizer.state_dict()['state'].items():
            for name, value in values.items():
                moments[f'{index}.{name}'] = torch.as_tensor(value)
        save_tensors(moments, part / 'optimizer.safetensors')
        (part / 'state.json').write_text(json.dumps({'step': step, 'digest': digest}))
        shutil.rmtree(final, ignore_errors=True)
        part.replace(final)
    finally:
        shutil.rmtree(part, ignore_errors=True)  # a full disk should not stay full of what cannot be used
    for old in folder.glob('step_*'):
        if old != final:
            shutil.rmtree(old, ignore_errors=True)


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file through to the disk.

    Raises:
        GrafalignError: it cannot be written (for which safetensors has a type of its own).
    """
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, str(path))
    except SafetensorError as error:
        raise GrafalignError(
            f'{path} cannot be written ({error}); free some space and run the same command again '
            '(the last checkpoint is kept).'
        ) from None
    with path.open('rb') as file:
        os.fsync(file.fileno())


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None."""
    found = sorted(folder.glob('step_*'))
    return found[-1] if found else None


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, digest: str) -> int:
    """Load weights and optimizer state in place; return the number of steps done.

    Raises:
        GrafalignError: the checkpoint was made with other settings or is damaged.
    """
    try:
        state: dict[str, Any] = json.loads((path / 'state.json').read_text())
        if state['digest'] != digest:
            raise GrafalignError(
                f'{path} was made with other settings, clip or store; give the run another `out` or delete it.'
            )
        model.load_state_dict(load_file(path / 'model.safetensors'))
        moments = load_file(path / 'optimizer.safetensors')
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise GrafalignError(f'{path} is damaged ({error}); delete this folder to begin again.') from None
    whole = optimizer.state_dict()
    whole['state'] = {}
    for key, value in moments.items():
        index, _, name = key.partition('.')
        whole['state'].setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(whole)
    return int(state['step'])
