"""Tars of JPEGs with captions, as img2dataset writes them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

WORDS = [
    'field',
    'forest',
    'river',
    'town',
    'road',
    'harbour',
    'quarry',
    'airport',
    'lake',
    'vineyard',
    'orchard',
    'marsh',
    'beach',
    'stadium',
    'bridge',
]


def make_shards(folder: Path, count: int, side: int = 256) -> Path:
    """Tars of JPEGs of low-pass noise with captions, 10,000 a shard."""
    if (folder / 'done').is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    kept = []
    for _ in range(500):  # JPEGs are made once and repeated: their bytes differ by a comment
        coarse = Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(buffer, 'JPEG', quality=85)
        kept.append(buffer.getvalue())
    for first in range(0, count, 10_000):
        with tarfile.open(folder / f'{first // 10_000:05d}.tar', 'w') as tar:
            for number in range(first, min(count, first + 10_000)):
                text = ' '.join(rng.choice(WORDS, 6))
                note = b'\xff\xfe' + (10).to_bytes(2, 'big') + f'{number:08d}'.encode()
                content = kept[number % 500]
                for name, body in (
                    (f'{number:09d}.jpg', content[:2] + note + content[2:]),
                    (f'{number:09d}.txt', text.encode()),
                ):
                    info = tarfile.TarInfo(name)
                    info.size = len(body)
                    tar.addfile(info, io.BytesIO(body))
    (folder / 'done').touch()
    return folder
