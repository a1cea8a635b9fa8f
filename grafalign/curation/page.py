"""The pages of a filter: what it does with every kind, and what it left of a set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from grafalign.curation.heads import Floats, Labelled
from grafalign.curation.stored import FilterMarker, Question
from grafalign.pages.figures import figure_url
from grafalign.pages.pictures import picture_url
from grafalign.pages.render import render
from grafalign.photos.exif import PhotoError, open_photo

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = 8
_PX = 160
WHAT = {'aerial': 'taken from the air or from space', 'overhead': 'looking straight down'}


@dataclass(frozen=True)
class Curve:
    """What a page needs of one question."""

    name: str
    data: Labelled
    logits: Floats
    """Out of fold, [N]."""
    files: list[Path]
    question: Question


def rates_table(question: Question) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table of kinds, for a page or a screen."""
    head = ['kind', 'images', 'accepted', 'share', 'at most (95 %)', 'kind not seen in fitting']
    rows = []
    for kind in question.kinds:
        share = f'{kind.accepted / kind.images:.3f}'
        rows.append(
            [
                f'{"+" if kind.positive else "-"} {kind.kind}',
                f'{kind.images:,}',
                f'{kind.accepted:,}',
                share,
                '' if kind.bound is None else f'{kind.bound:.3f}',
                '' if kind.unseen is None else f'{kind.unseen:.3f}',
            ]
        )
    return head, rows


def filter_page(marker: FilterMarker, curves: Sequence[Curve]) -> str:
    """The page of a fitted filter."""
    questions = []
    for curve in curves:
        head, rows = rates_table(curve.question)
        groups = [
            (kind, positive, _nearest(curve, kind, positive))
            for positive in (False, True)
            for kind in curve.data.kinds(positive)
        ]
        questions.append(
            {
                'name': WHAT.get(curve.name, curve.name),
                'question': curve.question,
                'head': head,
                'rows': rows,
                'plot': figure_url(_figure(curve)),
                'groups': [g for g in groups if g[2]],
            }
        )
    made = '\n'.join([marker.command, *(f'{n} {v}' for n, v in marker.versions.items()), f'labels: {marker.labels}'])
    title = f'Web filter on {marker.model_name}'
    return render('grafalign.curation', 'filter.html', title=title, made=made, marker=marker, questions=questions)


def selection_page(
    title: str, made: str, summary: Sequence[Sequence[str]], groups: Sequence[tuple[str, list[dict[str, Any]]]]
) -> str:
    """The page of a filtered set: counts, and pictures near the threshold on both sides."""
    return render('grafalign.curation', 'selection.html', title=title, made=made, summary=summary, groups=groups)


def _nearest(curve: Curve, kind: str, positive: bool) -> list[dict[str, Any]]:
    """The images of a kind that are nearest to being taken for the other side."""
    rows = np.flatnonzero(curve.data.kind == kind)
    order = rows[np.argsort(curve.logits[rows] if positive else -curve.logits[rows], kind='stable')][:_SHOWN]
    shown = []
    for row in order.tolist():
        picture = thumbnail(partial(open_photo, curve.files[row], _PX))
        wrong = (curve.logits[row] >= curve.question.threshold) != positive
        shown.append(
            {'picture': picture, 'score': f'{curve.logits[row]:+.1f}', 'wrong': wrong, 'id': curve.files[row].name}
        )
    return shown


def thumbnail(read: Callable[[], Image.Image]) -> str | None:
    """A picture for a page; none where it cannot be read."""
    try:
        return picture_url(read(), _PX)
    except (PhotoError, OSError):
        return None


def _figure(curve: Curve) -> Figure:
    """Recall of the positive kinds against the share of every negative kind that is accepted, over all thresholds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4))
    ax = figure.subplots()
    levels = np.sort(np.unique(curve.logits))
    recall = np.mean([_share(curve, k, levels) for k in curve.data.kinds(True)], axis=0)
    for kind in curve.data.kinds(False):
        rate = _share(curve, kind, levels)
        floor = 0.5 / max(1, int((curve.data.kind == kind).sum()))
        ax.step(np.maximum(rate, floor), recall, where='post', label=kind, linewidth=1.4)
    ax.axhline(curve.question.recall, color='grey', linewidth=0.7, linestyle=':')
    ax.set(xscale='log', xlabel='share of the kind that is accepted', ylabel='recall, mean of the positive kinds')
    ax.set_ylim(max(0.0, float(curve.question.recall) - 0.3), 1.005)
    ax.legend(fontsize=7, loc='lower right')
    ax.grid(alpha=0.25)
    figure.tight_layout()
    return figure


def _share(curve: Curve, kind: str, levels: Floats) -> Floats:
    """Share of a kind at or above each threshold."""
    scores = np.sort(curve.logits[curve.data.kind == kind])
    return np.asarray(1 - np.searchsorted(scores, levels, side='left') / len(scores))
