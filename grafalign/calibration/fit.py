"""Probabilities from held-out photos: how sharp they are, how much photos' favourites count, what is none of them.

A cell's classes have the probabilities softmax(score / T + b log share), with the share of each class among all photos
(see `zeroshot.photo_prior`). T and b are fitted on photos that no training saw. Of each, CLIP says which class it
shows; which ground it shows is not known exactly, so its class has the probability

    (1 - a) * mean over points in its view  +  a * share of the class

with the softmax at points of the field, and a fitted as well. Otherwise every photo of what is next to its geotag would
count against the model, and T would come out too high: a map's pixels are no photos. Photos also favour places of some
classes over others, so each photo counts as much as the class that the map gives its view has land on the map (a
correction of covariate shift: Shimodaira 2000).

"None of these" compares with contrasting words: where all classes together, against all contrasting words together,
are less likely than at all but a given share of the places whose photos show one of the classes, nothing is said.
No label of a satellite image is used anywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from grafalign.calibration.contrast import apart
from grafalign.calibration.places import PhotoPlaces
from grafalign.errors import InputError
from grafalign.zeroshot.classify import scores_by_class

_MOST_SCORES = 32_000_000
"""Scores of points in view that a fit looks at, at 8 bytes each; fewer photos take part beyond."""
_HEAVIEST = 10.0
"""Most that one photo may count, in photos."""
_FEWEST = 20
"""Photos that show one of the classes, for a share of their places to mean anything."""
_ROUNDS = 3
"""Fits, each with the weights of the map that the one before makes."""
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Question:
    """What is asked: classes, each of one vector or of several of which the best counts."""

    vectors: Floats
    """[V, D]; unit where they are words."""
    class_of: npt.NDArray[np.int64]
    """[V], rising from 0."""
    offsets: Floats | None = None
    """Added to the scores of the classes, [K]; None for none."""

    @property
    def classes(self) -> int:
        """K."""
        return int(self.class_of[-1]) + 1

    def scores(self, embeddings: Tensor) -> Tensor:
        """Scores [..., K] of embeddings [..., D]."""
        vectors = torch.from_numpy(self.vectors).to(embeddings.dtype)
        scores = scores_by_class(embeddings @ vectors.T, self.class_of)
        return scores if self.offsets is None else scores + torch.from_numpy(self.offsets).to(scores.dtype)


@dataclass(frozen=True)
class Contrast:
    """What the classes are compared with."""

    vectors: Floats
    """Unit vectors of the contrasting words, [C, D]."""
    offsets: Floats
    """Added to their scores, [C]."""
    least: float
    """Margin below which a cell is none of the classes."""


@dataclass(frozen=True)
class Calibration:
    """How scores become probabilities."""

    temperature: float
    """T."""
    offsets: Floats
    """Added to the classes' scores before they are compared and divided by T, [K]: T b log share."""
    prior: float
    """b."""
    anything: float
    """Share of photos that show anything."""
    photos: int
    """Photos it was fitted on."""
    contrast: Contrast | None

    def margins(self, scores: Tensor, embeddings: Tensor) -> Tensor:
        """Log odds of all classes together against all contrasting words together.

        Args:
            scores: of the classes, without offsets, [..., K].
            embeddings: [..., D].

        Returns:
            [...]
        """
        contrast = self.contrast
        if contrast is None:
            raise InputError('There are no contrasting words in this calibration; calibrate with a share to leave out.')
        return _margins(
            scores,
            embeddings @ torch.from_numpy(contrast.vectors).to(embeddings.dtype).T,
            torch.from_numpy(self.offsets),
            torch.from_numpy(contrast.offsets),
            self.temperature,
        )


