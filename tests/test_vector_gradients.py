"""Loss and gradients of whole batches of image and text vectors, against the formulas written out pair by pair."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from grafalign.training.objective import Pairs
from grafalign.training.vector_gradients import PairLoss, vector_gradients


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Pairs]:
    """Seven images, five texts, ten pairs: an image has one to three texts, a text one to four images."""
    torch.manual_seed(seed)
    images, texts = (functional.normalize(torch.randn(n, 6, dtype=torch.float64), dim=-1) for n in (7, 5))
    row = torch.tensor([0, 0, 0, 1, 2, 3, 4, 4, 5, 6])
    candidate = torch.tensor([0, 1, 4, 0, 2, 0, 3, 1, 0, 4])
    weight = 1 / (7 * torch.bincount(row)[row].double())
    return images, texts, Pairs(row, candidate, weight)


def softmax(z: Tensor, pairs: Pairs, forth: float, back: float) -> Tensor:
    """Cross entropies of all pairs, one by one, over texts and over images."""
    loss = torch.zeros((), dtype=z.dtype)
    texts = pairs.candidate.unique().tolist()
    for i, j, weight in zip(*(v.tolist() for v in pairs), strict=True):
        loss = loss - forth * weight * torch.log(z[i, j].exp() / z[i].exp().sum())
        images = int((pairs.candidate == j).sum())
        loss = loss - back * torch.log(z[i, j].exp() / z[:, j].exp().sum()) / (len(texts) * images)
    return loss


def sigmoids(z: Tensor, pairs: Pairs, gamma: float) -> Tensor:
    """Binary cross entropies of all images with all texts, one by one."""
    positive = set(zip(pairs.row.tolist(), pairs.candidate.tolist(), strict=True))
    loss = torch.zeros((), dtype=z.dtype)
    for i in range(len(z)):
        for j in range(z.shape[1]):
            p = torch.sigmoid(z[i, j])
            p = p if (i, j) in positive else 1 - p
            loss = loss - (1 - p) ** gamma * torch.log(p) / len(z)
    return loss


@pytest.mark.parametrize('block', [1, 12, 1 << 20])
@pytest.mark.parametrize(
    ('how', 'naive'),
    [
        (PairLoss('softmax', text_to_image=0), lambda z, pairs: softmax(z, pairs, 1, 0)),
        (PairLoss('softmax', text_to_image=0.7), lambda z, pairs: softmax(z, pairs, 1, 0.7)),
        (PairLoss('sigmoid'), lambda z, pairs: sigmoids(z, pairs, 0)),
        (PairLoss('focal', gamma=1.5), lambda z, pairs: sigmoids(z, pairs, 1.5)),
    ],
)
def test_loss_and_gradients_are_those_of_the_formula(
    how: PairLoss, naive: Callable[[Tensor, Pairs], Tensor], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and the gradients of both sides, temperature and bias, in blocks of any size, to 1e-13."""
    monkeypatch.setattr('grafalign.training.objective._BLOCK', {'cpu': block})
    images, texts, pairs = batch()
    scale = torch.tensor([1.3], dtype=torch.float64)
    bias = torch.tensor([-0.4 if how.form != 'softmax' else 0.0], dtype=torch.float64)
    found = vector_gradients(images, texts, scale, bias, pairs, how)
    leaves = [v.clone().requires_grad_() for v in (images, texts, scale, bias)]
    v, t, log_scale, shift = leaves
    expected = naive(v @ t.T * log_scale.exp() + (shift if how.form != 'softmax' else 0), pairs)
    expected.backward()
    torch.testing.assert_close(found.loss, expected.detach(), rtol=1e-13, atol=1e-14)
    of_bias = torch.zeros(1, dtype=torch.float64) if shift.grad is None else shift.grad
    for mine, theirs in zip(
        (found.images, found.texts, found.log_scale, found.bias),
        (v.grad, t.grad, log_scale.grad, of_bias),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)


def test_pairs_that_are_told_apart_for_certain_have_a_finite_loss() -> None:
    """At a temperature of 0.01 no probability is one or nought to the logarithm."""
    images, texts, pairs = batch()
    scale, bias = torch.tensor([4.6]), torch.tensor([-10.0])
    for form in ('softmax', 'sigmoid', 'focal'):
        found = vector_gradients(10 * images.float(), texts.float(), scale, bias, pairs, PairLoss(form))
        assert all(bool(torch.isfinite(v).all()) for v in vars(found).values())


def test_half_precision_vectors_are_compared_in_full_precision() -> None:
    """What bfloat16 towers give is not rounded once more, also where autocast is on."""
    images, texts, pairs = batch()
    arguments = images.bfloat16(), texts.bfloat16(), torch.tensor([1.0]), torch.zeros(1), pairs, PairLoss()
    plain = vector_gradients(*arguments)
    with torch.autocast('cpu', torch.bfloat16):
        inside = vector_gradients(*arguments)
    assert plain.images.dtype == torch.float32
    assert torch.equal(plain.images, inside.images) and torch.equal(plain.loss, inside.loss)
