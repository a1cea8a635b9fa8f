"""Cut the tiles of one shard: try each tile's scenes in turn until one gives enough pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from grafalign.errors import GrafalignError
from grafalign.geo import TileGrid
from grafalign.scenes import Scene, SceneReader, SceneReadError, band_sources


@dataclass(frozen=True)
class CutTile:
    """Pixels of a tile and the facts that go into `tiles.parquet`."""

    pixels: npt.NDArray[np.generic]
    """[C, H, W] as stored in the scene."""
    facts: dict[str, Any]


@dataclass
class CutReport:
    """What one tile's cutting met on the way."""

    tile: CutTile | None = None
    rejects: list[tuple[str, str, str, str]] = field(default_factory=list)
    """kind (`scene` or `tile`), id, reason, detail."""


def cut_tile(
    reader: SceneReader,
    grid: TileGrid,
    tile_id: str,
    epsg: int,
    corner: tuple[float, float],
    scenes: Sequence[Scene],
    bands: list[str],
    max_nodata: float,
) -> CutReport:
    """Cut one tile from the first of its scenes that can be read and covers it.

    Args:
        reader: this thread's reader.
        grid: shape of the tiles.
        tile_id: its name, for the report.
        epsg: its zone.
        corner: left and top in metres.
        scenes: candidates, best first.
        bands: the recipe's bands.
        max_nodata: largest share of missing pixels.
    """
    report = CutReport()
    if not scenes:
        report.rejects.append(('tile', tile_id, 'no scene over the place', ''))
        return report
    geobox = grid.geobox(epsg, *corner)
    emptiest = 0.0
    for scene in scenes:
        try:
            sources = band_sources(scene.item, bands)
            pixels, missing = reader.read(sources, geobox)
        except (SceneReadError, GrafalignError) as error:
            report.rejects.append(('scene', scene.item_id, 'scene cannot be read', f'{tile_id}: {error}'))
            continue
        nodata = float(missing.mean())
        if nodata > max_nodata:
            emptiest = max(emptiest, nodata)
            continue
        facts = {
            'item_id': scene.item_id,
            'collection': scene.collection,
            'datetime': scene.when.isoformat(),
            'cloud_cover': scene.cloud_percent,
            'processing_baseline': scene.baseline,
            'nodata_fraction': nodata,
            'scale': [s.scale for s in sources],
            'offset': [s.offset for s in sources],
        }
        report.tile = CutTile(pixels, facts)
        return report
    unreadable = sum(kind == 'scene' for kind, *_ in report.rejects)
    if emptiest:
        report.rejects.append(('tile', tile_id, 'too many missing pixels', f'{100 * emptiest:.0f} % nodata'))
    else:
        report.rejects.append(('tile', tile_id, 'no scene could be read', f'{unreadable} scenes tried'))
    return report
