"""From stored numbers to physical values: which scale and offset really apply to an asset.

physical = stored * scale + offset. The rules, first match wins:

1. `earthsearch:boa_offset_applied: true`: the offset is already in the pixels, only the scale applies (Earth Search
   states offset -0.1 all the same).
2. `raster:bands` of the asset (STAC raster extension 1.x), or `raster:scale`/`raster:offset` in `bands` (2.x).
3. Bands of Sentinel-2 (B01 to B12 and B8A) without either: scale 0.0001, and offset -0.1 from processing baseline
   04.00 on (ESA's change of 2022-01-25; Planetary Computer publishes no `raster:bands`).
4. Anything else: scale 1, offset 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from grafalign.errors import GrafalignError

_SENTINEL2_BAND = re.compile(
    r'B(0?[1-9]|1[0-2]|8A)|coastal|blue|green|red|rededge[1-3]?|nir(08|09)?|swir(16|22)', re.IGNORECASE
)


@dataclass(frozen=True)
class BandSource:
    """Where one band of a scene is stored, and what its numbers mean."""

    href: str
    index: int
    """Band number inside the file, from 1."""
    scale: float
    offset: float
    nodata: float | None
    """Value of missing pixels as the item states it; None to trust the file."""


def band_sources(item: dict[str, Any], bands: list[str]) -> list[BandSource]:
    """Find every band of a recipe in an item.

    A band is named by asset key, by `ASSET:NUMBER` (bands of one file counted from 1), or by the name or common name
    that the item gives it.

    Args:
        item: the STAC item.
        bands: names, in the order wanted.

    Raises:
        GrafalignError: the item has no such band (the sentence lists what it has), or misstates it.
    """
    try:
        return [_band(item, name) for name in bands]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise GrafalignError(f'Item {item.get("id")} misstates its bands ({error}); mend or remove it.') from None


def _band(item: dict[str, Any], name: str) -> BandSource:
    assets: dict[str, Any] = item.get('assets') or {}
    if name in assets:
        return _source(item, name, assets[name], 1)
    key, colon, number = name.rpartition(':')
    if colon and key in assets and number.isdigit():
        return _source(item, key, assets[key], int(number))
    known = list(assets)
    for key, asset in assets.items():
        if not _is_raster(asset):
            continue
        for index, band in enumerate(asset.get('eo:bands') or asset.get('bands') or [], start=1):
            names = [band.get(k) for k in ('name', 'common_name', 'eo:common_name') if band.get(k)]
            known += names
            if name.lower() in (str(n).lower() for n in names):
                return _source(item, key, asset, index)
    known = list(dict.fromkeys(str(k) for k in known))
    raise GrafalignError(
        f'Item {item.get("id")} has no band {name!r}; set sensor.bands to names it has: {", ".join(known)}.'
    )


def cloud_mask(item: dict[str, Any]) -> BandSource | None:
    """The scene classification of a Sentinel-2 L2A item (`SCL`), or None where it has none."""
    for key, asset in (item.get('assets') or {}).items():
        if str(key).upper() == 'SCL' and isinstance(asset, dict) and asset.get('href'):
            return BandSource(str(asset['href']), 1, 1.0, 0.0, 0.0)
    return None


def _is_raster(asset: dict[str, Any]) -> bool:
    roles = asset.get('roles') or []
    kind = str(asset.get('type') or 'image/tiff')
    return kind.startswith('image/') and not {'thumbnail', 'overview', 'visual'} & set(roles)


def _source(item: dict[str, Any], key: str, asset: dict[str, Any], index: int) -> BandSource:
    properties = item.get('properties') or {}
    tables: list[Any] = asset.get('raster:bands') or asset.get('bands') or []
    facts = tables[index - 1] if index <= len(tables) and isinstance(tables[index - 1], dict) else {}

    def get(what: str) -> Any:
        for place in (facts, asset):
            for name in (what, f'raster:{what}'):
                if place.get(name) is not None:
                    return place[name]
        return None

    scale, offset, nodata = get('scale'), get('offset'), get('nodata')
    if scale is None and offset is None and _is_sentinel2(item) and _is_reflectance(key, asset):
        scale = 0.0001
        offset = -0.1 if _baseline(properties) >= (4, 0) else 0.0
    if properties.get('earthsearch:boa_offset_applied') is True:
        offset = 0.0
    return BandSource(
        str(asset['href']),
        index,
        1.0 if scale is None else float(scale),
        0.0 if offset is None else float(offset),
        float(nodata) if isinstance(nodata, int | float) else None,
    )


def _is_reflectance(key: str, asset: dict[str, Any]) -> bool:
    """Whether an asset of Sentinel-2 is one of its 13 bands: not a picture, a classification or an atmosphere map."""
    names = [key, *(band.get('name', '') for band in asset.get('eo:bands') or asset.get('bands') or [])]
    return len(names) <= 2 and any(_SENTINEL2_BAND.fullmatch(str(name)) for name in names)


def _is_sentinel2(item: dict[str, Any]) -> bool:
    properties = item.get('properties') or {}
    return 's2:processing_baseline' in properties or str(item.get('collection') or '').startswith('sentinel-2')


def _baseline(properties: dict[str, Any]) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in str(properties.get('s2:processing_baseline', '0')).split('.'))
    except ValueError:
        return (0,)
