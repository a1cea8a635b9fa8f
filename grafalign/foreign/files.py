"""Plain files only, paths that stay below a folder, and JSON of bounded depth."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import stat
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Failures that say nothing of a file: the disk is away, or this process has no descriptors or memory left."""


class ForeignFileError(ValueError):
    """A file is refused; the text is the reason, short enough for a column."""


def open_plain(path: Path | str, most_bytes: int | None = None) -> BinaryIO:
    """Open a plain file for reading: no device, pipe, socket or folder, as reading one may wait or go on for ever.

    Args:
        path: the file; links are followed.
        most_bytes: refuse larger files.

    Raises:
        ForeignFileError: it is no plain file, or too large.
        OSError: it cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0) | getattr(os, 'O_CLOEXEC', 0))
    except (IsADirectoryError, NotADirectoryError):
        raise ForeignFileError('not a file') from None
    known = os.fstat(descriptor)
    reason = None
    # files of /proc and /sys say that they are plain and empty, and have content without end all the same
    if not stat.S_ISREG(known.st_mode) or known.st_dev in _kernel_devices():
        reason = 'not a file'
    elif most_bytes is not None and known.st_size > most_bytes:
        reason = f'more than {most_bytes / 1e6:g} MB'
    if reason is not None:
        os.close(descriptor)
        raise ForeignFileError(reason)
    return os.fdopen(descriptor, 'rb')


@functools.cache
def _kernel_devices() -> set[int]:
    devices = set()
    for folder in ('/proc', '/sys'):
        try:
            devices.add(Path(folder).stat().st_dev)
        except OSError:
            continue
    with contextlib.suppress(OSError):
        devices.discard(Path('/').stat().st_dev)
    return devices


def below(folder: Path, name: str) -> Path:
    """The file of a relative name below a folder.

    Args:
        folder: where it must lie.
        name: POSIX path, as a table or an archive holds it.

    Raises:
        ForeignFileError: the name is absolute, climbs out with `..`, or is none.

    Example:
        >>> below(Path('store'), 'tiles/00000.tar').as_posix()
        'store/tiles/00000.tar'
    """
    if not isinstance(name, str) or not name or '\0' in name or '\\' in name:
        raise ForeignFileError(f'{name!r} is no file name')
    parts = PurePosixPath(name)
    if parts.is_absolute() or '..' in parts.parts:
        raise ForeignFileError(f'{name} leads out of {folder}')
    return folder / name


def parse_object(text: str | bytes) -> dict[str, Any]:
    """A JSON object of any origin, such as the marker of a store or an index.

    Raises:
        ValueError: it is none.
    """
    content = parse_json(text)
    if not isinstance(content, dict):
        raise ValueError('it is no JSON object')
    return content


def whole_number(value: Any, most: int) -> int:
    """A number of things that a file claims.

    Raises:
        ValueError: it is no whole number from 0 to `most`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError(f'{str(value)[:40]} is no number of such things')
    return value


def parse_json(text: str | bytes) -> Any:
    """JSON of any origin.

    Raises:
        ValueError: it is no JSON, or nested too deeply for Python.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError('it is nested too deeply') from None
