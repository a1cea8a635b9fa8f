"""What all parts measure with: clocks, memory, fresh processes, and what a result file says of itself."""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from experiments.performance.machine import machine_metadata

MODULE = 'experiments.performance.training'
PACKAGES = ('torch', 'open_clip_torch', 'accelerate', 'numpy', 'grafalign')
THREADS = 2
SEED = 0
TAU = 0.07


def header(args: argparse.Namespace, part: str) -> dict[str, Any]:
    """What a result file says before its measurements."""
    quick = ' --quick' if args.quick else ''
    return {
        'command': f'python -m {MODULE} --data FOLDER --only {part}{quick}',
        'machine': {**machine_metadata(), 'threads': THREADS},
        'versions': {
            'python': platform.python_version(),
            **{p: importlib.metadata.version(p) for p in PACKAGES},
        },
        'seed': SEED,
    }


def write_result(args: argparse.Namespace, part: str, result: dict[str, Any]) -> None:
    """Leave the file of a part."""
    (args.results / f'training_{part}.json').write_text(json.dumps(result, indent=1) + '\n')


class Spent(NamedTuple):
    """What a piece of work took."""

    wall_s: float
    cpu_s: float


def timed(work: Callable[[], Any]) -> Spent:
    """Time some work of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Spent(round(time.perf_counter() - wall, 4), round(time.process_time() - cpu, 4))


def peak_beyond(work: Callable[[], Any]) -> tuple[Spent, float]:
    """Time some work; also by how much (MB) the resident memory rose over what it was before, at its highest."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed earlier must not be taken again unseen
    Path('/proc/self/clear_refs').write_text('5')  # forgets the high-water mark
    before = _status_mb('VmRSS')
    spent = timed(work)
    return spent, round(_status_mb('VmHWM') - before, 1)


def _status_mb(key: str) -> float:
    status = Path('/proc/self/status').read_text().splitlines()
    return int(next(line for line in status if line.startswith(key)).split()[1]) * 1024 / 1e6


def _busy_s() -> float:
    """Seconds that all cores together have worked since the machine started, for whomever."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path('/proc/stat').read_text().split()[1:11])
    return (user + nice + system + irq + softirq) / os.sysconf('SC_CLK_TCK')


class Others:
    """The share of the cores that processes which are not ours take from here on."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), _busy_s(), self._ours()

    @staticmethod
    def _ours() -> float:
        """Processor time of this process and of its children that have ended."""
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(u.ru_utime + u.ru_stime for u in used)

    def share(self) -> float:
        """The share until now; children must have ended."""
        wall, busy, ours = (now - then for now, then in zip(self._now(), self._start, strict=True))
        return round(max(0.0, busy - ours) / wall / len(os.sched_getaffinity(0)), 3)

    def _now(self) -> tuple[float, float, float]:
        return time.perf_counter(), _busy_s(), self._ours()


def fresh(args: argparse.Namespace, case: str, **spec: Any) -> dict[str, Any]:
    """One case in a process of its own: its answer, with what others took of the cores meanwhile."""
    folder = args.data.parent
    command = [sys.executable, '-m', MODULE, '--data', str(folder), '--case', case, json.dumps(spec)]
    others, started = Others(), time.perf_counter()
    environment = {**os.environ, 'OMP_NUM_THREADS': str(THREADS)}
    done = subprocess.run(
        command + ['--quick'] * args.quick, stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    found: dict[str, Any] = spec | json.loads(done.stdout.splitlines()[-1])
    found |= {'minutes': round((time.perf_counter() - started) / 60, 2), 'other_cpu_share': others.share()}
    tell({k: v for k, v in found.items() if not isinstance(v, dict)})
    return found


def cpu_of(family: psutil.Process) -> tuple[float, float]:
    """Processor time of a process, and of its children."""
    used = family.cpu_times()
    workers = used.children_user + used.children_system
    for child in family.children(recursive=True):
        try:
            workers += sum(child.cpu_times()[:2])
        except psutil.NoSuchProcess:
            continue
    return used.user + used.system, workers


def tell(found: Mapping[str, Any]) -> None:
    """Show a measurement as soon as it is there."""
    print(json.dumps(found), file=sys.stderr, flush=True)
