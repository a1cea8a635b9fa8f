"""A command of ours in a process of its own, with its time and its memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

MODULE = 'experiments.performance.captions'
_CODE = (
    'import sys, resource; from grafalign.cli import main\n'
    'sys.argv = ["grafalign", *sys.argv[1:]]\n'
    'try:\n    main()\n'
    'finally:\n    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)\n'
)


def command(*args: object) -> dict[str, Any]:
    """Seconds, peak memory (VmHWM), and what a command says."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, '-c', _CODE, *map(str, args), '--json'], capture_output=True, text=True, check=True
    )
    seconds = time.perf_counter() - started
    peak = int(done.stderr.strip().splitlines()[-1])
    return {'seconds': round(seconds, 1), 'peak_mb': round(peak / 1000), 'result': json.loads(done.stdout)}
