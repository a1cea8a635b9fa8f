"""kill -9 of a command at the moments that matter: when it has just made, moved or removed a file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def killed_at_change(args: Sequence[str], folder: Path, changes: int) -> bool:
    """Run a command and kill it as soon as the names of the files below a folder have changed so many times.

    Args:
        args: of `grafalign`.
        folder: what is watched.
        changes: how many; changes that follow each other within a millisecond may count as one.

    Returns:
        Whether it was killed; if not, it had ended by itself, and without an error.
    """
    process = subprocess.Popen(
        [sys.executable, '-m', 'grafalign', *args], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    last, seen = _names(folder), 0
    while process.poll() is None:
        now = _names(folder)
        seen, last = seen + (now != last), now
        if seen >= changes:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.0005)
    _, errors = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), errors.decode()
    return process.returncode != 0


def _names(folder: Path) -> frozenset[str]:
    return frozenset(str(p) for p in folder.rglob('*'))


def run_through_kills(args: Sequence[str], folder: Path, changes: Sequence[int]) -> int:
    """Kill a command again and again, each time at another change, and let it end at last.

    Returns:
        How often it was killed.
    """
    kills = sum(killed_at_change(args, folder, count) for count in changes)
    assert not killed_at_change(args, folder, 10**9)
    return kills
