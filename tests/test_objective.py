"""The objective against the formula of the paper, written out in loops."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from grafalign.encoders import Embeddings
from grafalign.training.objective import alignment_loss, image_loss, pair_weights, patch_loss, patch_of

SIDE, PATCH = 4, 16


def batch(seed: int, counts: list[int], depth: int = 8) -> tuple[torch.Tensor, ...]:
    """Random unit vectors and pairs of tiles with the given numbers of photos, in float64."""
    g = torch.Generator().manual_seed(seed)
    tiles, pairs = len(counts), sum(counts)

    def unit(*shape: int) -> torch.Tensor:
        return functional.normalize(torch.randn(*shape, depth, generator=g, dtype=torch.float64), dim=-1)

    tile = torch.repeat_interleave(torch.arange(tiles), torch.tensor(counts))
    where = torch.rand(2, pairs, generator=g, dtype=torch.float64) * SIDE * PATCH
    return unit(tiles).requires_grad_(), unit(tiles, SIDE, SIDE).requires_grad_(), unit(pairs), tile, where


def formula(anchor_of_pair: list[torch.Tensor], photos: torch.Tensor, tile: torch.Tensor, tau: float) -> torch.Tensor:
    """GRAFT's loss, term by term."""
    tiles = tile.unique().tolist()
    total = torch.zeros((), dtype=torch.float64)
    for i in tiles:
        mine = (tile == i).nonzero().flatten().tolist()
        inner = torch.zeros((), dtype=torch.float64)
        for j in mine:
            terms = torch.stack([torch.exp(anchor_of_pair[j] @ photos[k] / tau) for k in range(len(photos))])
            inner = inner - torch.log(terms[j] / terms.sum())
        total = total + inner / len(mine)
    return total / len(tiles)


@pytest.mark.parametrize('counts', [[1, 1, 1], [3, 1, 5, 2], [1], [25, 1]])
@pytest.mark.parametrize('tau', [0.07, 0.5])
def test_image_loss_is_the_formula(counts: list[int], tau: float) -> None:
    """Value and gradient of the image-level loss equal the paper's formula."""
    image, patches, photos, tile, _ = batch(0, counts)
    expected = formula([image[t] for t in tile.tolist()], photos, tile, tau)
    weight = pair_weights(tile, len(counts)).double()
    loss = image_loss(Embeddings(image, patches), photos, tile, torch.arange(len(tile)), weight, tau)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, image)[0], torch.autograd.grad(expected, image)[0])


@pytest.mark.parametrize('counts', [[1, 1, 1], [3, 1, 5, 2], [25, 1]])
def test_patch_loss_is_the_formula(counts: list[int]) -> None:
    """Value and gradient of the patch-level loss equal the formula, with the patch that holds each photo as anchor."""
    image, patches, photos, tile, (rows, cols) = batch(1, counts)
    anchors = [patches[t, int(r // PATCH), int(c // PATCH)] for t, r, c in zip(tile.tolist(), rows, cols, strict=True)]
    expected = formula(anchors, photos, tile, 0.07)
    weight = pair_weights(tile, len(counts)).double()
    loss = patch_loss(
        Embeddings(image, patches), photos, tile, torch.arange(len(tile)), weight, 0.07, rows, cols, PATCH
    )
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, patches)[0], torch.autograd.grad(expected, patches)[0])


def test_shares_of_a_batch_add_up() -> None:
    """Uneven shares of the anchors, each against all photos, have the gradient of the whole batch."""
    image, _, photos, tile, _ = batch(2, [2, 4, 1, 3, 3])
    weight, number = pair_weights(tile, 5).double(), torch.arange(len(tile))
    whole = torch.autograd.grad(alignment_loss(image, photos, tile, number, weight, 0.07), image)[0]
    total = torch.zeros_like(whole)
    for part in (tile < 1, (tile >= 1) & (tile < 4), tile >= 4):
        loss = alignment_loss(image, photos, tile[part], number[part], weight[part], 0.07)
        total += torch.autograd.grad(loss, image)[0]
    torch.testing.assert_close(total, whole)


def test_a_photo_on_a_patch_border_belongs_to_the_next_patch() -> None:
    """Patch indices are floor(position / patch), and stay inside the grid."""
    rows, cols = patch_of(torch.tensor([0.0, 15.999, 16.0, 63.9, 64.0]), torch.zeros(5), PATCH, SIDE)
    assert rows.tolist() == [0, 0, 1, 3, 3] and cols.tolist() == [0] * 5
