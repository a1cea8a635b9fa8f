"""The objective: satellite anchors against photos, several positives each (GRAFT: Mall et al., ICLR 2024, section 3).

    L = sum_r sum_j w_rj  -log [ exp(z_r . g_j) / (own_rj + sum_{other photos k} exp(z_r . g_k)) ]

Rows r are anchors, z = anchor / tau; j runs over a row's positives with weights w (1 / (B N_i) in the paper); k over
all candidates: the batch's photos and any number of rows of the photo bank, each photo once. The paper keeps a row's
other positives in its denominator. With any of the masks they leave it, together with the photos that a mask names:
such photos are no negatives of this row ("false negatives").

The photos are frozen, so the loss of a row depends on that row alone: rows may come in micro-batches of any size, in
any process, and as long as all see the same candidates their gradients add up to that of the whole batch. For the same
reason loss and gradient come from one pass over the candidates: the gradient of log-sum-exp is the softmax-weighted
mean of the photos, which is summed up beside the sum of exponentials, shifted whenever a larger logit appears (the
online softmax of Milakov & Gimelshein 2018). Logits exist for one small block of rows and candidates at a time, and
never again.

The sigmoid form (SigLIP: Zhai et al. 2023) and the photo -> tile direction are ours; GRAFT has neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

_BLOCK = {'cpu': 1 << 21}
"""Logits that exist at a time, by device: on a CPU 8 MB, which stay in its cache."""
_LARGE_BLOCK = 1 << 26
"""The same elsewhere: 256 MB, enough to keep a GPU busy."""
_LOOKED_UP = 1 << 28
"""Bytes of candidates that are kept for all micro-batches of a step: 131,072 of 512 numbers."""
_ROWS = 1024
"""Rows of a block where there are as many; the rest of its size are candidates."""


class Pairs(NamedTuple):
    """The N positives of R rows."""

    row: Tensor
    """int64 [N]"""
    candidate: Tensor
    """Position of the photo among the candidates, int64 [N]."""
    weight: Tensor
    """[N]"""


@dataclass(frozen=True)
class Masks:
    """Which candidates are no negatives of a row, besides its own positives."""

    listed: tuple[Tensor, Tensor] | None = None
    """Rows and candidates, int64 [M] each: photos of the same tile, or taken near one of the row's. Costs M writes."""
    closer_than: float | None = None
    """Candidates whose cosine with any of the row's positives is larger. Costs one more product, [N, D] x [D, K]."""

    @property
    def any(self) -> bool:
        """Whether there is any mask, so that a row's other positives leave its denominator too."""
        return self.listed is not None or self.closer_than is not None


NO_MASKS = Masks()


