"""What a look at the numbers of a tile tells: how many are zeros, not finite, or outside the range of the sensor.

Most mistakes about pixels (a scale that was not applied, a nodata value that nobody states, water taken for a hole)
show in these shares long before a model is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

COLUMNS = ('outside_fraction', 'zero_fraction', 'not_finite_fraction')
"""Columns of `tiles.parquet`."""
_WORST = 5
_REMARKABLE = 0.01
"""Scenes are named where more than this share of their numbers is odd."""


def shares_of(
    pixels: npt.NDArray[np.generic],
    missing: npt.NDArray[np.bool_],
    scale: Sequence[float],
    offset: Sequence[float],
    value_range: tuple[float, float],
) -> tuple[float, float]:
    """Of the numbers of a tile that are there: the share outside the sensor's range, and the share of zeros.

    Args:
        pixels: [C, H, W] as stored.
        missing: [H, W].
        scale: [C]; physical = stored * scale + offset.
        offset: [C].
        value_range: physical values that become 0 and 1.
    """
    count = pixels.shape[0] * int(missing.size - np.count_nonzero(missing))
    if not count:
        return 0.0, 0.0
    there = None if count == pixels.size else ~missing
    outside = zeros = 0
    for band, factor, shift in zip(pixels, scale, offset, strict=True):
        numbers = band if there is None else band[there]
        # the range in the file's own numbers: cheaper than to scale all pixels
        low, high = sorted((v - shift) / factor for v in value_range)
        slack = 1e-6 * max(abs(low), abs(high))
        outside += int(np.count_nonzero(numbers < low - slack) + np.count_nonzero(numbers > high + slack))
        zeros += int(numbers.size - np.count_nonzero(numbers))
    return outside / count, zeros / count


@dataclass(frozen=True)
class SceneShares:
    """Shares over all tiles of one scene, or of all scenes."""

    name: str
    tiles: int
    outside: float
    zero: float
    not_finite: float

    @property
    def remarkable(self) -> bool:
        """Whether a person should look at the scene."""
        return max(self.outside, self.zero, self.not_finite) > _REMARKABLE


def by_scene(tiles: pd.DataFrame) -> tuple[SceneShares, list[SceneShares]]:
    """Shares of a whole store, and of its most remarkable scenes, the worst first.

    Args:
        tiles: `tiles.parquet`; a store of an earlier grafalign has no such columns.
    """
    if not len(tiles) or any(c not in tiles for c in COLUMNS):
        return SceneShares('all', len(tiles), 0.0, 0.0, 0.0), []
    means = tiles.groupby('item_id')[list(COLUMNS)].mean()
    counts = tiles.groupby('item_id').size()
    scenes = [
        SceneShares(str(name), int(counts[name]), *(float(v) for v in values))
        for name, values in zip(means.index, means.to_numpy(), strict=True)
    ]
    worst = sorted((s for s in scenes if s.remarkable), key=lambda s: (-max(s.outside, s.zero, s.not_finite), s.name))
    whole = SceneShares('all', len(tiles), *(float(tiles[c].mean()) for c in COLUMNS))
    return whole, worst[:_WORST]


def table_rows(tiles: pd.DataFrame) -> list[tuple[str, str, str, str, str]]:
    """The same as rows for people: scene, tiles, outside, zeros, not finite."""
    whole, worst = by_scene(tiles)
    named = [('all scenes', whole), *((s.name, s) for s in worst)]
    return [(n, f'{s.tiles:,}', _percent(s.outside), _percent(s.zero), _percent(s.not_finite)) for n, s in named]


HEADER = ('scene', 'tiles', 'outside value_range', 'zero', 'not finite')


def _percent(share: float) -> str:
    return '0 %' if share == 0 else f'{100 * share:.2g} %' if share < 0.1 else f'{100 * share:.0f} %'
