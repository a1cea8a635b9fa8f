"""What photos are worth in captions, from the result files: `python -m experiments.captions.table`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt

matplotlib.use('Agg')
import matplotlib.pyplot as plt

from experiments.captions.run import PHOTO_RUNS, SIZES
from experiments.study import chosen, load_results, mean_over_worlds

HERE = Path(__file__).resolve().parent
Outcomes = list[dict[str, Any]]
Floats = npt.NDArray[np.float64]
PHOTOS = dict(zip(PHOTO_RUNS, ('#1b7f79', '#7a9e3f', '#2f6fb0'), strict=True))
COLOUR = '#d1495b'


def of_finished_worlds(outcomes: Outcomes) -> Outcomes:
    """Outcomes of the worlds in which all photo runs and the whole curve are there."""
    wanted = {('photos', *kind) for kind in PHOTO_RUNS} | {('captions', n) for n in SIZES}
    found: dict[int, set[tuple[Any, ...]]] = {}
    for o in outcomes:
        v = o['values']
        kind = ('level', 'tau') if v['source'] == 'photos' else ('number',)
        found.setdefault(o['world'], set()).add((v['source'], *(v[k] for k in kind)))
    return [o for o in outcomes if wanted <= found[o['world']]]


def curve(outcomes: Outcomes, worlds: list[int]) -> dict[int, Outcomes]:
    """Outcomes by number of captions, for numbers that were trained in all of the worlds."""
    captions = {n: chosen(outcomes, source='captions', number=n) for n in SIZES}
    return {n: cells for n, cells in captions.items() if [o['world'] for o in cells] == worlds}


def worth(numbers: Iterable[int], accuracy: Iterable[float], wanted: float) -> float:
    """How many captions give an accuracy, linear in the logarithm between the numbers that were trained.

    The curve is taken to rise: a dip counts as level ground.

    Args:
        numbers: rising.
        accuracy: of each.
        wanted: what is to be reached.

    Returns:
        0 where the fewest give more, infinity where the most give less.
    """
    logs, rising = np.log(list(numbers)), np.maximum.accumulate(list(accuracy))
    if wanted < rising[0]:
        return 0.0
    if wanted > rising[-1]:
        return float('inf')
    above = int(np.argmax(rising >= wanted))
    if not above:
        return float(np.exp(logs[0]))
    share = (wanted - rising[above - 1]) / (rising[above] - rising[above - 1])
    return float(np.exp(logs[above - 1] + share * (logs[above] - logs[above - 1])))


def worth_with_interval(points: Mapping[int, Outcomes], photos: Outcomes) -> tuple[float, float, float]:
    """Captions that photos are worth, with a 95 % interval over test tiles.

    All cells of a world resample the same tiles, so curve and photos rise and fall together from draw to draw.
    """
    curves = np.stack([_draws(cells) for cells in points.values()], axis=1)
    found = [worth(points, row, level) for row, level in zip(curves, _draws(photos), strict=True)]
    value = worth(points, [mean_over_worlds(c, 'accuracy')[0] for c in points.values()], _mean(photos))
    low, high = np.percentile(found, [2.5, 97.5], method='nearest')  # infinities cannot be averaged
    return value, float(low), float(high)


def _draws(outcomes: Outcomes) -> Floats:
    return np.mean([o['draws']['accuracy'] for o in outcomes], axis=0)


def _mean(outcomes: Outcomes) -> float:
    return mean_over_worlds(outcomes, 'accuracy')[0]


def _captions(number: float, points: Mapping[int, Outcomes]) -> str:
    """A number of captions in words, to two digits."""
    if number == 0:
        return f'< {min(points):,}'
    if number == float('inf'):
        return f'>= {max(points):,}'
    digits = 1 - int(np.floor(np.log10(number)))
    return f'{int(round(number, digits)):,}'


def _interval(outcomes: Outcomes, metric: str) -> str:
    return '{:.3f} ({:.3f} to {:.3f})'.format(*mean_over_worlds(outcomes, metric))


def _each(outcomes: Outcomes, metric: str) -> str:
    return ', '.join(f'{o[metric]["value"]:.3f}' for o in outcomes)


def table(outcomes: Outcomes, tuning: Outcomes) -> Iterable[str]:
    """Lines of `table.md`."""
    worlds = sorted({o['world'] for o in outcomes})
    photos = {k: chosen(outcomes, source='photos', level=k[0], tau=k[1]) for k in PHOTOS}
    photos = {k: v for k, v in photos.items() if [o['world'] for o in v] == worlds}
    points = curve(outcomes, worlds)
    yield from ('# What photos are worth in captions', '', 'Made by `table.py` from the result files beside it.', '')
    yield (
        f'Means over worlds ({", ".join(map(str, worlds))}) with 95 % intervals over test tiles and chips. Accuracy is '
        'of image embeddings, mIoU of patch embeddings. At level `image`, with photos as with captions, the patch head '
        "is CLIP's own and was never trained; only level `patch` trains it, and there the image head was not."
    )
    yield from ('', '| learned from | number | accuracy | in each world | mIoU |', '|---|---|---|---|---|')
    for (level, tau), cells in photos.items():
        seen = ' / '.join(f'{o["options"]["photos"]:,}' for o in cells)
        name = f'photos, level `{level}`, tau {tau:g}'
        yield (
            f'| {name} | {seen} | {_interval(cells, "accuracy")} | {_each(cells, "accuracy")} | '
            f'{_interval(cells, "miou")} |'
        )
    for number, cells in points.items():
        yield (
            f'| captions of random places | {number:,} | {_interval(cells, "accuracy")} | {_each(cells, "accuracy")} | '
            f'{_interval(cells, "miou")} |'
        )
    yield from ('', '## Worth', '', 'Linear in the logarithm between the numbers above.', '')
    yield '| photos | are worth so many captions | in each world |'
    yield '|---|---|---|'
    for (level, tau), cells in photos.items():
        if level != 'image':
            continue
        value, low, high = (_captions(v, points) for v in worth_with_interval(points, cells))
        alone = [
            worth(points, [c[i]['accuracy']['value'] for c in points.values()], cells[i]['accuracy']['value'])
            for i in range(len(worlds))
        ]
        yield (
            f'| level `image`, tau {tau:g} | {value} ({low} to {high}) | '
            f'{", ".join(_captions(v, points) for v in alone)} |'
        )
    yield from ('', '## The captions', '', 'Means over worlds. A class is there if it fills 5 % of the tile.', '')
    yield '| number | different ones | classes named | of one class only | named, not there | there, not named |'
    yield '|---|---|---|---|---|---|'
    kinds = ('classes_named', 'of_one_class_only', 'named_but_not_there', 'there_but_not_named')
    for number, cells in points.items():
        metadata = [np.mean([o['options'][k] for o in cells]) for k in kinds]
        different = np.mean([o['options']['different_captions'] for o in cells])
        row = ' | '.join([f'{metadata[0]:.2f}', *(f'{f:.0%}' for f in metadata[1:])])
        yield f'| {number:,} | {different:,.0f} | {row} |'
    yield from _tuning(tuning)
    first = outcomes[0]
    versions = ', '.join(f'{k} {v}' for k, v in first['versions'].items())
    yield from ('', f'{len(outcomes)} trainings; {first["machine"]}; {versions}. `{first["command"]}`', '')


def _tuning(outcomes: Outcomes) -> Iterable[str]:
    """The choice of the temperature."""
    if not outcomes:
        return
    taus = sorted({o['values']['tau'] for o in outcomes})
    numbers = sorted({o['values']['number'] for o in outcomes})
    yield from ('', '## Temperature', '', 'Accuracy in world 7, which appears in nothing above.', '')
    yield f'| captions | {" | ".join(f"tau {t:g}" for t in taus)} |'
    yield f'|---|{"---|" * len(taus)}'
    for number in numbers:
        texts = [_each(chosen(outcomes, number=number, tau=t), 'accuracy') or '-' for t in taus]
        yield f'| {number:,} | {" | ".join(texts)} |'


def plot(outcomes: Outcomes, target: Path) -> None:
    """Accuracy and mIoU against the number of captions, photos as bands."""
    worlds = sorted({o['world'] for o in outcomes})
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    for axis, metric in zip(axes, ('accuracy', 'miou'), strict=True):
        points = curve(outcomes, worlds)
        rows = np.array([mean_over_worlds(c, metric) for c in points.values()])
        axis.plot(list(points), rows[:, 0], 'o-', color=COLOUR, label='captions of random places')
        axis.fill_between(list(points), rows[:, 1], rows[:, 2], color=COLOUR, alpha=0.15, linewidth=0)
        for (level, tau), colour in PHOTOS.items():
            cells = chosen(outcomes, source='photos', level=level, tau=tau)
            if [o['world'] for o in cells] != worlds or (level == 'patch' and metric == 'accuracy'):
                continue  # the image head of a patch run was never trained
            value, low, high = mean_over_worlds(cells, metric)
            axis.axhline(value, color=colour, label=f'photos, level {level}, tau {tau:g}')
            axis.axhspan(low, high, color=colour, alpha=0.15, linewidth=0)
        axis.set(xscale='log', xlabel='captions')
        axis.grid(alpha=0.25)
        axis.spines[['top', 'right']].set_visible(False)
    axes[0].set(ylabel='zero-shot accuracy (image embeddings)')
    axes[1].set(ylabel='mIoU (patch embeddings)', title="at level image the patch head is CLIP's, untrained")
    axes[1].title.set_fontsize(9)
    for axis in axes:
        axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(target, dpi=150)
    plt.close(figure)


def write(results: Path) -> None:
    """Write `table.md` and `captions.png` beside the results."""
    outcomes = of_finished_worlds(load_results(results))
    (results / 'table.md').write_text('\n'.join(table(outcomes, load_results(results / 'tuning'))))
    plot(outcomes, results / 'captions.png')


if __name__ == '__main__':
    write(HERE / 'results' / 'curve')
