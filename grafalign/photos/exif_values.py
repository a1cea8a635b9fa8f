"""From the values of EXIF tags to a place, a time and a heading, whoever read the tags; what makes no sense is nothing.

EXIF 2.32 leaves out no case that cameras and programs do not produce: seconds written 0/0, positions without a
hemisphere, GPS clocks that were never set or have rolled over, edit times, magnetic headings.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

NO_HEMISPHERE = 'position without hemisphere'
_GPS_BEGAN = datetime(1980, 1, 6, tzinfo=timezone.utc)
"""Week 0 of GPS: there was no such clock before."""
_CLOCKS_AGREE = timedelta(days=2)
"""GPS and camera may differ by a time zone and a day; a clock further off, such as by 1,024 weeks, is none."""
_UNSET_CLOCKS = (datetime(1970, 1, 1), datetime(1980, 1, 1), datetime(2000, 1, 1))
"""What clocks read that were never set; in local time up to a day beside it (`1969:12:31 19:00:00` in New England)."""
_STAMP = re.compile(
    r'(\d{4})[:\-/.](\d{1,2})[:\-/.](\d{1,2})[ T]+(\d{1,2}):(\d{2})(?::(\d{2})(\.\d+)?)?\s*(Z|[+-]\d{2}:?\d{2})?'
)
_EDITORS = re.compile(
    r'photoshop|lightroom|gimp|picasa|paint|acdsee|capture one|affinity|darktable|rawtherapee|snapseed|imagemagick|'
    r'irfanview|xnview|digikam|aperture|photos? \d|windows photo|photoscape|faststone|nikon transfer|vsco|pixelmator',
    re.IGNORECASE,
)
"""Programs (tag Software) that write the time of the edit as the time of the picture."""


def number(value: Any) -> float | None:
    """A finite number; None where it is none (0/0 of a camera that has nothing to say)."""
    try:
        found = float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def position(lon: Any, lon_ref: Any, lat: Any, lat_ref: Any) -> tuple[float | None, float | None, str | None]:
    """Longitude, latitude in degrees, and why there is none where the file says something.

    Args:
        lon: degrees, minutes and seconds, or degrees alone.
        lon_ref: `E` or `W`; text, or bytes.
        lat: as `lon`.
        lat_ref: `N` or `S`. Without both no position is known: half of the photos would land on the other hemisphere.
    """
    found = _degrees(lon), _degrees(lat)
    if found[0] is None or found[1] is None:
        return None, None, None
    signs = _sign(lon_ref, 'E', 'W'), _sign(lat_ref, 'N', 'S')
    if signs[0] is None or signs[1] is None:
        return None, None, NO_HEMISPHERE
    return signs[0] * found[0], signs[1] * found[1], None


def _degrees(parts: Any) -> float | None:
    """Degrees of one to three parts; unset last parts are zero, an unset first one is nothing at all."""
    if isinstance(parts, str | bytes) or parts is None:
        return None
    values = [number(p) for p in parts[:3]] if isinstance(parts, Sequence) else [number(parts)]
    while len(values) > 1 and values[-1] is None:
        values.pop()
    if not values or any(v is None for v in values):
        return None
    return sum(v / 60**i for i, v in enumerate(v for v in values if v is not None))


def _sign(reference: Any, positive: str, negative: str) -> int | None:
    if isinstance(reference, bytes):
        reference = reference.decode('ascii', 'replace')
    first = str(reference or '').strip('\x00 ').upper()[:1]
    return {positive: 1, negative: -1}.get(first)


def gps_time(day: Any, clock: Any) -> datetime | None:
    """UTC of the GPS directory; None where it is incomplete or before there was GPS."""
    try:
        year, month, date = (int(part) for part in re.split(r'[:\-/.]', str(day).strip('\x00 ')))
        hours, minutes, seconds = (float(part) for part in clock)
        when = datetime(year, month, date, tzinfo=timezone.utc)
        when += timedelta(hours=hours, minutes=minutes, seconds=seconds)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        return None
    return when if when >= _GPS_BEGAN else None


def camera_time(stamp: Any, offset: Any) -> datetime | None:
    """UTC of a camera's clock; None where it was never set or says nothing.

    Args:
        stamp: as EXIF spells it, or as programs do (`2018-05-06T10:11:12.5+02:00`).
        offset: `OffsetTimeOriginal`; the clock is taken for UTC where there is none, here or in the stamp.
    """
    found = _STAMP.fullmatch(str(stamp or '').strip('\x00 '))
    if not found:
        return None
    try:
        year, month, day, hour, minute = (int(v) for v in found.groups()[:5])
        local = datetime(year, month, day, hour, minute, int(found[6] or 0))
    except ValueError:
        return None
    if abs(local - _UNSET_CLOCKS[0]) <= timedelta(days=1):
        return None
    zone = _zone(found[8]) or _zone(str(offset or '')) or timezone.utc
    try:
        return local.replace(tzinfo=zone).astimezone(timezone.utc) + timedelta(seconds=float(found[7] or 0))
    except (OverflowError, ValueError):
        return None


def _zone(text: str | None) -> timezone | None:
    text = (text or '').strip('\x00 ')
    if text == 'Z':
        return timezone.utc
    if not re.fullmatch(r'[+-]\d{2}:?\d{2}', text):
        return None
    minutes = int(text[1:3]) * 60 + int(text[-2:])
    return timezone(timedelta(minutes=-minutes if text[0] == '-' else minutes)) if minutes < 24 * 60 else None


def edit_time_counts(make: Any, software: Any) -> bool:
    """Whether `DateTime`, the time of the last change, may stand for the time of the exposure.

    Cameras write both alike; a program writes when it saved the file.
    """
    return bool(str(make or '').strip('\x00 ')) and not _EDITORS.search(str(software or ''))


def taken_time(gps: datetime | None, camera: datetime | None) -> datetime | None:
    """The time of a photo: GPS, which is UTC, unless it is far from the camera's own clock."""
    if gps is None or camera is None:
        return gps or camera
    if abs(gps - camera) <= _CLOCKS_AGREE:
        return gps
    local = camera.replace(tzinfo=None)
    unset = any(abs(local - reset) <= timedelta(days=1) for reset in _UNSET_CLOCKS)
    return gps if unset else camera


