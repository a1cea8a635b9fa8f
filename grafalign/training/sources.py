"""What a training learns from: images, and for each the rows of the joined bank that say what it shows.

A pair store gives tiles with photos, a caption set pictures or tiles with texts. Behind this file they differ in two
things only: photos have a place in their tile, and photos and texts are no candidates for each other's images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from grafalign.captions.caption_set import CaptionSet
from grafalign.captions.pictures import Pictures
from grafalign.encoders import PhotoBank, TextBank, select_bands
from grafalign.errors import InputError
from grafalign.store import PairStore
from grafalign.store_marker import Sensor
from grafalign.training.pixels import PicturePixels, Pixels, TilePixels
from grafalign.training.placement import RADIUS_PER_SIGMA

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Source:
    """n images of a split with their N pairs, sorted by image."""

    name: str
    kind: Literal['photos', 'captions']
    pixels: Pixels
    rows: Integers
    """Row of each image in its store or set, [n]."""
    first: Integers
    """Pairs of image i are first[i] to last[i], [n]."""
    last: Integers
    candidate: Integers
    """Row of the joined bank, [N]."""
    position: Floats
    """Row and column of the photo in its tile, in pixels; the middle for captions, [N, 2]."""
    sigma_px: Floats
    """Standard deviation of that position along each axis, [N]."""
    heading: Floats
    """Radians clockwise from true north, NaN where unknown, [N]."""
    field_of_view: Floats
    """Radians across the photo, NaN where its camera tells none, [N]."""
    image_ids: npt.NDArray[np.object_] | pa.ChunkedArray
    """What people call all images of the store or set."""

    def image_id(self, number: int) -> str:
        """What people call image `number` of the source."""
        name = self.image_ids[int(self.rows[number])]
        return str(name.as_py() if isinstance(name, pa.Scalar) else name)


def store_source(
    store: PairStore, bank: PhotoBank, bands: list[int], unknown_accuracy_m: float, split: str = 'train'
) -> Source:
    """The tiles of a split of a pair store with their photos; the bank's rows come first in the joined bank.

    Args:
        store: the store.
        bank: its photo bank.
        bands: positions of the wanted bands.
        unknown_accuracy_m: accuracy of photos that tell none.
        split: tiles of this split.

    Raises:
        GrafalignError: the split has no tile with a usable photo.
    """
    pairs = store.pairs
    usable = bank.valid[pairs['photo'].to_numpy()] & np.isin(pairs['tile'].to_numpy(), store.tiles_of(split))
    pairs = pairs[usable].sort_values('tile', kind='stable')
    photo = pairs['photo'].to_numpy()
    rows, first = np.unique(pairs['tile'].to_numpy(), return_index=True)
    if not len(rows):
        raise InputError(f'{store.path} has no {split} tile with a usable photo; check `split.shares` of its recipe.')
    return Source(
        name=str(store.path),
        kind='photos',
        pixels=TilePixels(store, bands),
        rows=rows,
        first=first,
        last=np.append(first[1:], len(pairs)),
        candidate=photo,
        position=pairs[['row', 'col']].to_numpy(dtype=np.float32),
        sigma_px=_sigma_px(store, unknown_accuracy_m)[photo],
        heading=_angles(store, 'heading_deg')[photo],
        field_of_view=_angles(store, 'field_of_view_deg')[photo],
        image_ids=store.tiles['tile_id'].to_numpy(dtype=object),
    )


def caption_source(
    captions: CaptionSet,
    bank: TextBank,
    bank_rows: Integers,
    sensor: Sensor,
    split: str = 'train',
    without: Integers | None = None,
) -> Source:
    """The images of a split of a caption set with their distinct texts.

    Args:
        captions: the set.
        bank: its text bank.
        bank_rows: row of the joined bank for each of the bank's texts, [T].
        sensor: bands and size that its images are brought to.
        split: images of this split.
        without: rows of images to leave out.

    Raises:
        GrafalignError: the split has no captioned image, or its images do not fit the sensor.
    """
    image = captions.image_of_caption
    wanted = np.zeros(len(captions), dtype=bool)
    wanted[captions.rows_of(split)] = True
    if without is not None:
        wanted[without] = False
    mine = wanted[image]
    # an equal text counts once; pairs as single numbers sort far faster than as rows
    most = int(bank_rows.max(initial=0)) + 1
    of_image, candidate = np.divmod(np.unique(image[mine] * most + bank_rows[bank.numbers[mine]]), most)
    rows, first = np.unique(of_image, return_index=True)
    if not len(rows):
        raise InputError(
            f'{captions.path} has no captioned image of split {split}; its splits are {captions.marker.splits}.'
        )
    middle = np.float32(sensor.size_px / 2)
    return Source(
        name=str(captions.path),
        kind='captions',
        pixels=_pixels_of(captions, sensor),
        rows=rows,
        first=first,
        last=np.append(first[1:], len(candidate)),
        candidate=candidate,
        position=np.full((len(candidate), 2), middle, dtype=np.float32),
        sigma_px=np.ones(len(candidate), dtype=np.float32),
        heading=np.full(len(candidate), np.nan, dtype=np.float32),
        field_of_view=np.full(len(candidate), np.nan, dtype=np.float32),
        image_ids=captions.images['image_id'],
    )


def tile_rows(captions: CaptionSet, store: PairStore) -> Integers:
    """Row in its store of each tile of a set, which may have fewer, [N].

    Raises:
        GrafalignError: the store lacks one.
    """
    ids = captions.images['image_id'].to_pandas()
    rows = pd.Index(store.tiles['tile_id']).get_indexer(ids)
    if (rows < 0).any():
        raise InputError(
            f'{store.path} has no tile {ids[int(np.argmin(rows))]} (any more), which {captions.path} is of; import the '
            'store again.'
        )
    return rows.astype(np.int64)


def _pixels_of(captions: CaptionSet, sensor: Sensor) -> Pixels:
    if captions.marker.store is None:
        return PicturePixels(Pictures(captions), sensor)
    store = PairStore(captions.marker.store)
    if store.sensor.size_px != sensor.size_px:
        raise InputError(
            f'The tiles of {captions.path} are {store.sensor.size_px} px wide, the others {sensor.size_px} px; pair '
            'again at one size.'
        )
    return TilePixels(
        store, select_bands(store.sensor.bands, sensor.bands, store.sensor.name), tile_rows(captions, store)
    )


def _sigma_px(store: PairStore, unknown_m: float) -> Floats:
    """Standard deviation of every photo's place along each axis, in pixels of a tile, [P]."""
    photos = store.photos
    accuracy = photos['accuracy_m'].to_numpy(dtype=float, na_value=np.nan) if 'accuracy_m' in photos else np.nan
    accuracy = np.where(accuracy > 0, accuracy, unknown_m) * np.ones(len(photos))
    return np.asarray(accuracy / RADIUS_PER_SIGMA / store.sensor.gsd_m, dtype=np.float32)


def _angles(store: PairStore, name: str) -> Floats:
    """An angle of every photo in radians, NaN where unknown, [P].

    Headings are clockwise from true north. Tiles are up along their zone's grid north, which is off by up to 3 degrees:
    less than a phone's compass.
    """
    photos = store.photos
    if name not in photos:
        return np.full(len(photos), np.nan, dtype=np.float32)
    return np.deg2rad(photos[name].to_numpy(dtype=np.float32, na_value=np.nan))
