"""Make the bands of a field by several workers: threads, processes, a Dask cluster, or the processes of a launcher.

Whoever makes a band makes the same bytes, and a band is there or not: a worker that dies loses the band it was at.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from grafalign import console, engine
from grafalign.encoders.windows import WindowEncoder
from grafalign.fields import arrays
from grafalign.fields.build import FieldInput, finished, make_bands, missing_runs, opened
from grafalign.fields.marker import MARKER, FieldMarker, FieldPlan
from grafalign.fields.source import FieldOptions, field_input, window_encoder
from grafalign.models import load_model
from grafalign.processes import Team

_LOOK_S = 0.5
"""How often one looks for bands that others have made."""


@dataclass(frozen=True)
class FieldJob:
    """Some bands of a field, as a worker elsewhere can make them: paths and names, no open files."""

    out: str
    scene: str
    model: str
    clip: str | None
    options: FieldOptions
    threads: int | None = None
    """Of torch, in a process of its own; None leaves them."""
    first: int = 0
    last: int = 0
    """The band to end before."""


def make_field_shared(job: FieldJob, team: engine.Engine) -> FieldMarker:
    """Make a field by a team of workers, or go on with one that was begun.

    Args:
        job: what to make; its bands are chosen here.
        team: who makes it; each worker gets neighbouring bands, as each must encode the windows above its first one.

    Raises:
        GrafalignError: as `make_field`; a worker died, or the Dask cluster is not there.
    """
    source, _ = _tools(job)
    workers = team.workers or engine.default_workers()
    if team.kind == 'processes' and job.threads is None:
        job = replace(job, threads=max(1, engine.default_workers() // workers))
    out = Path(job.out)
    with opened(out, source.plan, job.model) as done:
        if done is not None:
            return done
        runs = missing_runs(out, source.plan)
        jobs = [replace(job, first=first, last=last) for run in runs for first, last in _cut(run, runs, workers)]
        with _bar_of_bands(out, source.plan):
            for _ in engine.run(make_job, jobs, team):
                pass
        return finished(out, source.plan, job.model)


def make_field_by_team(job: FieldJob, team: Team) -> FieldMarker:
    """Make this process's bands of a field; all see the same folder, and the first one finishes the field.

    Args:
        job: what to make.
        team: the processes that a launcher started.

    Raises:
        GrafalignError: as `make_field`; the processes do other things, or one of them is gone.
    """
    source, _ = _tools(job)
    out, plan = Path(job.out), source.plan
    share = team.share(arrays.bands_of(plan))
    question = hashlib.blake2b(plan.model_dump_json().encode(), digest_size=8).hexdigest()
    mine = replace(job, first=share.start, last=share.stop)
    if not team.first:
        team.agree(out, f'field {question}')
        if team.hear():
            make_job(mine)
            team.wait()
        team.wait()
        return FieldMarker.read(out / MARKER)
    with opened(out, plan, job.model) as done:
        team.agree(out, f'field {question}')
        team.tell(done is None)
        if done is None:
            with _bar_of_bands(out, plan):
                make_job(mine)
                team.wait()
                team.see(arrays.stats_file(out, band) for band in range(arrays.bands_of(plan)))
            done = finished(out, plan, job.model)
    team.wait()
    return done


def make_job(job: FieldJob) -> None:
    """Make the bands of a job that are not there yet."""
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    source, encoder = _tools(job)
    out = Path(job.out)
    for first, last in missing_runs(out, source.plan, job.first, job.last):
        make_bands(out, source, encoder, first, last, lambda _: None)


def _tools(job: FieldJob) -> tuple[FieldInput, WindowEncoder]:
    with _tools_lock:  # of threads that begin together one loads the model
        return _load(os.getpid(), job.scene, job.model, job.clip, job.options)


_tools_lock = threading.Lock()


@lru_cache(maxsize=1)
def _load(
    _process: int, scene: str, model: str, clip: str | None, options: FieldOptions
) -> tuple[FieldInput, WindowEncoder]:
    loaded = load_model(model, clip)
    source = field_input(scene, loaded, options)
    return source, window_encoder(loaded, source.plan)


def _cut(run: tuple[int, int], runs: Sequence[tuple[int, int]], workers: int) -> list[tuple[int, int]]:
    """A run of bands in pieces of about one worker's share of all runs.

    Example: ten bands for three workers
        >>> _cut((0, 10), [(0, 10)], 3)
        [(0, 4), (4, 7), (7, 10)]
    """
    share = -(-sum(last - first for first, last in runs) // workers)
    first, last = run
    pieces = -(-(last - first) // share)
    edges = [first + -(-(last - first) * i // pieces) for i in range(pieces + 1)]
    return list(itertools.pairwise(edges))


@contextlib.contextmanager
def _bar_of_bands(out: Path, plan: FieldPlan) -> Iterator[None]:
    """Show the bands that are there, whoever makes them."""
    bands, stop = arrays.bands_of(plan), threading.Event()

    def there() -> int:
        return sum(arrays.is_complete(out, band) for band in range(bands))

    def show() -> None:
        shown = there()
        with console.progress('making bands', bands - shown) as bar:
            while True:
                ended = stop.wait(_LOOK_S)
                now = there()
                bar.advance(now - shown)
                shown = now
                if ended:
                    return

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
