"""The whole chain from one file: pair -> embed -> train -> evaluate -> report, each step resuming where it stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from pydantic import Field, model_validator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from grafalign import console, engine
from grafalign.benchmarks.sandbox import Evaluation, SetSizes, evaluate_sandbox, write_report
from grafalign.benchmarks.sandbox.bound import bounds_of
from grafalign.config import Settings, load_settings, parse_settings
from grafalign.encoders import ClipSettings, ContentFilters, best_device, embed, filter_bank, load_clip
from grafalign.errors import InputError, error_of, naming_full_disk
from grafalign.files import write_atomically
from grafalign.launch import CHILD
from grafalign.locks import exclusive
from grafalign.pairing import Recipe, pair
from grafalign.report import Report
from grafalign.store import PairStore
from grafalign.training import TrainSettings

Result = TypeVar('Result')
_RUN_KEYS = set(TrainSettings.model_fields) - {'store', 'out', 'clip'}


class Experiment(Settings):
    """The file of `grafalign run`."""

    title: str
    notes: str = ''
    """A paragraph for the report."""
    out: Path
    """Folder for store, runs and report."""
    pair: Recipe | Path
    """A recipe, or the path of one."""
    clip: ClipSettings
    filters: ContentFilters | None = None
    """Leave out photos that show no place, by CLIP's own judgement; all photos are used without it."""
    train: dict[str, dict[str, Any]] = Field(min_length=1)
    """Run names to training settings, without `store`, `out` and `clip`. A run that another asks (`self_labels.run`,
    `placement.attention.run`) may be called by its name here."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    sandbox: Path | None = None
    """World whose truth evaluates the runs; without it the report has no labels."""
    chips: int = Field(default=60, ge=1)
    test_per_class: int = Field(default=40, ge=1)

    @model_validator(mode='after')
    def _known_run_keys(self) -> Experiment:
        for name, values in self.train.items():
            unknown = set(values) - _RUN_KEYS
            if unknown:
                raise ValueError(
                    f'train.{name}: unknown key {sorted(unknown)[0]!r}, known are {", ".join(sorted(_RUN_KEYS))}'
                )
        return self

    @property
    def recipe(self) -> Recipe:
        """The pairing recipe."""
        return self.pair if isinstance(self.pair, Recipe) else load_settings(self.pair, Recipe)


class Clock:
    """Seconds of each step, remembered across restarts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    def time(self, step: str, function: Callable[[], Result]) -> Result:
        """Run a step and add its seconds to what earlier, killed tries of it took."""
        console.log(f'— {step}')
        started = time.perf_counter()
        try:
            return function()
        finally:
            done = f'{step}_done' in self.seconds
            if not done:
                self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - started
            if sys.exc_info()[0] is None:
                self.seconds[f'{step}_done'] = 1.0
            write_atomically(self._path, json.dumps(self.seconds).encode())

    def table(self) -> dict[str, float]:
        """Seconds by step, with their total last."""
        steps = {k: v for k, v in self.seconds.items() if not k.endswith('_done')}
        return {**steps, 'total': sum(steps.values())}


def run_experiment(experiment: Experiment, clock: Clock | None = None, workers: int | None = None) -> Report:
    """Run all steps of an experiment; those that are done already return at once.

    Returns:
        What report.json says.

    Raises:
        GrafalignError: a step failed; the sentence is that step's.
    """
    out = experiment.out
    with exclusive(out), naming_full_disk(out):
        clock = clock or Clock(out / 'seconds.json')
        store_path = out / 'pairs'
        clock.time('pair', lambda: pair(experiment.recipe, store_path, workers))
        store = PairStore(store_path)
        clock.time('embed', lambda: embed(store, load_clip(experiment.clip, best_device()), workers=workers))
        filters = experiment.filters
        if filters is not None:
            clock.time('filter', lambda: filter_bank(store, load_clip(experiment.clip), filters))
        runs = {name: out / name for name in experiment.train}
        jobs = [_training(_run_config(experiment, name, store_path)) for name in experiment.train]
        sizes = SetSizes(test_per_class=experiment.test_per_class, chips=experiment.chips)
        bounds = _bounds(experiment, store_path, sizes)
        clock.time('train', lambda: do_side_by_side([*jobs, *bounds]))
        evaluation: Evaluation | None = None
        if experiment.sandbox is not None:
            sandbox = experiment.sandbox
            evaluation = clock.time(
                'evaluate', lambda: evaluate_sandbox(sandbox, store_path, runs, sizes, experiment.seed, out)
            )
        setting = {
            'settings': experiment.model_dump(mode='json'),
            'seed': experiment.seed,
            'cores': engine.default_workers(),
            'command': ' '.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        }
        return write_report(out, experiment.title, store, runs, clock.table(), evaluation, setting, experiment.notes)


def _run_config(experiment: Experiment, name: str, store: Path) -> Path:
    """Write a run's settings where `grafalign train` finds them; return the file."""
    content = {
        'seed': experiment.seed,
        **deepcopy(experiment.train[name]),
        'store': str(store),
        'out': str(experiment.out / name),
        'clip': experiment.clip.model_dump(),
    }
    for teacher in (content.get('self_labels'), (content.get('placement') or {}).get('attention')):
        if isinstance(teacher, dict) and teacher.get('run') in experiment.train:
            teacher['run'] = str(experiment.out / teacher['run'])
    settings = parse_settings(content, TrainSettings, f'train.{name}')
    path = experiment.out / f'{name}.yaml'
    write_atomically(path, yaml.safe_dump(settings.model_dump(mode='json'), sort_keys=False).encode())
    return path