class Bank(Protocol):
    """Embeddings that are looked up by row: a tensor [P, D], or several behind one face."""

    @property
    def device(self) -> torch.device:
        """Where rows are looked up."""

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Embeddings [n, D], of any float type."""


class Candidates:
    """All photos that the rows of a batch are held against, looked up in the bank block by block.

    Args:
        bank: embeddings of photos, or of texts, which the loss does not tell apart.
        rows: rows of the bank, int64 [K].
        embeddings: of these rows, [K, D], where they are looked up already.
    """

    def __init__(self, bank: Bank, rows: Tensor, embeddings: Tensor | None = None) -> None:
        self.bank, self.rows, self._embeddings = bank, rows, embeddings

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, which: Tensor | slice, like: Tensor) -> Tensor:
        """Embeddings of some candidates with device and type of `like`."""
        if self._embeddings is not None:
            return self._embeddings[which].to(like.device, like.dtype)
        rows = self.rows[which].to(self.bank.device)
        return self.bank[rows].to(like.device, like.dtype)

    def looked_up(self, like: Tensor) -> Candidates:
        """The same, all looked up at once where they are not too many: for several losses against the same photos."""
        if len(self) * like.shape[-1] * like.element_size() > _LOOKED_UP:
            return self
        return Candidates(self.bank, self.rows, self.take(slice(None), like))

    def part(self, first: int, last: int) -> Candidates:
        """Those from one position to before another."""
        some = slice(first, last)
        return Candidates(self.bank, self.rows[some], None if self._embeddings is None else self._embeddings[some])


def contrastive_loss(scaled: Tensor, candidates: Candidates, pairs: Pairs, masks: Masks = NO_MASKS) -> Tensor:
    """The softmax form.

    Args:
        scaled: z, anchors divided by tau, [R, D]; gradients reach anchors and tau through it.
        candidates: K photos.
        pairs: the rows' positives and their weights.
        masks: false negatives.

    Returns:
        The loss, a scalar. Memory beyond a few [R, D] arrays does not depend on K or N.
    """
    return _Contrast.apply(scaled, candidates, pairs, masks, None)


def sigmoid_loss(scaled: Tensor, bias: Tensor, candidates: Candidates, pairs: Pairs, masks: Masks = NO_MASKS) -> Tensor:
    """The sigmoid form: every candidate that is not masked and not a positive of the row is a negative by itself.

        L = sum_r [ sum_j w_rj softplus(-(z_r . g_j + b)) + (sum_j w_rj) sum_{other k} softplus(z_r . g_k + b) ]

    With one photo a tile and weights 1/B this is SigLIP's loss.

    Args:
        scaled: [R, D]
        bias: b, a scalar.
        candidates: K photos.
        pairs: the rows' positives and their weights.
        masks: false negatives.
    """
    return _Contrast.apply(scaled, candidates, pairs, masks, bias)


class _Contrast(torch.autograd.Function):
    """Either form; the gradient is computed with the loss and only multiplied in backward."""

    @staticmethod
    def forward(
        ctx: Any, scaled: Tensor, candidates: Candidates, pairs: Pairs, masks: Masks, bias: Tensor | None
    ) -> Tensor:
        z = scaled.detach()
        order = torch.argsort(pairs.row, stable=True)
        pairs = Pairs(*(v[order] for v in pairs))
        weight = pairs.weight.to(z.dtype)
        of_row = torch.zeros(len(z), dtype=z.dtype, device=z.device).index_add_(0, pairs.row, weight)
        own_leaves = masks.any or bias is not None
        others = _others(z, candidates, pairs, masks, own_leaves, bias)
        gradient = torch.zeros_like(z)
        bias_gradient = z.new_zeros(())
        loss = z.new_zeros(())
        row_weight = torch.zeros_like(of_row) if own_leaves and bias is None else of_row
        for part in torch.arange(len(pairs.row), device=z.device).split(max(1, block_of(z) // max(1, z.shape[1]))):
            row, w = pairs.row[part], weight[part]
            photo = candidates.take(pairs.candidate[part], z)
            logit = (z[row] * photo).sum(1)
            if bias is not None:
                logit = logit + bias.detach()
                loss += (w * functional.softplus(-logit)).sum()
                pull = -w * torch.sigmoid(-logit)
                bias_gradient += pull.sum()
            elif own_leaves:
                total = torch.logaddexp(others.value[row], logit)
                loss += (w * (total - logit)).sum()
                away = w * torch.exp(others.value[row] - total)
                row_weight.index_add_(0, row, away)
                pull = -away
            else:
                loss -= (w * logit).sum()
                pull = -w
            gradient.index_add_(0, row, pull[:, None] * photo)
        if bias is not None or not own_leaves:
            positive = of_row > 0
            loss += (of_row[positive] * others.value[positive]).sum()
        gradient.addcmul_(others.mean, row_weight[:, None])
        bias_gradient += (of_row * others.slope).sum()
        ctx.save_for_backward(gradient, bias_gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradient, bias_gradient = ctx.saved_tensors
        return grads[0] * gradient, None, None, None, grads[0] * bias_gradient if ctx.needs_input_grad[4] else None


def block_of(like: Tensor) -> int:
    """Logits that exist at a time where `like` is."""
    return _BLOCK.get(like.device.type, _LARGE_BLOCK)


class _Others(NamedTuple):
    """What the candidates of the denominators add up to for every row."""

    value: Tensor
    """log sum exp, or the sum of softplus, [R]; -inf or 0 for a row without others."""
    mean: Tensor
    """Its gradient by z: the softmax mean of the photos, or their sum weighted by sigmoids, [R, D]."""
    slope: Tensor
    """Its gradient by the bias, [R]; zero without one."""


def _others(
    z: Tensor, candidates: Candidates, pairs: Pairs, masks: Masks, own_leaves: bool, bias: Tensor | None
) -> _Others:
    """Go once over all candidates, block by block."""
    rows, depth = z.shape
    device = z.device
    largest = torch.full((rows,), float('-inf'), dtype=z.dtype, device=device)
    total, slope, mean = (torch.zeros(s, dtype=z.dtype, device=device) for s in ((rows,), (rows,), (rows, depth)))
    step = min(max(1, block_of(z) // _ROWS), max(1, len(candidates)))
    height = max(1, min(rows, block_of(z) // step))
    hidden = _hidden(pairs, masks, own_leaves, step, height)
    logits_of = torch.empty(height, step, dtype=z.dtype, device=device)
    for first in range(0, len(candidates), step):
        stop = min(first + step, len(candidates))
        photos = candidates.take(slice(first, stop), z)
        for top in range(0, rows, height):
            end = min(top + height, rows)
            part = slice(top, end)
            logits = logits_of[: end - top, : stop - first]
            torch.mm(z[part], photos.T, out=logits)
            if bias is not None:
                logits += bias.detach()
            hide(logits, hidden.get((top // height, first // step)), top, first)
            if masks.closer_than is not None:
                _hide_alike(logits, candidates, photos, pairs, masks.closer_than, top, end)
            if bias is not None:
                total[part] += functional.softplus(logits).sum(1)
                share = torch.sigmoid_(logits)
                slope[part] += share.sum(1)
                mean[part].addmm_(share, photos)
                continue
            new = torch.maximum(largest[part], logits.amax(1))
            shift = new.clamp_min(torch.finfo(z.dtype).min)  # a row that has no candidate yet stays at -inf
            share = logits.sub_(shift[:, None]).exp_()
            shrink = torch.exp(largest[part] - shift)
            total[part] = total[part] * shrink + share.sum(1)
            if not z.is_cpu or not torch.equal(new, largest[part]):  # asking a GPU would wait for it
                mean[part] *= shrink[:, None]
            mean[part].addmm_(share, photos)
            largest[part] = new
    if bias is not None:
        return _Others(total, mean, slope)
    return _Others(largest + total.log(), mean.div_(total.clamp_min(torch.finfo(z.dtype).tiny)[:, None]), slope)


def _hidden(
    pairs: Pairs, masks: Masks, own_leaves: bool, step: int, height: int
) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
    """Single masked cells, sorted into the blocks that will meet them."""
    cells = []
    if own_leaves:
        cells.append((pairs.row, pairs.candidate))
    if masks.listed is not None:
        cells.append(masks.listed)
    if not cells:
        return {}
    row, candidate = (torch.cat([c[i] for c in cells]) for i in (0, 1))
    block = torch.stack([row // height, candidate // step], 1)
    kinds, which = torch.unique(block, dim=0, return_inverse=True)
    order = torch.argsort(which, stable=True)
    counts = torch.bincount(which, minlength=len(kinds)).tolist()
    parts = zip(row[order].split(counts), candidate[order].split(counts), strict=True)
    return {(int(k[0]), int(k[1])): part for k, part in zip(kinds.tolist(), parts, strict=True)}


def hide(logits: Tensor, cells: tuple[Tensor, Tensor] | None, top: int, first: int) -> None:
    """Take single cells out of a block that starts at (`top`, `first`)."""
    if cells is not None:
        logits[cells[0] - top, cells[1] - first] = float('-inf')


def _hide_alike(
    logits: Tensor, candidates: Candidates, photos: Tensor, pairs: Pairs, closer_than: float, top: int, end: int
) -> None:
    """Take out of a block what is too like any positive of a row; `pairs` are sorted by row."""
    bounds = torch.searchsorted(pairs.row, torch.tensor([top, end], device=pairs.row.device)).tolist()
    step = max(1, block_of(logits) // photos.shape[0])
    for begin in range(bounds[0], bounds[1], step):
        part = slice(begin, min(begin + step, bounds[1]))
        alike = candidates.take(pairs.candidate[part], photos) @ photos.T > closer_than
        where, column = alike.nonzero(as_tuple=True)
        logits[pairs.row[part][where] - top, column] = float('-inf')


def photo_to_tile_loss(scaled: Tensor, candidates: Candidates, pairs: Pairs) -> Tensor:
    """The other direction: every photo of the batch must find its tile among all tiles of the batch.

        L = 1/P sum_k 1/T_k sum_{tiles i of k} -log softmax_i(z_i . g_k)

    It needs all tiles of the batch at once, so no micro-batches: `scaled` holds the whole batch.

    Args:
        scaled: tiles divided by tau, [B, D].
        candidates: the photos; only those that appear in `pairs` count.
        pairs: which tile has which photo; weights are not used.
    """
    return _Reverse.apply(scaled, candidates, pairs)


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scaled: Tensor, candidates: Candidates, pairs: Pairs) -> Tensor:
        z = scaled.detach()
        order = torch.argsort(pairs.candidate, stable=True)
        photo, row = pairs.candidate[order], pairs.row[order]
        present, which, tiles = torch.unique_consecutive(photo, return_inverse=True, return_counts=True)
        weight = (1.0 / (len(present) * tiles[which])).to(z.dtype)
        gradient, loss = torch.zeros_like(z), z.new_zeros(())
        step = max(1, block_of(z) // max(1, len(z)))
        starts = torch.cat([tiles.new_zeros(1), tiles.cumsum(0)])
        for first in range(0, len(present), step):
            part = slice(first, min(first + step, len(present)))
            mine = slice(int(starts[part.start]), int(starts[part.stop]))
            photos = candidates.take(present[part], z)
            logits = photos @ z.T
            logs = logits.log_softmax(1)
            at = which[mine] - first
            loss -= (weight[mine] * logs[at, row[mine]]).sum()
            push = logs.exp_() / len(present)
            push.index_put_((at, row[mine]), -weight[mine], accumulate=True)
            gradient.addmm_(push.T, photos)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0] * ctx.saved_tensors[0], None, None
