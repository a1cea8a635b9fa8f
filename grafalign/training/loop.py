"""One training loop: AdamW, warm-up and cosine, clipping, logs, checkpoints and exact resume.

The rate is a function of the step and the batches are too (`training.data`), so a checkpoint is weights, moments and
one integer. The loop knows nothing of losses: it is given a module that turns a batch into a loss.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from grafalign import console
from grafalign.errors import GrafalignError
from grafalign.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from grafalign.training.settings import LoopSettings

Validate = Callable[[nn.Module], Mapping[str, float]]


def make_accelerator(precision: str, out: Path | None = None) -> Accelerator:
    """An Accelerator for the requested precision; with a run folder it writes TensorBoard events there."""
    if precision == 'auto':
        precision = 'bf16' if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else 'no'
    tracked: dict[str, Any] = {} if out is None else {'log_with': 'tensorboard', 'project_dir': str(out)}
    return Accelerator(mixed_precision=precision, **tracked)


def rate_at(step: int, total: int, peak: float, warmup: float) -> float:
    """Learning rate of a step: linear from 0 over the warm-up, then a cosine to 0."""
    rise = max(1, round(warmup * total))
    if step < rise:
        return peak * (step + 1) / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def fit(
    task: nn.Module,
    steps: Dataset[Any],
    total: int,
    peak_lr: float,
    settings: LoopSettings,
    accelerator: Accelerator,
    out: Path | None = None,
    digest: str = '',
    validate: Validate | None = None,
    validate_every: int = 0,
) -> list[dict[str, float]]:
    """Train a task for `total` steps, from the newest checkpoint in `out` if there is one.

    Args:
        task: module that turns a batch into this process's loss.
        steps: item k is the batch of step k.
        total: number of steps.
        peak_lr: learning rate after warm-up.
        settings: the rest of the settings.
        accelerator: device, precision and processes.
        out: run folder for checkpoints and `log.jsonl`; nothing is written without it.
        digest: what the checkpoint must have been made with.
        validate: returns named measurements of the bare task.
        validate_every: steps between them; also after the last step.

    Returns:
        The log: one dict a logged step.

    Raises:
        GrafalignError: the loss is not finite, or the checkpoint is not usable.
    """
    parameters = [p for p in task.parameters() if p.requires_grad]
    groups = [
        {'params': [p for p in parameters if p.ndim > 1], 'weight_decay': settings.weight_decay},
        {'params': [p for p in parameters if p.ndim <= 1], 'weight_decay': 0.0},  # norms and biases do not decay
    ]
    fused = accelerator.device.type == 'cuda'
    optimizer = torch.optim.AdamW(groups, lr=peak_lr, betas=(0.9, 0.98), fused=fused)
    model, prepared = accelerator.prepare(task, optimizer)
    checkpoints = None if out is None else out / 'checkpoints'
    first, log = 0, []
    newest = None if checkpoints is None else latest_checkpoint(checkpoints)
    if newest is not None and out is not None:
        first = load_checkpoint(newest, task, optimizer, digest)
        log = _read_log(out / 'log.jsonl', first)
        if accelerator.is_main_process:
            console.log(f'resuming after step {first} of {total}')
    if out is not None and accelerator.is_main_process:
        _write_log(out / 'log.jsonl', log)
    loader = DataLoader(
        steps,
        batch_size=None,
        sampler=range(first, total),
        num_workers=settings.workers,
        prefetch_factor=4 if settings.workers else None,
        persistent_workers=False,
    )
    model.train()
    started = mark = time.perf_counter()
    waited = tiles = 0.0
    running: list[Tensor] = []
    step = first
    for raw in loader:
        batch = {k: v.to(accelerator.device, non_blocking=True) for k, v in raw.items()}
        waited += time.perf_counter() - mark
        for group in prepared.param_groups:
            group['lr'] = rate_at(step, total, peak_lr, settings.warmup)
        with accelerator.autocast():
            loss = model(batch)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(parameters, settings.clip_norm)
        prepared.step()
        prepared.zero_grad()
        running.append(loss.detach())
        tiles += len(raw['pixels']) * accelerator.num_processes
        step += 1
        last = step == total
        if step % settings.log_every == 0 or last:
            mean = float(accelerator.reduce(torch.stack(running).mean(), reduction='mean'))
            _check_finite(mean, step)
            seconds = time.perf_counter() - started
            entry = {
                'step': step,
                'loss': mean,
                'lr': rate_at(step - 1, total, peak_lr, settings.warmup),
                'data_ms': 1000 * waited / len(running),
                'step_ms': 1000 * seconds / len(running),
                'tiles_per_s': tiles / seconds,
            }
            running, waited, tiles = [], 0.0, 0.0
            if validate is not None and (step % validate_every < settings.log_every or last):
                task.eval()
                with torch.no_grad():
                    entry |= validate(task)
                task.train()
            log.append(entry)
            _report(accelerator, entry, total, out)
            started = time.perf_counter()
        if checkpoints is not None and (step % settings.checkpoint_every == 0 or last):
            _check_finite(float(loss), step)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                save_checkpoint(checkpoints, step, task, optimizer, digest)
        mark = time.perf_counter()
    task.eval()
    return log


def _check_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise GrafalignError(
            f'The loss is {loss} at step {step}; the last checkpoint is kept. Lower `lr` or change `precision`.'
        )


def _report(accelerator: Accelerator, entry: dict[str, float], total: int, out: Path | None) -> None:
    if not accelerator.is_main_process or out is None:
        return
    left = (total - entry['step']) * entry['step_ms'] / 1000
    extra = ''.join(f'  {k} {v:.3f}' for k, v in entry.items() if '@' in k)
    console.log(
        f'step {entry["step"]:>6}/{total}  loss {entry["loss"]:.4f}  lr {entry["lr"]:.2e}  '
        f'data {entry["data_ms"]:.1f} ms  step {entry["step_ms"]:.1f} ms  {entry["tiles_per_s"]:.0f} tiles/s  '
        f'left {int(left // 60)}:{int(left % 60):02d}{extra}'
    )
    accelerator.log({k.replace('@', '_at_'): v for k, v in entry.items() if k != 'step'}, step=int(entry['step']))
    with (out / 'log.jsonl').open('a') as file:
        file.write(json.dumps(entry) + '\n')


def _read_log(path: Path, until: int) -> list[dict[str, float]]:
    """Log entries up to a step; a line cut short by a kill is dropped."""
    entries = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if entry['step'] <= until:
            entries.append(entry)
    return entries


def _write_log(path: Path, log: list[dict[str, float]]) -> None:
    path.write_text(''.join(json.dumps(entry) + '\n' for entry in log))
