"""One process a folder: a second one is told so instead of mixing its files in."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from grafalign.errors import GrafalignError

try:
    import fcntl
except ImportError:  # Windows: no advisory locks, so no protection either
    fcntl = None  # type: ignore[assignment]

LOCK = '.lock'
"""Name of the lock's file; a folder that holds nothing else counts as empty."""


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; the lock goes with the process, also when it is killed.

    Raises:
        GrafalignError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    with path.open('a') as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not os.fstat(file.fileno()).st_nlink:
                    raise BlockingIOError  # its holder left just now and took the file with it: others lock a new one
            except BlockingIOError:
                raise GrafalignError(f'Another process is writing to {folder}; wait for it or stop it.') from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
