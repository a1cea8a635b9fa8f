"""Picture files as numbers: [bands, rows, columns] in the bit depth of the file, nothing stretched.

Grey pictures have one band; palettes become the colours they stand for; transparency is left out, but of a TIFF every
band is kept, as the fourth may be near infrared whatever it is marked as. 16-bit and floating-point numbers stay as
they are: which of them are black and white nobody can tell from a picture, so whoever uses them has to say it. Pictures
are upright, turned by their EXIF orientation as photos are; GeoTIFFs have none.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile
from rasterio.warp import transform_bounds

from grafalign.errors import GrafalignError, InputError, MachineError
from grafalign.foreign import images
from grafalign.foreign.files import PASSING, open_plain
from grafalign.foreign.images import turned, upright
from grafalign.foreign.rasters import ALONE, open_raster

Pixels = npt.NDArray[Any]
RASTERS = ('.tif', '.tiff', '.jp2')
SUFFIXES = tuple(dict.fromkeys((*images.SUFFIXES, *images.HEIF_SUFFIXES, *RASTERS)))
_NUMBERS = ('I;16', 'I;16B', 'I;16L', 'I', 'F')
_LARGEST_PX = 400_000_000
"""Pictures of fMoW have up to 265 million."""
_LARGEST_BYTES = 4_000_000_000

_COLOURS = ('red', 'green', 'blue')
BANDS_BY_COUNT = {1: _COLOURS, 3: _COLOURS, 4: (*_COLOURS, 'nir')}
"""What the bands of a picture are taken for where nobody says it: grey is all three colours, four are as in NAIP."""


@dataclass(frozen=True)
class PictureMetadata:
    """What a file says before it is decoded."""

    bands: int
    dtype: str
    bounds: tuple[float, float, float, float] | None = None
    """West, south, east, north in degrees (EPSG:4326), where the file knows its place."""


def is_picture(name: str) -> bool:
    """Whether a file's name is that of a picture."""
    return name.lower().endswith(SUFFIXES) and not name.rpartition('/')[2].startswith('.')


def read_picture(source: Path | bytes, name: str, *, palette: bool = True) -> Pixels:
    """Pixels [C, H, W] of a picture.

    Args:
        source: the file or its bytes.
        name: what errors call it; its ending says what kind it is.
        palette: give a raster's palette as colours, not as indices.

    Raises:
        GrafalignError: it is missing, damaged, empty or no picture.
    """
    try:
        return _read_raster(source, palette) if name.lower().endswith(RASTERS) else _read_plain(source)
    except FileNotFoundError:
        raise InputError(f'There is no file {name}; put it back, or leave it out of the list.') from None
    except Exception as error:  # codecs raise types of their own on damaged files
        raise _unreadable(name, error) from None


def read_indices(source: Path | bytes, name: str) -> npt.NDArray[np.int64] | None:
    """The numbers [H, W] of a grey picture, of a palette its indices; None where it has colours.

    Raises:
        GrafalignError: it is missing, damaged or no picture.
    """
    try:
        with _opened(source) as image:
            return np.asarray(image).astype(np.int64) if image.mode in ('P', 'L', '1', 'I;16', 'I') else None
    except Exception as error:  # codecs raise types of their own on damaged files
        raise _unreadable(name, error) from None


def picture_metadata(source: Path | bytes, name: str) -> PictureMetadata:
    """Bands, type and place of a picture, from its head alone.

    Raises:
        GrafalignError: it is missing, damaged or no picture.
    """
    try:
        if name.lower().endswith(RASTERS):
            with open_raster(source) as raster:
                bounds = None
                if raster.crs is not None and not raster.transform.is_identity:
                    bounds = transform_bounds(raster.crs, 'EPSG:4326', *raster.bounds)
                colours = raster.colorinterp[0].name == 'palette'
                return PictureMetadata(3 if colours else raster.count, raster.dtypes[0], bounds)
        with _opened(source) as image:
            if image.mode in _NUMBERS:
                return PictureMetadata(1, 'float32' if image.mode == 'F' else 'uint16')
            if _deep(image):
                return PictureMetadata(1 if str(_tile(image)[0][3]).startswith('LA') else 3, 'uint16')
            return PictureMetadata(1 if image.mode in ('L', '1', 'LA') else 3, 'uint8')
    except FileNotFoundError:
        raise InputError(f'There is no file {name}; put it back, or leave it out of the list.') from None
    except Exception as error:  # codecs raise types of their own on damaged files
        raise _unreadable(name, error) from None


