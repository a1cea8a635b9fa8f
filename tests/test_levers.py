"""What the study of levers adds to the trainer, against the formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from experiments.levers.gap import clear_class
from experiments.levers.land import surest_words
from experiments.levers.losses import ROBUST, SOFT, SOFT_TAU, robust_weights, soft_positives
from experiments.levers.worth import SHARPNESS, agreement
from grafalign.training.objective import Candidates, Pairs, contrastive_loss


def test_soft_positives_are_the_cross_entropy_of_soft_targets() -> None:
    """Value and gradient equal those of -sum target log softmax, one pair at a time in float64."""
    rng = torch.Generator().manual_seed(0)
    photos = functional.normalize(torch.randn(12, 5, generator=rng, dtype=torch.float64), dim=1)
    row, candidate = torch.tensor([0, 0, 1, 2]), torch.tensor([3, 4, 9, 0])
    weight = torch.rand(4, generator=rng, dtype=torch.float64)
    pairs = Pairs(row, candidate, weight)
    start = torch.randn(3, 5, generator=rng, dtype=torch.float64)
    ours, naive = (start.clone().requires_grad_() for _ in range(2))
    loss = contrastive_loss(ours, Candidates(photos, torch.arange(12)), pairs) + soft_positives(ours, photos, pairs)
    expected = torch.zeros((), dtype=torch.float64)
    for r, c, w in zip(row.tolist(), candidate.tolist(), weight, strict=True):
        target = SOFT * (photos[c] @ photos.T / SOFT_TAU).softmax(0)
        target[c] += 1 - SOFT
        expected = expected - w * (target * (naive[r] @ photos.T).log_softmax(0)).sum()
    loss.backward()
    expected.backward()
    assert float(loss) == pytest.approx(float(expected), rel=1e-9)
    torch.testing.assert_close(ours.grad, naive.grad)


def test_robust_weights_give_the_gradient_of_generalised_cross_entropy() -> None:
    """The gradient of the weighted loss is that of the mean of (1 - p^q) / q in float64, but for its scale."""
    rng = torch.Generator().manual_seed(1)
    photos = functional.normalize(torch.randn(9, 4, generator=rng, dtype=torch.float64), dim=1)
    pairs = Pairs(torch.tensor([0, 0, 1, 2]), torch.tensor([3, 4, 8, 0]), torch.full((4,), 0.25, dtype=torch.float64))
    start = 3 * torch.randn(3, 4, generator=rng, dtype=torch.float64)
    ours, naive = (start.clone().requires_grad_() for _ in range(2))
    weight = robust_weights(ours, photos, pairs)
    assert float(weight.sum()) == pytest.approx(1.0)
    contrastive_loss(ours, Candidates(photos, torch.arange(9)), pairs._replace(weight=weight)).backward()
    p = (naive @ photos.T).softmax(1)[pairs.row, pairs.candidate]
    (0.25 * (1 - p**ROBUST) / ROBUST).sum().backward()
    assert ours.grad is not None and naive.grad is not None
    ratio = ours.grad / naive.grad
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio))


def test_worked_examples_of_the_levers_hold() -> None:
    """Weights by agreement, the surest of every word, the clear class of a tile."""
    photos = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    weights = agreement(photos, np.zeros(3, np.int64), None)
    np.testing.assert_allclose(weights, np.exp(SHARPNESS * np.array([2**-0.5, 2**-0.5, 0])), rtol=1e-5)
    word, kept = surest_words(np.array([[0.9, 0], [0.5, 0], [0, 0.1]], dtype=np.float32), 0.5)
    assert word.tolist() == [0, 0, 1] and kept.tolist() == [True, False, True]
    shares = np.array([[0.6, 0.28, 0.12], [0.4, 0.55, 0.05], [0.4, 0.4, 0.05]], dtype=np.float32)
    assert clear_class(shares, np.array([2])).tolist() == [2, 1, -1]
