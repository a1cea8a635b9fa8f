"""What a person sees while a command runs: progress with rate and ETA, tables, log lines.

Everything goes to standard error, so that `--json` on standard output stays clean; nothing animates when standard
error is not a terminal.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
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


def track(items: Iterable[Item], label: str, total: int | None = None, step: int = 1) -> Iterator[Item]:
    """Pass items through and show a bar with count, rate and time left; one line at the end when not a terminal."""
    if total is None and isinstance(items, Sequence):
        total = len(items) * step
    started, count = time.perf_counter(), 0
    columns = (
        SpinnerColumn(),
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn('left'),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(label, total=total)
        for item in items:
            yield item
            count += step
            bar.update(task, advance=step)
    seconds = time.perf_counter() - started
    if seconds > 2:
        count = min(count, total) if total is not None else count
        log(f'{label}: {count:,} in {seconds:.1f} s ({_per_second(count / seconds)})')


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
