"""AID with RSICD's captions, three ways on from one start: texts frozen, both towers trained, MaMMUT.

    (the commands of experiments/captions/aid/run.py first, whose trained vision transformer is where all begin)
    python -m experiments.recipe.aid --val AID_VAL            # an hour and a half on two idle cores

Each arm takes the same 124 steps of 256 images, one caption an image and step, from the run `runs/aid/scratch` and the
frozen word vectors that it was trained towards. The 1,027 images of the official val split are measured under both
rules of equal captions, with intervals and paired tests over images. MaMMUT's captions are greedy and searched by a
beam of 4; beside them stands one caption for all, the one nearest to all training captions.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from grafalign.benchmarks.statistics import estimates, paired_difference, resampling
from grafalign.benchmarks.tasks.image_text import caption_table, retrieve_captions
from grafalign.captions import CaptionSet
from grafalign.captions.cider import cider
from grafalign.datasets import ImageSet, open_set
from grafalign.encoders import ClipSettings, embed_texts, load_clip
from grafalign.encoders.captioning import CaptionOptions
from grafalign.exchange import publish
from grafalign.models import Model, load_model
from grafalign.models.embedding import embed_pictures, model_inputs
from grafalign.training import TrainSettings, train

RESULTS = Path(__file__).resolve().parent / 'results'
SEED, DRAWS, STEPS = 0, 1000, 124
COMMON: dict[str, Any] = {
    'gsd_m': 3, 'steps': STEPS, 'batch_tiles': 256, 'lr': 3e-4, 'weight_decay': 0.1, 'warmup': 0.1, 'tau': 0.07,
    'photo_to_tile': 1.0, 'photos_per_tile': 1, 'max_bad_tiles': 0, 'log_every': 31, 'validate_every': 124,
    'augment': {'symmetry': True, 'zoom': 1.4, 'shift': 0.1}, 'seed': SEED,
}  # fmt: skip
ARMS: dict[str, dict[str, Any]] = {
    'texts frozen': {},
    'both towers': {'text_tower': 'trained'},
    'MaMMUT': {'text_tower': 'decoder'},
}


def trained(runs: Path, name: str) -> Path:
    """The run of an arm, trained if it is not there."""
    start = runs / 'start'
    if not (start / 'open_clip_config.json').is_file():
        publish(runs / 'scratch', start)
    clip = load_clip(ClipSettings(model=str(start)))
    for split in ('train', 'val'):
        embed_texts(CaptionSet(runs / split), clip)
    out = runs / name.replace(' ', '_')
    values = {'data': runs / 'train', 'val_set': runs / 'val', 'out': out, 'clip': {'model': str(start)}}
    train(TrainSettings.model_validate(COMMON | values | ARMS[name]))
    return out


def measured(model: Model, data: ImageSet) -> dict[str, Any]:
    """Statistics of recall under both rules."""
    pictures = embed_pictures(model, data.read, range(len(data)), data.bands, data.value_range)
    images = np.concatenate([v for _, v in pictures])
    found = {}
    for rule in ('own', 'shared'):
        texts, text, image = caption_table(data.captions, rule)  # type: ignore[arg-type]
        different = list(dict.fromkeys(texts))
        row = {t: i for i, t in enumerate(different)}
        vectors = model.embed_texts(different)[[row[t] for t in texts]]
        found[rule] = retrieve_captions(images, vectors, text, image).statistics
    return found


def written(model: Model, data: ImageSet, options: CaptionOptions) -> list[str]:
    """A caption of every image."""
    batches = model_inputs(model, data.read, range(len(data)), data.bands, data.value_range, label='writing captions')
    return [text for rows, inputs in batches for text in model.write_captions(inputs, options, rows[0])]


def judged(captions: list[str], data: ImageSet) -> dict[str, Any]:
    """CIDEr-D, how many are distinct, and some examples."""
    scores = cider(captions, list(data.captions or ()))
    return {
        'cider': float(np.mean(scores)),
        'distinct_captions': len(set(captions)),
        'examples': {data.items[i]: captions[i] for i in range(0, len(captions), len(captions) // 8)},
    }


def commonest(runs: Path) -> str:
    """The training caption nearest to the mean of all."""
    from grafalign.encoders import load_text_bank

    bank = load_text_bank(CaptionSet(runs / 'train'))
    vectors = bank.embeddings.astype(np.float32)
    return str(bank.texts()[int((vectors @ vectors[bank.numbers].mean(0)).argmax())])


def main() -> None:
    """Train and measure all arms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--runs', type=Path, default=Path('runs/aid'))
    parser.add_argument('--val', type=Path, required=True, help="folder of the val split's images and captions.jsonl")
    args = parser.parse_args()
    data = open_set(f'captions:{args.val}@all')
    how = resampling(len(data), None, DRAWS, SEED)
    results: dict[str, Any] = {}
    statistics, captions = {'start': measured(load_model(str(args.runs / 'scratch')), data)}, {}
    for name in ARMS:
        out = trained(args.runs, name)
        model = load_model(str(out))
        statistics[name] = measured(model, data)
        log = [json.loads(line) for line in (out / 'log.jsonl').read_text().splitlines()]
        results[name] = {'step_ms': float(np.median([e['step_ms'] for e in log])), 'final': log[-1]}
        if model.captions is not None:
            for label, options in (('greedy', CaptionOptions()), ('beam of 4', CaptionOptions(beam=4))):
                captions[label] = judged(written(model, data, options), data)
    captions['one for all'] = judged([commonest(args.runs)] * len(data), data)
    content = {
        'command': ' '.join(['python -m experiments.recipe.aid', *sys.argv[1:]])
        .replace(str(args.val), 'AID_VAL')
        .replace(str(args.runs), 'runs/aid'),
        'versions': {n: version(n) for n in ('grafalign', 'torch', 'open_clip_torch', 'numpy')},
        'seed': SEED,
        'settings': {'common': COMMON, 'arms': ARMS, 'draws': DRAWS},
        'images': len(data),
        'recall': {
            name: {rule: {k: v.model_dump() for k, v in estimates(found, how).items()} for rule, found in rules.items()}
            for name, rules in statistics.items()
        },
        'differences': {
            f'{first} minus {second}': {
                rule: vars(
                    paired_difference(
                        statistics[first][rule]['mean_recall'], statistics[second][rule]['mean_recall'], how
                    )
                )
                for rule in ('own', 'shared')
            }
            for first, second in (
                ('texts frozen', 'start'),
                ('both towers', 'texts frozen'),
                ('MaMMUT', 'texts frozen'),
                ('MaMMUT', 'both towers'),
            )
        },
        'captions': captions,
        'runs': results,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / 'aid.json').write_text(json.dumps(content, indent=1) + '\n')
    (RESULTS / 'aid.md').write_text(table(content) + '\n')


