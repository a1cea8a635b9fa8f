"""Self-labels: patches learn what a finished run, trained on whole images, says of them by smooth attention.

A run that was trained at image level knows words and no places: its patches are CLIP's. By smooth attention pooling
(`encoders/smooth.py`) it scores every patch of every training image for a list of words. Of each word's patches the
surest keep it as their label (the distance between the first and the second word is largest; taken word by word, so
that an easy one does not fill the labels: Zou et al., ECCV 2018), the others have none. Training goes on from the run's
weights: patches by cross-entropy over the words' text vectors, images as before, which holds on to what was learned.

    L = L_image + weight * mean over labelled patches of the batch of -log softmax_k( e_p . t_k / tau )[label of p]

No label of a person is used. The run is asked once; another round is another training that names the run before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from grafalign import console
from grafalign.encoders import FrozenClip, SatelliteEncoder, TilePreprocessing
from grafalign.encoders.smooth import SmoothAttention
from grafalign.errors import GrafalignError
from grafalign.processes import this_team
from grafalign.training.sources import Source
from grafalign.zeroshot import class_vectors

NONE = -1
"""No label."""
_BATCH = 64
Labels = npt.NDArray[np.int16]


@dataclass(frozen=True)
class SelfLabels:
    """Words and the patches that have one."""

    vectors: Tensor
    """Unit text embeddings of the words, [K, D]."""
    labels: Labels
    """Word of each patch of each image, over all sources, or `NONE`: [N, side, side]."""


def label_images(
    encoder: SatelliteEncoder,
    preprocess: TilePreprocessing,
    clip: FrozenClip,
    sources: list[Source],
    words: list[str],
    share: float,
) -> SelfLabels:
    """Ask a run's encoder for labels of all training images, which the processes of the training share.

    Args:
        encoder: of the run.
        preprocess: how stored pixels become its input.
        clip: whose words they are.
        sources: what is trained on.
        words: K words.
        share: of each word's patches, that keep it.

    Raises:
        GrafalignError: the encoder's tower does not pool by a class token.
    """
    vectors = torch.from_numpy(class_vectors(clip, words))
    pool, count = SmoothAttention(encoder), sum(len(source.rows) for source in sources)
    best = np.full((count, encoder.side, encoder.side), NONE, np.int16)
    lead = np.zeros(best.shape, np.float32)
    device, team = next(encoder.parameters()).device, this_team()
    begins = np.cumsum([0, *(len(source.rows) for source in sources)])
    batches = [
        (source, slice(first, first + _BATCH), int(begin) + first)
        for source, begin in zip(sources, begins[:-1], strict=True)
        for first in range(0, len(source.rows), _BATCH)
    ]
    mine = team.share(len(batches))
    labelled = []
    with (
        console.progress(
            'labelling images', sum(len(s.rows[part]) for s, part, _ in batches[mine.start : mine.stop])
        ) as bar,
        torch.no_grad(),
    ):
        for source, part, begin in batches[mine.start : mine.stop]:
            rows = source.rows[part]
            pixels = [_read(source, int(row)) for row in rows]
            good = [i for i, one in enumerate(pixels) if one is not None]
            if good:
                scale, offset = source.pixels.radiometry(rows[good])
                stacked = np.stack([pixels[i] for i in good])  # type: ignore[misc]
                arrays = (torch.from_numpy(np.ascontiguousarray(v)).to(device) for v in (stacked, scale, offset))
                scores = pool(preprocess(*arrays)).patches @ vectors.to(device).T
                two = scores.topk(2, dim=-1)
                first_word, ahead = two.indices[..., 0], two.values[..., 0] - two.values[..., 1]
                labelled.append((begin + np.array(good), first_word.cpu().numpy(), ahead.cpu().numpy()))
            bar.advance(len(rows))
    for theirs in team.exchange(labelled):
        for at, word, ahead in theirs:
            best[at], lead[at] = word, ahead
    return SelfLabels(vectors, surest(best, lead, share))


def _read(source: Source, row: int) -> npt.NDArray[np.generic] | None:
    """Pixels of an image; None where they cannot be read, as training leaves it out too."""
    try:
        return source.pixels.read(row)
    except GrafalignError:
        return None


def surest(best: Labels, lead: npt.NDArray[np.floating], share: float) -> Labels:
    """Labels of the patches that are surest of their word; the others have none.

    Args:
        best: the first word of each patch, or `NONE`.
        lead: how far it is ahead of the second.
        share: of each word's patches that keep it, at least one.

    Worked example: patches of one word with leads of 0.3, 0.1, 0.2 and 0.4 and a share of 0.5 keep the first and last.
    """
    labels = np.full(best.shape, NONE, np.int16)
    for word in np.unique(best[best != NONE]):
        mine = best == word
        kept = max(1, round(share * int(mine.sum())))
        least = np.partition(lead[mine], -kept)[-kept]
        labels[mine & (lead >= least)] = word
    return labels


def label_loss(patches: Tensor, labels: Tensor, vectors: Tensor, tau: float, count: Tensor) -> Tensor:
    """The loss of labelled patches, over the number of them in the whole batch.

    Args:
        patches: unit embeddings [b, side, side, D].
        labels: words, int64 [b, side, side], or `NONE`.
        vectors: of words, [K, D].
        tau: temperature.
        count: labelled patches of the step in all micro-batches, over the number of processes.
    """
    logits = patches @ vectors.T / tau
    total = functional.cross_entropy(logits.flatten(0, 2), labels.flatten(), ignore_index=NONE, reduction='sum')
    return total / count.clamp_min(1)
