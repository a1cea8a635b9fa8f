"""Change by words on real pictures of two dates: seven crops of LEVIR-CD, whose new buildings are known.

    python -m experiments.change.levir --realdata FOLDER --model runs/map_worlds/world7/grafalign_patch

The model is the sandbox's: it has never seen a real picture, knows pixels of 5 m and is shown these of 0.5 m as if they
were such. So this says whether the machinery works on real pictures, and not what a real model is worth. The thresholds
are read off the crops without any change, 0.1 % false alarms a word. Beside the words stand the plain difference of
brightness with a threshold of the same kind, and calling everything changed. F1 is over the pixels of all crops with
change, together.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from PIL import Image

from grafalign.calibration import Question
from grafalign.fields import Field, FieldOptions, field_input, make_field, open_field, window_encoder
from grafalign.maps import embed_classes, load_classes
from grafalign.maps.change import GAIN, change_rows, thresholds
from grafalign.maps.classes import question_of
from grafalign.models import Model, load_model

RESULTS = Path(__file__).parent / 'results'
BUILT = ('suburb', 'warehouses', 'tower blocks', 'old town')
GROUND = ('broadleaf forest', 'meadow', 'cropland', 'bare rock', 'water', 'parking lot')
FALSE_ALARMS = 0.001
PIXEL_M = 5.0
Masks = npt.NDArray[np.bool_]


def field_of(picture: Path, out: Path, model: Model, spec: str, like: Path | None) -> Field:
    """The field of a picture, laid somewhere on Earth."""
    pixels = np.asarray(Image.open(picture).convert('RGB')).transpose(2, 0, 1)
    scene = out.with_suffix('.tif')
    profile = {
        'driver': 'GTiff', 'count': 3, 'height': pixels.shape[1], 'width': pixels.shape[2], 'dtype': 'uint8',
        'crs': 'EPSG:32614', 'transform': Affine(PIXEL_M, 0, 600_000, 0, -PIXEL_M, 3_400_000), 'photometric': 'RGB',
    }  # fmt: skip
    with rasterio.open(scene, 'w', **profile) as dataset:
        dataset.write(pixels)
        dataset.update_tags(TIFFTAG_DATETIME='2020:06:01 10:00:00')
    options = FieldOptions(of='patches', value_range=(0.0, 255.0))
    if like is not None:
        options = FieldOptions(value_range=(0.0, 255.0), like=str(like))
    source = field_input(str(scene), model, options)
    make_field(out, source, window_encoder(model, source.plan), spec)
    return open_field(out)


def f1(called: Masks, true: Masks) -> dict[str, float]:
    """Over pixels."""
    found = float((called & true).sum())
    total = max(1.0, float(called.sum() + true.sum()))
    return {
        'f1': 2 * found / total,
        'precision': found / max(1.0, float(called.sum())),
        'recall': found / max(1.0, float(true.sum())),
    }


def gains(before: Field, after: Field, question: Question, calm: list[tuple[Field, Field]]) -> Masks:
    """Where a word for what is built has come."""
    limits = thresholds(before, after, question, calm, FALSE_ALARMS)
    kinds = np.concatenate([part.kind for part in change_rows(before, after, question, limits)], axis=1)
    return np.asarray((kinds[: len(BUILT)] == GAIN).any(0))


def main() -> None:
    """Measure, and write the record and its page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--realdata', type=Path, required=True)
    parser.add_argument('--model', required=True)
    arguments = parser.parse_args()
    folder = arguments.realdata / 'levir'
    model = load_model(arguments.model)
    question = question_of(embed_classes(load_classes([','.join((*BUILT, *GROUND))]), model.embed_texts))
    names = sorted(path.name for path in (folder / 'A').glob('*.png'))
    truth = {name: np.asarray(Image.open(folder / 'label' / name).convert('L')) > 127 for name in names}
    with tempfile.TemporaryDirectory() as temporary:
        pairs = {}
        for name in names:
            first = Path(temporary) / f'{name}.before'
            before = field_of(folder / 'A' / name, first, model, arguments.model, None)
            after = field_of(folder / 'B' / name, first.with_suffix('.after'), model, arguments.model, first)
            pairs[name] = before, after
        calm = [name for name in names if not truth[name].any()]
        changed = [name for name in names if truth[name].any()]
        called = [gains(*pairs[name], question, [pairs[c] for c in calm]) for name in changed]
    grey = {
        name: [np.asarray(Image.open(folder / d / name).convert('L'), dtype=float) for d in ('A', 'B')]
        for name in names
    }
    moved = {name: abs(b - a - np.median(b - a)) for name, (a, b) in grey.items()}
    least = np.quantile(np.concatenate([moved[name].ravel() for name in calm]), 1 - FALSE_ALARMS)
    true = np.stack([truth[name] for name in changed])
    rows: dict[str, Any] = {
        'words for what is built': f1(np.stack(called), true),
        'difference of brightness': f1(np.stack([moved[name] for name in changed]) >= least, true),
        'everything': f1(np.ones_like(true), true),
    }
    record = {
        'command': 'python -m experiments.change.levir --realdata FOLDER --model RUN',
        'versions': {name: version(name) for name in ('grafalign', 'torch', 'numpy')},
        'seed': 0,
        'false_alarms': FALSE_ALARMS,
        'crops': len(names),
        'without_change': len(calm),
        'changed_share': float(true.mean()),
        'rows': rows,
    }
    (RESULTS / 'levir.json').write_text(json.dumps(record, indent=1) + '\n')
    lines = [
        '# Change by words on seven crops of LEVIR-CD',
        '',
        'Made by `python -m experiments.change.levir`; the head of the script says how, and why this says nothing of',
        f'real models. {len(changed)} crops with change ({100 * true.mean():.1f} % of pixels), {len(calm)} without.',
        '',
        '| what is called changed | F1 | precision | recall |',
        '|---|---:|---:|---:|',
        *(f'| {what} | {v["f1"]:.3f} | {v["precision"]:.3f} | {v["recall"]:.3f} |' for what, v in rows.items()),
    ]
    (RESULTS / 'levir.md').write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
    main()
