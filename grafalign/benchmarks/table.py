"""Tables of result files: models by sets, in Markdown, CSV and LaTeX, and differences between two models."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from grafalign.benchmarks.results import Arrays, Result
from grafalign.benchmarks.statistics import Difference, Resampling, paired_difference
from grafalign.errors import InputError
from grafalign.escapes import csv_cell, markdown
from grafalign.files import write_atomically
from grafalign.foreign import parse_object

Format = Literal['markdown', 'latex']
METRICS = {
    'classification': ('top1', 'top5', 'balanced', 'map'),
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


def newest(found: Sequence[tuple[Path, Result]]) -> list[tuple[Path, Result]]:
    """Without what was asked again of the same model name, set and protocol after weights or files had changed."""
    last: dict[tuple[str, ...], tuple[Path, Result]] = {}
    for path, result in sorted(found, key=lambda f: f[0].stat().st_mtime_ns):
        question = (result.model.name, result.data.name, result.data.split, result.task, _protocol(result))
        last[question] = path, result
    kept = {path for path, _ in last.values()}
    return [(path, result) for path, result in found if path in kept]


class _Names:
    """What rows and columns are called: as short as tells them apart."""

    def __init__(self, results: Sequence[Result]) -> None:
        self._sets: dict[str, set[str]] = {}
        self._rules: dict[tuple[str, str, str, str], set[str]] = {}
        for r in results:
            self._sets.setdefault(_set(r), set()).add(r.data.digest)
            self._rules.setdefault((r.model.name, r.task, r.data.digest, _rule(r)), set()).add(_protocol(r))
        self._said: dict[tuple[str, str], set[str]] = {}
        for r in results:
            self._said.setdefault((r.model.name, r.task), set()).add(self.rule(r))

    def data(self, result: Result) -> str:
        name = _set(result)
        return name if len(self._sets[name]) == 1 else f'{name} ({result.data.digest[:4]})'

    def rule(self, result: Result) -> str:
        rule = _rule(result)
        same = self._rules[result.model.name, result.task, result.data.digest, rule]
        return rule if len(same) == 1 else f'{rule} ({_protocol(result)[:4]})'

    def model(self, result: Result) -> str:
        several = len(self._said[result.model.name, result.task]) > 1
        return f'{result.model.name} [{self.rule(result)}]' if several else result.model.name


def tables(results: Sequence[Result], *, intervals: bool = True) -> list[Table]:
    """One table a task: a row a model and protocol, a column a set and metric; values in percent, the best marked *.

    A model has several rows where it was asked by several protocols, and a row says which if they differ.
    """
    out = []
    for task in METRICS:
        mine = [r for r in results if r.task == task]
        if not mine:
            continue
        names = _Names(mine)
        columns = [
            (name, metric)
            for name in dict.fromkeys(names.data(r) for r in mine)
            for metric in METRICS[task]
            if any(metric in r.metrics for r in mine if names.data(r) == name)
        ]
        rows: dict[tuple[str, str], dict[tuple[str, str], Result]] = {}
        for result in mine:
            row = rows.setdefault((result.model.name, names.rule(result)), {})
            for metric in result.metrics:
                row[names.data(result), metric] = result
        several = len({rule for _, rule in rows}) > 1
        head = ['model', *(['protocol'] if several else []), *(f'{name} {metric}' for name, metric in columns)]
        best = {}
        for column in columns:
            fair = [row[column] for row in rows.values() if column in row and _fair(row[column])]
            best[column] = max((r.metrics[column[1]].value for r in fair), default=None)
        lines = []
        for (model, rule), row in rows.items():
            cells = [_cell(row[c], c[1], best[c], intervals) if c in row else '' for c in columns]
            lines.append([model, *([rule] if several else []), *cells])
        out.append(Table(_WORDS[task], head, lines, _notes(mine, several)))
    return out


def _set(result: Result) -> str:
    return result.data.name if result.data.split == 'all' else f'{result.data.name} {result.data.split}'


def _protocol(result: Result) -> str:
    """Digest of all that decides how the question was put; a model's own input size and normalisation aside."""
    rules = result.protocol.model_dump()
    pixels = {k: v for k, v in result.protocol.pixels.items() if k in ('fit', 'value_range')}
    question = repr([rules | {'pixels': pixels}, result.data.classes, result.draws, result.seed])
    return hashlib.blake2b(question.encode(), digest_size=4).hexdigest()


