"""Read one image: does it decode, what does it look like, and where, when and in which direction was it taken?"""

from __future__ import annotations

import functools
import hashlib
import importlib
import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

# Pillow warns of every crooked EXIF directory; a filter a call would not hold, as filters are shared by all threads
warnings.filterwarnings('ignore', module=r'PIL\.')

GPS_IFD, EXIF_IFD, ORIENTATION = 0x8825, 0x8769, 0x0112
_UNSET_CLOCK = datetime(1970, 1, 1)
"""What a lost time reads in UTC; in local time up to a day beside it (`1969:12:31 19:00:00` in New England)."""
MAX_PIXELS = 178_000_000
"""Images that claim more are taken for decompression bombs and are not decoded; Pillow's own limit."""
_FORMATS = ('JPEG', 'PNG', 'WEBP', 'TIFF', 'GIF', 'BMP', 'AVIF', 'JPEG2000', 'HEIF')
"""What photos are stored as. Pillow knows many more, and would run Ghostscript on a PostScript file."""
_LOOK_PX = 256
"""Where a photo is decoded only to be checked, its shorter side may shrink to this: the whole stream is still read."""
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF 2.32 Orientation to what brings the image upright."""
_QUARTER_TURNS = tuple(_UPRIGHT[i] for i in (5, 6, 7, 8))
_REDUCIBLE = ('L', 'LA', 'RGB', 'RGBA', 'CMYK')
_HEIF_BRANDS = (b'heic', b'heix', b'heim', b'heis', b'hevc', b'hevx', b'hevm', b'hevs', b'mif1', b'msf1')
"""ISO 23008-12: the major brands of HEIF files."""
_HEIF_LOCK = threading.Lock()


class PhotoError(ValueError):
    """One photo cannot be used; the text is the reason, short enough for a column."""

    def __init__(self, reason: str, transient: bool = False) -> None:
        super().__init__(reason)
        self.transient = transient
        """Whether trying again later may help."""


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
    width: int | None = None
    """Pixels across, upright."""
    height: int | None = None
    """Pixels down, upright."""
    digest: str | None = None
    """BLAKE2b-128 of the file's bytes in hexadecimal; None where the file was not read whole."""
    dhash: int | None = None
    """`difference_hash` of the upright image, 0 to 2**64 - 1; None where it was not decoded."""


