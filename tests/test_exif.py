"""One image file: what it says of itself, what it looks like, and that nothing in it can stop a run."""

from __future__ import annotations

import hashlib
import io
import itertools
import resource
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin, features

from grafalign.photos.exif import (
    EXIF_IFD,
    GPS_IFD,
    PhotoError,
    PhotoMetadata,
    difference_hash,
    load_photo,
    open_photo,
    read_metadata,
)

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')  # Pillow's, of crooked directories


def picture(width: int = 60, height: int = 40, seed: int = 0) -> Image.Image:
    """A smooth made-up picture whose corners all differ."""
    cells = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = 'JPEG', **options: object) -> bytes:
    """The file of an image."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def phone_exif(orientation: int = 1) -> Image.Exif:
    """What a phone in Ithaca writes."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif.get_ifd(EXIF_IFD).update({36867: '2021:06:05 10:11:12', 36881: '-04:00'})
    exif.get_ifd(GPS_IFD).update({1: 'N', 2: (42.0, 26.0, 36.0), 3: 'W', 4: (76.0, 30.0, 0.0), 17: 361.5, 31: 4.5})
    return exif


def test_a_file_and_its_bytes_say_the_same(tmp_path: Path) -> None:
    """Metadata and pixels of a path equal those of its content, and the digest is that of the bytes."""
    content = encoded(picture(), exif=phone_exif())
    (tmp_path / 'photo.jpg').write_bytes(content)
    metadata = read_metadata(content)
    assert metadata == read_metadata(tmp_path / 'photo.jpg')
    assert metadata.digest == hashlib.blake2b(content, digest_size=16).hexdigest()
    assert (metadata.width, metadata.height, metadata.problem) == (60, 40, None)
    assert (metadata.lon, metadata.lat) == pytest.approx((-76.5, 42 + 26 / 60 + 36 / 3600))
    assert (metadata.heading_deg, metadata.accuracy_m) == (1.5, 4.5)
    assert metadata.taken_at is not None
    assert metadata.taken_at.isoformat() == '2021-06-05T14:11:12+00:00'
    assert open_photo(content).tobytes() == open_photo(tmp_path / 'photo.jpg').tobytes()


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'TIFF', 'WEBP'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_photos_stand_upright(kind: str, orientation: int) -> None:
    """All eight orientations are undone as Pillow's own `exif_transpose` does it; size and hash are of the upright."""
    options = {'lossless': True} if kind == 'WEBP' else {}
    content = encoded(picture(), kind, exif=phone_exif(orientation), **options)
    with Image.open(io.BytesIO(content)) as image:
        expected = ImageOps.exif_transpose(image).convert('RGB')
    upright, metadata = load_photo(content)
    assert upright.size == expected.size
    assert upright.tobytes() == expected.tobytes()
    assert metadata.dhash == difference_hash(expected)
    assert (metadata.width, metadata.height) == expected.size
    head = read_metadata(content, verify=False)
    assert (head.width, head.height) == expected.size


def test_the_size_is_the_files_when_it_is_decoded_smaller() -> None:
    """Reduced decoding gives fewer pixels, but the metadata tell the upright size of the file."""
    content = encoded(picture(1600, 800), exif=phone_exif(6))
    image, metadata = load_photo(content, smallest_px=100)
    assert image.size == (100, 200)
    assert (metadata.width, metadata.height) == (800, 1600)


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'L', 'P'])
def test_large_images_of_any_kind_are_given_smaller(mode: str) -> None:
    """What is not a JPEG is averaged down, no smaller than asked for, with the colours of the whole."""
    content = encoded(picture(900, 600).convert(mode), 'PNG')
    whole, small = open_photo(content), open_photo(content, smallest_px=100)
    assert small.size == ((900, 600) if mode == 'P' else (150, 100))
    box = np.asarray(whole.resize((15, 10), Image.Resampling.BOX), dtype=int)
    assert np.abs(np.asarray(small.resize((15, 10), Image.Resampling.BOX), dtype=int) - box).max() <= 2


