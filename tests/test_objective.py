"""The objective against its formula, written out in loops, in value and gradient."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from grafalign.training import objective
from grafalign.training.objective import (
    Candidates,
    Masks,
    Pairs,
    contrastive_loss,
    photo_to_tile_loss,
    sigmoid_loss,
)

D = 8


class World:
    """Random rows, photos and pairs in float64; some photos belong to two rows, some rows have none."""

    def __init__(self, seed: int, rows: int, photos: int, bank: int, most: int = 4) -> None:
        g = torch.Generator().manual_seed(seed)
        self.anchors = functional.normalize(torch.randn(rows, D, generator=g, dtype=torch.float64), dim=-1)
        self.bank = functional.normalize(torch.randn(photos + bank + 5, D, generator=g, dtype=torch.float64), dim=-1)
        chosen = torch.randperm(photos + bank + 5, generator=g)[: photos + bank]
        self.candidates = Candidates(self.bank, chosen)
        self.photos = self.bank[chosen]
        pairs = [
            (r, int(p)) for r in range(rows) for p in torch.randperm(photos, generator=g)[: (r * 7 + seed) % (most + 1)]
        ]
        pairs = pairs or [(0, 0)]
        row, photo = torch.tensor(pairs).T
        self.pairs = Pairs(row, photo, torch.rand(len(row), generator=g, dtype=torch.float64))
        self.listed = (
            torch.randint(0, rows, (6,), generator=g),
            torch.randint(0, photos + bank, (6,), generator=g),
        )

    def positives(self, row: int) -> list[int]:
        """Candidates that are positives of a row."""
        return self.pairs.candidate[self.pairs.row == row].tolist()

    def negatives(self, row: int, masks: Masks) -> list[int]:
        """Candidates that are neither positives of a row nor masked for it."""
        own = self.positives(row)
        out = []
        for k in range(len(self.photos)):
            listed = masks.listed is not None and bool(((masks.listed[0] == row) & (masks.listed[1] == k)).any())
            alike = masks.closer_than is not None and any(
                self.photos[j] @ self.photos[k] > masks.closer_than for j in own
            )
            if k not in own and not listed and not alike:
                out.append(k)
        return out


def softmax_formula(z: torch.Tensor, world: World, masks: Masks) -> torch.Tensor:
    """The head of `objective.py`, term by term."""
    loss = torch.zeros((), dtype=torch.float64)
    for row, j, weight in zip(*(v.tolist() for v in world.pairs), strict=True):
        own = [j] if masks.any else world.positives(row)
        others = world.negatives(row, masks)
        terms = torch.stack([torch.exp(z[row] @ world.photos[k]) for k in own + others])
        loss = loss - weight * torch.log(torch.exp(z[row] @ world.photos[j]) / terms.sum())
    return loss


def sigmoid_formula(z: torch.Tensor, bias: torch.Tensor, world: World, masks: Masks) -> torch.Tensor:
    """Every pair of a row and a candidate is a question with the answer yes or no."""
    loss = torch.zeros((), dtype=torch.float64)
    for row in range(len(z)):
        mine = world.pairs.row == row
        for j, weight in zip(world.pairs.candidate[mine].tolist(), world.pairs.weight[mine].tolist(), strict=True):
            loss = loss - weight * torch.log(torch.sigmoid(z[row] @ world.photos[j] + bias))
        for k in world.negatives(row, masks):
            loss = loss - world.pairs.weight[mine].sum() * torch.log(torch.sigmoid(-(z[row] @ world.photos[k] + bias)))
    return loss


MASKS = {
    'none': lambda w: Masks(),
    'same tile': lambda w: Masks(listed=w.listed),
    'alike': lambda w: Masks(closer_than=0.3),
    'all': lambda w: Masks(w.listed, 0.3),
}
SIZES = st.tuples(st.integers(0, 50), st.integers(1, 7), st.integers(1, 12), st.integers(0, 20), st.integers(1, 9))


@pytest.mark.parametrize('masks', MASKS)
@pytest.mark.parametrize('form', ['softmax', 'sigmoid'])
@settings(deadline=None, max_examples=25)
@given(SIZES)
def test_value_and_gradient_are_the_formulas(form: str, masks: str, sizes: tuple[int, ...]) -> None:
    """Any number of rows, photos and negatives, blocks that do not divide them, rows without a photo, shared photos."""
    seed, rows, photos, bank, step = sizes
    world = World(seed, rows, photos, bank)
    mask = MASKS[masks](world)
    scale = torch.tensor(6.0, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
    anchors = world.anchors.clone().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective, '_ROWS', 2)
        patch.setattr(objective, '_BLOCK', {'cpu': 2 * step + 1})
        if form == 'softmax':
            loss = contrastive_loss(anchors * scale, world.candidates, world.pairs, mask)
            expected = softmax_formula(anchors * scale, world, mask)
        else:
            loss = sigmoid_loss(anchors * scale, bias, world.candidates, world.pairs, mask)
            expected = sigmoid_formula(anchors * scale, bias, world, mask)
        torch.testing.assert_close(loss, expected)
        wanted = (anchors, scale) if form == 'softmax' else (anchors, scale, bias)
        for mine, theirs in zip(
            torch.autograd.grad(loss * 1.7, wanted), torch.autograd.grad(expected * 1.7, wanted), strict=True
        ):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)


def test_the_papers_weights_give_the_papers_loss() -> None:
    """With 1 / (B N_i) and the batch's photos as candidates it is GRAFT's equation, for one photo a tile InfoNCE."""
    world = World(3, 5, 5, 0)
    z = world.anchors / 0.07
    pairs = Pairs(torch.arange(5), torch.arange(5), torch.full((5,), 0.2, dtype=torch.float64))
    expected = functional.cross_entropy(z @ world.photos.T, torch.arange(5))
    torch.testing.assert_close(contrastive_loss(z, world.candidates, pairs), expected)


def test_one_photo_a_tile_in_sigmoid_form_is_siglip() -> None:
    """The sigmoid form with weights 1/B is open_clip's SigLIP loss, which has one direction only."""
    from open_clip.loss import SigLipLoss

    world = World(4, 6, 6, 0)
    bias = torch.tensor(-3.0, dtype=torch.float64)
    pairs = Pairs(torch.arange(6), torch.arange(6), torch.full((6,), 1 / 6, dtype=torch.float64))
    theirs = SigLipLoss()(world.anchors, world.photos, torch.tensor(10.0, dtype=torch.float64), bias)
    torch.testing.assert_close(sigmoid_loss(world.anchors * 10, bias, world.candidates, pairs), theirs)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 50), st.integers(1, 7), st.integers(1, 12), st.integers(1, 9))
