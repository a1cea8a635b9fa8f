"""Which source each place of each batch comes from, where a training mixes several: a function of seed and place alone.

Places are numbered through all batches. A stage lasts as long as the same sources are active; in it every source has
a quota of each block of places, by its weight, and a keyed shuffle deals them out: place p of a block of m draws ticket
t = shuffle(p), and tickets are handed out source by source. So the ticket also says which visit of its source the place
is, no counting is needed, and any step can be asked for at once. Visit v of a source of n images is image
shuffle(v mod n) of its epoch v // n: every image comes once before any comes again.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from grafalign.training.order import shuffled

Integers = npt.NDArray[np.int64]
_BLOCK = 1 << 16
"""Places of a block; shares are exact to one place in so many."""


@dataclass(frozen=True)
class Turn:
    """When and how often a source comes."""

    weight: float = 1.0
    """Its share of the places, relative to the other sources of the time."""
    after: float = 0.0
    """From this share of the steps on."""
    until: float = 1.0
    """To this share of the steps."""


@dataclass(frozen=True)
class _Stage:
    """A stretch of steps in which the same sources are active."""

    first: int
    """Its first step."""
    last: int
    """The first step that is no longer in it."""
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Mixture:
    """The deal of a training's places among its sources."""

    turns: tuple[Turn, ...]
    sizes: tuple[int, ...]
    """Images of each source."""
    batch: int
    steps: int
    seed: int

    def items(self, step: int) -> tuple[Integers, Integers]:
        """The source of every place of a step and the image of that source, [B] each."""
        number = next(i for i, s in enumerate(self.stages) if s.first <= step < s.last)
        stage = self.stages[number]
        place = np.arange(self.batch) + (step - stage.first) * self.batch
        source, visit = np.empty(self.batch, np.int64), np.empty(self.batch, np.int64)
        for block in np.unique(place // _BLOCK):
            mine = place // _BLOCK == block
            size = min(_BLOCK, (stage.last - stage.first) * self.batch - int(block) * _BLOCK)
            quotas = _quotas(stage.weights, size)
            ticket = shuffled(place[mine] - block * _BLOCK, size, (self.seed, 3, number, int(block)))
            ends = np.cumsum(quotas)
            source[mine] = np.searchsorted(ends, ticket, side='right')
            before = np.array(self._visits_before[number]) + int(block) * _quotas(stage.weights, _BLOCK)
            visit[mine] = ticket - (ends - quotas)[source[mine]] + before[source[mine]]
        image = np.empty(self.batch, np.int64)
        epoch, at = np.divmod(visit, np.array(self.sizes)[source])
        for which, turn in np.unique(np.stack([source, epoch]), axis=1).T.tolist():
            mine = (source == which) & (epoch == turn)
            image[mine] = shuffled(at[mine], self.sizes[which], (self.seed, 0, turn, which))
        return source, image

    @cached_property
    def stages(self) -> tuple[_Stage, ...]:
        """The stages in their order."""
        edges = sorted({0, self.steps, *(round(s * self.steps) for t in self.turns for s in (t.after, t.until))})
        found = []
        for first, last in itertools.pairwise(edges):
            weights = tuple(
                t.weight if round(t.after * self.steps) <= first and last <= round(t.until * self.steps) else 0.0
                for t in self.turns
            )
            found.append(_Stage(first, last, weights))
        return tuple(found)

    @cached_property
    def _visits_before(self) -> list[Integers]:
        """Visits of every source before each stage."""
        found = [np.zeros(len(self.turns), np.int64)]
        for stage in self.stages:
            whole, rest = divmod((stage.last - stage.first) * self.batch, _BLOCK)
            found.append(found[-1] + whole * _quotas(stage.weights, _BLOCK) + _quotas(stage.weights, rest))
        return found

    def visits(self) -> Integers:
        """How often each source is visited in the whole training, [S]."""
        return self._visits_before[-1]


def _quotas(weights: Sequence[float], size: int) -> Integers:
    """`size` places by weight, whole numbers: the largest remainders get what rounding down leaves.

    Example:
        >>> _quotas((0.5, 0.3), 10).tolist()
        [6, 4]
    """
    exact = np.array(weights) / np.sum(weights) * size
    quotas = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - quotas), kind='stable')
    quotas[order[: size - int(quotas.sum())]] += 1
    return quotas
