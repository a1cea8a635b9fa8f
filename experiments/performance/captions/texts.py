"""Text banks of sets whose captions repeat."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from experiments.performance.captions.commands import command
from experiments.performance.captions.shards import WORDS
from grafalign.captions.write_set import SetWriter
from grafalign.sandbox import TINY_CLIP_DIR


def measure_texts(data: Path, counts: list[int], distinct: int) -> list[dict[str, Any]]:
    """Text banks of sets whose captions repeat."""
    rows = []
    for count in counts:
        folder = data / f'texts{count}'
        if not (folder / 'dataset.json').is_file():
            rng = np.random.default_rng(0)
            texts = [' '.join(rng.choice(WORDS, 5)) + f' {n}' for n in range(distinct)]
            chosen = rng.integers(0, distinct, count)
            with SetWriter(folder) as writer:
                for number, text in enumerate(chosen.tolist()):
                    writer.add_image(image_id=str(number), file='x.png', split='train')
                    writer.add_caption(image=number, image_id=str(number), text=texts[text], kind='template')
                writer.finish({}, str(data))
        shutil.rmtree(folder / 'bank', ignore_errors=True)
        rows.append({'captions': count, 'distinct': distinct, **command('embed', folder, '--model', TINY_CLIP_DIR)})
    return rows
