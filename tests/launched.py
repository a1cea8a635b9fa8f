"""Commands in several processes that work together, as a launcher starts them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from tests.commands import REPOSITORY


def start(*args: object, **environment: object) -> subprocess.Popen[str]:
    """A command, or Python code after `-c`, in a process of its own, on one core and no GPU."""
    return subprocess.Popen(
        [sys.executable, *(() if args[0] == '-c' else ('-m', 'grafalign')), *map(str, args)],
        cwd=REPOSITORY,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
        | {name: str(value) for name, value in environment.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its code and what it said to people."""
    _, said = process.communicate(timeout=300)
    return process.returncode, said


def ranks(count: int, *args: object) -> list[subprocess.Popen[str]]:
    """A command in several processes that meet by themselves, as on several machines: nobody looks after them."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    shared = {'WORLD_SIZE': count, 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port}
    return [start(*args, **shared, RANK=rank, LOCAL_RANK=rank) for rank in range(count)]


def with_one_killed(count: int, begun: Callable[[], bool], *args: object) -> None:
    """Run a command in several processes, kill one when it has begun, and see that the others say so and end."""
    team = ranks(count, *args)
    while not begun():
        assert all(process.poll() is None for process in team), [ended(p) for p in team]
        time.sleep(0.005)
    team[-1].send_signal(signal.SIGKILL)
    for process in team[:-1]:
        code, said = ended(process)
        assert code == 7 and 'Another process is gone' in said and 'Traceback' not in said, said
    team[-1].communicate()
