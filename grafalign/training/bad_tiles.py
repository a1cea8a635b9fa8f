"""Tiles that cannot be read: left out, counted over all processes, listed in the run folder, up to a limit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from grafalign.errors import DamagedError
from grafalign.files import write_atomically


class BadTiles:
    """Tiles that could not be read, by whichever process, and before the run was resumed.

    Args:
        path: the list, in the run folder; None to keep none.
        limit: so many may be unreadable.
        name: names of rows of the data.
        accelerator: the processes.
        resumed: whether the list of an earlier run goes on.
    """

    def __init__(
        self,
        path: Path | None,
        limit: int,
        name: Callable[[list[int]], list[str]],
        accelerator: Accelerator,
        resumed: bool,
    ) -> None:
        self._path, self._limit, self._name, self._accelerator = path, limit, name, accelerator
        self._of_this_process: set[int] = set()
        self.names: set[str] = set()
        if path is not None and resumed and path.is_file():
            self.names = set(path.read_text().splitlines())

    def note(self, rows: Tensor | None) -> None:
        """Take in rows that this process could not read."""
        self._of_this_process |= set() if rows is None else set(rows.tolist())

    def any(self, like: Tensor) -> Tensor:
        """Whether this process has met any, as a tensor [1] to be added up."""
        return like.new_tensor([float(bool(self._of_this_process))])

    def check(self, anywhere: bool) -> None:
        """Bring together what all processes have met and list it; all must call it.

        Raises:
            DamagedError: there are more than the limit.
        """
        if not anywhere:
            return
        self.names |= set(self._name(sorted(set(gather_object(list(self._of_this_process))))))
        if self._path is not None and self._accelerator.is_main_process:
            write_atomically(self._path, ''.join(f'{n}\n' for n in sorted(self.names)).encode())
        if len(self.names) > self._limit:
            raise DamagedError(
                f'{len(self.names)} tiles are unreadable, more than max_bad_tiles ({self._limit}): {self._path} lists '
                'them. Run `grafalign check` on the store, mend the images of a caption set, or raise max_bad_tiles.'
            )
