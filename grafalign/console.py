"""What a person sees while a command runs: progress with rate and ETA, tables, log lines.

Everything goes to standard error, so that `--json` on standard output stays clean; nothing animates when standard
error is not a terminal.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

err = Console(stderr=True, highlight=False)
Item = TypeVar('Item')


class _Rate(ProgressColumn):
    """Items a second since the start."""

    def render(self, task: Task) -> Text:
        elapsed = task.finished_time if task.finished else task.elapsed
        rate = task.completed / elapsed if elapsed else 0.0
        return Text(_per_second(rate), style='cyan')


class Bar:
    """A bar with count, rate and time left; safe to advance from any thread."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar, self._task, self._lock = bar, task, threading.Lock()
        self.count = self.failed = self.rejected = 0

    def advance(self, count: int, failed: int = 0, rejected: int = 0) -> None:
        """Note items that are done, and how many of them failed or were rejected."""
        with self._lock:
            self.count += count
            self.failed += failed
            self.rejected += rejected
            self._bar.update(self._task, advance=count, notes=self.notes())

    def notes(self) -> str:
        """The failed and the rejected, where there are any."""
        parts = [f'{n:,} {what}' for n, what in ((self.failed, 'failed'), (self.rejected, 'rejected')) if n]
        return ', '.join(parts)


@contextlib.contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Bar]:
    """Show a bar while the context lasts, and one line at its end if that took more than two seconds."""
    started = time.perf_counter()
    columns = (
        SpinnerColumn(),
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TextColumn('[yellow]{task.fields[notes]}'),
        TimeElapsedColumn(),
        TextColumn('left'),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as shown:
        bar = Bar(shown, shown.add_task(label, total=total, notes=''))
        yield bar
    seconds = time.perf_counter() - started
    if seconds > 2:
        count = min(bar.count, total) if total is not None else bar.count
        notes = f'; {bar.notes()}' if bar.notes() else ''
        log(f'{label}: {count:,} in {seconds:.1f} s ({_per_second(count / seconds)}){notes}')


def track(items: Iterable[Item], label: str, total: int | None = None, step: int = 1) -> Iterator[Item]:
    """Pass items through and show a bar; every item counts for `step`."""
    if total is None and isinstance(items, Sequence):
        total = len(items) * step
    with progress(label, total) as bar:
        for item in items:
            yield item
            bar.advance(step)


def histogram(title: str, counts: Mapping[str, int]) -> None:
    """Write counts by name as a table with bars, the largest first."""
    largest = max(counts.values(), default=0)
    view = Table(title=title, title_justify='left', header_style='bold')
    view.add_column('reason')
    view.add_column('count', justify='right')
    view.add_column('')
    for name, count in sorted(counts.items(), key=lambda c: -c[1]):
        view.add_row(name, f'{count:,}', '█' * max(1, round(24 * count / largest)))
    err.print(view)


def _per_second(rate: float) -> str:
    return f'{rate:,.0f}/s' if rate >= 10 else f'{rate:.1f}/s'


def log(line: str) -> None:
    """Write one line."""
    err.print(line, soft_wrap=True, markup=False)


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table; numbers should come formatted."""
    view = Table(title=title, title_justify='left', header_style='bold')
    for i, name in enumerate(header):
        view.add_column(name, justify='left' if i == 0 else 'right')
    for row in rows:
        view.add_row(*row)
    err.print(view)