def _unreadable(name: str, error: Exception) -> GrafalignError:
    reason = ' '.join(str(error).split())[:200] or type(error).__name__
    if isinstance(error, OSError) and error.errno in PASSING:
        return MachineError(f'{name} cannot be read now ({error.strerror}); the file itself may be whole, try again.')
    return InputError(f'{name} cannot be read as a picture ({reason}); replace or remove it.')


def coloured(pixels: Pixels) -> Pixels:
    """A grey picture as three equal bands; four bands without the fourth."""
    return np.repeat(pixels, 3, axis=0) if len(pixels) == 1 else pixels[:3] if len(pixels) == 4 else pixels


def default_range(dtype: str, name: str) -> tuple[float, float]:
    """The values that become black and white: those of 8 bits, and of nothing else.

    Raises:
        GrafalignError: nobody has said it.
    """
    if dtype == 'uint8':
        return 0.0, 255.0
    raise InputError(f'{name} holds {dtype} numbers; say which are black and white, such as --value-range 0 3000.')


def _tile(image: Any) -> list[Any]:
    """How Pillow will decode a file: with the raw mode last in each entry."""
    return list(getattr(image, 'tile', []))


def _deep(image: Any) -> bool:
    """Whether a file has colours of 16 bits."""
    return image.mode in ('RGB', 'RGBA') and any('16' in str(tile[3]) for tile in _tile(image))


def check_depth(pixels: Pixels, value_range: tuple[float, float], name: str) -> None:
    """Refuse a picture whose numbers are of another kind than the range of its set.

    Raises:
        GrafalignError: it has more than 8 bits and the range is that of 8, or the other way round.
    """
    if pixels.dtype != np.uint8 and value_range == (0.0, 255.0):
        default_range(str(pixels.dtype), name)
    if pixels.dtype == np.uint8 and value_range[1] > 255:
        raise InputError(
            f'{name} is of 8 bits and {value_range[1]:g} would be white; put pictures of one depth into a set.'
        )


def _read_plain(source: Path | bytes) -> Pixels:
    with _opened(source) as opened:
        deep = _deep(opened)  # before anything is decoded: then nothing tells the depth of the file any more
        turn = upright(opened)
        image: Image.Image = opened
        if image.mode in _NUMBERS:
            pixels = np.asarray(image)[None]
        elif deep:
            pixels = _without_alpha(_decode_deep(source))  # Pillow would cut 16-bit colours to 8
        elif image.mode in ('1', 'L', 'LA'):
            pixels = np.asarray(image.convert('L'))[None]
        else:
            if image.mode != 'RGB':
                image = image.convert('RGBA').convert('RGB') if 'transparency' in image.info else image.convert('RGB')
            pixels = np.ascontiguousarray(np.moveaxis(np.asarray(image), -1, 0))
        return turned(pixels, turn)


def _read_raster(source: Path | bytes, palette: bool = True) -> Pixels:
    with open_raster(source) as raster:
        if raster.width * raster.height * raster.count > _LARGEST_PX:
            raise ValueError(f'{raster.width} x {raster.height} px are too many')
        if palette and raster.colorinterp[0].name == 'palette':
            table = np.zeros((256, 3), dtype=np.uint8)
            for number, colour in raster.colormap(1).items():
                if number < 256:
                    table[number] = colour[:3]
            return np.moveaxis(table[np.minimum(raster.read(1), 255)], -1, 0)
        return np.asarray(raster.read())  # also what is marked as alpha: the near infrared of NAIP often is


def _decode_deep(source: Path | bytes) -> Pixels:
    """All channels of a PNG of 16 bits, by GDAL."""
    content = source if isinstance(source, bytes) else source.read_bytes()
    with warnings.catch_warnings(), rasterio.Env(**ALONE), MemoryFile(content) as memory:
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        with memory.open(driver='PNG') as raster:
            return np.asarray(raster.read())


def _without_alpha(pixels: Pixels) -> Pixels:
    """Grey or colours, without the transparency that may follow them."""
    return pixels[: {2: 1, 4: 3}.get(len(pixels), len(pixels))]


@contextlib.contextmanager
def _opened(source: Path | bytes) -> Iterator[Image.Image]:
    stream = io.BytesIO(source) if isinstance(source, bytes) else open_plain(source, _LARGEST_BYTES)
    with stream, images.open_image(stream, _LARGEST_PX) as image:
        yield image
