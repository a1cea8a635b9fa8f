"""Weights on disk as safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from grafalign.errors import MachineError
from grafalign.files import to_disk


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file through to the disk, marked as PyTorch's, without which transformers refuses it.

    Raises:
        MachineError: it cannot be written (for which safetensors has a type of its own).
    """
    whole = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    try:
        save_file(whole, str(path), metadata={'format': 'pt'})
    except SafetensorError as error:
        raise MachineError(
            f'{path} cannot be written ({error}); free some space and run the same command again (what is finished is '
            'kept).'
        ) from None
    to_disk(path)
