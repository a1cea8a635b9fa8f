"""`report.html`: tables, differences, classes, confusions and worst cases of a folder of results; needs no network."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from grafalign.benchmarks.results import Arrays, Result, read_results
from grafalign.benchmarks.table import Table, by_set, differences, newest
from grafalign.datasets import ImageSet
from grafalign.errors import GrafalignError
from grafalign.files import write_atomically
from grafalign.models.thumbnails import thumbnail
from grafalign.pages import confusion_figure, figure_url, render
from grafalign.pages.figures import short_name

_WORST = 12
_BARS = ('#1f7a4a', '#2f6fb0', '#e0a030', '#9a5fb5', '#c8453b', '#5f6b73')


@dataclass
class Part:
    """A heading, words, tables and pictures."""

    title: str
    words: str = ''
    tables: list[Table] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    cases: list[dict[str, str]] = field(default_factory=list)


def write_page(folder: Path, sets: Mapping[str, ImageSet]) -> Path:
    """Write `report.html` of all results in a folder.

    Args:
        folder: the results.
        sets: sets by digest, for pictures of worst cases; those that are not given have none.

    Returns:
        The page's path.

    Raises:
        GrafalignError: there is no result, or one is damaged.
    """
    found = newest(read_results(folder))
    results = [result for _, result in found]
    units = ' or '.join(sorted({r.unit for r in results}))
    parts = [Part('Results', f'In percent, with 95 % bootstrap intervals over {units}.', by_set(results))]
    base = results[0].model.name
    with contextlib.suppress(GrafalignError):  # there may be nothing to compare it with
        parts.append(Part('Differences', f'Every model beside {base}, on the same images.', [differences(found, base)]))
    for (name, _), group in _by_question(found).items():
        part = _question(name, group, sets)
        if part.tables or part.pictures or part.cases:
            parts.append(part)
    made = {
        'versions': results[-1].versions,
        'machine': results[-1].machine,
        'commands': sorted({r.command for r in results if r.command}),
        'results': len(results),
    }
    page = render(
        'grafalign.benchmarks',
        'page.html',
        title='Zero-shot benchmarks',
        sections=parts,
        made=json.dumps(made, indent=2),
    )
    write_atomically(folder / 'report.html', page.encode())
    return folder / 'report.html'


def _by_question(found: Sequence[tuple[Path, Result]]) -> dict[tuple[str, str], list[tuple[Path, Result]]]:
    groups: dict[tuple[str, str], list[tuple[Path, Result]]] = {}
    for path, result in found:
        split = '' if result.data.split == 'all' else f' {result.data.split}'
        name = f'{result.data.name}{split}: {result.task.replace("_", " ")}'
        groups.setdefault((name, result.data.digest), []).append((path, result))
    return groups


def _question(name: str, group: Sequence[tuple[Path, Result]], sets: Mapping[str, ImageSet]) -> Part:
    first = group[0][1]
    words = [f'{first.data.images:,} images', f'{len(first.data.classes)} classes' if first.data.classes else '']
    words += list(first.data.notes)
    part = Part(name, '; '.join(w for w in words if w) + '.')
    metric = next((m for m in ('top1', 'ap', 'iou', 'map@100') if m in first.per_class), None)
    if metric is not None:
        part.pictures.append(figure_url(_class_bars(metric, [r for _, r in group]), 100))
    rows = [_single_prompts(r) for _, r in group if 'single_prompts' in r.extra]
    if rows:
        head = ['model', 'prompts', 'mean', 'worst', 'best']
        part.tables.append(Table('prompts taken one by one', head, rows, ['Top-1 in percent, without intervals.']))
    for path, result in group:
        arrays = Arrays(path).arrays
        if 'confusion' in arrays and len(result.data.classes) <= 80:
            figure = confusion_figure(arrays['confusion'], result.data.classes, result.model.name)
            part.pictures.append(figure_url(figure, 100))
        data = sets.get(result.data.digest)
        if data is not None and 'guess' in arrays:
            part.cases += _confident_mistakes(result, data, arrays)
        elif data is not None and 'rank_of_image' in arrays:
            part.cases += _lost_captions(result, data, arrays['rank_of_image'])
    return part


def _single_prompts(result: Result) -> list[str]:
    singles = result.extra['single_prompts']
    prompts = result.protocol.templates

    def one(which: str, key: str) -> str:
        number = singles[key]
        return f'{100 * singles[which]:.2f}' + (f' ({prompts[number]})' if number < len(prompts) else '')

    return [
        result.model.name,
        str(singles['count']),
        f'{100 * singles["mean"]:.2f}',
        one('min', 'worst'),
        one('max', 'best'),
    ]


def _class_bars(metric: str, results: Sequence[Result]) -> Figure:
    """Values of every class, models side by side, classes by the first model's value."""
    classes = [c for c in results[0].data.classes if results[0].per_class[metric].get(c) is not None]
    classes.sort(key=lambda c: results[0].per_class[metric][c] or 0)
    height = 0.8 / len(results)
    figure = Figure(figsize=(9, max(2.2, 0.2 * len(classes) * max(1, len(results) / 2) + 0.9)))
    ax = figure.subplots()
    for number, result in enumerate(results):
        values = [result.per_class.get(metric, {}).get(c) or 0 for c in classes]
        ax.barh(
            np.arange(len(classes)) + 0.4 - height * (number + 0.5), values, height,
            color=_BARS[number % len(_BARS)], label=result.model.name.replace('$', r'\$'),
        )  # fmt: skip
    ax.set_yticks(range(len(classes)), [short_name(c) for c in classes], fontsize=7, parse_math=False)
    ax.set(xlim=(0, 1), ylim=(-0.6, len(classes) - 0.4), xlabel={'top1': 'share right'}.get(metric, metric))
    ax.spines[['top', 'right']].set_visible(False)
    if len(results) > 1:
        ax.legend(fontsize=8, loc='lower right', frameon=False)
    figure.tight_layout()
    return figure