def _rule(result: Result) -> str:
    """The protocol in a few words."""
    p = result.protocol
    prompts = '' if not p.templates else p.templates[0] if len(p.templates) == 1 else f'{len(p.templates)} prompts'
    stride = f'stride {p.stride_px} px' if p.stride_px else ''
    parts = [prompts, str(p.pixels.get('fit', '')), p.duplicates and f'{p.duplicates} copies', stride]
    return ', '.join([*(part for part in parts if part), *(['transductive'] if p.transductive else [])])


def _fair(result: Result) -> bool:
    """Whether a value may be called the best of others."""
    return not (result.protocol.transductive or result.data.partial)


def _cell(result: Result, metric: str, best: float | None, intervals: bool) -> str:
    v = result.metrics[metric]
    mark = '†' * result.protocol.transductive + '‡' * result.data.partial
    if _fair(result) and best is not None and v.value >= best:
        mark = '*'
    return f'{100 * v.value:.2f}{mark}' + (f' ({100 * v.low:.1f} to {100 * v.high:.1f})' if intervals else '')


def _notes(results: Sequence[Result], several: bool) -> list[str]:
    rules = sorted({_rule(r) for r in results})
    units = sorted({r.unit for r in results})
    notes = [f'Values in percent, 95 % bootstrap intervals over {" or ".join(units)}; * best of a column.']
    if not several and rules[0]:
        notes.append(f'Protocol: {rules[0]}.')
    if any(r.protocol.transductive for r in results):
        notes.append('† uses statistics of the test images: not comparable with the others.')
    guessed = {
        r.model.name: r.model.metadata['activation'] for r in results if r.model.metadata.get('activation_is_a_guess')
    }
    notes += [f'{name} is read with {how}: its file does not say its activation.' for name, how in guessed.items()]
    cut = {r.model.name: (r.extra['captions_cut'], r.extra['captions']) for r in results if r.extra.get('captions_cut')}
    notes += [f'{name} reads only the begin of {n:,} of {of:,} captions.' for name, (n, of) in cut.items()]
    if any(r.data.partial for r in results):
        notes.append("‡ on part of the set: not the set's number.")
    return notes


def by_set(results: Sequence[Result]) -> list[Table]:
    """One table a set: a row a metric, a column a model, or several where a model was asked by several protocols."""
    out = []
    names = _Names(results)
    for name in dict.fromkeys(names.data(r) for r in results):
        mine = [r for r in results if names.data(r) == name]
        labels = list(dict.fromkeys(names.model(r) for r in mine))
        rows = []
        for task, metrics in METRICS.items():
            for metric in metrics:
                here = [r for r in mine if r.task == task and metric in r.metrics]
                cells = {names.model(r): _cell(r, metric, None, True) for r in here}
                if cells:
                    rows.append([f'{_WORDS[task]}, {metric}', *(cells.get(label, '') for label in labels)])
        out.append(Table(f'{name}: {mine[0].data.images:,} images, %', ['', *labels], rows, _notes(mine, True)[1:]))
    return out


