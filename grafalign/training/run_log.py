"""`log.jsonl`: a line every few steps, for people, for trackers and for resuming."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor

from grafalign import console
from grafalign.training.trackers import log_to_trackers

Entry = dict[str, float]


@dataclass
class Window:
    """What happened since the last line of the log."""

    started: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    """Seconds spent waiting for data."""
    losses: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    """Of the gradient, before clipping."""
    tiles: int = 0

    def entry(self, step: int, loss: float, grad_norm: float, rate: float) -> Entry:
        """A line of the log, from the means over the window."""
        seconds, steps = time.perf_counter() - self.started, len(self.losses)
        norm = {'grad_norm': grad_norm} if math.isfinite(grad_norm) else {}  # infinity is no JSON
        return {
            'step': step,
            'loss': loss,
            **norm,
            'lr': rate,
            'data_ms': 1000 * self.waited / steps,
            'step_ms': 1000 * seconds / steps,
            'tiles_per_s': self.tiles / seconds,
        }


def read_log(path: Path, until: int) -> list[Entry]:
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


def write_log(path: Path, log: list[Entry]) -> None:
    """Write all lines anew."""
    path.write_text(''.join(json.dumps(entry) + '\n' for entry in log))


def report(accelerator: Accelerator, entry: Entry, total: int, path: Path) -> None:
    """Show a line of the log, give it to the trackers, and append it to the file."""
    left = (total - entry['step']) * entry['step_ms'] / 1000
    extra = ''.join(f'  {k} {v:.3f}' for k, v in entry.items() if '@' in k)
    bad = f'  {entry["bad_tiles"]:.0f} unreadable tiles' if 'bad_tiles' in entry else ''
    console.log(
        f'step {entry["step"]:>6}/{total}  loss {entry["loss"]:.4f}  lr {entry["lr"]:.2e}  '
        f'data {entry["data_ms"]:.1f} ms ({entry["data_ms"] / entry["step_ms"]:.1%})  step {entry["step_ms"]:.1f} ms  '
        f'{entry["tiles_per_s"]:.0f} tiles/s  left {int(left // 60)}:{int(left % 60):02d}{bad}{extra}'
    )
    log_to_trackers(accelerator, {k: v for k, v in entry.items() if k != 'step'}, int(entry['step']))
    with path.open('a') as file:
        file.write(json.dumps(entry) + '\n')
