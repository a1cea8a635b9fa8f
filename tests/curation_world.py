"""Folders of labelled images that filters are fitted on, and a set to filter, made of the small sandbox."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageDraw

from grafalign.captions import CaptionSet
from grafalign.captions.import_set import import_captions
from grafalign.curation import FilterLabels
from grafalign.store import PairStore


def make_kinds(out: Path, store: PairStore, world: Path) -> Path:
    """Folders of tiles, ground photos and charts, 40 each, and the file that names them."""
    low, high = store.sensor.value_range
    scale, offset = store.radiometry
    photos = sorted((world / 'photos').rglob('*.jpg'))
    for name in ('tile', 'photo', 'chart'):
        (out / name).mkdir()
    for number in range(40):
        stored = store.read_tile(number)[:3] * scale[number][:3, None, None] + offset[number][:3, None, None]
        unit = np.clip((stored - low) / (high - low), 0, 1)
        Image.fromarray((unit * 255).astype(np.uint8).transpose(1, 2, 0)).save(out / 'tile' / f'{number}.png')
        (out / 'photo' / f'{number}.jpg').write_bytes(photos[number].read_bytes())
        chart = Image.new('RGB', (80, 60), 'white')
        bars = np.random.default_rng(number).integers(5, 55, 6)
        for place, bar in enumerate(bars.tolist()):
            ImageDraw.Draw(chart).rectangle((8 + 12 * place, 58 - bar, 16 + 12 * place, 58), fill='steelblue')
        chart.save(out / 'chart' / f'{number}.png')
    content = {'positive': {'tile': 'tile'}, 'negative': {'photo': 'photo', 'chart': 'chart'}}
    sides = {side: {k: str(out / v) for k, v in folders.items()} for side, folders in content.items()}
    (out / 'kinds.yaml').write_text(yaml.safe_dump({'aerial': sides}))
    return out


def labels_of(kinds: Path) -> FilterLabels:
    """The labels of the folders."""
    return FilterLabels.model_validate(yaml.safe_load((kinds / 'kinds.yaml').read_text()))


def web_set(kinds: Path, out: Path) -> CaptionSet:
    """Ten images of each kind as a set, with a caption each; the photos' say satellite."""
    words = {'tile': 'fields and a village', 'photo': 'satellite dish in a garden', 'chart': 'sales of the year'}
    rows = [
        {'file': str(next((kinds / kind).glob(f'{n}.*'))), 'image_id': f'{kind}{n}', 'text': text}
        for kind, text in words.items()
        for n in range(10)
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    (out.parent / 'web.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    import_captions(out.parent / 'web.jsonl', out)
    return CaptionSet(out)