def long_csv(results: Sequence[Result]) -> str:
    """Every value in a row of its own, for programs: shares of one, not rounded."""
    buffer = io.StringIO()
    out = csv.writer(buffer, lineterminator='\n')
    head = ['model', 'kind', 'set', 'split', 'task', 'protocol', 'metric', 'value', 'low', 'high', 'images', 'unit']
    out.writerow([*head, 'partial', 'transductive', 'key'])
    for r in results:
        for metric, v in r.metrics.items():
            row: list[object] = [r.model.name, r.model.kind, r.data.name, r.data.split, r.task, _rule(r), metric]
            row += [v.value, v.low, v.high, r.data.images, r.unit, r.data.partial, r.protocol.transductive, r.key]
            out.writerow([csv_cell(cell) for cell in row])
    return buffer.getvalue()


def plain_csv(table: Table) -> str:
    """A table as it is shown, as CSV."""
    buffer = io.StringIO()
    rows = [[csv_cell(cell) for cell in row] for row in (table.head, *table.rows)]
    csv.writer(buffer, lineterminator='\n').writerows(rows)
    return buffer.getvalue()


def _kept_differences(path: Path, result: Result, other_path: Path, other: Result) -> dict[str, Difference]:
    """Differences of two results in every metric, drawn once and kept beside them under both keys."""
    question = f'{result.key}-{other.key}-{result.draws}-{result.seed}'
    file = path.parent / 'cache' / f'difference-{hashlib.blake2b(question.encode(), digest_size=12).hexdigest()}.json'
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        kept = parse_object(file.read_text())
        return {metric: Difference(**values) for metric, values in kept.items()}
    ours, theirs = Arrays(path), Arrays(other_path)
    how = Resampling(ours.groups, result.unit, result.draws, result.seed)
    found = {
        metric: paired_difference(ours.statistics[metric], theirs.statistics[metric], how)
        for metric in METRICS[result.task]
        if metric in ours.statistics and metric in theirs.statistics
    }
    with contextlib.suppress(OSError):  # results may lie where nothing can be written
        file.parent.mkdir(exist_ok=True)
        write_atomically(file, json.dumps({metric: asdict(d) for metric, d in found.items()}).encode())
    return found


def differences(results: Sequence[tuple[Path, Result]], against: str) -> Table:
    """Every other model minus one, on the same images and task, with interval and p of the paired bootstrap.

    Raises:
        GrafalignError: there is no result of that model, or none to compare it with.
    """
    mine = [(p, r) for p, r in results if r.model.name == against]
    if not mine:
        known = ', '.join(dict.fromkeys(r.model.name for _, r in results))
        raise InputError(f'There is no result of {against!r}; the models are {known}.')
    rows = []
    for path, result in results:
        if result.model.name == against:
            continue
        same = [
            (p, r)
            for p, r in mine
            if (r.task, r.data.digest, _protocol(r)) == (result.task, result.data.digest, _protocol(result))
        ]
        if not same:
            continue
        for metric, d in _kept_differences(path, result, *same[0]).items():
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
        raise InputError(f'No other model was asked the same as {against}: same images, task and protocol.')
    head = ['models', 'set', 'metric', 'difference', '95 % interval', 'p']
    return Table(
        'differences',
        head,
        rows,
        ['Points of percent; images drawn alike for both models; p two-sided, not corrected for many comparisons.'],
    )


def write_table(table: Table, form: Format) -> str:
    """A table as text."""
    if form == 'latex':
        return _latex(table)
    rule = ['---', *['---:'] * (len(table.head) - 1)]
    head, *rows = ([markdown(cell) for cell in row] for row in (table.head, *table.rows))
    lines = [f'### {markdown(table.title)}', '', *(_pipe(row) for row in (head, rule, *rows)), '']
    lines += [markdown(note) for note in table.notes]
    return '\n'.join(lines) + '\n'


def _pipe(cells: Sequence[str]) -> str:
    return '| ' + ' | '.join(cells) + ' |'


_LATEX = {c: '\\' + c for c in '&%$#_{}'} | {
    '\\': r'\textbackslash{}',
    '^': r'\textasciicircum{}',
    '~': r'\textasciitilde{}',
    '†': r'\dag{}',
    '‡': r'\ddag{}',
}


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
    return ''.join(_LATEX.get(char, char) for char in text)