@dataclass(frozen=True)
class Job:
    """A training in a process of its own."""

    out: Path
    """Its folder; what the process prints goes to `train.out` in it."""
    command: tuple[str, ...]
    """Of Python."""
    result: Path
    """What is there when it is done."""
    steps: int | None
    after: Path | None = None
    """Folder of the job that has to be done before."""


def _training(config: Path) -> Job:
    """The training of a run."""
    settings = load_settings(config, TrainSettings)
    command = ('-m', 'grafalign', 'train', str(config))
    return Job(settings.out, command, settings.out / 'model.json', settings.steps, settings.taught_by)


def _bounds(experiment: Experiment, store: Path, sizes: SetSizes) -> list[Job]:
    """The supervised bounds, where a sandbox evaluates runs whose length is known before they are trained."""
    runs = {n: load_settings(experiment.out / f'{n}.yaml', TrainSettings) for n in experiment.train}
    steps = {name: settings.steps for name, settings in runs.items() if settings.steps is not None}
    if experiment.sandbox is None or len(steps) < len(runs):
        return []
    bounds = bounds_of(runs, steps, experiment.sandbox, store, experiment.out, sizes.train_per_class, experiment.seed)
    command = '-m', 'grafalign', 'train-bound'
    return [Job(b.out, (*command, str(b.write())), b.file, b.steps) for b in bounds]


def do_side_by_side(jobs: Sequence[Job]) -> None:
    """Train several models: on a GPU one after another, on a CPU as many at a time as there are cores.

    Small models use one core each far better than they share several, so every process gets its own threads.

    Args:
        jobs: what to train; those that are done are not done again.

    Raises:
        GrafalignError: a job failed; the others are stopped.
    """
    waiting = [job for job in jobs if not job.result.exists()]
    cores = engine.default_workers()
    abreast = 1 if torch.cuda.is_available() else max(1, min(len(waiting), cores))
    threads = max(1, cores // abreast)
    running: dict[Job, subprocess.Popen[bytes]] = {}
    columns = (
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn('left'),
        TimeRemainingColumn(),
        TextColumn('{task.fields[note]}'),
    )
    with Progress(*columns, console=console.err, disable=not console.err.is_terminal) as bars:
        tasks = {job: bars.add_task(f'train {job.out.name}', total=job.steps, note='') for job in waiting}
        try:
            while waiting or running:
                while len(running) < abreast and (ready := _next(waiting, list(running))):
                    waiting.remove(ready)
                    running[ready] = _start(ready, threads)
                time.sleep(0.25)
                for job, process in list(running.items()):
                    last = _last_entry(job.out)
                    if last:
                        note = f'loss {last["loss"]:.3f}  {last["tiles_per_s"]:.0f} tiles/s'
                        bars.update(tasks[job], completed=int(last['step']), note=note)
                    if process.poll() is None:
                        continue
                    del running[job]
                    if process.returncode:
                        kind = error_of(process.returncode)
                        raise kind(_last_line(job.out / 'train.out', process.returncode))
                    bars.update(tasks[job], completed=job.steps)
                    if last:
                        console.log(f'{job.out.name}: step {last["step"]}  {note}')
        finally:
            for process in running.values():
                process.send_signal(signal.SIGTERM)
            for process in running.values():
                process.wait()


def _next(waiting: Sequence[Job], running: Sequence[Job]) -> Job | None:
    """A job that waits for no other, first those that others wait for; None while all wait.

    Raises:
        GrafalignError: they wait for each other.
    """
    unfinished = {job.out for job in (*waiting, *running)}
    teachers = {job.after for job in waiting}
    ready = [job for job in waiting if job.after not in unfinished]
    if waiting and not running and not ready:
        names = ', '.join(job.out.name for job in waiting)
        raise InputError(f'The runs {names} ask each other or themselves; let one of them ask none.')
    return min(ready, key=lambda job: job.out not in teachers, default=None)


def _start(job: Job, threads: int) -> subprocess.Popen[bytes]:
    job.out.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, 'OMP_NUM_THREADS': str(threads), CHILD: '1', 'NO_COLOR': '1', 'COLUMNS': '200'}
    with (job.out / 'train.out').open('ab') as sink:
        return subprocess.Popen(
            [sys.executable, *job.command], stdin=subprocess.PIPE, stdout=sink, stderr=sink, env=environment
        )


def _last_entry(out: Path) -> dict[str, float] | None:
    try:
        lines = (out / 'log.jsonl').read_text().splitlines()
        entry: dict[str, float] = json.loads(lines[-1])
        return entry
    except (OSError, ValueError, IndexError):
        return None


def _last_line(path: Path, code: int) -> str:
    lines = [line.strip() for line in path.read_text(errors='replace').splitlines() if line.strip()]
    last = lines[-1].removeprefix('Error: ') if lines else 'it printed nothing'
    return f'Training stopped with exit code {code}: {last} (all of it is in {path})'
