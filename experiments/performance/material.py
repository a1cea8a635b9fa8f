"""Scenes and tiles to cut, made up: Sentinel-2 in layout and in how well it compresses, not in what it shows.

Scenes: two neighbouring MGRS squares in EPSG:32633 on two dates, three bands at 10 m, each a single-band uint16 COG
with DEFLATE, predictor 2 and overviews, once in blocks of 1024 (as Earth Search publishes Sentinel-2) and once in
blocks of 512 (as Planetary Computer does). The numbers are a land of seven octaves of smooth noise, rougher in some
regions than in others, and sensor noise on top; the result file states the bytes a pixel that this compresses to.

Tiles: 224 px on the scenes' grid, around towns of very different size, no centre inside another tile of its date (the
rule of `grafalign.pairing.plan`). The first N tiles are a density: more photos in the same towns.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.shutil
from affine import Affine
from pyproj import Transformer
from rasterio.windows import Window
from scipy.sparse import csr_array

EPSG = 32633
GSD_M = 10
TILE_PX = 224
BANDS = ('B02', 'B03', 'B04')
DATES = ('2024-06-04', '2024-08-23')
SQUARES = {'33UUU': (300_000, 5_900_040), '33UVU': (399_960, 5_900_040)}
"""Left and top in metres; neighbours overlap by 9.8 km, as MGRS squares do."""
FULL_PX, QUICK_PX = 10_980, 2_048
BLOCKS = (1024, 512)
_STRIP = 512


@dataclass(frozen=True)
class Tile:
    """A wanted tile: which item, and its corner in metres of the item's zone."""

    item: int
    left: float
    top: float


@dataclass(frozen=True)
class Material:
    """Everything that a measurement reads."""

    folder: Path
    side_px: int
    names: list[str]
    """Item ids; the COG of a band is `BLOCK/ID_BAND.tif` in the folder."""
    tiles: list[Tile]
    bytes_per_pixel: dict[str, float]
    """By block size: compressed bytes of the full resolution over its pixels."""

    def items(self, block: int, root: str) -> list[dict[str, Any]]:
        """STAC items whose assets lie under `root`, a URL or a folder."""
        return [_item(name, self.side_px, f'{root}/{block}') for name in self.names]

    def path(self, block: int, item: int, band: str) -> Path:
        """A COG on disk."""
        return self.folder / str(block) / f'{self.names[item]}_{band}.tif'


def make_material(folder: Path, quick: bool) -> Material:
    """Make what is missing of the material in `folder` (full: 5 GB and a few minutes; quick: seconds)."""
    side = QUICK_PX if quick else FULL_PX
    squares = dict(list(SQUARES.items())[: 1 if quick else None])
    names = [f'{square}_{date.replace("-", "")}' for square in squares for date in DATES]
    for name in names:
        for band in BANDS:
            targets = [folder / str(block) / f'{name}_{band}.tif' for block in BLOCKS]
            if not all(t.exists() for t in targets):
                print(f'making {name} {band}', flush=True)
                _write_cogs(name, band, side, targets)
    metadata = folder / 'bytes_per_pixel.json'
    if not metadata.exists():
        metadata.write_text(json.dumps({str(b): _bytes_per_pixel(folder / str(b)) for b in BLOCKS}))
    tiles = place_tiles(list(squares.values()), side, 40 if quick else 800)
    return Material(folder, side, names, tiles, json.loads(metadata.read_text()))


def _bytes_per_pixel(folder: Path) -> float:
    nbytes = pixels = 0
    for path in sorted(folder.glob('*.tif')):
        with rasterio.open(path) as dataset:
            nbytes += sum(size for _, size in block_spans(dataset).values())
            pixels += dataset.width * dataset.height
    return nbytes / pixels


