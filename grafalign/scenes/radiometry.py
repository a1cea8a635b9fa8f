"""Where a band of a scene is stored, and from its stored numbers to physical values.

physical = stored * scale + offset. The rules for scale and offset, first match wins:

1. `sensor.overrides` of the recipe.
2. `earthsearch:boa_offset_applied: true`: the offset is already in the pixels, only the scale applies (Earth Search
   states offset -0.1 all the same).
3. `raster:bands` of the asset (STAC raster extension 1.x), `raster:scale`/`raster:offset` in `bands` or in the asset
   (2.x), or stated once for all assets in `properties` (STAC 1.1).
4. Bands of Sentinel-2 (B01 to B12 and B8A) without either: scale 0.0001, and offset -0.1 from processing baseline
   04.00 on (ESA's change of 2022-01-25; Planetary Computer publishes no `raster:bands`). See `processing_baseline`.
5. What the file itself says (GDAL's SCALE and OFFSET, as HLS and MODIS have them): `scale` and `offset` are None here
   and read with the file's header.
6. Anything else: scale 1, offset 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import model_validator

from grafalign.config import Settings
from grafalign.errors import InputError

_SENTINEL2_BAND = re.compile(
    r'B(0?[1-9]|1[0-2]|8A)|coastal|blue|green|red|rededge[1-3]?|nir(08|09)?|swir(16|22)', re.IGNORECASE
)
_SENTINEL2_PRODUCT = re.compile(r'^S2[A-D]_MSIL[12][AC]_\d{8}T\d{6}_N(\d{2})(\d{2})_', re.IGNORECASE)
"""ESA's product names: S2A_MSIL2A_20230501T100031_N0509_R122_T32TPQ_20230501T160000 is of baseline 05.09."""
_OFFSET_SINCE = '2022-01-25'
"""From this day on the offset depends on the processing baseline."""
_CLOUD_KEY = re.compile(r'SCL(_\d+m)?', re.IGNORECASE)
"""Keys of Sentinel-2's scene classification: `SCL`, or `SCL_20m` and `SCL_60m` of the Copernicus Data Space."""
_SLACK = 1.001
"""Resolutions that differ by less than this factor are the same."""


class BandOverride(Settings):
    """What holds for one band whatever its items and files say: the remedy where these are wrong."""

    nodata: float | None = None
    """Value of missing pixels, besides those that items and files state (`.nan` in YAML for NaN)."""
    scale: float | None = None
    offset: float | None = None
    mask: bool = True
    """Whether masks and alpha bands of the file count."""

    @model_validator(mode='after')
    def _sensible(self) -> Self:
        for name, value in (('scale', self.scale), ('offset', self.offset)):
            if value is not None and not math.isfinite(value):
                raise ValueError(f'`{name}` must be finite')
        if self.scale == 0:
            raise ValueError('`scale` must not be 0')
        return self


@dataclass(frozen=True)
class BandSource:
    """Where one band of a scene is stored, and what its numbers mean."""

    href: str
    index: int
    """Band number inside the file, from 1."""
    scale: float | None
    """None to take scale and offset of the file."""
    offset: float | None
    nodata: tuple[float, ...]
    """Values of missing pixels, besides the one that the file states."""
    data_bands: tuple[int, ...] = ()
    """Bands of the file that the item or the recipe names as data, so that none of them is a mask, however tagged."""
    mask: bool = True
    """Whether a mask of the file counts."""


def band_sources(
    item: dict[str, Any], bands: list[str], gsd_m: float, overrides: Mapping[str, BandOverride] | None = None
) -> list[BandSource]:
    """Find every band of a recipe in an item.

    A band is named by asset key, by `ASSET:NUMBER` (bands of one file counted from 1), or by the name or common name
    that the item gives it. Where several assets have a band of that name, assets of one band come first, and among them
    the one whose resolution is nearest to, and not coarser than, the tile's.

    Args:
        item: the STAC item.
        bands: names, in the order wanted.
        gsd_m: metres a pixel of the tile.
        overrides: what holds for a band whatever the item says, by its name.

    Raises:
        GrafalignError: the item has no such band, or several between which its resolutions do not decide (the sentence
            lists them), or it misstates them.
    """
    try:
        return [_band(item, name, gsd_m, (overrides or {}).get(name, BandOverride())) for name in bands]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f'Item {item.get("id")} misstates its bands ({error}); mend or remove it.') from None


@dataclass(frozen=True)
class _Candidate:
    """An asset that has a band of the name that is looked for."""

    key: str
    asset: dict[str, Any]
    index: int
    bands: int
    """Bands that the item lists for the asset."""
    metres: float | None
    """Its pixels, where the item says."""

    @property
    def label(self) -> str:
        size = '' if self.metres is None else f' ({self.metres:g} m)'
        return f'{self.key}:{self.index}{size}' if self.bands > 1 else f'{self.key}{size}'


