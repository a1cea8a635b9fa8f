"""A sandbox world on other days: with nothing changed but light, haze and season, and with things built and cleared."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import numpy.typing as npt

from grafalign.sandbox.classes import CLASS_NAMES
from grafalign.sandbox.land import Land, LandObject, make_land
from grafalign.sandbox.scenes import Overpass, write_catalog
from grafalign.sandbox.structures import build

FORESTS = ('broadleaf forest', 'conifer forest')
FARMS = ('cropland', 'meadow')
BUILT = ('suburb', 'warehouses', 'solar farm', 'greenhouses', 'quarry')
"""What is built, in turn; the last three are single objects."""
AREAS = ('suburb', 'warehouses')
SITES = 60
"""Sites of each kind of change that are looked for; fewer where there is no room."""
_APART = 90
"""Pixels between sites."""
SAME, LATER, SEASON = (
    Overpass(datetime(year, month, day, 11, 5, tzinfo=timezone.utc), 0.0)
    for year, month, day in ((2021, 7, 26), (2022, 7, 21), (2022, 10, 12))
)
"""A week after the first date (2021-07-19), a year, and a year and a season."""


def second_dates(folder: Path, seed: int, shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Write the scenes of a world that stayed as it was (SAME, LATER, SEASON), and of one that changed (LATER).

    Args:
        folder: `same/` and `changed/` are written there, as static STAC catalogs.
        seed: of the world.
        shape: its rows and columns.

    Returns:
        The classes of the changed world [rows, columns]; `VOID` as before.
    """
    land = make_land(seed, shape)
    changed = changed_land(land, seed)
    for name, world, days in (('same', land, (SAME, LATER, SEASON)), ('changed', changed, (LATER,))):
        if not (folder / name / 'catalog.json').is_file():
            write_catalog(folder / name, world, build(world), overpasses=days)
    return changed.classes


def changed_land(land: Land, seed: int) -> Land:
    """The land with forests cleared and things built on farmland, at sites that lie apart."""
    rng = np.random.default_rng(seed + 9000)
    number = {name: i for i, name in enumerate(CLASS_NAMES)}
    before, classes, objects = land.classes, land.classes.copy(), list(land.objects)
    height, width = classes.shape
    taken = [(int(o.row), int(o.col)) for o in objects]

    def free_site(kinds: tuple[str, ...]) -> tuple[int, int] | None:
        for _ in range(2000):
            row, column = int(rng.integers(60, height - 60)), int(rng.integers(60, width - 60))
            near = before[row - 15 : row + 16, column - 15 : column + 16]
            if np.isin(near, [number[k] for k in kinds]).mean() > 0.75 and all(
                np.hypot(row - r, column - c) > _APART for r, c in taken
            ):
                taken.append((row, column))
                return row, column
        return None

    for i in range(SITES):
        site = free_site(FORESTS)
        if site is not None:
            radius = rng.uniform(14, 30)
            rows, columns = np.ogrid[:height, :width]
            cleared = np.hypot(rows - site[0], columns - site[1]) < radius
            classes[cleared & np.isin(before, [number[k] for k in FORESTS])] = number[FARMS[i % 2]]
        site = free_site(FARMS)
        if site is not None:
            kind = BUILT[i % len(BUILT)]
            thing = LandObject(kind, *site, rng.uniform(44, 60), rng.uniform(36, 48), rng.uniform(0, np.pi))
            window, along, across = thing.local((height, width))
            inside = (abs(along) < thing.length_px / 2) & (abs(across) < thing.width_px / 2)
            part = classes[window]
            part[inside & np.isin(part, [number[k] for k in FARMS])] = number[kind]
            if kind not in AREAS:
                objects.append(thing)
    return replace(land, classes=classes, objects=objects)
