"""Fit a filter on labelled kinds, and say per kind what it lets through."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np

from grafalign import console
from grafalign.curation.heads import (
    Floats,
    Head,
    Labelled,
    Unseen,
    balanced,
    fit_head,
    platt,
    precision_at,
    threshold_at,
    unseen,
    upper_bound,
)
from grafalign.curation.labels import FilterLabels, LabelledImages
from grafalign.curation.page import Curve, filter_page
from grafalign.curation.stored import (
    MARKER,
    FilterMarker,
    KindRate,
    Question,
    WebFilter,
    WordsHead,
    load_filter,
    save_heads,
    words_head,
)
from grafalign.errors import InputError, naming_full_disk
from grafalign.files import remove_parts, replacing, write_atomically
from grafalign.locks import exclusive, refuse_other_files
from grafalign.models import Model


def fit_filter(
    labels: FilterLabels,
    model: Model,
    out: Path,
    rate: float = 0.01,
    prior: float = 0.001,
    *,
    by_words: bool = False,
    workers: int | None = None,
) -> WebFilter:
    """Fit one head a question.

    Args:
        labels: the labelled kinds.
        model: whose embeddings are judged.
        out: the filter's folder.
        rate: largest share of any kind of negatives that may be accepted.
        prior: share of remote sensing among what will come, for the precision that is stated.
        by_words: use the shipped prompts, and the labels for calibration and threshold only.
        workers: threads that decode.

    Raises:
        GrafalignError: a folder is missing, a side has no kind, or a kind too few images.
    """
    if not 0 < rate < 1 or not 0 < prior < 1:
        raise InputError(f'A rate of {rate} and a prior of {prior} make no sense; both are shares between 0 and 1.')
    with naming_full_disk(out), exclusive(out):
        refuse_other_files(out, (MARKER, 'heads.npz', 'page.html'), 'the filter')
        remove_parts(out)
        images = LabelledImages(labels, model, workers)
        if images.unreadable:
            path, reason = next(iter(images.unreadable.items()))
            console.log(f'{len(images.unreadable):,} labelled files cannot be read, such as {path} ({reason})')
        heads: dict[str, Head | WordsHead] = {}
        questions, curves = {}, []
        for name, kinds in labels.questions.items():
            data, files = images.of(kinds)
            if by_words:
                words = words_head(model, name)
                slope, shift = platt(words.logits(data.features), data.positive, balanced(data))
                head = heads[name] = WordsHead(words.positive, words.negative, slope, shift)
                logits, without, ridge = head.logits(data.features), {}, None
            else:
                fitted = fit_head(data)
                heads[name], logits, ridge = fitted.head, fitted.logits, fitted.ridge
                without = unseen(data)
            questions[name] = judge(data, logits, without, rate, prior, ridge)
            curves.append(Curve(name, data, logits, files, questions[name]))
        marker = FilterMarker(
            format=FilterMarker.NEWEST,
            model=model.digest,
            model_name=model.name,
            by='words' if by_words else 'labels',
            rate=rate,
            prior=prior,
            questions=questions,
            labels=labels.model_dump(mode='json'),
            versions={n: version(n) for n in ('grafalign', 'numpy', 'scipy')},
            command=' '.join(Path(a).name if i == 0 else a for i, a in enumerate(sys.argv)),
        )
        with replacing(out / 'heads.npz') as part, part.open('wb') as file:
            save_heads(file, heads)
        write_atomically(out / 'page.html', filter_page(marker, curves).encode())
        marker.write(out / MARKER)
    return load_filter(out, model)


def judge(
    data: Labelled,
    logits: Floats,
    without: Mapping[str, Unseen],
    rate: float,
    prior: float,
    ridge: float | None = None,
) -> Question:
    """The threshold for a rate, and what every kind does at it.

    Args:
        data: the labelled images.
        logits: their scores, out of fold, [N].
        without: by kind what becomes of it where the filter was not fitted on it.
        rate: largest share of any kind of negatives that may be accepted.
        prior: share of remote sensing among what will come.
        ridge: of the head.
    """
    threshold = threshold_at(logits, data, rate)
    kinds = []
    for positive in (True, False):
        for kind in data.kinds(positive):
            mine = data.kind == kind
            count, accepted = int(mine.sum()), int((logits[mine] >= threshold).sum())
            new = without[kind].accepted(rate) if kind in without else None
            bound = None if positive else upper_bound(accepted, count)
            kinds.append(
                KindRate(kind=kind, positive=positive, images=count, accepted=accepted, bound=bound, unseen=new)
            )
    negatives = [k for k in kinds if not k.positive]
    worst = max(negatives, key=lambda k: k.accepted / k.images)
    recall = float(np.mean([k.accepted / k.images for k in kinds if k.positive]))
    return Question(
        threshold=threshold,
        recall=recall,
        worst=worst.kind,
        worst_rate=worst.accepted / worst.images,
        worst_bound=max(k.bound or 0.0 for k in negatives),
        precision=precision_at(prior, recall, worst.accepted / worst.images),
        kinds=tuple(kinds),
        ridge=ridge,
    )
