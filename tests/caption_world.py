"""Small caption sets for tests: pictures in colours, with captions that name them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from grafalign.captions import CaptionSet
from grafalign.captions.import_set import ImportOptions, import_captions
from grafalign.encoders import FrozenClip, embed_texts
from grafalign.training import TrainSettings

COLOURS = ('red field', 'green forest', 'blue lake', 'grey harbour', 'white snow', 'black burnt land')


def picture(seed: int, size: tuple[int, int] = (40, 32), form: str = 'PNG') -> bytes:
    """The bytes of a picture of noise that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def folder(path: Path, count: int = 24, split: str | None = None) -> Path:
    """Pictures with a table of two captions each; every sixth picture has the same ones. Returns the table."""
    path.mkdir(parents=True)
    lines = []
    for number in range(count):
        (path / f'{number:03d}.png').write_bytes(picture(number))
        name = COLOURS[number % len(COLOURS)]
        row = {'image': f'{number:03d}.png', 'captions': [f'a {name}', f'a {name} seen from above']}
        lines.append(json.dumps(row | ({} if split is None else {'split': split})))
    (path / 'captions.jsonl').write_text('\n'.join(lines) + '\n')
    return path / 'captions.jsonl'


def shard(path: Path, members: Mapping[str, bytes]) -> Path:
    """A tar with these members, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w') as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def texts_of(captions: CaptionSet) -> dict[str, list[str]]:
    """Captions by image."""
    found: dict[str, list[str]] = {}
    for row in captions.captions.select(['image_id', 'text']).to_pylist():
        found.setdefault(row['image_id'], []).append(row['text'])
    return found


def captioned_set(out: Path, clip: FrozenClip) -> Path:
    """A set of 24 pictures with 12 distinct texts, two an image, and its bank; some images are for validation."""
    import_captions(folder(out / 'pictures'), out / 'set', ImportOptions(kind='human', val=0.2))
    embed_texts(CaptionSet(out / 'set'), clip)
    return out / 'set'


def settings(clip: FrozenClip, out: Path = Path('no/run'), **changes: object) -> TrainSettings:
    """A short training; give `data` or `store`."""
    values = {
        'out': out,
        'clip': clip.settings,
        'steps': 6,
        'batch_tiles': 10,
        'lr': 1e-3,
        'log_every': 1,
        'validate_every': 6,
        'checkpoint_every': 3,
        'gsd_m': 5.0,
    }
    return TrainSettings.model_validate(values | changes)
