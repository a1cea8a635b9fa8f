"""`captions.md`, made from `results/captions.json` and from nothing else."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]


def lines(results: dict[str, Any]) -> Iterator[str]:
    """The page, line by line; parts that were not measured are left out."""
    yield from ('# What captions cost', '', 'Made by `captions/table.py`. Peak memory is VmHWM of a fresh process.', '')
    for part, section in (
        ('filter', _filter),
        ('memory', _memory),
        ('landmarks', _landmarks),
        ('texts', _texts),
        ('training', _training),
    ):
        if part in results:
            yield from section(results[part]['measured'])
            machine, versions = results[part]['machine'], results[part]['versions']
            shown = ', '.join(f'{k} {v}' for k, v in versions.items())
            yield from ('', f'`{results[part]["command"]}`; {machine["cores"]} cores, {shown}', '')


def _filter(part: dict[str, Any]) -> Iterator[str]:
    yield from ('## Filter beside feature extraction alone', '')
    yield f'{part["images"]:,} JPEGs of 256 px in tars; the tiny CLIP; each turn is two fresh processes.'
    yield from ('', '| turn | filter, s | images/s | peak MB | features alone, s | **speed, of features alone** |')
    yield '|---|---|---|---|---|---|'
    for number, (turn, speed) in enumerate(zip(part['turns'], part['speed_of_features_alone'], strict=True), 1):
        ours = turn['ours']
        yield (
            f'| {number} | {ours["seconds"]} | {part["images"] / ours["seconds"]:.0f} | {ours["peak_mb"]} | '
            f'{turn["features_alone_s"]} | **{speed:.3f}** |'
        )


def _memory(part: dict[str, Any]) -> Iterator[str]:
    spent = part['turns'][0]['ours']
    yield from ('## Memory of ten times the images', '')
    yield 'The embeddings, 192 bytes an image, are a mapped file, whose pages count in the peak.'
    yield from ('', '| images | seconds | images/s | peak MB |', '|---|---|---|---|')
    rate = part['images'] / spent['seconds']
    yield f'| {part["images"]:,} | {spent["seconds"]} | {rate:.0f} | {spent["peak_mb"]} |'


def _landmarks(part: dict[str, Any]) -> Iterator[str]:
    yield from ('## Landmarks', '')
    yield (
        f'An .osm.pbf of {part["nodes"]:,} nodes ({part["extract_mb"]} MB) and {part["images"]:,} images; osmium '
        f'alone walks through its {part["osmium_objects"]:,} objects in {part["osmium_alone_s"]} s.'
    )
    yield from ('', '| command | seconds | peak MB | |', '|---|---|---|---|')
    for name, what in (('landmarks', 'landmarks'), ('write', 'captions')):
        spent = part[name]
        count = spent['result'][what]
        yield f'| `captions {name}` | {spent["seconds"]} | {spent["peak_mb"]} | {count:,} {what} |'


def _texts(part: list[dict[str, Any]]) -> Iterator[str]:
    yield from ('## Text banks', '', '| captions | distinct | seconds | peak MB |', '|---|---|---|---|')
    for row in part:
        yield f'| {row["captions"]:,} | {row["distinct"]:,} | {row["seconds"]} | {row["peak_mb"]} |'


def _training(part: list[dict[str, Any]]) -> Iterator[str]:
    yield from ('## Training beside a bare loop', '')
    yield (
        f'ViT-S/32, batch {part[0]["batch"]}, float32; JPEGs of 256 px in tars beside tensors in memory; blocks of '
        f'{part[0]["steps_per_block"]} steps in turns, in one process; ratios are of neighbouring blocks. All cores '
        'are busy with the steps, so what decoding takes of them is lost: the limit is that of a loop that decodes '
        'and does nothing else besides.'
    )
    yield from ('', '| workers | turns | images/s | bare loop | **speed, of the bare loop** | limit | waits for data |')
    yield '|---|---|---|---|---|---|---|'
    for case in part:
        images = case['steps_per_block'] * case['batch']
        ours, bare = (statistics.median(block[0] for block in case['spent'][k]) for k in ('ours', 'bare'))
        speeds = case['speed_of_the_bare_loop']
        yield (
            f'| {case["workers"]} | {len(speeds)} | {images / ours:.1f} | {images / bare:.1f} | '
            f'**{case["median"]:.3f}** ({min(speeds):.3f} to {max(speeds):.3f}) | {case["limit"]:.3f} | '
            f'{case["data_share"]:.2%} |'
        )


if __name__ == '__main__':
    page = lines(json.loads((HERE / 'results' / 'captions.json').read_text()))
    (HERE / 'captions.md').write_text('\n'.join(page))
