"""One process a folder: a second one is told so instead of mixing its files in."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from grafalign.errors import BusyError, InputError
from grafalign.files import Place

try:
    import fcntl
except ImportError:  # Windows: no advisory locks, so no protection either
    fcntl = None  # type: ignore[assignment]

LOCK = '.lock'
"""Name of the lock's file; a folder that holds nothing else counts as empty."""


def refuse_other_files(folder: Path, own: Collection[str], purpose: str) -> None:
    """Refuse to write into a folder that holds files of something else.

    Args:
        folder: it need not exist. The lock, and parts of files that killed runs left, are passed over.
        own: names that may be there.
        purpose: what the folder is for, as in "the filter".

    Raises:
        GrafalignError: it holds another file, which is named.
    """
    names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    others = [name for name in names if name != LOCK and name not in own and not name.endswith('.part')]
    if others:
        raise InputError(f'{folder} holds {others[0]}; give a new folder for {purpose}.')


@contextlib.contextmanager
def exclusive(folder: Place, first: bool = True) -> Iterator[None]:
    """Hold `folder` for this process; the lock goes with the process, also when it is killed.

    A folder on a URL is not locked: object stores have no locks, and there every file is written in one piece anyway.

    Args:
        folder: what is held.
        first: false in the other processes of a team, for all of which the first one holds it.

    Raises:
        GrafalignError: another process holds it.
    """
    if not isinstance(folder, Path) or not first:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    with path.open('a') as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not os.fstat(file.fileno()).st_nlink:
                    raise BlockingIOError  # its holder left just now and took the file with it: others lock a new one
            except BlockingIOError:
                raise BusyError(f'Another process is writing to {folder}; wait for it or stop it.') from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