def table(content: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = ['# Recall on the val split of RSICD, AID scenes: three ways on from one start', '']
    for rule, what in (('own', 'every copy of a caption is a text of its own'), ('shared', 'equal captions are one')):
        lines += [f'`{rule}`: {what}', '', '| arm | text to image @1, 5, 10 | image to text @1, 5, 10 | mean recall |']
        lines.append('|---|---|---|---|')
        for name, found in content['recall'].items():
            cells = [
                ', '.join(f'{found[rule][f"{way}_r@{k}"]["value"]:.3f}' for k in (1, 5, 10))
                for way in ('text_to_image', 'image_to_text')
            ]
            mean = found[rule]['mean_recall']
            lines.append(
                f'| {name} | {cells[0]} | {cells[1]} | {mean["value"]:.3f} ({mean["low"]:.3f} to {mean["high"]:.3f}) |'
            )
        lines += ['', '| difference of mean recall | value (95 %) | p |', '|---|---|---|']
        for name, found in content['differences'].items():
            d = found[rule]
            lines.append(f'| {name} | {d["value"]:+.3f} ({d["low"]:+.3f} to {d["high"]:+.3f}) | {d["p"]:.3f} |')
        lines.append('')
    lines += ['| captions | CIDEr-D | distinct of all |', '|---|---|---|']
    for name, found in content['captions'].items():
        lines.append(f'| {name} | {found["cider"]:.3f} | {found["distinct_captions"]} of {content["images"]} |')
    lines += ['', '| arm | seconds a step |', '|---|---|']
    lines += [f'| {name} | {found["step_ms"] / 1000:.1f} |' for name, found in content['runs'].items()]
    return '\n'.join(lines)


if __name__ == '__main__':
    main()
