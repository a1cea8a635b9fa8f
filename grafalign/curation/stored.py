"""A filter on disk, and its scores.

FILTER/filter.json   `FilterMarker`; written last
FILTER/heads.npz     weights of the heads, one a question
FILTER/page.html     rates, curves and the nearest mistakes
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from grafalign.artefacts import Marker
from grafalign.config import read_yaml
from grafalign.curation.heads import Floats, Head
from grafalign.errors import DamagedError, InputError, StaleError
from grafalign.models import Model

WORDS = Path(__file__).with_name('words.yaml')
_TEMPERATURE = 100.0
MARKER = 'filter.json'


class KindRate(BaseModel):
    """What a head does with one kind of labelled images."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    kind: str
    positive: bool
    images: int
    accepted: int
    """At the threshold, by a head that had not seen the image."""
    bound: float | None
    """Clopper and Pearson's 95 % upper bound of the share accepted; negatives only."""
    unseen: float | None
    """Share accepted by a filter that was fitted on the other kinds alone, at their threshold for the rate."""


class Question(BaseModel):
    """One head, at the threshold that was asked for."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    threshold: float
    """Log odds at a prior of one half, from which on an image is accepted."""
    recall: float
    """Mean over the positive kinds."""
    worst: str
    """The negative kind of which most is accepted."""
    worst_rate: float
    worst_bound: float
    """The largest bound of any negative kind."""
    precision: float
    """At the prior, if all that comes were of the worst kind."""
    kinds: tuple[KindRate, ...]
    ridge: float | None
    """None for a head of words."""


class FilterMarker(Marker):
    """`filter.json`."""

    REMEDY: ClassVar[str] = 'fit it again'

    format: int
    model: str
    """Digest of the model whose embeddings it judges."""
    model_name: str
    by: str
    """labels or words."""
    rate: float
    """Largest share of any negative kind that was to be accepted."""
    prior: float
    """Share of remote sensing among what comes, for the precision."""
    questions: dict[str, Question]
    labels: dict[str, Any] = {}
    seed: int = 0
    versions: dict[str, str] = {}
    command: str = ''


class WordsHead:
    """Log odds of two sides of prompts at CLIP's temperature; no label was seen.

    Args:
        positive: text embeddings [P, D].
        negative: text embeddings [Q, D].
        slope: calibration of its scores, where labels were given.
        shift: the same.
    """

    def __init__(
        self,
        positive: npt.NDArray[np.float32],
        negative: npt.NDArray[np.float32],
        slope: float = 1.0,
        shift: float = 0.0,
    ) -> None:
        self.positive, self.negative, self.slope, self.shift = positive, negative, slope, shift

    def logits(self, features: npt.NDArray[np.generic]) -> Floats:
        """Log odds [N] of features [N, D]."""
        x = features.astype(np.float32)
        sides = [np.logaddexp.reduce(_TEMPERATURE * (x @ v.T), axis=1) for v in (self.positive, self.negative)]
        return np.asarray(self.slope * (sides[0] - sides[1]) + self.shift, dtype=np.float64)


def words_head(model: Model, question: str) -> WordsHead:
    """The head of the shipped prompts of a question."""
    prompts = read_yaml(WORDS)[question]
    return WordsHead(model.embed_texts(prompts['positive']), model.embed_texts(prompts['negative']))


@dataclass(frozen=True)
class WebFilter:
    """A filter that is ready to judge embeddings of its model."""

    path: Path | None
    marker: FilterMarker
    heads: dict[str, Head | WordsHead]

    def logits(self, features: npt.NDArray[np.generic]) -> dict[str, Floats]:
        """Log odds [N] by question, of unit embeddings [N, D]."""
        return {name: head.logits(features) for name, head in self.heads.items()}

    def accepts(self, logits: dict[str, Floats]) -> npt.NDArray[np.bool_]:
        """Whether images pass every question, [N]."""
        passed = [logits[name] >= question.threshold for name, question in self.marker.questions.items()]
        return np.asarray(np.logical_and.reduce(passed))


def save_heads(file: BinaryIO, heads: dict[str, Head | WordsHead]) -> None:
    """Write `heads.npz`."""
    arrays: dict[str, Any] = {}
    for name, head in heads.items():
        if isinstance(head, Head):
            arrays |= {f'{name}.weight': head.weight, f'{name}.bias': head.bias}
        else:
            arrays |= {f'{name}.positive': head.positive, f'{name}.negative': head.negative}
        arrays |= {f'{name}.slope': head.slope, f'{name}.shift': head.shift}
    np.savez(file, **arrays)


def load_filter(path: Path, model: Model | None = None) -> WebFilter:
    """Open a fitted filter.

    Raises:
        GrafalignError: there is none, it is damaged, or of another model.
    """
    if not (path / MARKER).is_file():
        raise InputError(f'{path} holds no filter (no {MARKER}); make one with `grafalign captions fit-filter`.')
    marker = FilterMarker.read(path / MARKER)
    if model is not None and marker.model != model.digest:
        raise StaleError(
            f'{path} judges embeddings of {marker.model_name}, and {model.name} is another model; fit it again.'
        )
    heads: dict[str, Head | WordsHead] = {}
    try:
        with np.load(path / 'heads.npz', allow_pickle=False) as arrays:
            for name in marker.questions:
                slope, shift = float(arrays[f'{name}.slope']), float(arrays[f'{name}.shift'])
                if f'{name}.weight' in arrays:
                    heads[name] = Head(arrays[f'{name}.weight'], float(arrays[f'{name}.bias']), slope, shift)
                else:
                    heads[name] = WordsHead(arrays[f'{name}.positive'], arrays[f'{name}.negative'], slope, shift)
    except (OSError, ValueError, KeyError) as error:
        raise DamagedError(f'{path}/heads.npz is damaged ({error}); {FilterMarker.REMEDY}.') from None
    return WebFilter(path, marker, heads)
