"""What the processes of a training tell each other beyond gradients, and how many bytes that is.

Negatives need no talk: every process draws the same rows of the bank. Only the photo -> tile direction needs the tile
embeddings of all processes. Each computes the whole of that loss; the embeddings of others carry no gradient, its own
do, so no gradient has to travel back (and Accelerate's `gather`, which loses it, is not needed).
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, distributed, nn

from grafalign.errors import MachineError
from grafalign.processes import lost_process


def gather_rows(own: Tensor, sizes: Sequence[int]) -> Tensor:
    """Rows of all processes, in their order.

    Args:
        own: this process's rows, [sizes[rank], D]; what is more is left out.
        sizes: rows of every process.

    Returns:
        [sum(sizes), D], through which gradients reach `own` alone.
    """
    if len(sizes) == 1:
        return own
    rank, most = distributed.get_rank(), max(sizes)
    own = own[: sizes[rank]]
    padded = own.detach().new_zeros(most, own.shape[1])
    padded[: len(own)] = own.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(parts, padded)
    rows = [own if r == rank else part[:size] for r, (part, size) in enumerate(zip(parts, sizes, strict=True))]
    return torch.cat(rows)


@contextlib.contextmanager
def naming_lost_processes() -> Iterator[None]:
    """Say in one sentence that a data worker or another process of the training is gone.

    torch says so in RuntimeErrors that may come at any moment (a signal handler raises for workers).
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        reason = ' '.join(str(error).split())
        # a worker that dies while it hands over a batch is a broken connection
        if 'DataLoader worker' in reason or not isinstance(error, RuntimeError):
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise again while we say goodbye
            raise MachineError(
                f'A data worker died ({reason[:120]}); the last checkpoint is kept. Run the same command again, with '
                'fewer `workers` if memory was short.'
            ) from None
        if (lost := lost_process(error)) is not None:
            raise MachineError(
                f'Another process of this training is gone ({lost}); the last checkpoint is kept. Its own '
                'message says why; run the same command again.'
            ) from None
        raise


def bytes_per_step(task: nn.Module, batch_tiles: int, world: int, depth: int, reverse: bool) -> int:
    """Bytes that every process hands to collectives in a step: its gradients once, and its tiles if they travel."""
    if world == 1:
        return 0
    gradients = sum(p.numel() * p.element_size() for p in task.parameters() if p.requires_grad)
    return gradients + (4 * depth * -(-batch_tiles // world) if reverse else 0)
