"""Word anchors: a tile shall say of a list of words what CLIP says of the tile's photos.

    q_j = softmax_w( s g_j . u_w - b log m_w )    of a photo g_j over W words u_w; s is CLIP's inverse temperature,
                                                  m_w the mean of softmax_w(s g . u) over the photos trained on
    L   = sum_r sum_j w_rj  -sum_w q_jw log softmax_w( s a_r . u_w )     rows a_r and weights are the objective's

Photos compared with photos need a temperature that suits how alike the photos of a place are; words do not: what is
taught is what zero-shot classification asks. It is relational distillation of CLIP's image side into the satellite
encoder through its text side (as Wu et al., "TinyCLIP", ICCV 2023, distil one CLIP into another). Subtracting the log
of the prior m, b times, is logit adjustment (Menon et al., ICLR 2021): with b = 1 a word that many photos show is no
better than another.

With c_r = sum_j w_rj and t_r = sum_j w_rj sum_w q_jw u_w it is  L = sum_r c_r log sum_w exp(s a_r . u_w) - s a_r . t_r,
so a row needs one vector of its photos, t_r, and the first term is the contrastive loss of rows against words.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from grafalign.encoders import FrozenClip
from grafalign.errors import InputError
from grafalign.training.objective import Bank, Candidates, Pairs, block_of, contrastive_loss
from grafalign.training.word_list import SHIPPED, read_words
from grafalign.zeroshot import class_vectors

_ALIKE = 1e-6
"""Photos whose embeddings differ less than this in all numbers are one."""


@dataclass(frozen=True)
class WordAnchors:
    """Words as anchors of a training."""

    vectors: Tensor
    """Unit text embeddings, [W, D]."""
    log_prior: Tensor
    """What is taken off a photo's logits: b log m, [W]."""
    scale: float
    """CLIP's inverse temperature."""

    def to(self, device: torch.device) -> WordAnchors:
        """The same on another device."""
        return WordAnchors(self.vectors.to(device), self.log_prior.to(device), self.scale)

    def means(self, photos: Tensor) -> Tensor:
        """For every photo [n, D] the mean of the words under its distribution, [n, D]."""
        words, offset = self.vectors.to(photos.dtype), self.log_prior.to(photos.dtype)
        rows = max(1, block_of(photos) // len(words))
        parts = [(self.scale * part @ words.T - offset).softmax(1) @ words for part in photos.split(rows)]
        return torch.cat(parts) if parts else photos

    def loss(self, anchors: Tensor, candidates: Candidates, pairs: Pairs) -> Tensor:
        """The loss of rows.

        Args:
            anchors: unit vectors [R, D].
            candidates: the photos.
            pairs: the rows' photos and their weights.
        """
        rows, depth = anchors.shape
        with torch.no_grad():
            target = torch.zeros(rows, depth, dtype=anchors.dtype, device=anchors.device)
            for part in torch.arange(len(pairs.row), device=anchors.device).split(max(1, block_of(anchors) // depth)):
                means = self.means(candidates.take(pairs.candidate[part], anchors))
                target.index_add_(0, pairs.row[part], pairs.weight[part, None].to(anchors.dtype) * means)
            weight = torch.zeros(rows, dtype=anchors.dtype, device=anchors.device)
            weight.index_add_(0, pairs.row, pairs.weight.to(anchors.dtype))
        scaled = anchors * self.scale
        words = Candidates(self.vectors, torch.arange(len(self.vectors), device=anchors.device))
        every = torch.arange(rows, device=anchors.device)
        # against the first word, which is then exchanged for the mean of the words
        first = contrastive_loss(scaled, words, Pairs(every, torch.zeros_like(every), weight))
        exchange = weight[:, None] * self.vectors[0].to(anchors.dtype) - target
        return first + (scaled * exchange).sum()


def make_word_anchors(
    clip: FrozenClip, words: Path | None, bank: Bank, rows: npt.NDArray[np.int64], prior_strength: float
) -> WordAnchors:
    """Anchors of a list of words.

    Args:
        clip: the CLIP whose words they are.
        words: file with a word or phrase a line, or a YAML list; the shipped list by default.
        bank: embeddings of the photos.
        rows: those that are trained on, each once.
        prior_strength: b, 0 to 1.

    Raises:
        GrafalignError: the file has fewer than two words, a word twice or one that is longer than CLIP reads; or all
            photos have one embedding.
    """
    names = read_words(words or SHIPPED)
    cut = [name for name in names if clip.count_cut([f'a photo of {name}.'])]
    if cut:
        raise InputError(f'{words or SHIPPED}: {cut[0]!r} is longer than {clip.settings.model} reads; shorten it.')
    vectors = torch.from_numpy(class_vectors(clip, names))
    scale = clip.scale
    total, count = torch.zeros(len(names), dtype=torch.float64), 0
    low, high = torch.full((vectors.shape[1],), torch.inf), torch.full((vectors.shape[1],), -torch.inf)
    for part in torch.from_numpy(rows).split(max(1, block_of(vectors) // len(names))):
        photos = bank[part.to(bank.device)].to('cpu', torch.float32)
        total += (scale * photos @ vectors.T).softmax(1).sum(0, dtype=torch.float64)
        count += len(photos)
        low, high = torch.minimum(low, photos.amin(0)), torch.maximum(high, photos.amax(0))
    if count > 1 and bool((high - low < _ALIKE).all()):
        raise InputError(
            f'All {count:,} photos have one embedding, of which no word can tell anything; embed them again.'
        )
    mean = (total / max(count, 1)).clamp_min(1e-12)
    return WordAnchors(vectors, (prior_strength * mean.log()).float(), scale)