def _band(item: dict[str, Any], name: str, gsd_m: float, override: BandOverride) -> BandSource:
    assets: dict[str, Any] = item.get('assets') or {}
    if name in assets:
        return _source(item, name, assets[name], 1, override)
    key, colon, number = name.rpartition(':')
    if colon and key in assets and number.isdigit() and int(number) > 0:
        return _source(item, key, assets[key], int(number), override)
    names, common, known = [], [], list(assets)
    for key, asset in assets.items():
        if not _is_raster(asset):
            continue
        listed = _listed_bands(asset)
        for index, band in enumerate(listed, start=1):
            candidate = _Candidate(key, asset, index, len(listed), _metres(item, asset, band))
            own, shared = band.get('name'), band.get('common_name') or band.get('eo:common_name')
            known += [n for n in (own, shared) if n]
            if name.lower() == str(own or '').lower():
                names.append(candidate)
            elif name.lower() == str(shared or '').lower():
                common.append(candidate)
    if not names and not common:
        shown = ', '.join(dict.fromkeys(str(k) for k in known))
        raise InputError(f'Item {item.get("id")} has no band {name!r}; set sensor.bands to names it has: {shown}.')
    chosen = _nearest(item, name, names or common, gsd_m)
    return _source(item, chosen.key, chosen.asset, chosen.index, override)


def _nearest(item: dict[str, Any], name: str, candidates: list[_Candidate], gsd_m: float) -> _Candidate:
    """Of the assets that have a band, the one to read.

    Raises:
        GrafalignError: what the item says does not decide.
    """
    single = [c for c in candidates if c.bands == 1] or candidates
    if len(single) == 1:
        return single[0]
    finest = [c for c in single if c.metres is not None and c.metres <= gsd_m * _SLACK]
    nearest = max((c.metres for c in finest if c.metres is not None), default=0.0)
    best = [c for c in finest if c.metres is not None and c.metres * _SLACK >= nearest]
    best = [c for c in best if 'cloud-optimized' in str(c.asset.get('type'))] if len(best) > 1 else best
    if len(best) == 1:
        return best[0]
    raise InputError(
        f'Item {item.get("id")} has several assets with a band {name!r}, and their resolutions do not say which to '
        f'read for tiles of {gsd_m:g} m; set sensor.bands to one of {", ".join(c.label for c in candidates)}.'
    )


def _listed_bands(asset: dict[str, Any]) -> list[dict[str, Any]]:
    listed = asset.get('eo:bands') or asset.get('bands') or []
    return [band if isinstance(band, dict) else {} for band in listed] if isinstance(listed, list) else []


def _metres(item: dict[str, Any], asset: dict[str, Any], band: dict[str, Any]) -> float | None:
    """Metres a pixel of a band, where the item says; None where it does not, or says it in degrees."""
    tables = asset.get('raster:bands')
    first = tables[0] if isinstance(tables, list) and tables and isinstance(tables[0], dict) else {}
    for stated in (
        band.get('gsd'),
        band.get('raster:spatial_resolution'),
        asset.get('raster:spatial_resolution'),
        first.get('spatial_resolution'),
        asset.get('gsd'),
    ):
        if isinstance(stated, int | float) and stated > 0:
            return float(stated)
    transform = asset.get('proj:transform')
    properties = item.get('properties') or {}
    code = next((str(p[k]) for p in (asset, properties) for k in ('proj:code', 'proj:epsg') if p.get(k)), '')
    if isinstance(transform, list) and len(transform) >= 6 and not code.endswith('4326'):
        size = math.hypot(float(transform[0]), float(transform[3]))
        return size if size > 0 else None
    return None


def cloud_mask(item: dict[str, Any]) -> BandSource | None:
    """The scene classification of a Sentinel-2 L2A item, or None where it has none.

    Found as bands are found: by key (`SCL`, `SCL_20m`) or by a band of that name; of several the finest.
    """
    found: list[tuple[float, str, int]] = []
    for key, asset in (item.get('assets') or {}).items():
        if not (isinstance(asset, dict) and asset.get('href')):
            continue
        listed = _listed_bands(asset)
        for index, band in enumerate(listed or [{}], start=1):
            if (len(listed) <= 1 and _CLOUD_KEY.fullmatch(str(key))) or str(band.get('name') or '').upper() == 'SCL':
                found.append((_metres(item, asset, band) or math.inf, str(asset['href']), index))
    if not found:
        return None
    _, href, index = min(found, key=lambda f: f[0])
    return BandSource(href, index, 1.0, 0.0, (0.0,))


def _is_raster(asset: Any) -> bool:
    if not isinstance(asset, dict):
        return False
    roles = asset.get('roles') or []
    kind = str(asset.get('type') or 'image/tiff')
    return kind.startswith('image/') and not {'thumbnail', 'overview', 'visual'} & set(roles)


