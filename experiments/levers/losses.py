"""Other losses for the same trainer.

soft       half of a photo's target goes to photos like it
robust     photos that the model does not believe in count less
rotated    word anchors whose words are turned to other directions: a control
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from experiments.study import keep_log
from grafalign.encoders import FrozenClip
from grafalign.training import TrainSettings
from grafalign.training.accelerator import make_accelerator
from grafalign.training.data import PairSteps
from grafalign.training.gather_data import gather_data
from grafalign.training.loop import fit
from grafalign.training.objective import Bank, Candidates, Pairs
from grafalign.training.task import AlignmentTask
from grafalign.training.word_anchors import WordAnchors, make_word_anchors

SOFT, SOFT_TAU = 0.5, 0.05
ROBUST = 0.3


def soft_positives(scaled: Tensor, photos: Tensor, pairs: Pairs) -> Tensor:
    """What is added to the loss so that photos like the own one are positives too.

    The target of a pair becomes (1 - s) its photo + s softmax over the photos of their cosines / t. As the loss is
    linear in the positives, this is the loss with the photo's embedding g replaced, in the positive term alone, by its
    mean with its neighbours:  L' = L + s sum_pairs w z . (g - sum_k q_k g_k).

    Args:
        scaled: z, anchors divided by tau, [R, D].
        photos: unit embeddings, [K, D].
        pairs: the rows' positives and their weights.
    """
    own = photos[pairs.candidate]
    near = (own @ photos.T / SOFT_TAU).softmax(1) @ photos
    return SOFT * (pairs.weight[:, None] * scaled[pairs.row] * (own - near)).sum()


def robust_weights(scaled: Tensor, photos: Tensor, pairs: Pairs) -> Tensor:
    """Weights of the pairs under the generalised cross entropy, adding up to what they did.

    Its loss of a pair, (1 - p^q) / q with the softmax p of the pair's photo, has the gradient of cross entropy times
    p^q (Zhang & Sabuncu, "Generalized cross entropy loss", NeurIPS 2018): what the model thinks unlikely, as a photo of
    something else is, teaches less. So the weights are multiplied by p^q, which itself is not learned through.

    Args:
        scaled: z, anchors divided by tau, [R, D].
        photos: unit embeddings, [K, D].
        pairs: the rows' positives and their weights.

    Returns:
        [N]

    Worked example: of two photos of one tile, the model gives one 0.9 and the other 0.1. With q = 0.3 they count
    0.9^0.3 = 0.97 and 0.1^0.3 = 0.50.
    """
    with torch.no_grad():
        log_p = (scaled @ photos.T).log_softmax(1)[pairs.row, pairs.candidate]
        weight = pairs.weight * (ROBUST * log_p).exp()
        return weight * (pairs.weight.sum() / weight.sum().clamp_min(1e-12))


class SoftTask(AlignmentTask):
    """A training with soft positives."""

    def _contrast(self, scaled: Tensor, candidates: Candidates, pairs: Pairs, listed: Tensor | None) -> Tensor:
        photos = candidates.take(torch.arange(len(candidates.rows)), scaled)
        return super()._contrast(scaled, candidates, pairs, listed) + soft_positives(scaled, photos, pairs)


class RobustTask(AlignmentTask):
    """A training by generalised cross entropy."""

    def _contrast(self, scaled: Tensor, candidates: Candidates, pairs: Pairs, listed: Tensor | None) -> Tensor:
        photos = candidates.take(torch.arange(len(candidates.rows)), scaled)
        return super()._contrast(
            scaled, candidates, pairs._replace(weight=robust_weights(scaled, photos, pairs)), listed
        )


def rotated_words(clip: FrozenClip, bank: Tensor, rows: np.ndarray, prior_strength: float, seed: int) -> WordAnchors:
    """The words that ship, all turned by one random rotation: directions as far apart as theirs that mean nothing."""
    normal = np.random.default_rng((seed, 89)).standard_normal((bank.shape[1], bank.shape[1]))
    rotation = torch.from_numpy(np.linalg.qr(normal)[0]).float()
    # u R . g = u . g R^T: the prior of turned words over photos is that of words over photos turned back
    anchors = make_word_anchors(clip, None, bank.float() @ rotation.T, rows, prior_strength)
    return replace(anchors, vectors=anchors.vectors @ rotation)


def train_with_loss(arm: str, settings: TrainSettings, clip: FrozenClip) -> AlignmentTask:
    """Train with one of these losses; the log goes where `grafalign train` keeps its own."""
    torch.manual_seed(settings.seed)
    data = gather_data(settings, clip)
    bank: Bank = data.bank(torch.device('cpu'))
    words = None
    if arm == 'rotated' and settings.word_anchors is not None and isinstance(bank, Tensor):
        photos = np.unique(data.sources[0].candidate)
        words = rotated_words(clip, bank, photos, settings.word_anchors.prior_strength, settings.seed)
    kind = {'soft': SoftTask, 'robust': RobustTask, 'rotated': AlignmentTask}[arm]
    task = kind.start(clip, data.sensor, settings, bank, word_anchors=words)
    steps = PairSteps(data.sources, settings, size_px=data.sensor.size_px)
    keep_log(
        fit(task, steps, settings.steps or 0, settings.peak_lr, settings, make_accelerator(settings.precision)),
        settings,
    )
    return task
