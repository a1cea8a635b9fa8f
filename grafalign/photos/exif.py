"""Read one image: does it decode, what does it look like, and where, when and in which direction was it taken?"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from grafalign.files import stream_digest
from grafalign.foreign.files import PASSING, ForeignFileError, open_plain
from grafalign.foreign.images import UPRIGHT, open_image, orientation
from grafalign.photos.exif_values import (
    camera_time,
    edit_time_counts,
    field_of_view,
    gps_time,
    heading,
    number,
    position,
    taken_time,
)

GPS_IFD, EXIF_IFD = 0x8825, 0x8769
MAX_FILE_BYTES = 500_000_000
"""Larger files are no photos, and are not read."""
MAX_PIXELS = 178_000_000
"""Images that claim more are taken for decompression bombs and are not decoded; Pillow's own limit."""
_LOOK_PX = 256
"""Where a photo is decoded only to be checked, its shorter side may shrink to this: the whole stream is still read."""
_WHITES = (255, 1023, 4095, 16383, 65535)
"""Largest numbers of 8, 10, 12, 14 and 16 bits: what cameras and scanners have."""
_QUARTER_TURNS = tuple(UPRIGHT[i] for i in (5, 6, 7, 8))
_REDUCIBLE = ('L', 'LA', 'RGB', 'RGBA', 'CMYK')


class PhotoError(ValueError):
    """One photo cannot be used; the text is the reason, short enough for a column."""

    def __init__(self, reason: str, transient: bool = False, absent: bool = False) -> None:
        super().__init__(reason)
        self.transient = transient
        """Whether trying again later may help."""
        self.absent = absent
        """Whether its server says, by a lasting 4xx or a web page in its place, that there is no such file."""


@dataclass(frozen=True)
class PhotoMetadata:
    """What a file says about itself; None where it says nothing."""

    lon: float | None = None
    lat: float | None = None
    accuracy_m: float | None = None
    heading_deg: float | None = None
    field_of_view_deg: float | None = None
    """Across the upright photo."""
    taken_at: datetime | None = None
    problem: str | None = None
    """Why the image cannot be used, or None."""
    place_problem: str | None = None
    """Why what the file says of its position is none, or None."""
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
) -> tuple[Image.Image, PhotoMetadata]:
    """Decode an image as `open_photo` does and tell all metadata about it, reading and decoding it once.

    Without `exif` the metadata leave out place and time, which take as long as decoding a small photo.

    Raises:
        PhotoError: as for `open_photo`.
        OSError: the file cannot be read.
    """
    with _stream(source) as stream:
        digest = stream_digest(stream)
        stream.seek(0)
        with _opened(stream, max_pixels) as image:
            metadata, size = _said(image) if exif else PhotoMetadata(), image.size
            if smallest_px is not None:
                image.draft('RGB', (smallest_px, smallest_px))
            decoded = image.size
            image.load()
            turn = UPRIGHT.get(orientation(image))  # after loading: Pillow turns TIFF by itself and says so here
            if image.size != decoded or turn in _QUARTER_TURNS:
                size = (size[1], size[0])
            factor = 1 if smallest_px is None or image.mode not in _REDUCIBLE else min(image.size) // smallest_px
            upright = _rgb(image.reduce(factor) if factor > 1 else image)
            if turn is not None:
                upright = upright.transpose(turn)
    return upright, replace(metadata, width=size[0], height=size[1], digest=digest, dhash=difference_hash(upright))


def read_metadata(source: Path | bytes, verify: bool = True, max_pixels: int = MAX_PIXELS) -> PhotoMetadata:
    """Read EXIF position, heading, error and time, size, digest and hash, and check that the image decodes.

    `exif_values` says how tags are read. Whatever the file holds, this returns: what is wrong with the image becomes
    `problem`, and garbage in EXIF counts as nothing said.

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
            metadata = _said(image)
            if image.format != 'TIFF' and orientation(image) >= 5:  # Pillow's size of a TIFF is upright already
                width, height = height, width
            return replace(metadata, width=width, height=height)
    except PhotoError as error:
        return PhotoMetadata(problem=str(error))
    except FileNotFoundError:
        return PhotoMetadata(problem='file is missing')
    except OSError as error:
        return PhotoMetadata(problem=f'cannot be read ({error.strerror or error})')


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
def _stream(source: Path | bytes) -> Iterator[BinaryIO | io.BytesIO]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    try:
        file = open_plain(source, MAX_FILE_BYTES)
    except ForeignFileError as error:
        raise PhotoError(str(error)) from None
    with file:
        yield file


@contextmanager
def _opened(stream: BinaryIO | io.BytesIO, max_pixels: int) -> Iterator[Image.Image]:
    """Open an image; whatever Pillow and its codecs raise inside becomes one reason."""
    try:
        with open_image(stream, max_pixels) as image:
            yield image
    except PhotoError:
        raise
    except ForeignFileError as error:
        raise PhotoError(str(error)) from None
    except (Image.DecompressionBombError, MemoryError):
        raise PhotoError('too many pixels (decompression bomb?)') from None
    except Exception as error:  # codecs raise OSError, SyntaxError, struct.error, IndexError and more on damaged files
        if isinstance(error, OSError) and error.errno in PASSING:  # the disk is at fault, not the image
            raise
        raise PhotoError('truncated image' if 'truncated' in str(error) else 'damaged image') from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith('I') or image.mode == 'F':  # Pillow clips instead of scaling: photos would come out white
        return Image.fromarray(_eight_bits(np.asarray(image))).convert('RGB')
    if image.has_transparency_data:
        image = image.convert('RGBA')
        return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image).convert('RGB')
    return image.convert('RGB')


def _eight_bits(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Deep greys as 8 bits: white is 1 for fractions, else the largest number of the bits that are used (8 to 16)."""
    if np.issubdtype(values.dtype, np.floating):
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    largest = float(values.max(initial=0))
    white = next((w for w in _WHITES if largest <= w), largest)
    if np.issubdtype(values.dtype, np.floating) and largest <= 1:
        white = 1.0
    return (values.clip(0, white) * (255 / white)).astype(np.uint8)


def _said(image: Image.Image) -> PhotoMetadata:
    """What EXIF says; nothing where it is damaged: a photo is not worse for a crooked directory."""
    try:
        exif = image.getexif()
        gps, detail = exif.get_ifd(GPS_IFD), exif.get_ifd(EXIF_IFD)
        lon, lat, problem = position(gps.get(4), gps.get(3), gps.get(2), gps.get(1))
        offset = detail.get(36881) or detail.get(36880)
        stamps = [detail.get(36867), detail.get(36868)]
        if edit_time_counts(exif.get(271), exif.get(305)):
            stamps.append(exif.get(306))
        camera = next((t for t in (camera_time(stamp, offset) for stamp in stamps) if t is not None), None)
        when = taken_time(gps_time(gps.get(29), gps.get(7)), camera)
        width, height = image.size
        if UPRIGHT.get(orientation(image)) in _QUARTER_TURNS:
            width, height = height, width
        return PhotoMetadata(
            lon=lon,
            lat=lat,
            accuracy_m=number(gps.get(31)),
            heading_deg=heading(gps.get(17), gps.get(16), lon, lat, when),
            field_of_view_deg=field_of_view(detail.get(41989), width, height),
            taken_at=when,
            place_problem=problem,
        )
    except Exception:  # Pillow raises a dozen types on garbage: struct.error, KeyError, SyntaxError ...
        return PhotoMetadata()
