"""The largest micro-batch that fits: found by trying on a GPU, by counting on a CPU.

A GPU says that memory is out and goes on; a CPU's process is killed. There the bytes that autograd keeps for the
backward pass are counted for one tile and for two, the rest is a straight line.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator

import psutil
import torch
from torch import Tensor, nn

from grafalign.errors import MachineError

_SHARE_OF_RAM = 0.5
"""Of the memory that is free now: other processes of the same run and of the machine need some too."""

Try = Callable[[int], Tensor]
"""Forward pass of a micro-batch of so many tiles: its loss."""


def largest_micro_batch(forward: Try, most: int, task: nn.Module, device: torch.device, copies: int = 2) -> int:
    """The most tiles whose forward and backward pass fit beside the optimizer's state.

    Args:
        forward: gives the loss of a micro-batch of n tiles.
        most: no more than this is wanted.
        task: what is trained; its gradients are left empty.
        device: where.
        copies: of the trained weights, that training keeps besides them and their gradients (AdamW keeps two).

    Raises:
        GrafalignError: not even one tile fits.
    """
    kept = copies * sum(p.numel() for p in task.parameters() if p.requires_grad)
    if device.type == 'cuda':
        found = _by_trying(forward, most, task, device, kept)
    else:
        found = _by_counting(forward, most, 4 * kept)
    task.zero_grad(set_to_none=True)
    if found < 1:
        raise MachineError(
            'Not even one tile fits into memory; use a smaller CLIP, `tune.grad_checkpointing: true`, `tune.lora`, '
            'or a bank with fewer negatives.'
        )
    return found


def _by_trying(forward: Try, most: int, task: nn.Module, device: torch.device, kept: int) -> int:
    """Halve until a step goes through with room for so many numbers set aside."""
    tiles = most
    while tiles >= 1:
        aside = None
        try:
            aside = torch.empty(kept, device=device)
            forward(tiles).backward()
            torch.cuda.synchronize(device)
            return tiles
        except torch.cuda.OutOfMemoryError:
            tiles //= 2
        finally:
            del aside
            task.zero_grad(set_to_none=True)
            gc.collect()
            torch.cuda.empty_cache()
    return 0


def _by_counting(forward: Try, most: int, kept: int) -> int:
    one, two = kept_bytes(forward, 1), kept_bytes(forward, 2)
    each = max(1, two - one)
    room = _SHARE_OF_RAM * psutil.virtual_memory().available - kept - max(0, one - each)
    return min(most, int(room // each))


@contextlib.contextmanager
def naming_full_memory() -> Iterator[None]:
    """Say in one sentence that memory ran out, and what takes less."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise MachineError(
            'Memory ran out; the last checkpoint is kept. Run the same command again with a smaller `micro_batch` '
            '(model.json or the last checkpoint says which it was), or with `tune.grad_checkpointing: true`.'
        ) from None


def kept_bytes(forward: Try, tiles: int) -> int:
    """Bytes that autograd keeps for the backward pass of a micro-batch, each piece of memory counted once."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
        loss = forward(tiles)
    del loss
    return sum(seen.values())