def test_the_other_direction_is_its_formula(seed: int, rows: int, photos: int, step: int) -> None:
    """Every photo against all tiles; photos of two tiles count half for each; other candidates do not count."""
    world = World(seed, rows, photos, 3)
    z = (world.anchors * 5).requires_grad_()
    present = sorted(set(world.pairs.candidate.tolist()))
    expected = torch.zeros((), dtype=torch.float64)
    for k in present:
        mine = world.pairs.row[world.pairs.candidate == k].tolist()
        logs = (z @ world.photos[k]).log_softmax(0)
        expected = expected - sum(logs[i] for i in mine) / len(mine) / len(present)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective, '_BLOCK', {'cpu': step})
        loss = photo_to_tile_loss(z, world.candidates, world.pairs)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(v, z)[0] for v in (loss, expected)))


def test_micro_batches_of_the_rows_add_up() -> None:
    """Uneven micro-batches of the rows, each against all candidates, have the loss and gradient of the whole."""
    world = World(2, 7, 12, 20)
    for mask in (make(world) for make in MASKS.values()):
        z = (world.anchors * 9).requires_grad_()
        whole = torch.autograd.grad(contrastive_loss(z, world.candidates, world.pairs, mask), z)[0]
        total = torch.zeros_like(whole)
        for first, last in ((0, 1), (1, 5), (5, 7)):
            here = (world.pairs.row >= first) & (world.pairs.row < last)
            pairs = Pairs(world.pairs.row[here] - first, world.pairs.candidate[here], world.pairs.weight[here])
            listed = None
            if mask.listed is not None:
                there = (mask.listed[0] >= first) & (mask.listed[0] < last)
                listed = (mask.listed[0][there] - first, mask.listed[1][there])
            part = z[first:last]
            masks = Masks(listed, mask.closer_than)
            total += torch.autograd.grad(contrastive_loss(part, world.candidates, pairs, masks), z)[0]
        torch.testing.assert_close(total, whole)


def test_a_row_whose_every_negative_is_masked_costs_nothing() -> None:
    """With nothing left in the denominator but the positive itself, loss and gradient are zero, not infinite."""
    world = World(1, 1, 3, 2)
    z = (world.anchors * 14).requires_grad_()
    pairs = Pairs(torch.tensor([0]), torch.tensor([1]), torch.ones(1, dtype=torch.float64))
    everything = (torch.zeros(5, dtype=torch.int64), torch.arange(5))
    loss = contrastive_loss(z, world.candidates, pairs, Masks(listed=everything))
    assert float(loss.detach()) == 0 and not torch.autograd.grad(loss, z)[0].any()


def test_small_temperatures_do_not_overflow() -> None:
    """At tau 0.001 in float32, value and gradient are those of float64."""
    world = World(6, 5, 8, 30)
    found = []
    for kind in (torch.float64, torch.float32):
        z = (world.anchors / 0.001).to(kind).requires_grad_()
        loss = contrastive_loss(z, Candidates(world.bank.to(kind), world.candidates.rows), world.pairs)
        found.append((loss.detach().double(), torch.autograd.grad(loss, z)[0].double()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)


_MEMORY = """
import resource, sys, torch
from grafalign.training.objective import Candidates, Pairs, contrastive_loss
torch.set_num_threads(2)
tiles, each, depth, bank = 512, 10, 512, 65536
photos = torch.nn.functional.normalize(torch.randn(bank + tiles * each, depth), dim=-1).half()
pairs = Pairs(torch.arange(tiles * each) // each, torch.arange(tiles * each), torch.full((tiles * each,), 1.0))
anchors = torch.nn.functional.normalize(torch.randn(tiles, depth), dim=-1).requires_grad_()
few = Candidates(photos, torch.arange(tiles * each))
contrastive_loss(anchors * 14, few, pairs).backward()  # what the first call of anything allocates
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
contrastive_loss(anchors * 14, Candidates(photos, torch.arange(len(photos))), pairs).backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_memory_does_not_grow_with_the_bank() -> None:
    """Fourteen times the candidates add less than 40 MB, where the logits alone would be 145 MB."""
    out = subprocess.run([sys.executable, '-c', _MEMORY], capture_output=True, text=True, check=True)
    assert float(out.stdout) < 40
