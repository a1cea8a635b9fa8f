"""AdamW, its groups of parameters, and the learning rate of every step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

_SCALARS = ('log_scale', 'bias')
"""Single numbers of a task: temperature, and the bias of the sigmoid's form."""


def rate_at(step: int, total: int, peak: float, warmup: float) -> float:
    """Learning rate of a step: linear from 0 over the warm-up, then a cosine to 0."""
    rise = max(1, round(warmup * total))
    if step < rise:
        return peak * (step + 1) / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def is_scalar(name: str) -> bool:
    """Whether a parameter is one of the task's single numbers, also under the names that DDP and compiling give."""
    return name.removeprefix('module.').removeprefix('_orig_mod.') in _SCALARS


def make_optimizer(
    task: nn.Module, lr: float, weight_decay: float, device: torch.device, lr_scalars: float = 1e-3
) -> torch.optim.AdamW:
    """AdamW over what is trained; norms, biases and single numbers do not decay.

    Temperature and bias of the task have a rate of their own: Adam moves a number by about its rate a step, and at an
    encoder's 1e-5 they would stand still.
    """
    trained = [(n, p) for n, p in task.named_parameters() if p.requires_grad]
    scalars = [p for n, p in trained if is_scalar(n)]
    parameters = [p for n, p in trained if not is_scalar(n)]
    groups: list[dict[str, Any]] = [
        {'params': [p for p in parameters if p.ndim > 1], 'weight_decay': weight_decay, 'peak_lr': lr},
        {'params': [p for p in parameters if p.ndim <= 1], 'weight_decay': 0.0, 'peak_lr': lr},
        {'params': scalars, 'weight_decay': 0.0, 'peak_lr': lr_scalars, 'lr': lr_scalars},
    ]
    return torch.optim.AdamW([g for g in groups if g['params']], lr=lr, betas=(0.9, 0.98), fused=device.type == 'cuda')
