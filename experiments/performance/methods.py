"""Ways to cut tiles out of scenes behind HTTP; every one yields the same pixels.

A method takes the items, the tiles and a number of workers, and yields `(number of the tile, pixels [3, 224, 224])`
as each is done. All get the tiles in one order, by scene and then by rows, as `grafalign.pairing` cuts them: that order
is kind to GDAL's caches. The threaded methods that others use share one pool, `_over_threads`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from material import BANDS, EPSG, GSD_M, TILE_PX, Tile
from rasterio.windows import from_bounds

from grafalign.geo import TileGrid

Items = list[dict[str, Any]]
Pixels = npt.NDArray[np.generic]
Method = Callable[[Items, list[Tile], int], Iterator[tuple[int, Pixels]]]

CLOUD_SETTINGS = {
    'GDAL_DISABLE_READDIR_ON_OPEN': 'EMPTY_DIR',
    'GDAL_HTTP_MERGE_CONSECUTIVE_RANGES': 'YES',
    'GDAL_INGESTED_BYTES_AT_OPEN': 32_768,
    'CPL_VSIL_CURL_ALLOWED_EXTENSIONS': '.tif',
    'CPL_VSIL_CURL_CACHE_SIZE': 200_000_000,
    'GDAL_CACHEMAX': 200,
}
"""What tile servers recommend for COGs behind HTTP, without `VSI_CACHE`, which made no request fewer here."""


def _over_threads(cut: Callable[[Tile], Pixels], tiles: list[Tile], workers: int) -> Iterator[tuple[int, Pixels]]:
    """Cut every tile in one of `workers` threads; at most twice as many are in flight, so none pile up in memory."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: dict[Future[Pixels], int] = {}
        for number, tile in enumerate(tiles):
            waiting[pool.submit(cut, tile)] = number
            if len(waiting) == 2 * workers:
                for done in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield waiting.pop(done), done.result()
        for done in wait(waiting).done:
            yield waiting.pop(done), done.result()


def _window_read(href: str, tile: Tile) -> Pixels:
    """Open a file and read a tile's window, as any tutorial does."""
    side = TILE_PX * GSD_M
    with rasterio.open(href) as dataset:
        window = from_bounds(tile.left, tile.top - side, tile.left + side, tile.top, dataset.transform)
        return dataset.read(1, window=window.round_offsets().round_lengths())


def _hrefs(items: Items, tile: Tile) -> list[str]:
    return [items[tile.item]['assets'][band]['href'] for band in BANDS]


def rasterio_per_tile(items: Items, tiles: list[Tile], workers: int) -> Iterator[tuple[int, Pixels]]:
    """`rasterio.open` and a windowed read for every tile and band, tiles over threads, settings for cloud reading."""

    def cut(tile: Tile) -> Pixels:
        with rasterio.Env(**CLOUD_SETTINGS):
            return np.stack([_window_read(href, tile) for href in _hrefs(items, tile)])

    return _over_threads(cut, tiles, workers)


def odc_stac_per_tile(items: Items, tiles: list[Tile], workers: int) -> Iterator[tuple[int, Pixels]]:
    """`odc.stac.load` of one item into the tile's GeoBox, tiles over threads, its own settings for cloud reading.

    The items state projection, shape and transform, so no file is opened for its metadata.
    """
    import odc.stac
    import pystac

    odc.stac.configure_rio(cloud_defaults=True)
    parsed = [pystac.Item.from_dict(item) for item in items]
    grid = TileGrid(TILE_PX, GSD_M)

    def cut(tile: Tile) -> Pixels:
        geobox = grid.geobox(EPSG, tile.left, tile.top)
        loaded = odc.stac.load([parsed[tile.item]], bands=BANDS, geobox=geobox)
        return np.stack([loaded[band].to_numpy()[0] for band in BANDS])

    return _over_threads(cut, tiles, workers)


def serial_loop(items: Items, tiles: list[Tile], workers: int) -> Iterator[tuple[int, Pixels]]:
    """One tile after another and one band after another: open, read, close; the only setting is no folder listing."""
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN='EMPTY_DIR'):
        for number, tile in enumerate(tiles):
            yield number, np.stack([_window_read(href, tile) for href in _hrefs(items, tile)])


def serial_loop_bands(items: Items, tiles: list[Tile], workers: int) -> Iterator[tuple[int, Pixels]]:
    """The same with the bands of a tile read at once, as scripts do that compute a lazy stack for each sample."""

    def read(href: str, tile: Tile) -> Pixels:
        with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN='EMPTY_DIR'):
            return _window_read(href, tile)

    with ThreadPoolExecutor(len(BANDS)) as pool:
        for number, tile in enumerate(tiles):
            yield number, np.stack(list(pool.map(read, _hrefs(items, tile), [tile] * len(BANDS))))


# ---- the adapter to grafalign's own reader: replace the body of `ours`, and nothing else ----------------------------
def ours(items: Items, tiles: list[Tile], workers: int) -> Iterator[tuple[int, Pixels]]:
    """The reader of grafalign as `pairing.cut` uses it, given all tiles as one job."""
    from rasterio.enums import Resampling

    from grafalign.scenes import RangeReader, SceneCutter, SceneTiles, Uncut, band_sources

    grid = TileGrid(TILE_PX, GSD_M)
    numbers: dict[int, list[int]] = {}
    for number, tile in enumerate(tiles):
        numbers.setdefault(tile.item, []).append(number)
    wanted = [
        SceneTiles(
            band_sources(items[item], list(BANDS), GSD_M),
            [grid.geobox(EPSG, tiles[n].left, tiles[n].top) for n in mine],
        )
        for item, mine in numbers.items()
    ]
    places = list(numbers.values())
    with ThreadPoolExecutor(workers) as pool:
        cutter = SceneCutter(pool, RangeReader(workers), 2 * workers, Resampling.bilinear)
        for scene, cut in cutter.cut(wanted):
            if isinstance(cut, Uncut) or cut.missing.any():
                raise RuntimeError(cut.reason if isinstance(cut, Uncut) else 'a tile has missing pixels')
            yield places[scene][cut.number], cut.pixels


# ---- end of the adapter ----------------------------------------------------------------------------------------------

METHODS: dict[str, Method] = {
    'ours': ours,
    'rasterio': rasterio_per_tile,
    'odc-stac': odc_stac_per_tile,
    'serial': serial_loop,
    'serial, bands at once': serial_loop_bands,
}
SERIAL = ('serial', 'serial, bands at once')
"""One tile at a time, whatever the number of workers."""