def heading(
    direction: Any, reference: Any, lon: float | None, lat: float | None, when: datetime | None
) -> float | None:
    """Degrees clockwise from true north.

    Args:
        direction: `GPSImgDirection`.
        reference: `GPSImgDirectionRef`: `T` for true north, which is also assumed where nothing is said, `M` for
            magnetic north: then the declination at the place and time is added (World Magnetic Model).
        lon: degrees.
        lat: degrees.
        when: of the photo.

    Returns:
        None where nothing is said, or a magnetic direction cannot be corrected.
    """
    degrees = number(direction)
    if degrees is None:
        return None
    if isinstance(reference, bytes):
        reference = reference.decode('ascii', 'replace')
    if not str(reference or '').strip('\x00 ').upper().startswith('M'):
        return degrees % 360
    if lon is None or lat is None or when is None or abs(lat) > 90:
        return None
    return (degrees + _declination(lon, lat, when)) % 360


def field_of_view(focal_35mm: Any, width: int | None, height: int | None) -> float | None:
    """Degrees across an upright photo.

    The 35-mm equivalent of a focal length is one of equal angle along the diagonal (CIPA DC-008, `FocalLengthIn35mm-
    Film`), which is 43.27 mm on film:  2 arctan( 43.27 / 2f * width / diagonal )

    Args:
        focal_35mm: millimetres; 0 stands for unknown.
        width: pixels across, upright.
        height: pixels down.

    Returns:
        None where nothing is said, where no lens has such a focal length, or where the photo is so long (over 2.5 to
        1) that it was put together of several.

    Example:
        >>> round(field_of_view(28, 6000, 4000), 1), field_of_view(28, 12000, 3000)
        (65.5, None)
    """
    focal = number(focal_35mm)
    if focal is None or not _SHORTEST_MM <= focal <= _LONGEST_MM or not width or not height:
        return None
    if max(width, height) > _LONGEST_SHAPE * min(width, height):
        return None
    return math.degrees(2 * math.atan(_FILM_DIAGONAL_MM / 2 / focal * width / math.hypot(width, height)))


_FILM_DIAGONAL_MM = 43.27
_SHORTEST_MM, _LONGEST_MM = 4, 5000
_LONGEST_SHAPE = 2.5
_FIRST_MODEL, _LAST_MODEL = 2010, 2029
"""Years that the models of pygeomag hold for; declination moves by a tenth of a degree a year."""


def _declination(lon: float, lat: float, when: datetime) -> float:
    year = when.year + (when.timetuple().tm_yday - 1) / 365.25
    within = min(max(year, _FIRST_MODEL), _LAST_MODEL + 0.99)
    return float(_model(int(within)).calculate(glat=lat, glon=lon, alt=0, time=within).d)


@functools.lru_cache(maxsize=4)
def _model(year: int) -> Any:
    from pygeomag import GeoMag  # a table of coefficients, for the few photos that need it

    return GeoMag(base_year=year)