def block_spans(dataset: rasterio.io.DatasetReader) -> dict[tuple[int, int], tuple[int, int]]:
    """Offset and size in bytes of every block of band 1 at full resolution, by block row and column."""
    high, wide = dataset.block_shapes[0]
    spans = {}
    for row in range(-(-dataset.height // high)):
        for col in range(-(-dataset.width // wide)):
            offset, size = (
                dataset.get_tag_item(f'BLOCK_{what}_{col}_{row}', 'TIFF', bidx=1) for what in ('OFFSET', 'SIZE')
            )
            if offset is not None and size is not None:
                spans[row, col] = int(offset), int(size)
    return spans


def _item(name: str, side: int, root: str) -> dict[str, Any]:
    square, day = name.split('_')
    left, top = SQUARES[square]
    ring = [(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]
    x, y = zip(*((left + i * side * GSD_M, top - j * side * GSD_M) for i, j in ring), strict=True)
    lon, lat = Transformer.from_crs(EPSG, 4326, always_xy=True).transform(x, y)
    asset = {
        'type': 'image/tiff; application=geotiff; profile=cloud-optimized',
        'roles': ['data'],
        'gsd': GSD_M,
        'proj:shape': [side, side],
        'proj:transform': [GSD_M, 0, left, 0, -GSD_M, top],
        'raster:bands': [{'data_type': 'uint16', 'nodata': 0, 'scale': 0.0001, 'offset': 0}],
    }
    return {
        'type': 'Feature',
        'stac_version': '1.0.0',
        'stac_extensions': [
            'https://stac-extensions.github.io/eo/v1.1.0/schema.json',
            'https://stac-extensions.github.io/projection/v1.1.0/schema.json',
            'https://stac-extensions.github.io/raster/v1.1.0/schema.json',
        ],
        'id': name,
        'collection': 'made-up-sentinel-2',
        'geometry': {'type': 'Polygon', 'coordinates': [list(zip(lon, lat, strict=True))]},
        'bbox': [min(lon), min(lat), max(lon), max(lat)],
        'properties': {
            'datetime': f'{day[:4]}-{day[4:6]}-{day[6:]}T10:10:00Z',
            'eo:cloud_cover': 0,
            'proj:epsg': EPSG,
        },
        'links': [],
        'assets': {
            band: {**asset, 'href': f'{root}/{name}_{band}.tif', 'eo:bands': [{'name': band}]} for band in BANDS
        },
    }


def place_tiles(corners: list[tuple[int, int]], side: int, count: int) -> list[Tile]:
    """`count` tiles around towns, alternately on the two dates; any first part of them is a smaller density."""
    rng = np.random.default_rng(1)
    span = side * GSD_M
    towns = 14 * len(corners) if side == FULL_PX else 6
    place = np.stack([rng.uniform(0.04, 0.96, towns), rng.uniform(0.04, 0.96, towns)], axis=1) * span
    square = np.arange(towns) % len(corners)
    weight = (1 + np.arange(towns)) ** -0.7
    weight /= weight.sum()
    reach_m = 1000 + 10_000 * np.sqrt(weight)
    half, taken, tiles = TILE_PX * GSD_M / 2, [], []
    while len(tiles) < count:
        date = len(tiles) % len(DATES)
        town = rng.choice(towns, p=weight)
        x, y = np.round((place[town] + rng.normal(0, reach_m[town], 2)) / GSD_M) * GSD_M
        if not (half <= x <= span - half and half <= y <= span - half):
            continue
        left, top = corners[square[town]][0] + x - half, corners[square[town]][1] - y + half
        if any(d == date and abs(left - a) < half and abs(top - b) < half for d, a, b in taken):
            continue
        taken.append((date, left, top))
        tiles.append(Tile(int(square[town]) * len(DATES) + date, float(left), float(top)))
    return tiles


def _write_cogs(name: str, band: str, side: int, targets: list[Path]) -> None:
    square, date = name.split('_')
    left, top = SQUARES[square]
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
    plain = targets[0].with_suffix('.plain')
    profile = {
        'driver': 'GTiff',
        'dtype': 'uint16',
        'count': 1,
        'width': side,
        'height': side,
        'crs': f'EPSG:{EPSG}',
        'transform': Affine(GSD_M, 0, left, 0, -GSD_M, top),
        'nodata': 0,
    }
    land = _Land(side, zlib.crc32(f'{square} {band}'.encode()))
    rng = np.random.default_rng(zlib.crc32(f'{name} {band}'.encode()))
    gain = 1 + 0.1 * DATES.index(f'{date[:4]}-{date[4:6]}-{date[6:]}')
    with rasterio.open(plain, 'w', **profile) as dataset:
        for row in range(0, side, _STRIP):
            rows = np.arange(row, min(row + _STRIP, side))
            signal = gain * land.strip(rows)
            signal += rng.standard_normal(signal.shape, dtype=np.float32) * (4 + 0.02 * signal)
            dataset.write(
                np.clip(np.rint(signal), 1, 65_535).astype(np.uint16), 1, window=Window(0, row, side, len(rows))
            )
    for target in targets:
        part = target.with_suffix('.part')
        rasterio.shutil.copy(
            plain,
            part,
            driver='COG',
            compress='DEFLATE',
            predictor='2',
            blocksize=target.parent.name,
            overview_resampling='average',
            num_threads='ALL_CPUS',
        )
        part.rename(target)
    plain.unlink()


class _Land:
    """Reflectance of a square, times 10,000: octaves of bilinear noise, contrast varying from region to region."""

    def __init__(self, side: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.octaves = [(cell, amount, self._lattice(rng, side, cell)) for cell, amount in _OCTAVES]
        self.contrast = self._lattice(rng, side, 700)
        self.columns = {cell: self._weights(np.arange(side), side, cell) for cell, _ in (*_OCTAVES, (700, 0))}
        self.side = side

    @staticmethod
    def _lattice(rng: np.random.Generator, side: int, cell: int) -> npt.NDArray[np.float32]:
        knots = side // cell + 2
        return rng.standard_normal((knots, knots), dtype=np.float32)

    @staticmethod
    def _weights(at: npt.NDArray[np.int64], side: int, cell: int) -> csr_array:
        low, share = at // cell, ((at % cell) / cell).astype(np.float32)
        rows = np.repeat(np.arange(len(at)), 2)
        cols = np.stack([low, low + 1], axis=1).ravel()
        return csr_array((np.stack([1 - share, share], axis=1).ravel(), (rows, cols)), (len(at), side // cell + 2))

    def _field(
        self, rows: npt.NDArray[np.int64], cell: int, lattice: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        return ((self.columns[cell] @ (self._weights(rows, self.side, cell) @ lattice).T).T).astype(np.float32)

    def strip(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Values [len(rows), side]."""
        rough = np.exp(0.6 * self._field(rows, 700, self.contrast))
        fine = sum(amount * self._field(rows, cell, lattice) for cell, amount, lattice in self.octaves if cell < 200)
        broad = sum(amount * self._field(rows, cell, lattice) for cell, amount, lattice in self.octaves if cell >= 200)
        return np.maximum(900 + broad + rough * fine, 60).astype(np.float32)


_OCTAVES = ((1600, 220.0), (400, 160.0), (100, 130.0), (25, 110.0), (9, 110.0), (4, 110.0), (2, 110.0))
"""Cell in pixels, standard deviation."""


def describe(material: Material) -> dict[str, Any]:
    """What the result file says about the material."""
    return {
        'items': material.names,
        'bands': list(BANDS),
        'side_px': material.side_px,
        'tile_px': TILE_PX,
        'layout': 'single-band uint16 COG, DEFLATE, predictor 2, overviews',
        'bytes_per_pixel': {k: round(v, 3) for k, v in material.bytes_per_pixel.items()},
        'first_tile': asdict(material.tiles[0]),
    }