def _confident_mistakes(result: Result, data: ImageSet, arrays: Mapping[str, np.ndarray]) -> list[dict[str, str]]:
    """Images whose wrong class beats the true one by the widest margin, at most two of a class.

    The margin is a difference of cosines: a share among classes would be 1 for hundreds of images of a model whose
    cosines are wide apart, and the order that of the files.
    """
    guess, truth = arrays['guess'], arrays['truth']
    margin = arrays['margin'] if 'margin' in arrays else arrays['share_of_guess']  # of an earlier grafalign
    wrong = np.flatnonzero(guess != truth)
    cases: list[dict[str, str]] = []
    seen: dict[int, int] = {}
    for row in wrong[np.argsort(-margin[wrong], kind='stable')].tolist():
        label = int(truth[row])
        if seen.get(label, 0) == 2 or len(cases) == _WORST:
            continue
        try:
            picture = thumbnail(data.read(row), data.bands, data.value_range)
        except GrafalignError:
            return cases
        seen[label] = seen.get(label, 0) + 1
        cases.append(
            {
                'picture': picture,
                'model': result.model.name,
                'item': data.items[row],
                'before': f'{data.classes[label]}, taken for ',
                'what': data.classes[int(guess[row])],
                'after': f' (by {margin[row]:.3f})',
            }
        )
    return cases


def _lost_captions(result: Result, data: ImageSet, ranks: np.ndarray) -> list[dict[str, str]]:
    """Images whose own captions stand farthest down, with the first of these."""
    cases: list[dict[str, str]] = []
    for row in np.argsort(-ranks, kind='stable')[:_WORST].tolist():
        try:
            picture = thumbnail(data.read(row), data.bands, data.value_range)
        except GrafalignError:
            return cases
        caption = data.captions[row][0] if data.captions is not None else ''
        caption_words = {'before': 'best caption at ', 'what': f'{ranks[row]:,.0f}', 'after': f': {caption}'}
        cases.append({'picture': picture, 'model': result.model.name, 'item': data.items[row], **caption_words})
    return cases