def naive_difference_hash(image: Image.Image) -> int:
    """The same by loops: cells of a picture whose sides are multiples of 9 and 8."""
    grey = np.asarray(image.convert('L')).astype(float)
    tall, wide = grey.shape[0] // 8, grey.shape[1] // 9
    bits = 0
    for row in range(8):
        means = [
            int(grey[row * tall : (row + 1) * tall, col * wide : (col + 1) * wide].mean() + 0.5) for col in range(9)
        ]
        for left, right in itertools.pairwise(means):
            bits = bits * 2 + (right > left)
    return bits


@pytest.mark.parametrize('seed', range(5))
def test_the_hash_is_the_published_one(seed: int) -> None:
    """Each bit says that a cell's right neighbour is brighter, from left to right and top to bottom."""
    image = picture(90, 80, seed)
    assert (difference_hash(image) ^ naive_difference_hash(image)).bit_count() <= 1  # rounding of a tie


def test_the_hash_survives_saving_anew_and_tells_pictures_apart() -> None:
    """Half the size at poor quality changes few bits; another picture changes many; a plain one gives 0."""
    hashes = [difference_hash(picture(600, 400, seed)) for seed in range(8)]
    for seed, kept in enumerate(hashes):
        small = encoded(picture(600, 400, seed).resize((300, 200)), quality=30)
        assert (kept ^ (read_metadata(small).dhash or 0)).bit_count() <= 4
    distances = [(a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(distances) > 10
    assert difference_hash(Image.new('RGB', (50, 50), 'navy')) == 0


# --- unusual images ---------------------------------------------------------------------------------------------------


def test_sixteen_bits_are_brought_to_eight() -> None:
    """A 16-bit grey photo has the brightness of its 8-bit copy; Pillow alone would make it white."""
    grey = np.linspace(0, 255, 64 * 48).reshape(48, 64).astype(np.uint8)
    for kind in ('PNG', 'TIFF'):
        content = encoded(Image.fromarray(grey.astype(np.uint16) * 257), kind)
        np.testing.assert_array_equal(np.asarray(open_photo(content))[:, :, 1], grey)


def test_transparency_lies_on_white() -> None:
    """Where a palette, grey or colour image is transparent, white is seen and not the colour behind it."""
    palette = Image.new('P', (8, 8), 0)
    palette.putpalette([0, 0, 0, 200, 10, 10])
    palette.paste(1, (4, 0, 8, 8))
    for content in (
        encoded(palette, 'PNG', transparency=0),
        encoded(palette, 'PNG', transparency=bytes([0, 255])),
        encoded(palette.convert('RGBA'), 'PNG'),
        encoded(palette, 'GIF', transparency=0),
    ):
        image = open_photo(content)
        assert image.mode == 'RGB'
        assert image.getpixel((6, 2)) == (200, 10, 10)
    assert open_photo(encoded(palette, 'PNG', transparency=0)).getpixel((1, 1)) == (255, 255, 255)


def test_odd_kinds_decode() -> None:
    """CMYK, one bit, one pixel, grey with alpha and the first frame of an animation all become RGB."""
    frames = [picture(seed=i) for i in range(3)]
    kinds = {
        'cmyk': encoded(picture().convert('CMYK')),
        'bilevel': encoded(picture().convert('1'), 'PNG'),
        'pixel': encoded(Image.new('RGB', (1, 1), 'red'), 'PNG'),
        'tiny jpeg': encoded(Image.new('L', (1, 1), 9)),
        'grey alpha': encoded(picture().convert('LA'), 'PNG'),
        'lab': encoded(picture().convert('LAB'), 'TIFF'),
        'animated gif': encoded(frames[0], 'GIF', save_all=True, append_images=frames[1:]),
        'avif': encoded(picture(), 'AVIF') if features.check('avif') else encoded(picture()),
        'jpeg 2000': encoded(picture(), 'JPEG2000') if features.check('jpg_2000') else encoded(picture()),
        'progressive': encoded(picture(), progressive=True),
        'animated webp': encoded(frames[0], 'WEBP', save_all=True, append_images=frames[1:]),
    }
    for name, content in kinds.items():
        metadata = read_metadata(content)
        assert metadata.problem is None, name
        assert metadata.dhash is not None, name
        assert open_photo(content, smallest_px=64).mode == 'RGB', name
    first = np.asarray(open_photo(kinds['animated gif']), dtype=float)
    assert np.abs(first - np.asarray(frames[0], dtype=float)).mean() < 20


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """A PNG chunk with its length and checksum."""
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))


