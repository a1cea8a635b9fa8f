"""GRAFT's objective: satellite anchors against photos, several positives each (Mall et al., ICLR 2024, section 3).

    L = 1/B sum_i 1/N_i sum_j -log [ exp(a_ij . g_ij / tau) / sum_{all photos k of the batch} exp(a_ij . g_k / tau) ]

Image level: a_ij is the embedding of tile i. Patch level: the embedding of the patch of tile i that holds photo j.
Positives are averaged outside the logarithm, the denominator runs over all photos of the batch (an anchor's other
positives stay in it), and there is no photo -> tile term. The photos are frozen, so an anchor's loss depends on that
anchor alone: any share of the anchors, against the same photos, gives exactly its share of the loss and its gradient.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from grafalign.encoders import Embeddings


def alignment_loss(
    anchors: Tensor, photos: Tensor, anchor_of_pair: Tensor, photo_of_pair: Tensor, weight_of_pair: Tensor, tau: float
) -> Tensor:
    """Weighted sum over pairs of the negative log softmax of the pair's photo among all photos.

    Args:
        anchors: unit satellite embeddings [A, D].
        photos: unit photo embeddings [P, D]; all of them are in every denominator.
        anchor_of_pair: row of `anchors` of each of the N pairs, int64 [N].
        photo_of_pair: row of `photos` of each pair, int64 [N].
        weight_of_pair: [N]; `pair_weights` gives the paper's 1 / (B N_i).
        tau: temperature.

    Returns:
        The loss, a scalar.
    """
    logits = anchors @ photos.T / tau
    total = torch.logsumexp(logits, dim=1)
    per_pair = total[anchor_of_pair] - logits[anchor_of_pair, photo_of_pair]
    return (per_pair * weight_of_pair).sum()


def pair_weights(tile_of_pair: Tensor, tiles: int) -> Tensor:
    """1 / (B N_i) for every pair of tile i, [N]; `tiles` is B, the number of tiles that have photos."""
    count = torch.bincount(tile_of_pair)
    return 1.0 / (tiles * count[tile_of_pair])


def patch_of(rows: Tensor, cols: Tensor, patch_px: int, side: int) -> tuple[Tensor, Tensor]:
    """Patch row and column that hold positions in pixels: floor(row / patch), kept inside the grid."""
    return tuple((v / patch_px).floor().long().clamp(0, side - 1) for v in (rows, cols))  # type: ignore[return-value]


def image_loss(
    embeddings: Embeddings, photos: Tensor, tile: Tensor, photo: Tensor, weight: Tensor, tau: float
) -> Tensor:
    """The image-level loss of pairs (`tile`, `photo`), rows of the embeddings and of `photos`."""
    return alignment_loss(embeddings.image, photos, tile, photo, weight, tau)


def patch_loss(
    embeddings: Embeddings,
    photos: Tensor,
    tile: Tensor,
    photo: Tensor,
    weight: Tensor,
    tau: float,
    rows: Tensor,
    cols: Tensor,
    patch_px: int,
) -> Tensor:
    """The patch-level loss; `rows` and `cols` are the photos' positions in pixels, [N]."""
    side = embeddings.patches.shape[1]
    row, col = patch_of(rows, cols, patch_px, side)
    # pairs that share a patch share its logits
    patch, anchor = torch.unique((tile * side + row) * side + col, return_inverse=True)
    anchors = rearrange(embeddings.patches, 'b h w d -> (b h w) d')[patch]
    return alignment_loss(anchors, photos, anchor, photo, weight, tau)
