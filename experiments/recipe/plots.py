"""Pictures of the recipe's experiments, from their result files: `python -m experiments.recipe.plots`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from experiments.recipe import curriculum, localisation, mammut, rounds
from experiments.study import chosen, load_results, mean_over_worlds

RESULTS = Path(__file__).resolve().parent / 'results'
COLOURS = ('#1b7f79', '#d1495b', '#2f6fb0', '#7a9e3f')
Estimate = tuple[float, float, float]


def dots(axis: Axes, names: Sequence[str], series: Mapping[str, Sequence[Estimate]], label: str) -> None:
    """Rows of values with their intervals, one colour a series."""
    rows = np.arange(len(names))
    for number, (name, values) in enumerate(series.items()):
        shift = 0.18 * (number - (len(series) - 1) / 2)
        value, low, high = np.array(values).T
        width = np.stack([value - low, high - value])
        axis.errorbar(value, rows + shift, xerr=width, fmt='o', ms=4, color=COLOURS[number], label=name)
    axis.set_yticks(rows, names)
    axis.invert_yaxis()
    axis.grid(axis='x', alpha=0.3)
    axis.set_xlabel(label)
    if len(series) > 1:
        axis.legend(frameon=False, fontsize=8)


def of_arms(folder: Path, arms: Sequence[str], metrics: Mapping[str, str], out: Path) -> None:
    """A panel for each metric of a study of `experiments.study`."""
    outcomes = load_results(folder)
    arms = [arm for arm in arms if chosen(outcomes, arm=arm)]
    figure, axes = plt.subplots(1, len(metrics), figsize=(5 + 4 * len(metrics), 0.8 + 0.34 * len(arms)), sharey=True)
    for axis, (metric, label) in zip(axes, metrics.items(), strict=True):
        dots(axis, arms, {'': [mean_over_worlds(chosen(outcomes, arm=arm), metric) for arm in arms]}, label)
    axes[0].invert_yaxis()  # shared: each panel has turned it
    _save(figure, out)


def of_hold_out(path: Path, out: Path) -> None:
    """Seen and unseen kinds of every arm."""
    arms = json.loads(path.read_text())['arms']
    figure, axes = plt.subplots(1, 2, figsize=(10, 2.6), sharey=True)
    for axis, suffix, label in zip(axes, ('', '_ap'), ('accuracy over 24 kinds', 'average precision'), strict=True):
        series = {kind: [values[f'{kind}{suffix}'] for values in arms.values()] for kind in ('seen', 'unseen')}
        dots(axis, list(arms), series, label)
    axes[0].invert_yaxis()
    _save(figure, out)


def of_ways(out: Path) -> None:
    """Mean IoU of every way by stride, trained at image level, fine and coarse tiles side by side."""
    kinds = [name for name in localisation.TILES if (RESULTS / f'localisation_{name}').is_dir()]
    figure, axes = plt.subplots(1, len(kinds), figsize=(4 + 4 * len(kinds), 4.6), sharey=True, squeeze=False)
    for axis, kind in zip(axes[0], kinds, strict=True):
        records = [r for r in _records(RESULTS / f'localisation_{kind}') if r['world'] != 7]
        shared = [k for k in records[0]['arms'] if all(k in r['arms'] for r in records)]
        names = list(dict.fromkeys(k.split(' | ')[1] for k in shared if k.startswith('image')))
        series = {
            f'stride {stride} px': [
                mean_over_worlds([r['arms'][f'image | {name} | {stride}'] for r in records], 'miou') for name in names
            ]
            for stride in localisation.TILES[kind].strides
        }
        dots(axis, names, series, f'mIoU, {kind} tiles, trained at level image')
    if len(kinds) > 1:
        axes[0][0].invert_yaxis()
    _save(figure, out)


def of_rounds(folder: Path, out: Path) -> None:
    """Mean IoU after each round; arms that are measured at the end alone are points."""
    records = _records(folder)
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.4), sharey=True)
    for axis, way in zip(axes, rounds.WAYS, strict=True):
        every = [*rounds.ARMS, *([rounds.SETTING] if all(rounds.SETTING in r['arms'] for r in records) else [])]
        for number, name in enumerate(every):
            places = [(0, [r['start'][way] for r in records])] if name == 'rounds' else []
            for place, last in enumerate(records[0]['arms'][name]['rounds']):
                places.append((last['round'], [r['arms'][name]['rounds'][place][way] for r in records]))
            values = np.array([mean_over_worlds(sides, 'miou') for _, sides in places])
            width = np.stack([values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]])
            at = np.array([place for place, _ in places]) + 0.06 * (number - 2)
            style = 'o-' if name == 'rounds' else 'o'
            axis.errorbar(
                at, values[:, 0], yerr=width, fmt=style, ms=4, color=plt.get_cmap('Dark2')(number), label=name
            )
        axis.set_xticks(range(rounds.ROUNDS + 1))
        axis.set_xlabel(f'round, maps from {way}')
        axis.grid(axis='y', alpha=0.3)
    axes[0].set_ylabel('mIoU')
    axes[0].legend(frameon=False, fontsize=8)
    _save(figure, out)


def _records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(p.read_text()) for p in sorted(folder.glob('world*.json'))]


def _save(figure: Any, out: Path) -> None:
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    plt.close(figure)


def main() -> None:
    """All pictures."""
    recall = {'accuracy': 'accuracy over 24 kinds', 'mean_recall': 'mean recall of captions'}
    of_arms(RESULTS / 'mammut', list(mammut.ARMS), recall, RESULTS / 'mammut.png')
    of_arms(RESULTS / 'curriculum', list(curriculum.ARMS), recall, RESULTS / 'curriculum.png')
    of_hold_out(RESULTS / 'hold_out.json', RESULTS / 'hold_out.png')
    of_ways(RESULTS / 'localisation.png')
    of_rounds(RESULTS / 'rounds', RESULTS / 'rounds.png')


if __name__ == '__main__':
    main()
