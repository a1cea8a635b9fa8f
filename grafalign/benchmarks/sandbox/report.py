"""`report.html` and `report.json`: the chain in pictures, the table of results, and where the time went.

The page is one file that needs no network. Parts for which there is nothing (no labels, no run) are left out.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grafalign.benchmarks.sandbox import figures
from grafalign.benchmarks.sandbox.evaluate import Evaluation
from grafalign.benchmarks.statistics import confusion
from grafalign.estimate import Estimate
from grafalign.files import write_atomically
from grafalign.pages import confusion_figure, figure_url, render
from grafalign.report import Report, Setting
from grafalign.retrieval import FAISS_VERSION
from grafalign.store import PairStore
from grafalign.training.run_marker import RunMarker

_QUERIES = ('marina', 'stadium', 'solar farm', 'old town', 'golf course', 'beach', 'airport runway')


@dataclass(frozen=True)
class Section:
    """A heading, a few words, and pictures."""

    title: str
    words: str
    pictures: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    """A table; the first row is its head."""


def pair_counts(store: PairStore) -> dict[str, int]:
    """The `pairs` part of report.json."""
    summary = store.marker.summary
    return {} if summary is None else summary.model_dump(include={'photos', 'rejected', 'tiles', 'pairs'})


def run_log(run: Path) -> list[dict[str, float]]:
    """The log of a run."""
    path = run / 'log.jsonl'
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_report(
    out: Path,
    title: str,
    store: PairStore,
    runs: Mapping[str, Path],
    seconds: Mapping[str, float] | None = None,
    evaluation: Evaluation | None = None,
    setting: Mapping[str, Any] | None = None,
    notes: str = '',
) -> Report:
    """Write `report.html` and `report.json` into a folder.

    Args:
        out: the folder.
        title: heading of the page.
        store: the pair store.
        runs: names to run folders.
        seconds: seconds of each step.
        evaluation: results against labels, where there are any.
        setting: settings, seed, cores and command, for the record.
        notes: a paragraph under the heading.

    Returns:
        What report.json says.
    """
    versions = {n: version(n) for n in ('grafalign', 'torch', 'open_clip_torch', 'rasterio', 'numpy')}
    report = Report(
        format=Report.NEWEST,
        pairs=pair_counts(store),
        classification={} if evaluation is None else evaluation.classification,
        segmentation={} if evaluation is None else evaluation.segmentation,
        retrieval={} if evaluation is None else evaluation.retrieval,
        sets=None if evaluation is None else evaluation.sets,
        runs={n: RunMarker.read(p / 'model.json') for n, p in runs.items() if (p / 'model.json').exists()},
        seconds={k: round(v, 1) for k, v in (seconds or {}).items()},
        setting=Setting(
            **(setting or {}),
            machine=f'{platform.machine()}, {platform.system()}',
            versions={**versions, 'faiss': FAISS_VERSION},
        ),
    )
    page = render(
        'grafalign.benchmarks.sandbox',
        'report.html',
        title=title,
        notes=notes,
        cards=_cards(report),
        sections=_sections(store, runs, report, evaluation),
        made='' if report.setting is None else report.setting.model_dump_json(indent=2, exclude_none=True),
    )
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / 'report.html', page.encode())
    report.write(out / 'report.json')
    return report


def task_scores(report: Report) -> list[tuple[str, str, dict[str, Estimate]]]:
    """Task, name of its main metric, and that metric of every model."""
    return [
        ('classification', 'top-1 accuracy', {n: s.accuracy for n, s in report.classification.items()}),
        ('segmentation', 'mIoU', {n: s.miou for n, s in report.segmentation.items()}),
        ('retrieval', 'mAP@20', {n: s.map_at_20 for n, s in report.retrieval.items()}),
    ]


def result_rows(report: Report) -> list[list[str]]:
    """The table of results: task, model, value, interval, share of the supervised bound, times the frozen CLIP."""
    rows = [['task', 'model', 'value', '95 % interval', 'of supervised', 'x frozen CLIP']]
    for task, metric, scores in task_scores(report):
        bound, floor = (scores[n].value if n in scores else 0.0 for n in ('supervised', 'frozen_clip'))
        for name, score in scores.items():
            rows.append(
                [
                    f'{task} ({metric})',
                    name,
                    f'{score.value:.3f}',
                    f'{score.low:.3f} to {score.high:.3f}',
                    f'{score.value / bound:.2f}' if bound else '',
                    f'{score.value / floor:.1f}' if floor else '',
                ]
            )
    return rows


def _cards(report: Report) -> list[tuple[str, str, str]]:
    pairs = report.pairs
    cards = [
        ('photos', f'{pairs["photos"]:,}', f'{pairs["rejected"]:,} not used'),
        ('pairs', f'{pairs["pairs"]:,}', f'{pairs["tiles"]:,} tiles'),
    ]
    for _, metric, scores in task_scores(report):
        ours = next((n for n in scores if n.startswith('grafalign')), None)
        if ours is not None:
            others = ', '.join(f'{n} {scores[n].value:.2f}' for n in ('frozen_clip', 'supervised') if n in scores)
            cards.append((metric, f'{scores[ours].value:.2f}', others.replace('_', ' ')))
    if report.seconds.get('total'):
        cards.append(('seconds', f'{report.seconds["total"]:.0f}', 'from nothing to this page'))
    return cards


def _sections(
    store: PairStore, runs: Mapping[str, Path], report: Report, evaluation: Evaluation | None
) -> list[Section]:
    url = figure_url
    found = []
    if evaluation is not None:
        units = ' and '.join(dict.fromkeys([evaluation.sets.tile_unit, evaluation.sets.chip_unit]))
        found.append(
            Section(
                'Results on places nobody trained on',
                'The same encoder three ways: frozen CLIP put on tiles as it is, grafalign trained with photos and no '
                'label, and a bound trained with true labels for as many steps. Bars are 95 % bootstrap intervals over '
                f'{units}; rows with_prior add the photo prior to the same model.',
                [url(figures.result_bars(task_scores(report)))],
                result_rows(report),
            )
        )
    found.append(
        Section(
            'Where',
            'Scenes and tiles by split. Splits are blocks of land, with an empty strip between them.',
            [url(figures.overview_map(store))],
        )
    )
    found.append(
        Section(
            'Pairs',
            'Tiles with the places of some of their photos, and those photos. A camera looks somewhere: what '
            'it shows is often not what lies under it.',
            [url(figures.pair_gallery(store))],
        )
    )
    logs = {n: log for n, p in runs.items() if (log := run_log(p))}
    if logs:
        found.append(Section('Training', 'Loss and label-free validation.', [url(figures.loss_curves(logs))]))
    if evaluation is not None:
        found += _labelled(store, report, evaluation)
    reasons = {} if store.marker.summary is None else store.marker.summary.reasons
    if reasons:
        rows = [['reason', 'count'], *[[k, f'{v:,}'] for k, v in reasons.items()]]
        found.append(Section('Not used', 'Every rejected photo, tile and scene read is in rejected.parquet.', [], rows))
    if report.seconds:
        rows = [['step', 'seconds'], *[[k, f'{v:.1f}'] for k, v in report.seconds.items()]]
        found.append(Section('Where the time went', '', [], rows))
    return found


def _labelled(store: PairStore, report: Report, evaluation: Evaluation) -> list[Section]:
    url = figure_url
    image = next((n for n in evaluation.top if n.startswith('grafalign')), None)
    patch = next((n for n in evaluation.maps if n.startswith('grafalign')), None)
    found = []
    if patch is not None:
        models = [m for m in ('frozen_clip', patch, 'supervised') if m in evaluation.maps]
        iou = {m: report.segmentation[m].iou for m in models}
        rows = [['class', *models], *[[c, *[f'{iou[m][c]:.2f}' for m in models]] for c in evaluation.classes]]
        found.append(
            Section(
                'Segmentation',
                'Every pixel named by text alone, beside the truth. Roads (white) are not scored: they are '
                'narrower than a patch.',
                [url(figures.segmentation_figure(evaluation, store, models))],
                rows,
            )
        )
    if image is not None:
        present = np.bincount(evaluation.test.labels, minlength=len(evaluation.classes)) > 0
        queries = [q for q in _QUERIES if q in evaluation.classes and present[evaluation.classes.index(q)]]
        if queries:
            picture = url(figures.retrieval_figure(evaluation, store, image, queries))
            found.append(
                Section('Retrieval', 'The best held-out tiles for a text; green where the truth agrees.', [picture])
            )
        picture = url(confusion_figure(_confusion(evaluation, image), evaluation.classes))
        found.append(Section('Confusions', 'Which classes are taken for which.', [picture]))
    return found


def _confusion(evaluation: Evaluation, model: str) -> npt.NDArray[np.int64]:
    return confusion(evaluation.test.labels, evaluation.guesses[model], len(evaluation.classes))
