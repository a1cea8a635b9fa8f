"""How many days lie between scenes and the photos of tiles."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_MS_PER_DAY = 86_400_000


class PhotoTimes:
    """Times of the photos of T tiles, sorted in each, with their sums: a mean distance then costs one search.

    Times are whole milliseconds, so that sums are exact and two scenes as far from all photos are equally far.

    Args:
        photo_days: days since 1970, tile after tile; NaN where unknown.
        first_photo: [T + 1] where each tile's photos begin.
    """

    def __init__(self, photo_days: Floats, first_photo: Ints) -> None:
        timed = ~np.isnan(photo_days)
        tile = np.repeat(np.arange(len(first_photo) - 1), np.diff(first_photo))[timed]
        ms = np.round(photo_days[timed] * _MS_PER_DAY).astype(np.int64)
        self._first = np.searchsorted(tile, np.arange(len(first_photo)))
        self._ms = ms[np.lexsort((ms, tile))]

    def days_apart(self, tiles: Ints, tile: Ints, when_us: Ints) -> Floats:
        """Mean days between scenes and the photos of a tile; NaN where no photo has a time.

        Args:
            tiles: some tiles.
            tile: for every scene the place of its tile among them.
            when_us: its time in microseconds since 1970.

        Example: photos of days 0 and 4 are three days from day 5 on average, and two from any day between.

            >>> times = PhotoTimes(np.array([4.0, 0, np.nan]), np.array([0, 2, 3]))
            >>> times.days_apart(np.array([0, 1]), np.array([0, 0, 1]), np.array([5, 1, 1]) * 86_400_000_000)
            array([ 3.,  2., nan])
        """
        start, count = self._first[tiles], self._first[tiles + 1] - self._first[tiles]
        own = np.cumsum(count) - count  # where each tile's photos begin among those of these tiles
        photo = np.arange(count.sum()) + np.repeat(start - own, count)
        ms, scene = self._ms[photo], when_us // 1000
        base = min(ms.min(initial=0), scene.min(initial=0))
        ms, scene = ms - base, scene - base
        span = int(max(ms.max(initial=0), scene.max(initial=0))) + 1
        at = np.searchsorted(np.repeat(np.arange(len(tiles)), count) * span + ms, tile * span + scene)
        sums = np.concatenate([[0], np.cumsum(ms)])
        low, high = own[tile], own[tile] + count[tile]
        total = (at - low) * scene - (sums[at] - sums[low]) + (sums[high] - sums[at]) - (high - at) * scene
        days = total / np.maximum(count[tile], 1) / _MS_PER_DAY
        return np.where(count[tile] > 0, days, np.nan)