def _source(item: dict[str, Any], key: str, asset: dict[str, Any], index: int, override: BandOverride) -> BandSource:
    properties = item.get('properties') or {}
    tables: list[Any] = asset.get('raster:bands') or asset.get('bands') or []
    table = tables[index - 1] if index <= len(tables) and isinstance(tables[index - 1], dict) else {}

    def stated(what: str) -> Any:
        for place, names in ((table, (what, f'raster:{what}')), (asset, (what, f'raster:{what}'))):
            for name in names:
                if place.get(name) is not None:
                    return place[name]
        return properties.get(f'raster:{what}')

    scale = override.scale if override.scale is not None else _number(stated('scale'), 'scale')
    offset = override.offset if override.offset is not None else _number(stated('offset'), 'offset')
    nodata = stated('nodata')
    if nodata is None:
        nodata = properties.get('nodata')
    if scale is None and offset is None and _is_sentinel2(item) and _is_reflectance(key, asset):
        scale, offset = 0.0001, _sentinel2_offset(item)
    if properties.get('earthsearch:boa_offset_applied') is True and override.offset is None:
        offset = 0.0
        scale = 1.0 if scale is None else scale
    if scale == 0:
        raise ValueError('the scale is 0')
    if scale is not None or offset is not None:
        scale, offset = 1.0 if scale is None else scale, 0.0 if offset is None else offset
    missing = (*_nodata(nodata), *(() if override.nodata is None else (override.nodata,)))
    return BandSource(str(asset['href']), index, scale, offset, missing, _data_bands(asset, index), override.mask)


def _number(value: Any, what: str) -> float | None:
    """A finite number.

    Raises:
        ValueError: it is none.
    """
    if value is None:
        return None
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f'the {what} is {value}')
    return number


def _nodata(value: Any) -> tuple[float, ...]:
    """A nodata value as STAC spells it: a number, or `nan`, `inf`, `-inf` as text; nothing where it is none."""
    if value is None or isinstance(value, bool):
        return ()
    try:
        return (float(value),)
    except (TypeError, ValueError):
        return ()


def _data_bands(asset: dict[str, Any], index: int) -> tuple[int, ...]:
    """Bands of a file that hold data: the one that is read, and those that the item names and does not call alpha."""
    named = {index}
    for number, band in enumerate(_listed_bands(asset), start=1):
        words = {str(band[k]).lower() for k in ('name', 'common_name', 'eo:common_name') if band.get(k)}
        if words and not any('alpha' in w or 'mask' in w for w in words):
            named.add(number)
    return tuple(sorted(named))


def _is_reflectance(key: str, asset: dict[str, Any]) -> bool:
    """Whether an asset of Sentinel-2 is one of its 13 bands: not a picture, a classification or an atmosphere map."""
    names = [key.partition('_')[0], *(band.get('name', '') for band in _listed_bands(asset))]
    return len(names) <= 2 and any(_SENTINEL2_BAND.fullmatch(str(name)) for name in names)


def _is_sentinel2(item: dict[str, Any]) -> bool:
    properties = item.get('properties') or {}
    collection = str(item.get('collection') or '').lower().replace('_', '-')
    return 's2:processing_baseline' in properties or collection.startswith('sentinel-2')


def processing_baseline(item: dict[str, Any]) -> str | None:
    """The processing baseline of a Sentinel-2 item as `05.09`, or the version that another item states; None without.

    It may stand in `s2:processing_baseline`, in `processing:version` (which took its place), written `05.09`, `5.09` or
    `N0509`, or in ESA's product name (`s2:product_uri`, `sentinel:product_id`, the title or the item's own id).
    """
    properties = item.get('properties') or {}
    for name in ('s2:processing_baseline', 'processing:version', 'sentinel:processing_baseline'):
        if properties.get(name):
            text = str(properties[name]).strip()
            spelled = re.fullmatch(r'N(\d{2})(\d{2})', text, re.IGNORECASE)
            return f'{spelled[1]}.{spelled[2]}' if spelled else text
    for name in ('s2:product_uri', 'sentinel:product_id', 'title'):
        if product := _SENTINEL2_PRODUCT.match(str(properties.get(name) or '')):
            return f'{product[1]}.{product[2]}'
    product = _SENTINEL2_PRODUCT.match(str(item.get('id') or ''))
    return f'{product[1]}.{product[2]}' if product else None


def _sentinel2_offset(item: dict[str, Any]) -> float:
    """Offset of the reflectance of a Sentinel-2 item that states none.

    Raises:
        ValueError: it was taken when the offset depends on the baseline, and states no baseline.
    """
    baseline = processing_baseline(item)
    version = re.fullmatch(r'(\d+)\.(\d+)(\.\d+)*', baseline or '')
    if version:
        return -0.1 if int(version[1]) >= 4 else 0.0
    properties = item.get('properties') or {}
    when = str(properties.get('datetime') or properties.get('start_datetime') or '')
    if when >= _OFFSET_SINCE or not when:
        raise ValueError(
            f'it is of Sentinel-2, of {when[:10] or "no date"}, and states neither `raster:bands` nor a processing '
            'baseline; set scale and offset in sensor.overrides'
        )
    return 0.0
