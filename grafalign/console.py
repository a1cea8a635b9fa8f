"""What a person sees while a command runs: progress with rate and ETA, tables, log lines.

Everything goes to standard error, so that `--json` on standard output stays clean; nothing animates when standard
error is not a terminal.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import warnings
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

from grafalign.escapes import printable

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
        TextColumn('{task.description}', markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TextColumn('{task.fields[notes]}', style='yellow'),
        TimeElapsedColumn(),
        TextColumn('left'),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as shown:
        bar = Bar(shown, shown.add_task(printable(label), total=total, notes=''))
        with contextlib.nullcontext() if err.is_terminal else _heard(bar, label, total, started):
            yield bar
    seconds = time.perf_counter() - started
    if seconds > 2:
        count = min(bar.count, total) if total is not None else bar.count
        notes = f'; {bar.notes()}' if bar.notes() else ''
        log(f'{label}: {count:,} in {seconds:.1f} s ({_per_second(count / seconds)}){notes}')


_EVERY_S = 60.0
"""Seconds between lines where there is no terminal, so that a log of hours is not silent."""


@contextlib.contextmanager
def _heard(bar: Bar, label: str, total: int | None, started: float) -> Iterator[None]:
    """Write a line a minute with count, rate and time left."""
    ended = threading.Event()

    def speak() -> None:
        while not ended.wait(_EVERY_S):
            seconds = time.perf_counter() - started
            count, rate = bar.count, bar.count / seconds
            left = f', {_duration((total - count) / rate)} left' if total is not None and 0 < count < total else ''
            of = f' of {total:,}' if total is not None else ''
            notes = f'; {bar.notes()}' if bar.notes() else ''
            log(f'{label}: {count:,}{of} ({_per_second(rate)}{left}){notes}')

    thread = threading.Thread(target=speak, name='grafalign-progress', daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours} h {minutes} min' if hours else f'{minutes} min {rest} s' if minutes else f'{rest} s'


def quiet_libraries() -> None:
    """Keep warnings of libraries out of what people see; for processes that are ours, not for those that import us."""
    warnings.filterwarnings('ignore', module=r'PIL\.')  # of every crooked EXIF directory
    logging.getLogger('PIL').setLevel(logging.CRITICAL)  # a file that cannot be read is a row with its reason
    warnings.filterwarnings('ignore', message='Dataset has no geotransform')  # arrays carry none when they are warped


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
    view = Table(title=literal(title), title_justify='left', header_style='bold')
    view.add_column('reason')
    view.add_column('count', justify='right')
    view.add_column('')
    for name, count in sorted(counts.items(), key=lambda c: -c[1]):
        view.add_row(literal(name), f'{count:,}', '█' * max(1, round(24 * count / largest)))
    err.print(view)


def _per_second(rate: float) -> str:
    if rate < 0.1:
        return f'{60 * rate:.1f}/min'
    return f'{rate:,.0f}/s' if rate >= 10 else f'{rate:.1f}/s'


def log(line: str) -> None:
    """Write one line, as it is: neither markup nor emoji codes nor control characters mean anything."""
    err.print(literal(line), soft_wrap=True)


def literal(text: str) -> Text:
    """Text that rich shows as it is."""
    return Text(printable(text))


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table; numbers should come formatted."""
    view = Table(title=literal(title), title_justify='left', header_style='bold')
    for i, name in enumerate(header):
        view.add_column(literal(name), justify='left' if i == 0 else 'right')
    for row in rows:
        view.add_row(*(literal(cell) for cell in row))
    err.print(view)
