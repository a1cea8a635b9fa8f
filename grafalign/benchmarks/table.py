"""Tables of result files: models by sets, in Markdown, CSV and LaTeX, and differences between two models."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from grafalign.benchmarks.results import Arrays, Result
from grafalign.benchmarks.statistics import Resampling, paired_difference
from grafalign.errors import GrafalignError

Format = Literal['markdown', 'csv', 'latex']
METRICS = {
    'classification': ('top1', 'map'),
    'class_retrieval': ('map@20', 'map@100', 'map'),
    'image_text': ('image_to_text_r@1', 'image_to_text_r@10', 'text_to_image_r@1', 'text_to_image_r@10', 'mean_recall'),
    'image_image': ('r@1', 'map@100'),
    'photo_tile': ('photo_to_tile_r@10', 'tile_to_photo_r@10'),
    'segmentation': ('miou',),
}
"""What a table shows of each task, where a result has it."""
_WORDS = {
    'classification': 'classification',
    'class_retrieval': 'retrieval by class',
    'image_text': 'images and captions',
    'image_image': 'image to image',
    'photo_tile': 'photos and tiles',
    'segmentation': 'segmentation',
}


@dataclass(frozen=True)
class Table:
    """Rows of text below a head, with what must be said under it."""

    title: str
    head: list[str]
    rows: list[list[str]]
    notes: list[str]


def tables(results: Sequence[Result], *, intervals: bool = True) -> list[Table]:
    """One table a task: a row a model and protocol, a column a set and metric; values in percent, the best marked *.

    A model has several rows where it was asked by several protocols, and a row says which if they differ.
    """
    out = []
    for task in METRICS:
        mine = [r for r in results if r.task == task]
        if not mine:
            continue
        columns = [
            (name, metric)
            for name in dict.fromkeys(_set(r) for r in mine)
            for metric in METRICS[task]
            if any(metric in r.metrics for r in mine if _set(r) == name)
        ]
        rows: dict[tuple[str, str], dict[tuple[str, str], Result]] = {}
        for result in mine:
            row = rows.setdefault((result.model.name, _rule(result)), {})
            for metric in result.metrics:
                row[_set(result), metric] = result
        several = len({rule for _, rule in rows}) > 1
        head = ['model', *(['protocol'] if several else []), *(f'{name} {metric}' for name, metric in columns)]
        best = {
            c: max(row[c].metrics[c[1]].value for row in rows.values() if c in row and not row[c].protocol.transductive)
            for c in columns
            if any(c in row and not row[c].protocol.transductive for row in rows.values())
        }
        lines = []
        for (model, rule), row in rows.items():
            cells = [_cell(row[c], c[1], best.get(c), intervals) if c in row else '' for c in columns]
            lines.append([model, *([rule] if several else []), *cells])
        out.append(Table(_WORDS[task], head, lines, _notes(mine, several)))
    return out


def _set(result: Result) -> str:
    return result.data.name if result.data.split == 'all' else f'{result.data.name} {result.data.split}'


def _rule(result: Result) -> str:
    """The protocol in a few words: what may differ between two results of one task."""
    p = result.protocol
    prompts = '' if not p.templates else p.templates[0] if len(p.templates) == 1 else f'{len(p.templates)} prompts'
    parts = [prompts, str(p.pixels.get('fit', '')), p.duplicates and f'{p.duplicates} copies']
    return ', '.join([*(part for part in parts if part), *(['transductive'] if p.transductive else [])])


def _cell(result: Result, metric: str, best: float | None, intervals: bool) -> str:
    v = result.metrics[metric]
    mark = '†' if result.protocol.transductive else '*' if best is not None and v.value >= best else ''
    partial = '‡' if any('partial' in note for note in result.data.notes) else ''
    return f'{100 * v.value:.2f}{mark}{partial}' + (f' ({100 * v.low:.1f} to {100 * v.high:.1f})' if intervals else '')


def _notes(results: Sequence[Result], several: bool) -> list[str]:
    rules = sorted({_rule(r) for r in results})
    units = sorted({r.unit for r in results})
    notes = [f'Values in percent, 95 % bootstrap intervals over {" or ".join(units)}; * best of a column.']
    if not several and rules[0]:
        notes.append(f'Protocol: {rules[0]}.')
    if any(r.protocol.transductive for r in results):
        notes.append('† uses statistics of the test images: not comparable with the others.')
    if any('partial' in note for r in results for note in r.data.notes):
        notes.append("‡ on part of the set: not the set's number.")
    return notes


def by_set(results: Sequence[Result]) -> list[Table]:
    """One table a set: a row a metric, a column a model, or several where a model was asked by several protocols."""
    out = []
    for name in dict.fromkeys(_set(r) for r in results):
        mine = [r for r in results if _set(r) == name]
        rules: dict[tuple[str, str], set[str]] = {}
        for r in mine:
            rules.setdefault((r.model.name, r.task), set()).add(_rule(r))
        columns = {id(r): r.model.name + _aside(_rule(r), len(rules[r.model.name, r.task])) for r in mine}
        labels = list(dict.fromkeys(columns.values()))
        rows = []
        for task, metrics in METRICS.items():
            for metric in metrics:
                here = [r for r in mine if r.task == task and metric in r.metrics]
                cells = {columns[id(r)]: _cell(r, metric, None, True) for r in here}
                if cells:
                    rows.append([f'{_WORDS[task]}, {metric}', *(cells.get(label, '') for label in labels)])
        out.append(Table(f'{name}: {mine[0].data.images:,} images, %', ['', *labels], rows, _notes(mine, True)[1:]))
    return out


def _aside(rule: str, count: int) -> str:
    return f' [{rule}]' if count > 1 else ''


def differences(results: Sequence[tuple[Path, Result]], against: str) -> Table:
    """Every other model minus one, on the same images and task, with interval and p of the paired bootstrap.

    Raises:
        GrafalignError: there is no result of that model, or none to compare it with.
    """
    mine = [(p, r) for p, r in results if r.model.name == against]
    if not mine:
        known = ', '.join(dict.fromkeys(r.model.name for _, r in results))
        raise GrafalignError(f'There is no result of {against!r}; the models are {known}.')
    rows = []
    for path, result in results:
        if result.model.name == against:
            continue
        same = [
            (p, r)
            for p, r in mine
            if (r.task, r.data.digest, r.seed, r.draws, _rule(r))
            == (result.task, result.data.digest, result.seed, result.draws, _rule(result))
        ]
        if not same:
            continue
        ours, theirs = Arrays(path), Arrays(same[0][0])
        how = Resampling(ours.groups, result.unit, result.draws, result.seed)
        for metric in METRICS[result.task]:
            if metric in ours.statistics and metric in theirs.statistics:
                d = paired_difference(ours.statistics[metric], theirs.statistics[metric], how)
                rows.append(
                    [
                        f'{result.model.name} - {against}',
                        _set(result),
                        metric,
                        f'{100 * d.value:+.2f}',
                        f'{100 * d.low:+.2f} to {100 * d.high:+.2f}',
                        f'{d.p:.3f}',
                    ]
                )
    if not rows:
        raise GrafalignError(f'No other model was asked the same as {against}: same images, task and protocol.')
    head = ['models', 'set', 'metric', 'difference', '95 % interval', 'p']
    return Table(
        'differences',
        head,
        rows,
        ['Points of percent; images drawn alike for both models; p two-sided, not corrected for many comparisons.'],
    )


def write_table(table: Table, form: Format) -> str:
    """A table as text."""
    if form == 'csv':
        buffer = io.StringIO()
        csv.writer(buffer).writerows([table.head, *table.rows])
        return buffer.getvalue()
    if form == 'latex':
        return _latex(table)
    rule = ['---', *['---:'] * (len(table.head) - 1)]
    lines = [f'### {table.title}', '', *(_pipe(row) for row in (table.head, rule, *table.rows)), '', *table.notes]
    return '\n'.join(lines) + '\n'


def _pipe(cells: Sequence[str]) -> str:
    return '| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |'


def _latex(table: Table) -> str:
    def row(cells: Sequence[str]) -> str:
        return ' & '.join(_escaped(cell) for cell in cells) + r' \\'

    lines = [
        r'\begin{table}',
        rf'\caption{{{_escaped(table.title.capitalize())}. {_escaped(" ".join(table.notes))}}}',
        rf'\begin{{tabular}}{{l{"r" * (len(table.head) - 1)}}}',
        r'\toprule',
        row(table.head),
        r'\midrule',
        *(row(cells) for cells in table.rows),
        r'\bottomrule',
        r'\end{tabular}',
        r'\end{table}',
    ]
    return '\n'.join(lines) + '\n'


def _escaped(text: str) -> str:
    for char, safe in (('\\', r'\textbackslash{}'), ('†', r'\dag{}'), ('‡', r'\ddag{}')):
        text = text.replace(char, safe)
    for char in '&%$#_':
        text = text.replace(char, '\\' + char)
    return text
