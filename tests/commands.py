"""Helpers of the tests that use the command line as people do: real processes, real files, real signals."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from grafalign.errors import GrafalignError
from grafalign.locks import LOCK
from grafalign.photos.exif import read_metadata

REPOSITORY = Path(__file__).parent.parent
DEADLINE_S = 120
"""No test measures time; a process that shows nothing for so long hangs."""
Command = Callable[..., tuple[int, str]]
"""What the fixture `command` gives: arguments to exit code and standard error."""


def write_yaml(path: Path, content: dict[str, Any]) -> Path:
    """Write settings and return their path."""
    path.write_text(yaml.safe_dump(content))
    return path


def write_recipe(path: Path, world: Path, photos: dict[str, Any], **parts: Any) -> Path:
    """A recipe for photos in a sandbox world that puts all tiles in one split; `parts` replace its parts."""
    content = {
        'photos': {k: v if isinstance(v, dict | bool) else str(v) for k, v in photos.items()},
        'scenes': {
            'catalog': str(world / 'catalog' / 'catalog.json'),
            'collections': ['sandbox-ms'],
            'max_cloud_percent': 10,
        },
        'sensor': {
            'name': 'sandbox-ms',
            'bands': ['red', 'green', 'blue'],
            'gsd_m': 5,
            'size_px': 64,
            'value_range': [0, 0.3],
        },
        'split': {'shares': {'train': 1.0}},
        'shard_tiles': 4,
        **parts,
    }
    return write_yaml(path, content)


def photo_table(world: Path, count: int) -> pd.DataFrame:
    """The first photos of a world as a table: photo_id, uri, lon, lat."""
    paths = sorted((world / 'photos').rglob('*.jpg'))[:count]
    metadata = [read_metadata(p, verify=False) for p in paths]
    return pd.DataFrame(
        {
            'photo_id': [p.name for p in paths],
            'uri': [str(p) for p in paths],
            'lon': [f.lon for f in metadata],
            'lat': [f.lat for f in metadata],
        }
    )


_PROGRESS = re.compile(r': [\d,]+ (in [\d.]+ s|of [\d,]+) \(')


def refused(result: tuple[int, str], *names: object) -> str:
    """The one sentence of a command that failed as it should, which holds all `names`.

    Before it may stand how far the command came: on a slow machine that takes the two seconds from which it is said.
    """
    code, err = result
    assert code in {kind.exit_code for kind in GrafalignError.__subclasses__()}, err
    (line,) = (said for said in err.strip().splitlines() if not _PROGRESS.search(said))
    assert line.startswith('Error: ')
    for name in names:
        assert str(name) in line, line
    return line


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its relative path; a killed process leaves its lock's file, but not its lock."""
    files = (p for p in sorted(folder.rglob('*')) if p.is_file() and p.name != LOCK)
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def start(*args: object, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Start `python -m grafalign ARGS` on one thread, behind the words of `before`."""
    command = [*before, sys.executable, '-m', 'grafalign', *map(str, args)]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'COLUMNS': '200'}
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # what a shell runs in the background ignores Ctrl-C, and so would what the tests start from there
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a process; return its exit code and what it wrote to standard error."""
    _, err = process.communicate(timeout=DEADLINE_S)
    return process.returncode, err


def _versions(folder: Path, pattern: str) -> set[tuple[str, int]]:
    """Names and inodes of the files that fit; a file that is written anew has another inode."""
    found = set()
    for path in folder.glob(pattern):
        with contextlib.suppress(FileNotFoundError):  # it may be renamed while we look
            found.add((path.name, path.stat().st_ino))
    return found


def wait_for(
    process: subprocess.Popen[str], folder: Path, pattern: str, known: Collection[tuple[str, int]] = ()
) -> None:
    """Return as soon as a file below `folder` fits the pattern and is not yet known, or the process has ended."""
    deadline = time.monotonic() + DEADLINE_S
    while process.poll() is None and _versions(folder, pattern) <= set(known):
        assert time.monotonic() < deadline, f'{pattern} does not appear in {folder}'
        time.sleep(0.001)


def interrupted(folder: Path, moments: list[tuple[str, signal.Signals]], *args: object) -> None:
    """Run one command several times and stop it each time when a file appears, then let it finish.

    Args:
        folder: where its files appear.
        moments: for every time it is stopped a pattern below `folder` and the signal.
        *args: the command.
    """
    codes = []
    for pattern, how in moments:
        known = _versions(folder, pattern)  # what a stopped run left must not stop the next one at its very start
        process = start(*args)
        wait_for(process, folder, pattern, known)
        process.send_signal(how)
        code, err = finish(process)
        assert 'Traceback' not in err, err
        assert code in (0, 130 if how == signal.SIGINT else -how), err
        if code == 130:
            assert err.splitlines()[-1] == 'Error: Interrupted; run the same command again to go on where it stopped.'
        codes.append(code)
    code, err = finish(start(*args))
    assert code == 0, err
    assert codes[0]  # a later stop may come when all is done, the first one never does