def bomb_png(side: int) -> bytes:
    """A PNG of a few bytes that claims side x side pixels."""
    head = png_chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + head + png_chunk(b'IDAT', zlib.compress(b'\0' * 100)) + png_chunk(b'IEND', b'')


@pytest.mark.parametrize(('side', 'limit'), [(14_000, 178_000_000), (60_000, 178_000_000), (101, 10_000)])
def test_a_decompression_bomb_is_not_decoded(side: int, limit: int) -> None:
    """An image that claims more pixels than allowed gives that reason, whether it is verified or not."""
    for verify in (True, False):
        assert read_metadata(bomb_png(side), verify, limit).problem == 'too many pixels (decompression bomb?)'
    with pytest.raises(PhotoError, match='too many pixels'):
        open_photo(bomb_png(side), max_pixels=limit)


def test_a_png_with_huge_text_costs_no_memory() -> None:
    """A compressed text chunk that would inflate to 300 MB ends in a reason."""
    whole = encoded(picture(), 'PNG')
    text = png_chunk(b'zTXt', b'Comment\0\0' + zlib.compress(b'\0' * 300_000_000))
    for at in (33, len(whole) - 12):  # after IHDR, and before IEND
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        metadata = read_metadata(whole[:at] + text + whole[at:])
        assert metadata.problem in ('damaged image', 'truncated image', 'not an image', None)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000  # KiB


def test_long_text_of_a_picture_program_is_no_reason() -> None:
    """A PNG with a comment of 200 kB, as picture programs write them, is a photo like any other."""
    told = PngImagePlugin.PngInfo()
    told.add_text('Comment', 'x' * 200_000, zip=True)
    assert read_metadata(encoded(picture(), 'PNG', pnginfo=told)).problem is None


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        (b'', 'not an image'),
        (b'<html>gone</html>', 'not an image'),
        (encoded(picture(), 'EPS'), 'not an image'),
        (encoded(picture(400, 300))[:4000], 'truncated image'),
        (encoded(picture(400, 300), 'PNG')[:4000], 'truncated image'),
        (b'\0\0\0\x18ftypheic\0\0\0\0mif1heic', 'not an image'),
    ],
    ids=['nothing', 'page', 'postscript', 'half a jpeg', 'half a png', 'half a heic'],
)
def test_what_is_no_image_has_a_reason(content: bytes, reason: str, tmp_path: Path) -> None:
    """Metadata give the reason and opening raises it."""
    assert reason in (read_metadata(content).problem or '')
    with pytest.raises(PhotoError, match=reason):
        open_photo(content)
    assert read_metadata(tmp_path / 'none.jpg').problem == 'file is missing'
    assert read_metadata(tmp_path).problem == 'not a file'


def test_heic_photos_are_read_where_the_plugin_is() -> None:
    """With pillow-heif a HEIC photo decodes upright with its position."""
    heif = pytest.importorskip('pillow_heif')
    heif.register_heif_opener()
    content = encoded(picture(), 'HEIF', quality=100, exif=phone_exif(6).tobytes())
    metadata = read_metadata(content)
    assert (metadata.problem, metadata.width, metadata.height) == (None, 40, 60)
    assert metadata.lon == pytest.approx(-76.5)
    expected = np.asarray(picture().transpose(Image.Transpose.ROTATE_270), dtype=float)
    assert np.abs(np.asarray(open_photo(content), dtype=float) - expected).mean() < 8


@pytest.mark.parametrize(
    ('focal_mm', 'size', 'turned', 'degrees'),
    [
        (18, (600, 400), False, 90),  # 36 mm of film behind 18 mm
        (28, (600, 400), False, 65.5),
        (28, (600, 400), True, 46.4),  # the film's 24 mm lie across a photo that is held upright
        (50, (400, 600), False, 27),
        (0, (600, 400), False, None),  # EXIF's unknown
        (28, (900, 300), False, None),  # a panorama
        (None, (600, 400), False, None),
    ],
)
def test_the_field_of_view_follows_from_the_focal_length(
    focal_mm: int | None, size: tuple[int, int], turned: bool, degrees: float | None
) -> None:
    """As of 35-mm film, across the photo as it is seen."""
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    exif.get_ifd(EXIF_IFD).update({} if focal_mm is None else {41989: focal_mm})
    found = read_metadata(encoded(picture(*size), exif=exif)).field_of_view_deg
    assert found == (None if degrees is None else pytest.approx(degrees, abs=0.1))


