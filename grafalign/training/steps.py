"""What the training loop needs of a data set: numbered micro-batches, a fixed number of them a step."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset


class Steps(Dataset[Any]):
    """Micro-batches by number: items `step * micro_batches` to `(step + 1) * micro_batches - 1` make up a step.

    An item is a dict of tensors; `pixels` [b, ...] says how many tiles it holds, `bad` (optional) names rows that could
    not be read.
    """

    micro_batches: int = 1
    """In a step of one process."""
    steps_per_epoch: int | None = None
    """Steps in a pass over the data; None for data without passes."""

    def name_tiles(self, rows: list[int]) -> list[str]:
        """What people call these rows of `bad`."""
        return [str(row) for row in rows]
