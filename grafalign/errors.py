"""The one error that reaches a user: a sentence that names the file, row or key, and the remedy."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path


class GrafalignError(Exception):
    """Input or environment that the user can mend; the command line prints it without a traceback."""


@contextlib.contextmanager
def naming_full_disk(folder: Path) -> Iterator[None]:
    """Say which folder has no room left: the system's own error names no file once the file is open.

    Raises:
        GrafalignError: the disk or the quota is full, or a file has reached the largest size allowed.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise GrafalignError(
            f'{error.filename or folder}: the disk is full; free some space and run the same command again '
            '(what is finished is kept).'
        ) from None
