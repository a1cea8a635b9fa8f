"""Start a command once for every GPU of this machine, where no launcher has.

The processes are told who they are as `torchrun` would (RANK, WORLD_SIZE, LOCAL_RANK, and where they meet); this one
only looks after them: when one fails the others are ended, and all end when this one does.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time

from grafalign.engine import default_workers

_LOOK_S, _GRACE_S = 0.1, 10.0
CHILD = 'GRAFALIGN_CHILD'
"""Set in the environment of a process that must not outlive the one that started it."""


def launch(processes: int | None) -> None:
    """Run this very command in several processes and end with their code; go on where one is enough.

    Args:
        processes: how many; one for every GPU by default. Under a launcher there are as many as it has started.
    """
    if 'WORLD_SIZE' in os.environ:
        return
    if processes is None:
        import torch

        processes = torch.cuda.device_count()
    if processes < 2:
        return
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    threads = os.environ.get('OMP_NUM_THREADS', max(1, default_workers() // processes))
    shared = {
        'OMP_NUM_THREADS': threads,
        'WORLD_SIZE': processes,
        'LOCAL_WORLD_SIZE': processes,
        'MASTER_ADDR': '127.0.0.1',
        'MASTER_PORT': port,
    }
    team = [_start(shared | {'RANK': rank, 'LOCAL_RANK': rank}) for rank in range(processes)]
    try:
        codes = _codes(team)
        while None in codes and not any(codes):
            time.sleep(_LOOK_S)
            codes = _codes(team)
        if None in codes:
            _let_go(team)
        sys.exit(next((code if code > 0 else 1 for code in codes if code), 0))
    finally:
        for process in team:
            process.terminate()


def _start(numbers: dict[str, object]) -> subprocess.Popen[bytes]:
    environment = {name: str(value) for name, value in numbers.items()}
    return subprocess.Popen(
        [sys.executable, '-m', 'grafalign', *sys.argv[1:]],
        env={**os.environ, **environment, CHILD: '1'},
        stdin=subprocess.PIPE,
    )


def _codes(team: list[subprocess.Popen[bytes]]) -> list[int | None]:
    """How each has ended, None for those that live."""
    return [process.poll() for process in team]


def _let_go(team: list[subprocess.Popen[bytes]]) -> None:
    """Leave those that live a moment to say what they lack, as one that waits for another does."""
    until = time.monotonic() + _GRACE_S
    while None in _codes(team) and time.monotonic() < until:
        time.sleep(_LOOK_S)


def end_with_parent() -> None:
    """In a child, end this process when its parent is gone: killed outright, a parent cannot tell its children.

    The parent holds the other end of our standard input; however it ends, the system closes it.
    """
    if not os.environ.get(CHILD):
        return

    def watch() -> None:
        while os.read(0, 1024):  # not sys.stdin: its lock would be in the way when Python ends
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