def calibrate(
    places: PhotoPlaces,
    question: Question,
    land: Floats,
    contrasting: Floats | None = None,
    leave_out: float = 0.0,
) -> Calibration:
    """Fit probabilities to held-out photos.

    Args:
        places: the photos, and the ground that they show.
        question: the classes.
        land: embeddings of a sample of the land of the map, [N, D].
        contrasting: unit vectors of contrasting words, [C, D]; those that ask for what a class asks for are left out.
        leave_out: share of the places whose photo shows one of the classes that may come out as none of them.

    Raises:
        GrafalignError: there are fewer photos than classes, hardly any photo shows one of the classes, or no word
            contrasts with them.
    """
    classes = question.classes
    most = _MOST_SCORES // (places.view.shape[1] * classes)
    chosen = np.linspace(0, len(places.photos) - 1, min(len(places.photos), most)).astype(int)
    if len(chosen) < classes:
        raise InputError(
            f'{classes:,} classes cannot be calibrated on {len(chosen):,} photos; give at most as many classes as '
            'photos, or leave out --calibration.'
        )
    photos, bank = _tensor(places.photos[chosen]), _tensor(places.bank)
    by_photo, by_bank = question.scores(photos), question.scores(bank)
    kept = None
    log_share = _log_shares(by_bank)
    shows = torch.ones(len(chosen), dtype=torch.bool)
    if contrasting is not None:
        theirs = bank @ torch.from_numpy(contrasting).T
        use = apart(by_bank.numpy(), theirs.numpy())
        kept = contrasting[use]
        if not len(kept):
            raise InputError(
                'Every contrasting word asks for what one of the classes asks for, so nothing can be told apart from '
                'them; name fewer classes, or leave out --leave-out.'
            )
        both = _log_shares(torch.cat([by_bank, theirs[:, torch.from_numpy(use)]], dim=1))
        log_share, their_share = both[:classes], both[classes:]
        shows = by_photo.amax(1) >= (photos @ torch.from_numpy(kept).T).amax(1)
        if int(shows.sum()) < _FEWEST:
            raise InputError(
                f'{int(shows.sum())} of {len(shows):,} held-out photos show one of the classes, and {_FEWEST} are '
                'needed to tell what is none of them; name more classes, or leave out --leave-out.'
            )
    view = question.scores(_tensor(places.view[chosen][shows.numpy()])).double()
    fit = _Fit(view, by_photo[shows].argmax(1), log_share.double())
    land_scores = question.scores(torch.from_numpy(land)).double()
    values = fit.run(land_scores)
    offsets = (values.temperature * values.prior * log_share).float()
    contrast = None
    if kept is not None:
        their_offsets = (values.temperature * values.prior * their_share).float()
        their_view = _tensor(places.view[chosen][shows.numpy()]) @ torch.from_numpy(kept).T
        margins = _margins(view.float(), their_view, offsets, their_offsets, values.temperature)
        least = float(np.quantile(margins.numpy(), leave_out))
        contrast = Contrast(kept, their_offsets.numpy(), least)
    return Calibration(values.temperature, offsets.numpy(), values.prior, values.anything, int(shows.sum()), contrast)


@dataclass(frozen=True)
class _Values:
    temperature: float
    prior: float
    anything: float


class _Fit:
    """Maximum likelihood of what photos show.

    Args:
        view: scores of points in view, [P, S, K].
        labels: the class of each photo, [P].
        log_share: log share of each class among photos, [K].
    """

    def __init__(self, view: Tensor, labels: Tensor, log_share: Tensor) -> None:
        self._view, self._labels, self._log_share = view, labels, log_share

    def run(self, land: Tensor) -> _Values:
        """Fit, with the photos weighted as the classes of land [N, K] are spread."""
        weights = torch.ones(len(self._labels), dtype=torch.float64) / len(self._labels)
        values = self._best(weights, _Values(0.1, 1.0, 0.1))
        for _ in range(_ROUNDS):
            weights = self._weights(land, values)
            values = self._best(weights, values)
        return values

    def _best(self, weights: Tensor, start: _Values) -> _Values:
        odds = math.log(max(start.anything, 1e-3) / (1 - start.anything))
        parameters = torch.tensor(
            [-math.log(start.temperature), start.prior, odds], dtype=torch.float64, requires_grad=True
        )
        optimizer = torch.optim.LBFGS([parameters], max_iter=100, line_search_fn='strong_wolfe')

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = -(weights * self.log_likelihood(parameters)).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        sharpness, prior, odds = parameters.detach().tolist()
        return _Values(math.exp(-sharpness), prior, 1 / (1 + math.exp(-odds)))

    def log_likelihood(self, parameters: Tensor) -> Tensor:
        """Of each photo, [P], at log 1/T, b, and the log odds of a photo that shows anything."""
        anything = parameters[2].sigmoid()
        logits = self._view * parameters[0].exp() + parameters[1] * self._log_share
        own = logits.gather(2, self._labels[:, None, None].expand(-1, logits.shape[1], 1))[..., 0]
        in_view = (own - logits.logsumexp(2)).exp().mean(1)
        return ((1 - anything) * in_view + anything * self._log_share.exp()[self._labels]).log()

    def _weights(self, land: Tensor, values: _Values) -> Tensor:
        """How much each photo counts, adding up to 1: the land of the classes in its view, over what views have."""
        offsets = values.temperature * values.prior * self._log_share
        classes = land.shape[1]
        on_map = torch.bincount((land + offsets).argmax(1), minlength=classes).double() / len(land)
        view = (self._view + offsets).argmax(2)
        in_view = torch.bincount(view.flatten(), minlength=classes).double() / view.numel()
        weights = (on_map / in_view.clamp_min(1 / view.numel()))[view].mean(1).clamp_max(_HEAVIEST)
        return weights / weights.sum()


def _tensor(vectors: npt.NDArray[np.float16]) -> Tensor:
    return torch.from_numpy(vectors.astype(np.float32))


def _log_shares(scores: Tensor) -> Tensor:
    """Log share of photos [B, K] that each class is the best of; each counted once more, so that none has none."""
    count = torch.bincount(scores.argmax(1), minlength=scores.shape[1]) + 1.0
    return torch.log(count / count.sum())


def _margins(ours: Tensor, theirs: Tensor, offsets: Tensor, their_offsets: Tensor, temperature: float) -> Tensor:
    both = [((s + o) / temperature).logsumexp(-1) for s, o in ((ours, offsets), (theirs, their_offsets))]
    return both[0] - both[1]
