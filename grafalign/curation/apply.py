"""Filter a caption set: what is kept is a set of its own over the same images, what is not is named with its score."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from grafalign import console
from grafalign.captions import CaptionSet
from grafalign.captions.pictures import Pictures
from grafalign.config import read_yaml
from grafalign.curation.features import ImageFeatures, image_features
from grafalign.curation.page import selection_page, thumbnail
from grafalign.curation.select import select
from grafalign.curation.stored import WebFilter
from grafalign.errors import InputError
from grafalign.files import parquet_batches, write_atomically
from grafalign.models import Model
from grafalign.photos.fetch import RemoteSettings
from grafalign.processes import Team

KEYWORDS = Path(__file__).with_name('keywords.yaml')
_BLOCK = 1 << 16
Logits = dict[str, npt.NDArray[np.float32]]
_SHOWN = 24


@dataclass(frozen=True)
class FilterSummary:
    """What a filter left."""

    images: int
    """Images that were judged."""
    kept: int
    captions: int
    """Captions of those that were kept."""
    unreadable: int
    without_keyword: int
    """Images that were not looked at, as none of their captions has a keyword; 0 without keywords."""
    kept_without_keyword: int
    """Images that were kept though no caption of theirs has a keyword of the shipped list."""


def filter_set(
    captions: CaptionSet,
    out: Path,
    model: Model,
    web_filter: WebFilter,
    *,
    keywords: list[str] | None = None,
    workers: int | None = None,
    remote: RemoteSettings | None = None,
) -> FilterSummary:
    """Write the images that pass a filter, with their captions, as a set of its own; images stay where they are.

    Args:
        captions: the set.
        out: folder of the new set.
        model: whose embeddings the filter judges.
        web_filter: the filter.
        keywords: look only at images of which a caption has one of these; all by default.
        workers: threads that decode.
        remote: how addresses are fetched.

    Raises:
        GrafalignError: no image passes, or `out` holds other files.
    """
    if captions.marker.root is None:
        raise InputError(f'{captions.path} is a set of tiles, which are remote sensing; filter sets of pictures.')
    with_keyword = _with_keyword(captions, shipped_keywords() if keywords is None else keywords)
    features = features_to_filter(captions, model, keywords, workers, remote)
    logits, accepted = _judge(web_filter, features)
    unreadable = np.zeros(len(captions), dtype=bool)
    unreadable[list(features.unreadable)] = True
    looked_at = with_keyword if keywords is not None else np.ones(len(captions), dtype=bool)
    kept = accepted & ~unreadable & looked_at
    if not kept.any():
        raise InputError(
            f"No image of {captions.path} passes the filter; look at the filter's page, or fit it with a larger --rate."
        )
    reasons = np.where(looked_at, 'not remote sensing', 'no keyword in its captions').astype(object)
    for row, reason in features.unreadable.items():
        reasons[row] = reason
    reasons[kept] = None
    named = {'model', 'model_name', 'by', 'rate', 'prior'}
    settings = {
        'filter': web_filter.marker.model_dump(mode='json', include=named),
        'thresholds': {n: q.threshold for n, q in web_filter.marker.questions.items()},
        'keywords': keywords,
    }
    done = select(captions, out, reasons, settings, logits)
    summary = FilterSummary(
        images=len(captions),
        kept=done.images,
        captions=done.captions,
        unreadable=int(unreadable.sum()),
        without_keyword=0 if keywords is None else int((~with_keyword).sum()),
        kept_without_keyword=int((kept & ~with_keyword).sum()),
    )
    page = _page(captions, web_filter, logits, kept, unreadable, summary)
    write_atomically(out / 'page.html', page.encode())
    console.log(f'{out / "page.html"} shows what was kept and what was not')
    return summary


def shipped_keywords() -> list[str]:
    """The words that ship with grafalign."""
    return [str(word) for word in read_yaml(KEYWORDS)]


def features_to_filter(
    captions: CaptionSet,
    model: Model,
    keywords: list[str] | None = None,
    workers: int | None = None,
    remote: RemoteSettings | None = None,
    team: Team | None = None,
) -> ImageFeatures:
    """Embed the images that a filter looks at; several processes share them if all call this before the first filters.

    Args:
        captions: the set.
        model: whose embeddings the filter judges.
        keywords: look only at images of which a caption has one of these; all by default.
        workers: threads that decode.
        remote: how addresses are fetched.
        team: the processes.

    Raises:
        GrafalignError: the images are gone, or no single one can be read.
    """
    some = None if keywords is None else _with_keyword(captions, keywords)
    return image_features(captions, model, workers, remote, some, team)


def _with_keyword(captions: CaptionSet, keywords: list[str]) -> npt.NDArray[np.bool_]:
    """Which images have a caption with a keyword, [N]; as words, in any case."""
    if not keywords:
        raise InputError('The list of keywords is empty; give some, or leave --keywords out.')
    pattern = re.compile(r'\b(' + '|'.join(re.escape(word) for word in keywords) + r')', re.IGNORECASE)
    found = np.zeros(len(captions), dtype=bool)
    for batch in parquet_batches(captions.path / 'captions.parquet', _BLOCK, ['image', 'text']):
        has = np.array([pattern.search(text) is not None for text in batch['text'].to_pylist()], dtype=bool)
        found[batch['image'].to_numpy()[has]] = True
    return found


def _judge(web_filter: WebFilter, features: ImageFeatures) -> tuple[Logits, npt.NDArray[np.bool_]]:
    """Log odds by question and whether images pass, block by block."""
    count = len(features.vectors)
    logits = {name: np.empty(count, dtype=np.float32) for name in web_filter.heads}
    accepted = np.empty(count, dtype=bool)
    for first in range(0, count, _BLOCK):
        part = slice(first, first + _BLOCK)
        found = web_filter.logits(np.asarray(features.vectors[part]))
        accepted[part] = web_filter.accepts(found)
        for name, values in found.items():
            logits[name][part] = values
    return logits, accepted


def _page(
    captions: CaptionSet,
    web_filter: WebFilter,
    logits: Logits,
    kept: npt.NDArray[np.bool_],
    unreadable: npt.NDArray[np.bool_],
    summary: FilterSummary,
) -> str:
    """Counts, and pictures on both sides of the threshold and far from it."""
    margin = np.min([logits[n] - q.threshold for n, q in web_filter.marker.questions.items()], axis=0)
    pictures = Pictures(captions)
    inside, outside = np.flatnonzero(kept), np.flatnonzero(~kept & ~unreadable)
    inside = inside[np.argsort(margin[inside], kind='stable')]
    outside = outside[np.argsort(-margin[outside], kind='stable')]
    rng = np.random.default_rng(0)
    groups = {
        'Kept by the smallest margin': inside[:_SHOWN],
        'Left out by the smallest margin': outside[:_SHOWN],
        'Kept, at random': rng.permutation(inside)[:_SHOWN],
        'Left out, at random': rng.permutation(outside)[:_SHOWN],
    }
    texts = _first_texts(captions, np.unique(np.concatenate(list(groups.values()))))

    def shown(rows: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
        cells = []
        for row in rows.tolist():
            text = texts.get(row, '')
            remote = pictures.is_remote(row)
            picture = None if remote else thumbnail(partial(pictures.read, row, 160))
            cells.append({'picture': picture, 'score': f'{margin[row]:+.1f}', 'text': text[:120]})
        return cells

    rows = [(name.replace('_', ' '), f'{value:,}') for name, value in asdict(summary).items()]
    made = ' '.join(Path(a).name if i == 0 else a for i, a in enumerate(sys.argv))
    sections = [(name, shown(of_group)) for name, of_group in groups.items() if len(of_group)]
    pictures.close()
    return selection_page(f'What is kept of {captions.path.name}', made, rows, sections)


def _first_texts(captions: CaptionSet, rows: npt.NDArray[np.int64]) -> dict[int, str]:
    """The first caption of some images, where they have one."""
    first: dict[int, str] = {}
    for batch in parquet_batches(captions.path / 'captions.parquet', _BLOCK, ['image', 'text']):
        mine = batch.filter(pa.array(np.isin(batch['image'].to_numpy(), rows)))
        for image, text in zip(mine['image'].to_pylist(), mine['text'].to_pylist(), strict=True):
            first.setdefault(image, text)
    return first