# --- garbage ----------------------------------------------------------------------------------------------------------


def with_exif(body: bytes) -> bytes:
    """A JPEG whose EXIF segment is this."""
    jpeg = encoded(picture(16, 16))
    segment = b'Exif\0\0' + body[:65_000]
    return jpeg[:2] + b'\xff\xe1' + struct.pack('>H', len(segment) + 2) + segment + jpeg[2:]


def checked(metadata: PhotoMetadata) -> None:
    """Metadata hold what their types promise."""
    assert isinstance(metadata, PhotoMetadata)
    for value in (metadata.lon, metadata.lat, metadata.accuracy_m, metadata.heading_deg, metadata.field_of_view_deg):
        assert value is None or isinstance(value, float)
    assert metadata.taken_at is None or metadata.taken_at.tzinfo is not None
    assert metadata.problem is None or 0 < len(metadata.problem) < 100
    assert metadata.problem is not None or (metadata.width or 0) * (metadata.height or 0) > 0


ENTRY = st.tuples(
    st.sampled_from([1, 2, 3, 4, 7, 17, 29, 31, 256, 274, 306, 34665, 34853, 36867, 36881, 40965, 41989]),
    st.integers(0, 14),
    st.one_of(st.integers(0, 4), st.integers(0, 2**32 - 1)),
    st.one_of(st.integers(0, 200), st.integers(0, 2**32 - 1)),
)


@settings(max_examples=300, deadline=5000)
@given(st.lists(ENTRY, max_size=12), st.binary(max_size=200), st.booleans())
def test_a_crooked_directory_is_no_problem(entries: list[tuple[int, int, int, int]], rest: bytes, big: bool) -> None:
    """EXIF directories of random entries (wild types, counts and offsets) never raise nor spoil a photo."""
    order = '>' if big else '<'
    directory = struct.pack(order + 'H', len(entries)) + b''.join(struct.pack(order + 'HHII', *e) for e in entries)
    body = (b'MM\0*' if big else b'II*\0') + struct.pack(order + 'I', 8) + directory + rest
    for verify in (True, False):
        metadata = read_metadata(with_exif(body), verify)
        checked(metadata)
        assert metadata.problem is None


@settings(max_examples=100, deadline=5000)
@given(st.binary(max_size=400))
def test_random_bytes_as_exif_are_no_problem(body: bytes) -> None:
    """Whatever lies in the EXIF segment, the photo is read."""
    metadata = read_metadata(with_exif(b'II*\0\x08\0\0\0' + body))
    checked(metadata)
    assert metadata.problem is None


WHOLE = [
    encoded(picture(48, 32), kind, exif=phone_exif(o))
    for kind, o in (('JPEG', 6), ('PNG', 3), ('TIFF', 8), ('WEBP', 1))
] + [encoded(picture(48, 32), 'GIF')]
CHANGE = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255))


@settings(max_examples=400, deadline=5000)
@given(st.sampled_from(WHOLE), st.lists(CHANGE, min_size=1, max_size=20), st.floats(0, 1), st.integers(0, 3))
def test_a_damaged_photo_gives_metadata(whole: bytes, changes: list[tuple[float, int]], cut: float, how: int) -> None:
    """A photo with wrong bytes anywhere, cut short or not, always gives metadata and never an exception."""
    content = bytearray(whole)
    for where, value in changes:
        content[int(where * (len(content) if how else 300))] = value
    if how == 3:
        del content[int(cut * len(content)) :]
    for verify in (True, False):
        checked(read_metadata(bytes(content), verify, max_pixels=1_000_000))


def test_threads_agree() -> None:
    """Eight threads that read the same photos at once all find what one finds."""
    expected = [read_metadata(content) for content in WHOLE]
    found: list[list[PhotoMetadata]] = []
    threads = [threading.Thread(target=lambda: found.append([read_metadata(c) for c in WHOLE * 5])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected * 5] * 8
