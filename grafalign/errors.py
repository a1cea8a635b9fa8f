"""Errors that a user can mend: one sentence that names the file, row or key, and the remedy.

`GrafalignError` catches all of them; its subclasses say what kind of trouble it is, and the command line ends with the
exit code of the kind. Nothing raises `GrafalignError` itself.

| error | exit code | what it says |
|---|---|---|
| `InputError` | 1 | a file, setting or option that was given cannot be used |
| (of the command line) | 2 | there is no such command or option |
| `StaleError` | 3 | an artefact was made from something else than it is used with, or by another release |
| `DamagedError` | 4 | an artefact is unfinished or damaged |
| `RemoteError` | 5 | a server or a network does not answer as it should |
| `BusyError` | 6 | another process is writing to the folder |
| `MachineError` | 7 | this machine lacks disk, memory, open files, a device or a library |
| (Ctrl-C) | 130 | the command was interrupted |
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar


class GrafalignError(Exception):
    """Base of the errors that a user can mend; the command line prints them without a traceback."""

    exit_code: ClassVar[int] = 1


class InputError(GrafalignError):
    """A file, setting or option that was given cannot be used."""


class StaleError(GrafalignError):
    """A store, bank, run or index was made from something else than it is used with, or by another release."""

    exit_code = 3


class DamagedError(GrafalignError):
    """An artefact is unfinished or damaged: make it again, or go on making it."""

    exit_code = 4


class RemoteError(GrafalignError):
    """A server or a network does not answer as it should; trying again later may help."""

    exit_code = 5


class BusyError(GrafalignError):
    """Another process is writing to the folder."""

    exit_code = 6


class MachineError(GrafalignError):
    """This machine lacks something: room on the disk, memory, open files, a device, a library."""

    exit_code = 7


def error_of(exit_code: int) -> type[GrafalignError]:
    """The kind of error that a command ended with; `InputError` for codes of no other kind."""
    return next((kind for kind in GrafalignError.__subclasses__() if kind.exit_code == exit_code), InputError)


@contextlib.contextmanager
def naming_full_disk(folder: Path) -> Iterator[None]:
    """Say which folder has no room left: the system's own error names no file once the file is open.

    Raises:
        MachineError: the disk or the quota is full, or a file has reached the largest size allowed.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise MachineError(
            f'{error.filename or folder}: the disk is full; free some space and run the same command again '
            '(what is finished is kept).'
        ) from None
