"""A network that takes smaller batches where memory is full, so that a long run does not end for want of a setting."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from grafalign import console
from grafalign.errors import MachineError


class Fitting:
    """A network without gradients, called on as many inputs at a time as its GPU has room for.

    A batch for which memory is full is cut in halves, and so are all later ones. A network that treats its inputs one
    by one, as all here do, gives the same embeddings, but for the last bits of products of another size.

    Args:
        network: inputs [B, ...] to outputs [B, ...].
        what: are embedded, for what is said.

    Example: a network that has room for two
        >>> def network(inputs: Tensor) -> Tensor:
        ...     if len(inputs) > 2:
        ...         raise torch.OutOfMemoryError('CUDA out of memory')
        ...     return inputs + 1
        >>> Fitting(network, 'photos')(torch.arange(5))
        tensor([1, 2, 3, 4, 5])
    """

    def __init__(self, network: Callable[[Tensor], Tensor], what: str) -> None:
        self._network, self._what = network, what
        self._most: int | None = None

    def __call__(self, inputs: Tensor) -> Tensor:
        """The outputs of all inputs.

        Raises:
            GrafalignError: there is no room for one.
        """
        outputs: list[Tensor] = []
        start = 0
        while start < len(inputs):
            part = inputs[start : start + (self._most or len(inputs))]
            try:
                outputs.append(self._network(part))
                start += len(part)
            except torch.OutOfMemoryError:
                self._halve(len(part))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _halve(self, size: int) -> None:
        if size == 1:
            raise MachineError(
                f'The GPU has no room for one of the {self._what}; end what else runs on it, or hide it '
                '(CUDA_VISIBLE_DEVICES=).'
            )
        self._most = size // 2
        torch.cuda.empty_cache()
        console.log(f'The GPU has no room for {size} {self._what} at a time; going on with {self._most}.')
