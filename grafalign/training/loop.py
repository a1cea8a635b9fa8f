"""One training loop: AdamW, warm-up and cosine, clipping, logs, checkpoints and exact resume.

The rate is a function of the step and the batches are too (`training.data`), so a checkpoint is weights, moments and
the position. The loop knows nothing of losses: it is given a module that turns a portion of a batch into its share of
the loss. Portions of a step are added up, and gradients cross the wire once, with the last of them.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import gather_object, parse_flag_from_env
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from grafalign import console
from grafalign.errors import DamagedError, InputError, MachineError
from grafalign.files import write_atomically
from grafalign.training.checkpoint import (
    Position,
    checkpoint_facts,
    full,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from grafalign.training.ema import RunningMean
from grafalign.training.settings import LoopSettings
from grafalign.training.trackers import log_to_trackers
from grafalign.training.worker_room import PREFETCHED, check_worker_room

_SILENT_S = 600
"""Seconds after which data workers that send nothing are given up."""
Validate = Callable[[nn.Module], Mapping[str, float]]


def make_accelerator(precision: str, out: Path | None = None, trackers: tuple[str, ...] = ()) -> Accelerator:
    """An Accelerator for the requested precision; with a run folder it logs to the named trackers.

    Raises:
        GrafalignError: a tracker is unknown or not installed, there is no such precision here, or FSDP is of version 1.
    """
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


def rate_at(step: int, total: int, peak: float, warmup: float) -> float:
    """Learning rate of a step: linear from 0 over the warm-up, then a cosine to 0."""
    rise = max(1, round(warmup * total))
    if step < rise:
        return peak * (step + 1) / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


@dataclass
class _Window:
    """What happened since the last line of the log."""

    started: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    losses: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    tiles: int = 0


@dataclass(frozen=True)
class Run:
    """Where a training keeps what it does."""

    out: Path
    digest: str
    """What a checkpoint must have been made with."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Kept in checkpoints besides."""

    @property
    def checkpoints(self) -> Path:
        """Folder of the newest checkpoint."""
        return self.out / 'checkpoints'