def open_photo(source: Path | bytes, smallest_px: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image to upright RGB: turned by its EXIF orientation, 16 bits brought to 8, transparency on white.

    Args:
        source: the file or its content.
        smallest_px: give a smaller image, no smaller than this on its shorter side: a JPEG is decoded at reduced scale,
            which is faster, others are averaged before they are converted, which takes less memory.
        max_pixels: refuse images that claim more.

    Raises:
        PhotoError: the content is no image, is truncated, or is too large to be decoded; the text is the reason.
        OSError: the file cannot be read.
    """
    return load_photo(source, smallest_px, max_pixels)[0]


def load_photo(
    source: Path | bytes, smallest_px: int | None = None, max_pixels: int = MAX_PIXELS, exif: bool = True
) -> tuple[Image.Image, PhotoFacts]:
    """Decode an image as `open_photo` does and tell all facts about it, reading and decoding it once.

    Without `exif` the facts leave out place and time, which take as long as decoding a small photo.

    Raises:
        PhotoError: as for `open_photo`.
        OSError: the file cannot be read.
    """
    with _stream(source) as stream:
        digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        stream.seek(0)
        with _opened(stream, max_pixels) as image:
            facts, size = _said(image) if exif else PhotoFacts(), image.size
            if smallest_px is not None:
                image.draft('RGB', (smallest_px, smallest_px))
            decoded = image.size
            image.load()
            turn = _UPRIGHT.get(_orientation(image))  # after loading: Pillow turns TIFF by itself and says so here
            if image.size != decoded or turn in _QUARTER_TURNS:
                size = (size[1], size[0])
            factor = 1 if smallest_px is None or image.mode not in _REDUCIBLE else min(image.size) // smallest_px
            upright = _rgb(image.reduce(factor) if factor > 1 else image)
            if turn is not None:
                upright = upright.transpose(turn)
    return upright, replace(facts, width=size[0], height=size[1], digest=digest, dhash=difference_hash(upright))


def read_facts(source: Path | bytes, verify: bool = True, max_pixels: int = MAX_PIXELS) -> PhotoFacts:
    """Read EXIF position, heading, error and time, size, digest and hash, and check that the image decodes.

    Positions follow EXIF 2.32: degrees, minutes and seconds with N/S and E/W; the time is UTC from the GPS directory or
    else `DateTimeOriginal` with `OffsetTimeOriginal` (taken for UTC where the offset is missing). Whatever the file
    holds, this returns: what is wrong with the image becomes `problem`, and garbage in EXIF counts as nothing said.

    Args:
        source: the file or its content.
        verify: decode all pixels, so that truncated files are found now and not in the middle of a training. Without it
            only the head of the file is read, and there is neither digest nor hash.
        max_pixels: images that claim more are not decoded.
    """
    try:
        if verify:
            return load_photo(source, _LOOK_PX, max_pixels)[1]
        with _stream(source) as stream, _opened(stream, max_pixels) as image:
            width, height = image.size
            facts = _said(image)
            if image.format != 'TIFF' and _orientation(image) >= 5:  # Pillow's size of a TIFF is upright already
                width, height = height, width
            return replace(facts, width=width, height=height)
    except PhotoError as error:
        return PhotoFacts(problem=str(error))
    except FileNotFoundError:
        return PhotoFacts(problem='file is missing')
    except OSError as error:
        return PhotoFacts(problem=f'cannot be read ({error.strerror or error})')


def difference_hash(image: Image.Image) -> int:
    """Hash of what an image looks like: close images differ in few of its 64 bits, however they were saved.

    The horizontal difference hash of N. Krawetz ("Kind of Like That", hackerfactor.com, 2013): shrink to 9 x 8 grey
    cells, here by their means; from left to right and top to bottom a bit says that the next cell to the right is
    brighter, first bit highest. Images without any structure, whatever their colour, all give 0. The hash of a JPEG
    decoded at reduced scale may differ by a bit or two from that of the whole.

    Returns:
        0 to 2**64 - 1.
    """
    cells = np.asarray(image.convert('L').resize((9, 8), Image.Resampling.BOX))
    return int.from_bytes(np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes(), 'big')


@contextmanager
def _stream(source: Path | bytes) -> Iterator[io.BufferedReader | io.BytesIO]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
    else:
        with source.open('rb') as file:
            yield file


@contextmanager
def _opened(stream: io.BufferedReader | io.BytesIO, max_pixels: int) -> Iterator[Image.Image]:
    """Open an image; whatever Pillow and its codecs raise inside becomes one reason."""
    try:
        try:
            image = Image.open(stream, formats=_formats())
        except UnidentifiedImageError:
            _learn_heif(stream)
            image = Image.open(stream, formats=_formats())
        with image:
            if image.width * image.height > max_pixels:
                raise PhotoError('too many pixels (decompression bomb?)')
            yield image
    except PhotoError:
        raise
    except UnidentifiedImageError:
        raise PhotoError('not an image') from None
    except (Image.DecompressionBombError, MemoryError):
        raise PhotoError('too many pixels (decompression bomb?)') from None
    except Exception as error:  # codecs raise OSError, SyntaxError, struct.error, IndexError and more on damaged files
        raise PhotoError('truncated image' if 'truncated' in str(error) else 'damaged image') from None


def _formats() -> tuple[str, ...]:
    """Those of `_FORMATS` that this Pillow reads; HEIF from when its plugin was loaded."""
    _know_formats()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@functools.cache
def _know_formats() -> None:
    Image.init()  # by itself Pillow loads most plugins only where `formats` is not given


def _learn_heif(stream: io.BufferedReader | io.BytesIO) -> None:
    """Teach Pillow HEIF if this is one: most photos are JPEG and should not pay for loading the plugin."""
    stream.seek(0)
    head = stream.read(12)
    stream.seek(0)
    if head[4:8] != b'ftyp' or head[8:12] not in _HEIF_BRANDS:
        raise UnidentifiedImageError
    try:
        plugin = importlib.import_module('pillow_heif')
    except ImportError:
        raise PhotoError('HEIC image; to read it: pip install "grafalign[heic]"') from None
    with _HEIF_LOCK:
        plugin.register_heif_opener(thumbnails=False)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ORIENTATION, 1)
        return value if isinstance(value, int) and value in _UPRIGHT else 1
    except Exception:  # as in `_said`
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith('I'):  # Pillow clips instead of scaling: 16-bit photos would come out white
        values = np.asarray(image)
        if image.mode.startswith('I;16') or values.max() > 255:
            values = values >> 8
        return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert('RGB')
    if image.has_transparency_data:
        image = image.convert('RGBA')
        return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image).convert('RGB')
    return image.convert('RGB')


def _said(image: Image.Image) -> PhotoFacts:
    """What EXIF says; nothing where it is damaged: a photo is not worse for a crooked directory."""
    try:
        exif = image.getexif()
        gps, detail = exif.get_ifd(GPS_IFD), exif.get_ifd(EXIF_IFD)
        heading = _number(gps.get(17))
        return PhotoFacts(
            lon=_degrees(gps.get(4), gps.get(3), 'W'),
            lat=_degrees(gps.get(2), gps.get(1), 'S'),
            accuracy_m=_number(gps.get(31)),
            heading_deg=None if heading is None else heading % 360,
            taken_at=_gps_time(gps) or _camera_time(detail, exif),
        )
    except Exception:  # Pillow raises a dozen types on garbage: struct.error, KeyError, SyntaxError ...
        return PhotoFacts()


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return number if number == number and abs(number) != float('inf') else None


def _degrees(parts: Any, hemisphere: Any, negative: str) -> float | None:
    """Degrees, minutes, seconds to signed degrees; None unless all of it makes sense."""
    if not isinstance(parts, (tuple, list)):
        return None
    values = [_number(part) for part in parts[:3]]
    if not values or any(v is None for v in values):
        return None
    total = sum(v / 60**i for i, v in enumerate(v for v in values if v is not None))
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
    return camera_time(str(stamp), str(detail.get(36881) or detail.get(36880) or ''))


def camera_time(stamp: str, offset: str) -> datetime | None:
    """UTC of a camera's clock; None where it was never set or says nothing.

    Args:
        stamp: `DateTimeOriginal`, as EXIF spells it.
        offset: `OffsetTimeOriginal`; the clock is taken for UTC where there is none.
    """
    try:
        local = datetime.strptime(stamp.strip('\x00 '), '%Y:%m:%d %H:%M:%S')
    except ValueError:
        return None
    if abs(local - _UNSET_CLOCK) <= timedelta(days=1):
        return None
    try:
        zone = datetime.strptime(offset.strip('\x00 '), '%z').tzinfo
    except ValueError:
        zone = timezone.utc
    try:
        return local.replace(tzinfo=zone).astimezone(timezone.utc)
    except (OverflowError, ValueError):
        return None
