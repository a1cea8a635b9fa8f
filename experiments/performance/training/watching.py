"""Trainings as users start them, timed from outside by the lines of their logs."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import psutil

from experiments.performance.training.measuring import THREADS, cpu_of


class Line(NamedTuple):
    """A line of a log, when it came, and what the processes had used by then."""

    samples: int
    text: str
    wall_s: float
    cpu_s: float
    workers_cpu_s: float
    """Of this, what children of the first process used."""


def watch(command: list[str], pattern: str, data: Path, per_match: int = 1) -> list[Line]:
    """Run a training and note every line of its log that says how far it is, by a clock of our own.

    Args:
        command: what to run.
        pattern: with one group, the number of samples (or of steps of `per_match` samples).
        data: where it runs.
        per_match: samples that one of what the group counts stands for.
    """
    environment = {**os.environ, 'OMP_NUM_THREADS': str(THREADS), 'COLUMNS': '300', 'PYTHONUNBUFFERED': '1'}
    environment |= {'ACCELERATE_USE_CPU': 'true', 'PYTHONPATH': os.pathsep.join([str(Path.cwd()), *_python_path()])}
    lines, said = [], []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=data
    ) as process:
        family = psutil.Process(process.pid)
        for text in process.stdout or ():
            said.append(text)
            if found := re.search(pattern, text):
                own, workers = cpu_of(family)
                samples = int(found[1].replace(',', '')) * per_match
                lines.append(Line(samples, text.strip(), time.perf_counter(), own + workers, workers))
    if process.returncode or not lines:
        raise SystemExit(''.join(said[-30:]))
    return lines


def _python_path() -> list[str]:
    return [p for p in os.environ.get('PYTHONPATH', '').split(os.pathsep) if p]


def per_sample(lines: list[Line], first: int) -> dict[str, float]:
    """What a sample took, from the first line that tells of `first` samples or more to the last line."""
    counted = [line for line in lines if line.samples >= first] if lines[-1].samples > first else lines
    start, end = counted[0], counted[-1]
    samples = max(1, end.samples - start.samples)
    wall_s = end.wall_s - start.wall_s
    return {
        'samples': samples,
        'samples_per_s': round(samples / wall_s, 3) if wall_s else 0.0,
        'cpu_ms_per_sample': round(1000 * (end.cpu_s - start.cpu_s) / samples, 3),
        'workers_cpu_ms_per_sample': round(1000 * (end.workers_cpu_s - start.workers_cpu_s) / samples, 3),
    }
