"""A running mean of the weights (Polyak & Juditsky 1992): steadier than the last step's, and what is then kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from grafalign.training.checkpoint import like


class RunningMean:
    """The mean of a module's trained parameters, `mean <- decay * mean + (1 - decay) * now`.

    In the first steps the decay is (1 + t) / (10 + t) where that is less, so that the start is soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._decay = decay
        self._now = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.mean: dict[str, Tensor] = {n: p.detach().clone() for n, p in self._now.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.mean.values()), [p.detach() for p in self._now.values()], 1 - decay)

    def load(self, mean: Mapping[str, Tensor]) -> None:
        """Take over a saved mean."""
        for name, value in self.mean.items():
            value.copy_(like(mean[name], value))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """While the context lasts the module has the mean as its weights."""
        now = {n: p.detach().clone() for n, p in self._now.items()}
        self._put(self.mean)
        try:
            yield
        finally:
            self._put(now)

    def into_place(self) -> None:
        """Give the module the mean as its weights, for good."""
        self._put(self.mean)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._now.items():
            parameter.copy_(values[name])
