"""Items of GeoTIFFs on this machine that nobody wrote STAC items for: their bands, time, grid and outline."""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import date, datetime, time, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import shapely
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader

from grafalign import console, engine
from grafalign.errors import InputError
from grafalign.files import write_atomically
from grafalign.foreign import parse_json
from grafalign.scenes.local import Rejected
from grafalign.scenes.opening import SceneReadError, read_failure
from grafalign.scenes.outline import edge_of, outline_of
from grafalign.scenes.raster import Grid, Raster, pixel_metres
from grafalign.scenes.scene import ItemError
from grafalign.web.ranges import RangeReader

_FORMAT = 1
"""Changes when an item comes to say something else of the same file."""
_SUFFIXES = ('.tif', '.tiff')
_COLOURS = ('red', 'green', 'blue', 'pan', 'coastal', 'rededge', 'nir', 'swir', 'mwir', 'lwir', 'tir')
"""GDAL's colour interpretations that name a band; `gray` is what it calls the first band of anything."""
_TIME_TAGS = ('ACQUISITIONDATETIME', 'ACQUISITION_DATETIME', 'TIFFTAG_DATETIME')
"""GDAL's tag of the domain IMAGERY, its spelling elsewhere, and the one of TIFF 6.0."""
_DATE = re.compile(
    r'(?<!\d)(\d{4})([-:]?)(\d\d)\2(\d\d)(?:[T ]?([01]\d|2[0-3]):?([0-5]\d):?([0-5]\d))?(?!\d)', re.IGNORECASE
)
_OUTLINE_PX = 1024
"""Where a raster ends is looked up in the smallest overview that has so many pixels along the longer side."""
_AT_A_TIME = 64
"""Rasters that are read before the first of them is handed on."""


def from_rasters(
    folder: Path, rejected: list[Rejected], day: date | None = None, cache: Path | None = None
) -> Iterator[dict[str, Any]]:
    """The items of all rasters of a folder or a pattern, in the order of their paths.

    An item is called as its file without the suffix; where several are called so, its path below the folder is used.

    Args:
        folder: as in `raster_files`.
        rejected: gets a row for every raster that no item can be made of.
        day: when those rasters were taken that do not say it themselves.
        cache: folder where items are kept, so that rasters that have not changed are not opened again.

    Raises:
        GrafalignError: there is no raster.
    """
    files = raster_files(folder)
    names = _names(files, _root(folder))
    when = None if day is None else datetime.combine(day, time(), timezone.utc)

    def look(path: Path) -> dict[str, Any] | ItemError:
        try:
            return item_of(path, when) if cache is None else _kept_item(path, when, cache)
        except ItemError as error:
            return error

    for start in console.track(range(0, len(files), _AT_A_TIME), 'reading rasters', len(files), _AT_A_TIME):
        results = dict(engine.run(look, files[start : start + _AT_A_TIME]))
        for number in range(len(results)):
            item, name, path = results[number], names[start + number], files[start + number]
            if isinstance(item, ItemError):
                rejected.append(('scene', name, item.reason, f'{path}: {item.detail}' if item.detail else str(path)))
            else:
                yield {**item, 'id': name}


def raster_files(folder: Path) -> list[Path]:
    """Absolute paths of rasters, sorted.

    Args:
        folder: a folder, of which all files below count that are named .tif or .tiff and are not hidden; or a pattern,
            with `**` for any folders, of which all files count.

    Raises:
        GrafalignError: there is none.
    """
    if folder.is_dir():
        files = [p for p in folder.absolute().rglob('*') if p.suffix.lower() in _SUFFIXES and p.name[0] != '.']
    else:
        files = [Path(p).absolute() for p in glob.glob(str(folder), recursive=True)]  # noqa: PTH207, absolute globs too
    files = sorted(path for path in files if path.is_file())
    if not files:
        raise InputError(
            f'{folder} holds no raster; set scenes.folder to a folder with .tif or .tiff files, or to a pattern such '
            "as 'scenes/*_rgb.tif'."
        )
    return files


def _root(folder: Path) -> Path:
    """The folder that all files of a folder or a pattern lie below."""
    if folder.is_dir():
        return folder.absolute()
    return next(parent for parent in folder.absolute().parents if not glob.has_magic(str(parent)))


def _names(files: list[Path], root: Path) -> list[str]:
    """For each file the shortest of stem, relative path without and with suffix that no other file has."""
    paths = [path.relative_to(root) for path in files]
    spellings = [[p.stem for p in paths], [p.with_suffix('').as_posix() for p in paths], [p.as_posix() for p in paths]]
    counts = [Counter(names) for names in spellings]
    choices = zip(*spellings, strict=True)
    return [next(n for n, count in zip(names, counts, strict=True) if count[n] == 1) for names in choices]


