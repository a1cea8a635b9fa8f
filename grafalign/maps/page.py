"""A map as one page: the map, the scene beside it, its legend, and how much of the land each class takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from rasterio.enums import Resampling

from grafalign.fields import Field
from grafalign.files import write_atomically
from grafalign.foreign.rasters import open_raster
from grafalign.maps.classes import NONE, MapClass
from grafalign.maps.make import MapSummary
from grafalign.pages import exact_picture_url, picture_url, render

_LONGEST_PX = 900


def write_page(
    path: Path,
    field: Field,
    classes: Sequence[MapClass],
    summary: MapSummary,
    files: Mapping[str, Path],
    made: str,
) -> None:
    """Write the page.

    Args:
        path: its file.
        field: what the map was made from.
        classes: its classes.
        summary: what it shows.
        files: `map`, and what else was written.
        made: how it was made.
    """
    confidence = None if 'confidence' not in files else exact_picture_url(_confidence(files['confidence']))
    shares = sorted(summary.shares.items(), key=lambda s: -s[1])
    colours = {c.name: '#{:02x}{:02x}{:02x}'.format(*c.colour) for c in classes}
    background = {c.name for c in classes if c.background and c is not NONE}
    rows = [
        {
            'name': name,
            'colour': colours[name],
            'percent': f'{100 * share:.1f}',
            'width': f'{100 * share / max(1e-9, shares[0][1]):.1f}',
            'area': f'{summary.pixels[name] * summary.pixel_area_m2 / 1e6:,.2f}',
            'background': name in background,
        }
        for name, share in shares
    ]
    height, width = field.geobox.shape
    page = render(
        'grafalign.maps',
        'map.html',
        title=files['map'].stem,
        map=exact_picture_url(_coloured(files['map'], classes)),
        scene=picture_url(Image.fromarray(field.preview()), _LONGEST_PX),
        confidence=confidence,
        rows=rows,
        missing=f'{100 * summary.missing / (height * width):.1f}',
        scenes=[(s.item_id, s.datetime[:10]) for s in field.plan.scenes],
        crs=field.plan.crs if len(field.plan.crs) < 40 else 'a CRS without a code',
        size=f'{width:,} x {height:,} px of {field.plan.pixel_m:.4g} m',
        made=made,
    )
    write_atomically(path, page.encode())


def _reduced(path: Path, resampling: Resampling) -> npt.NDArray[np.generic]:
    """A raster whose longer side has at most so many pixels.

    The overview is named, as GDAL does not look for one while or after COGs are written in other threads.
    """
    with open_raster(path) as dataset:
        factor = max(1.0, max(dataset.shape) / _LONGEST_PX)
        shape = tuple(max(1, round(side / factor)) for side in dataset.shape)
        larger = [level for level, by in enumerate(dataset.overviews(1)) if by <= factor]
    with open_raster(path, **({'overview_level': larger[-1]} if larger else {})) as dataset:
        pixels: npt.NDArray[np.generic] = dataset.read(1, out_shape=shape, resampling=resampling)
    return pixels


def _coloured(path: Path, classes: Sequence[MapClass]) -> Image.Image:
    labels = _reduced(path, Resampling.nearest).astype(np.int64)
    colours = np.array([c.colour for c in classes], dtype=np.uint8)
    known = labels < len(colours)
    image = np.zeros((*labels.shape, 4), dtype=np.uint8)
    image[known, :3] = colours[labels[known]]
    image[known, 3] = 255
    return Image.fromarray(image)


def _confidence(path: Path) -> Image.Image:
    numbers = _reduced(path, Resampling.nearest)
    known = numbers != 255
    grey = np.clip(numbers.astype(np.float32) / 250 * 255, 0, 255).astype(np.uint8)
    return Image.fromarray(np.dstack([grey, np.where(known, 255, 0).astype(np.uint8)]))
