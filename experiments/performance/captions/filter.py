"""The filter beside feature extraction alone, in turns."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.performance.captions.commands import MODULE, command
from experiments.performance.captions.shards import make_shards
from grafalign.captions import CaptionSet
from grafalign.captions.pictures import Pictures
from grafalign.models import load_model
from grafalign.models.embedding import embed_pictures
from grafalign.sandbox import TINY_CLIP_DIR


def measure_filter(data: Path, count: int, turns: int) -> dict[str, Any]:
    """Filter a made img2dataset output, beside feature extraction alone, in turns.

    Args:
        data: folder of what is made.
        count: images.
        turns: of both; 0 filters once and leaves features alone out, to see how memory grows.
    """
    shards = make_shards(data / f'shards{count}', count)
    captions = data / f'set{count}'
    command('captions', 'import', shards, captions)
    _fit(data)
    runs: list[dict[str, Any]] = []
    for _ in range(max(1, turns)):
        for part in ('features', 'hashes'):
            shutil.rmtree(captions / part, ignore_errors=True)
        shutil.rmtree(data / 'kept', ignore_errors=True)
        args = ('--filter', data / 'filter', '--model', TINY_CLIP_DIR)
        runs.append({'ours': command('captions', 'filter', captions, data / 'kept', *args)})
        if turns:
            started = time.perf_counter()
            subprocess.run([sys.executable, '-m', MODULE, '--case', 'features', str(captions)], check=True)
            runs[-1]['features_alone_s'] = round(time.perf_counter() - started, 1)
    speeds = [round(r['features_alone_s'] / r['ours']['seconds'], 3) for r in runs if turns]
    return {'images': count, 'turns': runs, 'speed_of_features_alone': speeds}


def _fit(data: Path) -> None:
    """A filter fitted on noise of three kinds; what it accepts does not matter here."""
    kinds = data / 'kinds'
    if not kinds.is_dir():
        rng = np.random.default_rng(1)
        for kind, cells in (('aerial', 24), ('photo', 6), ('chart', 3)):
            (kinds / kind).mkdir(parents=True)
            for number in range(60):
                coarse = Image.fromarray(rng.integers(0, 255, (cells, cells, 3), dtype=np.uint8))
                coarse.resize((256, 256), Image.Resampling.BICUBIC).save(kinds / kind / f'{number}.jpg')
        sides = {
            'positive': {'aerial': str(kinds / 'aerial')},
            'negative': {k: str(kinds / k) for k in ('photo', 'chart')},
        }
        (data / 'kinds.yaml').write_text(json.dumps({'aerial': sides}))
    shutil.rmtree(data / 'filter', ignore_errors=True)
    command('captions', 'fit-filter', data / 'kinds.yaml', data / 'filter', '--model', TINY_CLIP_DIR, '--rate', '0.2')


def features_case(captions: Path) -> None:
    """Every picture through the model, and nothing else; decoded ahead by threads, as the filter does."""
    model, pictures = load_model(str(TINY_CLIP_DIR)), Pictures(CaptionSet(captions))
    rows = range(len(CaptionSet(captions)))

    def read(row: int) -> np.ndarray:
        return np.asarray(pictures.read(row, 2 * model.preprocessing.size_px)).transpose(2, 0, 1)

    for _ in embed_pictures(model, read, rows, ('red', 'green', 'blue'), (0.0, 255.0)):
        pass
