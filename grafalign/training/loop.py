"""One training loop: AdamW, warm-up and cosine, clipping, logs, checkpoints and exact resume.

The rate is a function of the step and the batches are too (`training.data`), so a checkpoint is weights, moments and
the position. The loop knows nothing of losses: it is given a module that turns a micro-batch into its share of the
loss. Micro-batches of a step are added up, and gradients cross the wire once, with the last of them.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from grafalign import console
from grafalign.errors import InputError, MachineError
from grafalign.training.bad_tiles import BadTiles
from grafalign.training.checkpoint import (
    CheckpointState,
    checkpoint_state,
    full,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from grafalign.training.ema import RunningMean
from grafalign.training.optimizer import is_scalar, make_optimizer, rate_at
from grafalign.training.run_log import Entry, Window, read_log, report, write_log
from grafalign.training.settings import LoopSettings
from grafalign.training.steps import Steps
from grafalign.training.worker_room import PREFETCHED, check_worker_room

_SILENT_S = 600
"""Seconds after which data workers that send nothing are given up."""


@dataclass(frozen=True)
class Run:
    """Where a training keeps what it does."""

    out: Path
    digest: str
    """What a checkpoint must have been made with."""
    micro_batch: int | None = None
    """Kept in checkpoints: a resumed run goes on with it."""
    precision: str | None = None
    max_bad_tiles: int = 0
    """So many tiles may be unreadable."""

    @property
    def checkpoints(self) -> Path:
        """Folder of the newest checkpoint."""
        return self.out / 'checkpoints'

    @property
    def log(self) -> Path:
        """A line every few steps."""
        return self.out / 'log.jsonl'


@dataclass(frozen=True)
class Validation:
    """Measurements while a training goes on."""

    measure: Callable[[nn.Module], Mapping[str, float]]
    """Named measurements of the prepared task; with a running mean of the weights, of that."""
    every: int
    """Steps between them; also after the last step."""


def fit(
    task: nn.Module,
    steps: Steps,
    total: int,
    peak_lr: float,
    settings: LoopSettings,
    accelerator: Accelerator,
    run: Run | None = None,
    validation: Validation | None = None,
) -> list[Entry]:
    """Train a task for `total` steps, from the newest checkpoint of its run if there is one.

    Args:
        task: module that turns a micro-batch into its share of this process's loss.
        steps: the micro-batches of every step.
        total: number of steps.
        peak_lr: learning rate after warm-up.
        settings: the rest of the settings.
        accelerator: device, precision and processes.
        run: where checkpoints and `log.jsonl` go; nothing is written without it.
        validation: what to measure besides the loss, and how often.

    Returns:
        The log, one dict a logged step. The task ends with the running mean of its weights if there is one.

    Raises:
        GrafalignError: loss, gradient or weights are not finite, too many tiles are unreadable, or the checkpoint is
            not usable.
    """
    loop = _Loop(task, steps, total, peak_lr, settings, accelerator, run, validation)
    first = loop.resume()
    batches = loop.batches(first)
    for step in range(first, total):
        loop.step(step, batches)
        done = step + 1
        last = done == total
        keep = run is not None and (done % settings.checkpoint_every == 0 or last)
        if done % settings.log_every == 0 or keep or last:
            loss, grad_norm = loop.check(done)
            if done % settings.log_every == 0 or last:
                loop.write_log(done, loss, grad_norm)
        if keep and run is not None:
            loop.save(run, done)
    return loop.end()


class _Loop:
    """A training under way; arguments as of `fit`."""

    def __init__(
        self,
        task: nn.Module,
        steps: Steps,
        total: int,
        peak_lr: float,
        settings: LoopSettings,
        accelerator: Accelerator,
        run: Run | None,
        validation: Validation | None,
    ) -> None:
        self._task, self._steps, self._total, self._peak_lr = task, steps, total, peak_lr
        self._settings, self._accelerator, self._run, self._validation = settings, accelerator, run, validation
        self._epoch_steps = steps.steps_per_epoch or total
        optimizer = make_optimizer(task, peak_lr, settings.weight_decay, accelerator.device, settings.lr_scalars)
        self._model, self._optimizer = accelerator.prepare(task, optimizer)
        self._mean = RunningMean(task, settings.ema) if settings.ema else None
        self._trained = [p for p in self._model.parameters() if p.requires_grad]
        # temperature and bias have a scale of their own and are not clipped with the rest
        self._clipped = [p for n, p in self._model.named_parameters() if p.requires_grad and not is_scalar(n)]
        self._log: list[Entry] = []
        self._window = Window()
        self._bad = BadTiles(None, 0, steps.name_tiles, accelerator, False)

    def resume(self) -> int:
        """Load the newest checkpoint; returns the steps that are done."""
        run, first = self._run, 0
        if run is None:
            return first
        newest = latest_checkpoint(run.checkpoints)
        if newest is not None:
            state = checkpoint_state(newest, run.digest)
            first = state.steps_done(self._epoch_steps)
            mean = load_checkpoint(newest, self._task, self._optimizer.optimizer)
            if self._mean is not None:
                self._mean.load(mean)
            if self._accelerator.scaler is not None and state.scaler is not None:
                self._accelerator.scaler.load_state_dict(dict(state.scaler))
            self._log = read_log(run.log, first)
            if self._accelerator.is_main_process:
                console.log(f'resuming after step {first} of {self._total}')
        if self._accelerator.is_main_process:
            write_log(run.log, self._log)
        bad_tiles = run.out / 'bad_tiles.txt'
        self._bad = BadTiles(bad_tiles, run.max_bad_tiles, self._steps.name_tiles, self._accelerator, first > 0)
        return first

    def batches(self, first: int) -> Iterator[dict[str, Tensor]]:
        """All micro-batches from a step on, read ahead by the data workers."""
        workers, count = self._settings.workers, self._steps.micro_batches
        if workers:
            check_worker_room(self._steps, first * count, workers)
        self._model.train()
        self._window = Window()
        return iter(
            DataLoader(
                self._steps,
                batch_size=None,
                sampler=range(first * count, self._total * count),
                num_workers=workers,
                prefetch_factor=PREFETCHED if workers else None,
                timeout=_SILENT_S if workers else 0,
                pin_memory=self._accelerator.device.type == 'cuda',
            )
        )

    def step(self, step: int, batches: Iterator[dict[str, Tensor]]) -> None:
        """Gradients of all micro-batches of a step, then one step of the optimizer."""
        accelerator, count = self._accelerator, self._steps.micro_batches
        loss = torch.zeros((), device=accelerator.device)
        for turn, (number, batch) in enumerate(self._micro_batches(step, batches)):
            tiles = len(batch['pixels'])
            self._bad.note(batch.get('bad'))
            self._window.tiles += tiles * accelerator.num_processes
            if not tiles and accelerator.num_processes == 1:
                continue  # the short last batch of an epoch; other processes could be waiting for this one
            with contextlib.nullcontext() if turn == count - 1 else accelerator.no_sync(self._model):
                share = self._forward(batch, (self._settings.seed, step, number, accelerator.process_index))
                accelerator.backward(share)
            loss += torch.as_tensor(share.detach())
        norm = accelerator.clip_grad_norm_(self._clipped, self._settings.clip_norm)
        for group in self._optimizer.param_groups:
            group['lr'] = rate_at(step, self._total, group['peak_lr'], self._settings.warmup)
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self._mean is not None:
            self._mean.update(step)
        self._window.losses.append(loss)
        self._window.norms.append(full(torch.as_tensor(norm)).detach().to(loss.device))

    def _micro_batches(self, step: int, read: Iterator[dict[str, Tensor]]) -> Iterable[tuple[int, dict[str, Any]]]:
        """The micro-batches of a step with their numbers, in the order in which their gradients are made.

        A task whose loss is one of the whole batch has `prepare`: it is shown all of them first, without gradients. But
        what it made of the last one is kept with its graph, so that this one goes through the towers once; it then
        comes first.
        """
        count, prepare = self._steps.micro_batches, getattr(self._task, 'prepare', None)
        every = (self._next(read) for _ in range(count))
        if prepare is None or count == 1:
            return enumerate(every)
        rank = self._accelerator.process_index
        batches = [batch for batch in every if len(batch['pixels'])]
        last, made = len(batches) - 1, []
        with self._accelerator.no_sync(self._model):
            for number, batch in enumerate(batches):
                with torch.set_grad_enabled(number == last):
                    asked = {**batch, 'vectors_only': torch.ones(())}
                    made.append(self._forward(asked, (self._settings.seed, step, number, rank)))
        vectors = [(images.detach(), texts.detach()) for images, texts, *_ in made]
        with torch.no_grad():
            prepared: list[dict[str, Any]] = prepare([self._on_device(batch) for batch in batches], vectors)
        prepared[last]['made'] = made[last]
        return [(number, prepared[number]) for number in (last, *range(last))]

    def _forward(self, batch: dict[str, Any], place: tuple[int, ...]) -> Any:
        """What the task makes of a micro-batch: its share of the loss."""
        torch.manual_seed(hash(place) % 2**63)  # whatever a tower draws for itself (dropout) follows from the place
        with self._accelerator.autocast():
            return self._model(self._on_device(batch))

    def _on_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        device = self._accelerator.device
        return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def _next(self, batches: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The next micro-batch, with the time waited for it."""
        mark = time.perf_counter()
        try:
            return next(batches)
        except RuntimeError as error:
            if 'timed out' not in str(error):
                raise
            raise MachineError(
                f'No data worker sent a batch for {_SILENT_S} s; look at the disk of the store, at the space in '
                '/dev/shm and at the limit of open files (ulimit -n), or set `workers: 0`.'
            ) from None
        finally:
            self._window.waited += time.perf_counter() - mark

    def check(self, done: int) -> tuple[float, float]:
        """Loss and gradient norm since the last line of the log, mean over the processes; all must call it.

        Raises:
            GrafalignError: one of them or the weights are not finite, or too many tiles are unreadable.
        """
        accelerator, window = self._accelerator, self._window
        size = full(nn.utils.get_total_norm([p.detach() for p in self._trained]))
        values = torch.stack([torch.stack(window.losses).mean(), torch.stack(window.norms).mean(), size])
        together = accelerator.reduce(torch.cat([values, self._bad.any(values)]), reduction='mean')
        loss, grad_norm, weights, bad = torch.as_tensor(together).tolist()
        _check_finite('loss is', loss, done)
        if accelerator.mixed_precision != 'fp16':  # which skips steps whose scaled gradient overflows, all the time
            _check_finite('gradient is', grad_norm, done)
        _check_finite('norm of the weights is', weights, done)
        self._bad.check(bad > 0)
        return loss, grad_norm

    def write_log(self, done: int, loss: float, grad_norm: float) -> None:
        """A line of the log, with measurements where it is time for them."""
        rate = rate_at(done - 1, self._total, self._peak_lr, self._settings.warmup)
        entry = self._window.entry(done, loss, grad_norm, rate)
        entry |= {k: float(full(v)) for k, v in getattr(self._task, 'noted', {}).items()}
        if self._bad.names:
            entry['bad_tiles'] = len(self._bad.names)
        validation = self._validation
        if validation and (done % validation.every < self._settings.log_every or done == self._total):
            self._model.eval()
            with torch.no_grad(), self._mean.in_place() if self._mean is not None else contextlib.nullcontext():
                entry |= validation.measure(self._model)
            self._model.train()
        self._log.append(entry)
        if self._run is not None and self._accelerator.is_main_process:
            report(self._accelerator, entry, self._total, self._run.log)
        self._window = Window()

    def save(self, run: Run, done: int) -> None:
        """Write a checkpoint; all processes must call it."""
        epoch, step = divmod(done, self._epoch_steps)
        scaler = self._accelerator.scaler
        state = CheckpointState(
            format=CheckpointState.NEWEST,
            digest=run.digest,
            epoch=epoch,
            step=step,
            micro_batch=run.micro_batch,
            precision=run.precision,
            scaler=None if scaler is None else scaler.state_dict(),
        )
        save_checkpoint(
            run.checkpoints,
            done,
            state,
            self._task,
            self._optimizer.optimizer,
            None if self._mean is None else self._mean.mean,
            write=self._accelerator.is_main_process,
        )

    def end(self) -> list[Entry]:
        """Leave the task with the weights that are kept; returns the log."""
        if self._mean is not None:
            self._mean.into_place()
        self._model.eval()
        return self._log


def _check_finite(what: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise InputError(
            f'The {what} {value} at step {step}; the last checkpoint is kept. All pixels that went in are finite '
            '(others are left out as unreadable tiles), so lower `lr` or change `precision`.'
        )
