"""Several processes that do one piece of work: who they are, whether they agree, and when all have come so far.

`accelerate launch` and `torchrun` say by RANK, WORLD_SIZE and LOCAL_RANK who a process is. Work is cut into numbered
parts; each process makes its share as files in a folder that all see, and the first one puts them together. What a
part holds does not depend on who makes it, so nothing depends on how many processes there are, and a run that lost one
of them goes on with the parts that are there.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from grafalign import __version__
from grafalign.errors import MachineError

_PATIENCE = timedelta(days=7)
"""How long a process waits for the others, which may have more to do."""
_SIGHT_S, _LOOK_S = 60.0, 0.2
"""How long a file may take to be seen by the other machines of a shared folder, and how often one looks."""
_LOST = re.compile('gloo|nccl|connection (closed|reset|refused)|broken pipe|by peer|timed out', re.IGNORECASE)


@dataclass(frozen=True)
class Team:
    """The processes that were started together, seen from one of them."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that puts parts together and speaks for all."""
        return self.rank == 0

    def share(self, parts: int) -> range:
        """The parts that this process makes: neighbours, as they may share what they read.

        Example: ten parts by three processes
            >>> [list(Team(rank, 3).share(10)) for rank in range(3)]
            [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]
        """
        return range(*(parts * r // self.count for r in (self.rank, self.rank + 1)))

    def agree(self, folder: Path, question: str) -> None:
        """See that all processes are about to do the same in the same folder.

        Args:
            folder: where they meet; it is there in the first process.
            question: what is done, in words or as a digest.

        Raises:
            GrafalignError: they are of other versions, do other things, or do not see one folder.
        """
        if self.count == 1:
            return
        mine = {'version': __version__, 'question': question}
        theirs = self.exchange(mine)
        for key, remedy in (('version', 'install one version'), ('question', 'start all with one command')):
            odd = next((r for r, other in enumerate(theirs) if other[key] != theirs[0][key]), None)
            if odd is not None:
                raise MachineError(
                    f'Process {odd} has another {key} ({theirs[odd][key]}) than process 0 ({theirs[0][key]}); {remedy} '
                    'on all machines.'
                )
        sign = folder / f'.meeting-{self.exchange(uuid4().hex)[0]}'
        if self.first:
            sign.touch()
        self.wait()
        until = time.monotonic() + _SIGHT_S
        while not sign.exists() and time.monotonic() < until:
            time.sleep(_LOOK_S)
        visible = self.exchange(sign.exists())
        if self.first:
            sign.unlink(missing_ok=True)
        if not all(visible):
            raise MachineError(
                f'Process {visible.index(False)} does not see what process 0 wrote to {folder}; give a folder that all '
                'machines share.'
            )

    def see(self, files: Iterable[Path]) -> None:
        """Wait until files that other processes have written are seen here: shared folders may show them late.

        Raises:
            GrafalignError: one is not seen after a minute.
        """
        until = time.monotonic() + _SIGHT_S
        for file in files if self.count > 1 else ():
            while not file.exists():
                if time.monotonic() > until:
                    raise MachineError(
                        f'Process {self.rank} does not see {file}, which another process has written; look at the '
                        'shared folder, and run the same command again. What is finished is kept.'
                    )
                os.scandir(file.parent).close()  # a shared folder is read anew, and what it shows of names with it
                time.sleep(_LOOK_S)

    def wait(self) -> None:
        """Wait until all processes have come here.

        Raises:
            GrafalignError: one of them is gone.
        """
        self.exchange(None)

    def tell(self, word: Any) -> None:
        """Say something to the others, who `hear` it; said by the first process."""
        self.exchange(word)

    def hear(self) -> Any:
        """What the first process tells next."""
        return self.exchange(None)[0]

    def alone(self, work: Callable[[], None]) -> None:
        """Let the first process do something while the others wait for it."""
        if self.first:
            work()
        self.wait()

    def exchange(self, mine: Any) -> list[Any]:
        """What all processes say, by rank.

        Raises:
            GrafalignError: one of them is gone.
        """
        if self.count == 1:
            return [mine]
        from torch import distributed

        said: list[Any] = [None] * self.count
        try:
            distributed.all_gather_object(said, mine, group=_group())
        except RuntimeError as error:
            if (reason := lost_process(error)) is None:
                raise
            raise MachineError(
                f'Another process is gone ({reason}); what is finished is kept. Its own message says why; run '
                'the same command again.'
            ) from None
        # who has heard all may end, while others still listen: nobody goes on before all have heard
        with contextlib.suppress(RuntimeError):
            distributed.barrier(group=_group())
        return said


def lost_process(error: RuntimeError) -> str | None:
    """Why torch says that another process is gone, without the lines of its own source; None for other errors.

    Example:
        >>> lost_process(RuntimeError('[/build/pair.cc:561] Connection closed by peer [10.0.0.7]:13236. This may mean'))
        'Connection closed by peer [10.0.0.7]:13236'
        >>> lost_process(RuntimeError('shapes do not fit'))
    """
    from torch import distributed

    reason = ' '.join(str(error).split())
    if not (isinstance(error, distributed.DistError) or _LOST.search(reason)):
        return None
    return re.sub(r'\[[^\]]*\.\w+:\d+\] *', '', reason).partition('. ')[0][:120]


def neighbours(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbouring numbers together, as (first, behind the last).

    Example:
        >>> neighbours([0, 1, 4])
        [(0, 2), (4, 5)]
    """
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return runs


def this_team() -> Team:
    """The processes that a launcher started, seen from this one; one alone without a launcher."""
    return Team(int(os.environ.get('RANK', '0')), int(os.environ.get('WORLD_SIZE', '1')))


def meet_on_cpu() -> None:
    """Tell accelerate that several processes without a GPU belong together: it takes each for one alone otherwise."""
    import torch

    if this_team().count > 1 and not torch.cuda.is_available():
        os.environ.setdefault('ACCELERATE_USE_CPU', 'true')


@lru_cache(maxsize=1)
def _group() -> Any:
    """A group of all processes that talk on the CPU, whatever a training uses."""
    from accelerate import PartialState
    from torch import distributed

    meet_on_cpu()
    PartialState()
    return distributed.new_group(backend='gloo', timeout=_PATIENCE)
