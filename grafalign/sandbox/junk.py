"""Photos that show no place: rooms, lunch, and screens full of text."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from grafalign.sandbox.ground import SIZE_PX


def _colour(rng: np.random.Generator, low: int, high: int) -> tuple[int, int, int]:
    r, g, b = rng.integers(low, high, 3).tolist()
    return r, g, b


def indoor_photo(rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """A room with walls, a floor, a table and perhaps a window; uint8 [64, 64, 3]."""
    image = Image.new('RGB', (SIZE_PX, SIZE_PX), _colour(rng, 170, 235))
    pen = ImageDraw.Draw(image)
    floor = int(rng.integers(38, 52))
    pen.rectangle((0, floor, SIZE_PX, SIZE_PX), fill=_colour(rng, 70, 150))
    corner = int(rng.integers(4, 28))
    pen.polygon([(0, 0), (corner, 8), (corner, floor), (0, SIZE_PX)], fill=_colour(rng, 140, 210))
    if rng.random() < 0.6:
        left = int(rng.integers(corner + 2, 44))
        pen.rectangle((left, 12, left + 14, 30), fill=(215, 230, 245), outline=(90, 70, 50))
    for _ in range(int(rng.integers(1, 4))):
        left, top = int(rng.integers(0, 48)), int(rng.integers(28, 48))
        pen.rectangle((left, top, left + int(rng.integers(8, 24)), SIZE_PX - 4), fill=_colour(rng, 40, 180))
    return _with_noise(image, rng)


def junk_photo(rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """A plate of food or a screenshot; uint8 [64, 64, 3]."""
    if rng.random() < 0.5:
        image = Image.new('RGB', (SIZE_PX, SIZE_PX), _colour(rng, 60, 160))
        pen = ImageDraw.Draw(image)
        pen.ellipse((6, 10, 58, 58), fill=(240, 240, 236))
        for _ in range(9):
            x, y, r = int(rng.integers(16, 46)), int(rng.integers(20, 46)), int(rng.integers(3, 8))
            pen.ellipse((x - r, y - r, x + r, y + r), fill=_colour(rng, 60, 230))
    else:
        image = Image.new('RGB', (SIZE_PX, SIZE_PX), (250, 250, 250))
        pen = ImageDraw.Draw(image)
        for top in range(4, 60, 5):
            pen.line((4, top, int(rng.integers(20, 60)), top), fill=(30, 30, 30), width=2)
    return _with_noise(image, rng)


def _with_noise(image: Image.Image, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    noisy = np.asarray(image, dtype=np.float32) + rng.normal(0, 4, (SIZE_PX, SIZE_PX, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)
