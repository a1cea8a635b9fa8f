"""Devices, precision, processes and trackers, as Accelerate sets them up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import parse_flag_from_env

from grafalign.errors import InputError, MachineError
from grafalign.processes import meet_on_cpu


def make_accelerator(precision: str, out: Path | None = None, trackers: tuple[str, ...] = ()) -> Accelerator:
    """An Accelerator for the requested precision; with a run folder it logs to the named trackers.

    Raises:
        GrafalignError: a tracker is unknown or not installed, there is no such precision here, or FSDP is of version 1.
    """
    meet_on_cpu()
    on_gpu = torch.cuda.is_available() and not parse_flag_from_env('ACCELERATE_USE_CPU')
    if precision == 'auto':
        precision = 'bf16' if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else 'no'
    if precision == 'fp16' and not on_gpu:
        raise MachineError('precision: fp16 needs a GPU; use `auto`, `no` or `bf16` here.')
    known = sorted(LOGGER_TYPE_TO_CLASS)
    for name in trackers:
        if name not in known:
            raise InputError(f'trackers: Accelerate knows no tracker {name!r}; known are {", ".join(known)}.')
    tracked: dict[str, Any] = {} if out is None else {'log_with': list(trackers) or None, 'project_dir': str(out)}
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()  # or a second training of one process could have no other precision
    accelerator = Accelerator(mixed_precision=precision, **tracked)
    plugin = getattr(accelerator.state, 'fsdp_plugin', None)
    if plugin is not None:
        if plugin.fsdp_version != 2:
            raise InputError('FSDP of version 1 cannot train this; set `fsdp_version: 2` in the accelerate config.')
        # autocast chooses types by operation; FSDP would cast the places of photos and the loss to bfloat16, too
        plugin.mixed_precision_policy = None
    missing = set(trackers) - {str(getattr(t, 'value', t)) for t in accelerator.log_with}
    if out is not None and missing:
        name = sorted(missing)[0]
        raise MachineError(f'trackers: {name} is not installed; `pip install {name}` or remove it from the list.')
    return accelerator
