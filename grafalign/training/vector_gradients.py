"""Loss of a whole batch of image and text vectors, with the gradients of both sides, of temperature and bias.

Where both towers are trained, the loss of a pair depends on all vectors of the batch, so micro-batches cannot each have
their own. But the vectors of the whole batch are small: they are gathered first, the loss and its gradients by the
vectors follow from them alone, and each micro-batch then carries its vectors' gradients through its towers (Gao et al.
2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup"). Temperature and bias act on the whole
batch, so their gradients come from here once, and not once a micro-batch.

    logits   z_ij = exp(log_scale) v_i . t_j
    softmax  sum over pairs of w_ij -log softmax_j(z_i)       image to text: i's texts among all texts
             1/K sum_j 1/n_j sum_{images i of j} -log softmax_i(z_j)      text to image, weighed by `text_to_image`
    sigmoid  1/B sum_ij softplus(-s_ij (z_ij + bias)), s = 1 for pairs and -1 for others (SigLIP: Zhai et al. 2023)
    focal    1/B sum_ij -(1 - p_ij)^gamma log p_ij, p_ij = sigmoid(s_ij (z_ij + bias)) (MaMMUT: Kuo et al. 2023)

The two others look at every pair of image and text once; both directions are the same sum. Logits exist for a block of
rows at a time, in float32 or better.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from grafalign.encoders.text_tower import full_precision
from grafalign.training.objective import Pairs, block_of

Form = Literal['softmax', 'sigmoid', 'focal']


@dataclass(frozen=True)
class PairLoss:
    """How image and text vectors are compared."""

    form: Form = 'softmax'
    text_to_image: float = 1.0
    """Weight of that direction beside image to text; softmax only."""
    gamma: float = 2.0
    """How little pairs that are told apart already count; focal only."""


@dataclass(frozen=True)
class VectorGradients:
    """The loss of a batch and its gradients."""

    loss: Tensor
    """A scalar."""
    images: Tensor
    """[B, D]"""
    texts: Tensor
    """[K, D]"""
    log_scale: Tensor
    """[1]"""
    bias: Tensor
    """[1]; zero for softmax."""


def vector_gradients(
    images: Tensor, texts: Tensor, log_scale: Tensor, bias: Tensor, pairs: Pairs, how: PairLoss
) -> VectorGradients:
    """Loss and gradients of a whole batch; nothing of the graph behind its arguments is touched.

    Args:
        images: unit vectors of the batch's images, [B, D].
        texts: unit vectors of its distinct texts, [K, D].
        log_scale: logarithm of 1 / tau, [1].
        bias: of the sigmoid forms, [1].
        pairs: which image has which text; the weights, which sum to 1, are those of the softmax form.
        how: form, directions, gamma.
    """
    v, t, scale, shift = (
        full_precision(value.detach()).clone().requires_grad_() for value in (images, texts, log_scale, bias)
    )
    loss = torch.zeros((), dtype=v.dtype, device=v.device)

    def add(parts: int, part_of: Callable[[slice], Tensor]) -> None:
        nonlocal loss
        step = max(1, block_of(v) // max(1, len(t) if parts == len(v) else len(v)))
        for first in range(0, parts, step):
            value = part_of(slice(first, min(first + step, parts)))
            value.backward()
            loss = loss + value.detach()

    with torch.enable_grad(), torch.autocast(v.device.type, enabled=False):
        if how.form == 'softmax':
            weight = pairs.weight.to(v.dtype)
            add(len(v), lambda part: _softmax(v[part] @ t.T * scale.exp(), pairs.row, pairs.candidate, weight, part))
            if how.text_to_image:
                back = how.text_to_image * _even_weights(pairs.candidate, v.dtype)
                add(len(t), lambda part: _softmax(t[part] @ v.T * scale.exp(), pairs.candidate, pairs.row, back, part))
        else:
            gamma = how.gamma if how.form == 'focal' else 0.0
            add(len(v), lambda part: _sigmoid(v[part] @ t.T * scale.exp() + shift, pairs, part, gamma) / len(v))
    grads = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in (v, t, scale, shift)]
    return VectorGradients(loss, grads[0], grads[1], grads[2], grads[3])


def _softmax(logits: Tensor, row: Tensor, column: Tensor, weight: Tensor, part: slice) -> Tensor:
    """Weighted cross entropy of the pairs whose row is in a block of rows."""
    mine = (row >= part.start) & (row < part.stop)
    logs = logits.log_softmax(1)
    return -(weight[mine] * logs[row[mine] - part.start, column[mine]]).sum()


def _sigmoid(logits: Tensor, pairs: Pairs, part: slice, gamma: float) -> Tensor:
    """Binary cross entropies of a block of rows, each weighed by (1 - p)^gamma."""
    mine = (pairs.row >= part.start) & (pairs.row < part.stop)
    sign = torch.full_like(logits, -1.0)
    sign[pairs.row[mine] - part.start, pairs.candidate[mine]] = 1.0
    logs = functional.logsigmoid(sign * logits)
    if not gamma:
        return -logs.sum()
    return -(torch.exp(gamma * functional.logsigmoid(-sign * logits)) * logs).sum()  # 1 - p without cancellation


def _even_weights(of: Tensor, dtype: torch.dtype) -> Tensor:
    """Weight of each pair where all K things count alike, and all pairs of a thing: 1 / (K n), [N]."""
    _, which, count = torch.unique(of, return_inverse=True, return_counts=True)
    return 1 / (len(count) * count[which].to(dtype))