def item_of(path: Path | str, when: datetime | None = None, *, whole: bool = False) -> dict[str, Any]:
    """A STAC item of one GeoTIFF, with the asset `image`.

    Bands are called by their descriptions, else by their colours (red, green, blue, nir, ...), else b1, b2, ...; an
    alpha band has no name. Scale, offset and nodata are not stated, as they are the file's to say.

    Args:
        path: the file, or its URL.
        when: the time of a file of which neither tags nor name say one; those without a zone count as UTC.
        whole: take the raster's edge for its outline, without a look at its pixels.

    Raises:
        ItemError: the file is no raster with a grid and valid pixels, or has no time.
    """
    href = str(path.absolute()) if isinstance(path, Path) else path
    stem = Path(urlsplit(href).path if '://' in href else href).stem
    reader = RangeReader(1)  # a raster has one; it is asked for nothing that lies on this machine
    try:
        with closing(Raster(href, reader, mask=False)) as raster, raster.handle() as handle:
            bands, taken = _bands(handle.dataset), _time(handle.dataset, stem) or when
        if taken is None:
            raise ItemError('no date in its tags or its name; set scenes.date: YYYY-MM-DD')
        gsd_m = _gsd_m(raster.grid)
        coarse = gsd_m * max(raster.grid.width, raster.grid.height) / _OUTLINE_PX
        data = [number for number, band in enumerate(bands, start=1) if 'name' in band]
        if not data:
            raise ItemError('the raster has no band but alpha')
        if whole:
            outline = edge_of(raster.grid)
        else:
            with closing(Raster(href, reader, coarse, data_bands=data)) as overview:
                outline = outline_of(overview, data)
    except SceneReadError as error:
        raise ItemError(str(error).removeprefix(f'{href}: ')) from None
    except (RasterioError, OSError, ValueError) as error:
        if isinstance(error, ItemError):
            raise
        raise ItemError('the raster cannot be read', read_failure(error)) from None
    asset = {'href': href, 'type': 'image/tiff; application=geotiff', 'roles': ['data'], 'gsd': gsd_m, 'bands': bands}
    return {
        'type': 'Feature',
        'stac_version': '1.1.0',
        'stac_extensions': [_PROJECTION],
        'id': stem,
        'geometry': parse_json(shapely.to_geojson(outline)),
        'bbox': list(outline.bounds),
        'properties': {'datetime': taken.strftime('%Y-%m-%dT%H:%M:%SZ')},
        'links': [],
        'assets': {'image': asset | _projection(raster.grid)},
    }


_PROJECTION = 'https://stac-extensions.github.io/projection/v2.0.0/schema.json'


def _projection(grid: Grid) -> dict[str, Any]:
    """What STAC's projection extension says of a grid."""
    crs = {'proj:code': grid.crs_name} if grid.crs_name.startswith('EPSG:') else {'proj:wkt2': grid.crs_wkt}
    return {**crs, 'proj:transform': list(grid.transform)[:6], 'proj:shape': [grid.height, grid.width]}


def _gsd_m(grid: Grid) -> float:
    return pixel_metres(grid.transform, grid.width, grid.height, grid.crs_wkt)


def _bands(dataset: DatasetReader) -> list[dict[str, Any]]:
    """STAC's `bands` of a file; one without a name is alpha."""
    colours = [colour.name for colour in dataset.colorinterp]
    described = [(description or '').strip() for description in dataset.descriptions]
    names = {name.lower() for name in described}
    bands = []
    for number, (colour, name) in enumerate(zip(colours, described, strict=True), start=1):
        if colour == 'alpha' and name.lower() in ('', 'alpha'):  # a fourth band is tagged so, whatever it is
            bands.append({'description': 'alpha'})
        else:
            own = colour if colour in _COLOURS and colour not in names else f'b{number}'
            bands.append({'name': name or own})
            names.add(own)
    return bands


def _time(dataset: DatasetReader, stem: str) -> datetime | None:
    """When a raster was taken, by its tags, else by its name; None where neither says a time."""
    tags = {key.upper(): text for domain in (None, 'IMAGERY') for key, text in dataset.tags(ns=domain).items()}
    texts = [*(tags[key] for key in _TIME_TAGS if key in tags), stem]
    return next((when for text in texts if (when := _time_in(text)) is not None), None)


def _time_in(text: str) -> datetime | None:
    """The first time in a text from 1970 to today, such as 2023-05-01, 2023:05:01 10:00:31 or 20230501T100031.

    Example:
        >>> _time_in('ortho_99999999_20230501T100031_rgb')
        datetime.datetime(2023, 5, 1, 10, 0, 31, tzinfo=datetime.timezone.utc)
    """
    for match in _DATE.finditer(text):
        year, month, day, hour, minute, second = (int(part or 0) for part in match.group(1, 3, 4, 5, 6, 7))
        with suppress(ValueError):  # there is no 31 February
            when = datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc)
            if when.year >= 1970 and when <= datetime.now(timezone.utc):
                return when
    return None


def _kept_item(path: Path, when: datetime | None, cache: Path) -> dict[str, Any]:
    """The item of a file, kept from a time when file, mask beside it and setting were the same, else made and kept.

    Raises:
        ItemError: as `item_of`.
    """
    mask = path.with_name(f'{path.name}.msk')
    stamp = [_FORMAT, str(when), *(_size_and_time(file) for file in (path, mask))]
    kept = cache / 'rasters' / f'{_digest(str(path))}.json'
    with suppress(OSError, ValueError, KeyError, TypeError):  # whatever is wrong with it, making it anew mends it
        record = parse_json(kept.read_bytes())
        if record['stamp'] == stamp and record['digest'] == _digest(record['item']):
            return dict(record['item'])
    item = item_of(path, when)
    with suppress(OSError):  # without, the next run takes as long as this one
        kept.parent.mkdir(parents=True, exist_ok=True)
        record = {'stamp': stamp, 'digest': _digest(item), 'item': item}
        write_atomically(kept, json.dumps(record).encode(), shared=True)
    return item


def _size_and_time(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _digest(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()
