"""The scene of a field as tiles of a web map: its own pixels where its files are on this machine, else its preview."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from PIL import Image
from rasterio.enums import Resampling
from scipy.ndimage import map_coordinates

from grafalign import console
from grafalign.encoders.preprocessing import to_unit
from grafalign.errors import GrafalignError
from grafalign.explore.grid import PX, FieldGrid, Places, tile_box
from grafalign.fields import Field
from grafalign.fields.source import local_sources
from grafalign.models import Model
from grafalign.scenes import Cut, RangeReader, SceneCutter, SceneTiles

_FINE = 0.6
"""Cells from pixel to pixel below which the preview, a pixel a cell, would be blurred."""


class Backdrop:
    """Tiles of one field's scene.

    Args:
        field: the field.
        model: its model, which says what its bands are.
    """

    def __init__(self, field: Field, model: Model) -> None:
        self._field, self._grid = field, FieldGrid(field.cells)
        self._preview = field.preview()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix='backdrop')
        try:
            self._scenes = local_sources(field, model)
        except GrafalignError as error:
            console.log(f'{field.path}: its scene is shown a pixel a cell ({error})')
            self._scenes = []

    def tile(self, z: int, x: int, y: int) -> bytes | None:
        """A tile as PNG; None where the field is not.

        Raises:
            ValueError: there is no such tile.
        """
        box = tile_box(z, x, y)
        places = self._grid.under(box)
        if places is None:
            return None
        picture = self._from_preview(places)
        if places.step < _FINE:
            for sources in self._scenes:
                cutter = SceneCutter(self._pool, RangeReader(1), 1, Resampling.bilinear)
                for _, cut in cutter.cut([SceneTiles(sources, [box])]):
                    if isinstance(cut, Cut):
                        self._lay(picture, cut)
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, 'PNG', compress_level=1)
        return buffer.getvalue()

    def _from_preview(self, places: Places) -> npt.NDArray[np.uint8]:
        at = [places.rows, places.columns]
        rows, columns = self._grid.shape
        colours = [
            map_coordinates(self._preview[..., i].astype(np.float32), at, order=1, mode='nearest') for i in range(3)
        ]
        known = self._preview.any(-1).astype(np.float32)
        there = map_coordinates(known, at, order=0, mode='nearest') > 0.5
        there &= (at[0] > -0.5) & (at[0] < rows - 0.5) & (at[1] > -0.5) & (at[1] < columns - 0.5)
        return np.dstack([*colours, np.where(there, 255, 0)]).astype(np.uint8)

    def _lay(self, picture: npt.NDArray[np.uint8], cut: Cut) -> None:
        """Put a scene's own pixels over the preview's."""
        shown = [0, 1, 2] if len(cut.pixels) >= 3 else [0, 0, 0]
        scale, offset = (np.asarray(v, np.float32)[:, None, None] for v in (cut.scale, cut.offset))
        unit = to_unit(cut.pixels.astype(np.float32) * scale + offset, *self._field.plan.value_range)
        there = ~cut.missing[:PX, :PX]
        picture[there, :3] = np.moveaxis(unit[shown] * 255, 0, -1)[:PX, :PX][there].astype(np.uint8)
        picture[there, 3] = 255
