"""The largest portion of a batch that fits: found by trying on a GPU, by counting on a CPU.

A GPU says that memory is out and goes on; a CPU's process is killed. There the bytes that autograd keeps for the
backward pass are counted for one tile and for two, the rest is a straight line.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import psutil
import torch
from torch import Tensor, nn

from grafalign.errors import GrafalignError

_SHARE_OF_RAM = 0.5
"""Of the memory that is free now: other processes of the same run and of the machine need some too."""

Try = Callable[[int], Tensor]
"""Forward pass of a portion of so many tiles: its loss."""


def largest_micro_batch(forward: Try, most: int, task: nn.Module, device: torch.device) -> int:
    """The most tiles whose forward and backward pass fit beside the optimizer's state.

    Args:
        forward: gives the loss of a portion of n tiles.
        most: no more than this is wanted.
        task: what is trained; its gradients are left empty.
        device: where.

    Raises:
        GrafalignError: not even one tile fits.
    """
    found = _by_trying(forward, most, task, device) if device.type == 'cuda' else _by_counting(forward, most)
    task.zero_grad(set_to_none=True)
    if found < 1:
        raise GrafalignError(
            'Not even one tile fits into memory; use a smaller CLIP, `tune.grad_checkpointing: true`, `tune.lora`, '
            'or a bank with fewer negatives.'
        )
    return found


def _by_trying(forward: Try, most: int, task: nn.Module, device: torch.device) -> int:
    """Halve until a step goes through with AdamW's two moments set aside."""
    trained = sum(p.numel() for p in task.parameters() if p.requires_grad)
    tiles = most
    while tiles >= 1:
        moments = None
        try:
            moments = torch.empty(2 * trained, device=device)
            forward(tiles).backward()
            torch.cuda.synchronize(device)
            return tiles
        except torch.cuda.OutOfMemoryError:
            tiles //= 2
        finally:
            del moments
            task.zero_grad(set_to_none=True)
            gc.collect()
            torch.cuda.empty_cache()
    return 0


def _by_counting(forward: Try, most: int) -> int:
    one, two = kept_bytes(forward, 1), kept_bytes(forward, 2)
    each = max(1, two - one)
    room = _SHARE_OF_RAM * psutil.virtual_memory().available - max(0, one - each)
    return min(most, int(room // each))


def kept_bytes(forward: Try, tiles: int) -> int:
    """Bytes that autograd keeps for the backward pass of a portion, each piece of memory counted once."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
        loss = forward(tiles)
    del loss
    return sum(seen.values())
