"""Read one image file: does it decode, and where, when and in which direction was it taken?"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

# Pillow warns of every crooked EXIF directory; a filter a call would not hold, as filters are shared by all threads
warnings.filterwarnings('ignore', module=r'PIL\.')

GPS_IFD, EXIF_IFD = 0x8825, 0x8769
_UNSET_CLOCK = datetime(1970, 1, 1)
"""What a lost time reads in UTC; in local time up to a day beside it (`1969:12:31 19:00:00` in New England)."""
MAX_PIXELS = 200_000_000
"""Images that claim more pixels than this are taken for decompression bombs and are not decoded."""


@dataclass(frozen=True)
class PhotoFacts:
    """What a file says about itself; None where it says nothing."""

    lon: float | None = None
    lat: float | None = None
    accuracy_m: float | None = None
    heading_deg: float | None = None
    taken_at: datetime | None = None
    problem: str | None = None
    """Why the image cannot be used, or None."""


def open_photo(path: Path, smallest_px: int | None = None) -> Image.Image:
    """Decode an image to RGB.

    Args:
        path: the file.
        smallest_px: decode a JPEG at reduced scale, no smaller than this on its shorter side; faster.

    Raises:
        ValueError: the file is no image, is truncated, or is too large to be decoded; the text is the reason.
        OSError: the file cannot be read.
    """
    try:
        with Image.open(path) as image:
            _check_size(image)
            if smallest_px is not None:
                image.draft('RGB', (smallest_px, smallest_px))
            return image.convert('RGB')
    except UnidentifiedImageError:
        raise ValueError('not an image') from None
    except Image.DecompressionBombError:
        raise ValueError('too many pixels (decompression bomb?)') from None
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError('truncated image' if 'truncated' in str(error) else 'damaged image') from None


def read_facts(path: Path, verify: bool = True) -> PhotoFacts:
    """Read EXIF position, heading, error and time, and check that the image decodes.

    Positions follow EXIF 2.32: degrees, minutes and seconds with N/S and E/W; the time is UTC from the GPS directory or
    else `DateTimeOriginal` with `OffsetTimeOriginal` (taken for UTC where the offset is missing).

    Args:
        path: the file.
        verify: decode all pixels, so that truncated files are found now and not in the middle of a training.
    """
    try:
        with Image.open(path) as image:
            _check_size(image)
            exif = image.getexif()
            gps, detail = exif.get_ifd(GPS_IFD), exif.get_ifd(EXIF_IFD)
            if verify:
                image.load()
    except UnidentifiedImageError:
        return PhotoFacts(problem='not an image')
    except (Image.DecompressionBombError, ValueError) as error:
        return PhotoFacts(
            problem=str(error) if isinstance(error, ValueError) else 'too many pixels (decompression bomb?)'
        )
    except FileNotFoundError:
        return PhotoFacts(problem='file is missing')
    except (OSError, SyntaxError, EOFError) as error:
        return PhotoFacts(problem='truncated image' if 'truncated' in str(error) else 'damaged image')
    heading = _number(gps.get(17))
    return PhotoFacts(
        lon=_degrees(gps.get(4), gps.get(3), 'W'),
        lat=_degrees(gps.get(2), gps.get(1), 'S'),
        accuracy_m=_number(gps.get(31)),
        heading_deg=None if heading is None else heading % 360,
        taken_at=_gps_time(gps) or _camera_time(detail, exif),
    )


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError('too many pixels (decompression bomb?)')


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if number == number and abs(number) != float('inf') else None


def _degrees(parts: Any, hemisphere: Any, negative: str) -> float | None:
    """Degrees, minutes, seconds to signed degrees; None unless all of it makes sense."""
    try:
        values = [_number(part) for part in parts]
    except TypeError:
        return None
    if not values or any(v is None for v in values):
        return None
    total = sum(v / 60**i for i, v in enumerate(v for v in values[:3] if v is not None))
    if isinstance(hemisphere, bytes):
        hemisphere = hemisphere.decode('ascii', 'replace')
    return -total if str(hemisphere or '').strip('\x00 ').upper().startswith(negative) else total


def _gps_time(gps: Any) -> datetime | None:
    try:
        day = datetime.strptime(str(gps[29]).strip('\x00 '), '%Y:%m:%d')
        hours, minutes, seconds = (float(part) for part in gps[7])
        return (day + timedelta(hours=hours, minutes=minutes, seconds=seconds)).replace(tzinfo=timezone.utc)
    except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError):
        return None


def _camera_time(detail: Any, exif: Any) -> datetime | None:
    stamp = detail.get(36867) or detail.get(36868) or exif.get(306)
    try:
        local = datetime.strptime(str(stamp).strip('\x00 '), '%Y:%m:%d %H:%M:%S')
    except ValueError:
        return None
    if abs(local - _UNSET_CLOCK) <= timedelta(days=1):
        return None
    offset = str(detail.get(36881) or detail.get(36880) or '+00:00').strip('\x00 ')
    try:
        zone = datetime.strptime(offset, '%z').tzinfo
    except ValueError:
        zone = timezone.utc
    try:
        return local.replace(tzinfo=zone).astimezone(timezone.utc)
    except (OverflowError, ValueError):
        return None