def fit(
    task: nn.Module,
    steps: Dataset[Any],
    total: int,
    peak_lr: float,
    settings: LoopSettings,
    accelerator: Accelerator,
    run: Run | None = None,
    validate: Validate | None = None,
    validate_every: int = 0,
    most_bad: int = 0,
) -> list[dict[str, float]]:
    """Train a task for `total` steps, from the newest checkpoint of its run if there is one.

    Args:
        task: module that turns a portion of a batch into its share of this process's loss.
        steps: items `step * portions` to `(step + 1) * portions - 1` are the portions of a step; `portions`,
            `steps_per_epoch` are read where it has them (1 and everything otherwise).
        total: number of steps.
        peak_lr: learning rate after warm-up.
        settings: the rest of the settings.
        accelerator: device, precision and processes.
        run: where checkpoints and `log.jsonl` go; nothing is written without it.
        validate: returns named measurements of the prepared task; with a running mean, of that.
        validate_every: steps between them; also after the last step.
        most_bad: so many tiles may be unreadable.

    Returns:
        The log, one dict a logged step. The task ends with the running mean of its weights if there is one.

    Raises:
        GrafalignError: loss, gradient or weights are not finite, too many tiles are unreadable, or the checkpoint is
            not usable.
    """
    portions, epoch_steps = getattr(steps, 'portions', 1), getattr(steps, 'steps_per_epoch', total)
    optimizer = make_optimizer(task, peak_lr, settings.weight_decay, accelerator.device, settings.lr_scalars)
    model, prepared = accelerator.prepare(task, optimizer)
    mean = RunningMean(task, settings.ema) if settings.ema else None
    main = accelerator.is_main_process
    first, log = 0, []
    newest = None if run is None else latest_checkpoint(run.checkpoints)
    if run is not None and newest is not None:
        facts = checkpoint_facts(newest, run.digest)
        first = int(facts['epoch']) * epoch_steps + int(facts['step'])
        kept = load_checkpoint(newest, task, prepared.optimizer)
        if mean is not None:
            mean.load(kept)
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(facts['scaler'])
        log = _read_log(run.out / 'log.jsonl', first)
        if main:
            console.log(f'resuming after step {first} of {total}')
    if run is not None and main:
        _write_log(run.out / 'log.jsonl', log)
    if settings.workers:
        check_worker_room(steps, first * portions, settings.workers)
    bad = _BadTiles(run, most_bad, getattr(steps, 'name_tiles', None), accelerator, first > 0)
    items = iter(
        DataLoader(
            steps,
            batch_size=None,
            sampler=range(first * portions, total * portions),
            num_workers=settings.workers,
            prefetch_factor=PREFETCHED if settings.workers else None,
            timeout=_SILENT_S if settings.workers else 0,
            pin_memory=accelerator.device.type == 'cuda',
        )
    )
    parameters = [p for p in model.parameters() if p.requires_grad]
    shared = [p for n, p in model.named_parameters() if p.requires_grad and not _is_scalar(n)]
    model.train()
    window = _Window()
    for step in range(first, total):
        loss = torch.zeros((), device=accelerator.device)
        for portion in range(portions):
            raw = _next(items, window)
            batch = {k: v.to(accelerator.device, non_blocking=True) for k, v in raw.items()}
            tiles = len(raw['pixels'])
            bad.note(raw.get('bad'))
            window.tiles += tiles * accelerator.num_processes
            last_portion = portion == portions - 1
            if not tiles and accelerator.num_processes == 1:
                continue  # the short last batch of an epoch; other processes could be waiting for this one
            with contextlib.nullcontext() if last_portion else accelerator.no_sync(model):
                # whatever a tower draws for itself (dropout) follows from the place in the training, too
                torch.manual_seed(hash((settings.seed, step, portion, accelerator.process_index)) % 2**63)
                with accelerator.autocast():
                    part = model(batch)
                accelerator.backward(part)
            loss += part.detach()
        norm = accelerator.clip_grad_norm_(shared, settings.clip_norm)  # temperature and bias have their own scale
        for group in prepared.param_groups:
            group['lr'] = rate_at(step, total, group['peak_lr'], settings.warmup)
        prepared.step()
        prepared.zero_grad()
        if mean is not None:
            mean.update(step)
        window.losses.append(loss)
        window.norms.append(full(torch.as_tensor(norm)).detach().to(loss.device))
        done = step + 1
        last = done == total
        keep = run is not None and (done % settings.checkpoint_every == 0 or last)
        if done % settings.log_every == 0 or keep or last:
            size = full(nn.utils.get_total_norm([p.detach() for p in parameters]))
            summed = torch.stack([torch.stack(window.losses).mean(), torch.stack(window.norms).mean(), size])
            found = accelerator.reduce(torch.cat([summed, bad.any(summed)]), reduction='mean').tolist()
            # fp16 skips steps whose scaled gradient overflows: an infinite norm is its daily business
            norm = 0.0 if accelerator.mixed_precision == 'fp16' else found[1]
            _check_finite({'loss is': found[0], 'gradient is': norm, 'norm of the weights is': found[2]}, done)
            bad.check(found[3] > 0)
            if done % settings.log_every == 0 or last:
                entry = _entry(window, found, done, rate_at(step, total, peak_lr, settings.warmup))
                entry |= {k: float(full(v)) for k, v in getattr(task, 'noted', {}).items()}
                if bad.names:
                    entry['bad_tiles'] = len(bad.names)
                if validate is not None and (done % validate_every < settings.log_every or last):
                    model.eval()
                    with torch.no_grad(), mean.in_place() if mean is not None else contextlib.nullcontext():
                        entry |= validate(model)
                    model.train()
                log.append(entry)
                if run is not None and main:
                    _report(accelerator, entry, total, run.out)
                window = _Window()
        if keep and run is not None:
            position = Position(*divmod(done, epoch_steps))
            facts = {'digest': run.digest, **run.facts}
            if accelerator.scaler is not None:
                facts['scaler'] = accelerator.scaler.state_dict()
            save_checkpoint(
                run.checkpoints,
                done,
                position,
                task,
                prepared.optimizer,
                facts,
                None if mean is None else mean.mean,
                write=main,
            )
    if mean is not None:
        mean.into_place()
    model.eval()
    return log


_SCALARS = ('log_scale', 'bias')
"""Single numbers of a task: temperature, and the bias of the sigmoid's form."""


def _is_scalar(name: str) -> bool:
    return name.removeprefix('module.').removeprefix('_orig_mod.') in _SCALARS


