"""Pillow's pictures: formats named one by one, sizes checked before a pixel is decoded."""

from __future__ import annotations

import importlib
import io
import threading
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from grafalign.foreign.files import ForeignFileError, open_plain

FORMATS = ('JPEG', 'PNG', 'WEBP', 'TIFF', 'GIF', 'BMP', 'AVIF', 'JPEG2000', 'HEIF')
"""What pictures are stored as. Pillow knows many more, and would run Ghostscript on a PostScript file."""
SUFFIXES = ('.jpg', '.jpeg', '.jpe', '.jfif', '.mpo', '.png', '.webp', '.tif', '.tiff', '.gif', '.bmp', '.avif', '.jp2')
HEIF_SUFFIXES = ('.heic', '.heif', '.hif')
MAX_EXIF_BYTES = 4 << 20
"""EXIF of a JPEG in all its segments; each has 64 kB at most, and to join hundreds of them takes minutes."""
_PREFIX = 16
_HEIF_BRANDS = (b'heic', b'heix', b'heim', b'heis', b'hevc', b'hevx', b'hevm', b'hevs', b'mif1', b'msf1')
"""ISO 23008-12: the major brands of HEIF files."""
_LOCK = threading.Lock()


def open_image(stream: BinaryIO | io.BytesIO, max_pixels: int) -> Image.Image:
    """Recognise a picture by its first bytes and read its head; nothing is decoded yet.

    As `PIL.Image.open` does, but with `FORMATS` alone and with a limit of this call: Pillow's own is one number for the
    whole process.

    Args:
        stream: a seekable binary file, at its begin; stays open as long as the picture is used.
        max_pixels: refuse pictures that claim more.

    Raises:
        ForeignFileError: it is of no such format, claims too many pixels, or has too much metadata.
        Exception: what Pillow's codecs raise on damaged files (OSError, SyntaxError, struct.error, ...).
    """
    head = stream.read(_PREFIX)
    stream.seek(0)
    if head.startswith(b'\xff\xd8'):
        _check_exif_size(stream)
    if head[4:8] == b'ftyp' and head[8:12] in _HEIF_BRANDS:
        _learn_heif()
    for name in _formats():
        factory, accept = Image.OPEN[name]
        accepted = accept is None or accept(head)
        if not accepted or isinstance(accepted, str):
            continue
        stream.seek(0)
        try:
            image: Image.Image = factory(stream, '')
        except (SyntaxError, IndexError, TypeError, KeyError, EOFError):
            continue  # as Pillow does: another format with the same first bytes may fit
        if image.width * image.height > max_pixels:
            image.close()
            raise ForeignFileError('too many pixels (decompression bomb?)')
        return image
    stream.seek(0)
    raise ForeignFileError('not an image')


_STARTS = (b'\xff\xd8\xff', b'\x89PNG\r\n', b'GIF8', b'II*\0', b'MM\0*')


def looks_like_image(path: str) -> bool:
    """Whether a file's first bytes are those of a picture, whatever its name says; a look, no promise."""
    try:
        with open_plain(path) as file:
            head = file.read(_PREFIX)
    except (OSError, ForeignFileError):
        return False
    webp = head[:4] == b'RIFF' and head[8:12] == b'WEBP'
    heif = head[4:8] == b'ftyp' and head[8:12] in (*_HEIF_BRANDS, b'avif', b'avis')
    return head.startswith(_STARTS) or webp or heif


_ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF 2.32 Orientation to what brings the image upright."""


def orientation(image: Image.Image) -> int:
    """EXIF's Orientation of an image, 1 to 8; 1 where it says nothing."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
        return value if isinstance(value, int) and value in UPRIGHT else 1
    except Exception:  # Pillow raises a dozen types on garbage
        return 1


def upright(image: Image.Image) -> Image.Transpose | None:
    """What brings a picture upright once it is decoded; None where it is. Pillow turns TIFF by itself."""
    return None if image.format == 'TIFF' else UPRIGHT.get(orientation(image))


def turned(pixels: npt.NDArray[Any], turn: Image.Transpose | None) -> npt.NDArray[Any]:
    """Pixels [C, H, W] turned as Pillow turns an image."""
    if turn is None:
        return pixels
    return np.ascontiguousarray(_TURNS[turn](pixels))


_TURNS: dict[Image.Transpose, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]] = {
    Image.Transpose.FLIP_LEFT_RIGHT: lambda p: p[:, :, ::-1],
    Image.Transpose.ROTATE_180: lambda p: p[:, ::-1, ::-1],
    Image.Transpose.FLIP_TOP_BOTTOM: lambda p: p[:, ::-1],
    Image.Transpose.TRANSPOSE: lambda p: p.transpose(0, 2, 1),
    Image.Transpose.ROTATE_270: lambda p: p.transpose(0, 2, 1)[:, :, ::-1],
    Image.Transpose.TRANSVERSE: lambda p: p.transpose(0, 2, 1)[:, ::-1, ::-1],
    Image.Transpose.ROTATE_90: lambda p: p.transpose(0, 2, 1)[:, ::-1],
}


def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow reads, with the plugins that were registered."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _learn_heif() -> None:
    """Teach Pillow HEIF: most photos are JPEG and should not pay for loading the plugin."""
    with _LOCK:
        if 'HEIF' in Image.OPEN:
            return
        importlib.import_module('pillow_heif').register_heif_opener(thumbnails=False)


def _check_exif_size(stream: BinaryIO | io.BytesIO) -> None:
    """Walk over the segments before the pixels of a JPEG (ITU T.81, annex B) and add up those of EXIF."""
    size, at = 0, 2
    try:
        while True:
            stream.seek(at)
            marker = stream.read(4)
            if len(marker) < 4 or marker[0] != 0xFF or marker[1] in (0xDA, 0xD9):
                return
            if marker[1] == 0xFF:  # padding
                at += 1
                continue
            length = int.from_bytes(marker[2:4], 'big')
            if marker[1] == 0xE1 and stream.read(4) == b'Exif':
                size += length
                if size > MAX_EXIF_BYTES:
                    raise ForeignFileError(f'more than {MAX_EXIF_BYTES >> 20} MB of metadata')
            at += 2 + max(2, length)
    finally:
        stream.seek(0)