def make_optimizer(
    task: nn.Module, lr: float, weight_decay: float, device: torch.device, lr_scalars: float = 1e-3
) -> torch.optim.AdamW:
    """AdamW over what is trained; norms, biases and single numbers do not decay.

    Temperature and bias of the task have a rate of their own: Adam moves a number by about its rate a step, and at an
    encoder's 1e-5 they would stand still.
    """
    trained = [(n, p) for n, p in task.named_parameters() if p.requires_grad]
    scalars = [p for n, p in trained if _is_scalar(n)]
    parameters = [p for n, p in trained if not _is_scalar(n)]
    groups: list[dict[str, Any]] = [
        {'params': [p for p in parameters if p.ndim > 1], 'weight_decay': weight_decay, 'peak_lr': lr},
        {'params': [p for p in parameters if p.ndim <= 1], 'weight_decay': 0.0, 'peak_lr': lr},
        {'params': scalars, 'weight_decay': 0.0, 'peak_lr': lr_scalars, 'lr': lr_scalars},
    ]
    return torch.optim.AdamW([g for g in groups if g['params']], lr=lr, betas=(0.9, 0.98), fused=device.type == 'cuda')


def _next(items: Iterator[Any], window: _Window) -> Any:
    """The next portion, with the time waited for it."""
    mark = time.perf_counter()
    try:
        return next(items)
    except RuntimeError as error:
        if 'timed out' not in str(error):
            raise
        raise MachineError(
            f'No data worker sent a batch for {_SILENT_S} s; look at the disk of the store, at the space in /dev/shm '
            'and at the limit of open files (ulimit -n), or set `workers: 0`.'
        ) from None
    finally:
        window.waited += time.perf_counter() - mark


def _check_finite(found: Mapping[str, float], step: int) -> None:
    for what, value in found.items():
        if not math.isfinite(value):
            raise InputError(
                f'The {what} {value} at step {step}; the last checkpoint is kept. All pixels that went in are finite '
                '(others are left out as unreadable tiles), so lower `lr` or change `precision`.'
            )


class _BadTiles:
    """Tiles that could not be read, by whichever process, and before the run was resumed."""

    def __init__(
        self,
        run: Run | None,
        most: int,
        name: Callable[[list[int]], list[str]] | None,
        accelerator: Accelerator,
        resumed: bool,
    ) -> None:
        self._path = None if run is None else run.out / 'bad_tiles.txt'
        self._most, self._name, self._accelerator = most, name, accelerator
        self._here: set[int] = set()
        self.names: set[str] = set()
        if self._path is not None and resumed and self._path.is_file():
            self.names = set(self._path.read_text().splitlines())

    def note(self, rows: Tensor | None) -> None:
        """Take in rows of the store that this process could not read."""
        self._here |= set() if rows is None else set(rows.tolist())

    def any(self, like: Tensor) -> Tensor:
        """Whether this process has met any, as a tensor [1] to be added up."""
        return like.new_tensor([float(bool(self._here))])

    def check(self, anywhere: bool) -> None:
        """Bring together what all processes have met, list it, and stop where it is too much; all must call it."""
        if not anywhere or self._name is None:
            return
        self.names |= set(self._name(sorted(set(gather_object(list(self._here))))))
        if self._path is not None and self._accelerator.is_main_process:
            write_atomically(self._path, ''.join(f'{n}\n' for n in sorted(self.names)).encode())
        if len(self.names) > self._most:
            raise DamagedError(
                f'{len(self.names)} tiles are unreadable, more than max_bad_tiles ({self._most}): {self._path} lists '
                'them. Run `grafalign check` on the store and mend it, or raise max_bad_tiles.'
            )


def _entry(window: _Window, found: list[float], step: int, rate: float) -> dict[str, float]:
    seconds, count = time.perf_counter() - window.started, len(window.losses)
    norm = {'grad_norm': found[1]} if math.isfinite(found[1]) else {}  # infinity is no JSON
    return {
        'step': step,
        'loss': found[0],
        **norm,
        'lr': rate,
        'data_ms': 1000 * window.waited / count,
        'step_ms': 1000 * seconds / count,
        'tiles_per_s': window.tiles / seconds,
    }


def _report(accelerator: Accelerator, entry: dict[str, float], total: int, out: Path) -> None:
    left = (total - entry['step']) * entry['step_ms'] / 1000
    extra = ''.join(f'  {k} {v:.3f}' for k, v in entry.items() if '@' in k)
    bad = f'  {entry["bad_tiles"]:.0f} unreadable tiles' if 'bad_tiles' in entry else ''
    console.log(
        f'step {entry["step"]:>6}/{total}  loss {entry["loss"]:.4f}  lr {entry["lr"]:.2e}  '
        f'data {entry["data_ms"]:.1f} ms ({entry["data_ms"] / entry["step_ms"]:.1%})  step {entry["step_ms"]:.1f} ms  '
        f'{entry["tiles_per_s"]:.0f} tiles/s  left {int(left // 60)}:{int(left % 60):02d}{bad}{extra}'
    )
    log_to_trackers(accelerator, {k: v for k, v in entry.items() if k != 'step'}, int(entry['step']))
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
