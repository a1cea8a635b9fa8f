"""Steps for towers that are both trained: micro-batches of images, each with its part of the step's texts as tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grafalign.training.banks import JoinedTexts
from grafalign.training.data import PairSteps
from grafalign.training.steps import Steps


class TokenSteps(Steps):
    """The steps of `PairSteps`, with the texts in every micro-batch.

    Further entries:

    tokens       [k, L] of this micro-batch's part of the step's K texts; one text that does not count where it has none
    own          how many images and texts of it count, int64 [2]
    text_sizes   texts of the step in every process, int64 [W]
    share        of what belongs to the batch as a whole: 1 / n in each of a process's n micro-batches that have images

    Every distinct text of a step goes through the text tower once, in one of the processes. Where captions are written,
    too, each text of an image is one, and there are

    captions     [m, L] of the images of this micro-batch; one that does not count where they have none
    captions_of  the image (0 to b - 1) of each, int64 [m]
    captioned    which of them count, bool [m]

    Args:
        steps: images and pairs.
        texts: texts by row of the joined bank.
        tokenizer: makes token ids [n, L] of n texts.
        captions: whether captions are written.
    """

    def __init__(
        self,
        steps: PairSteps,
        texts: JoinedTexts,
        tokenizer: Callable[[list[str]], Tensor],
        *,
        captions: bool = False,
    ) -> None:
        self._steps, self._texts, self._tokenizer, self._captions = steps, texts, tokenizer, captions
        self.micro_batches, self.steps_per_epoch = steps.micro_batches, steps.steps_per_epoch

    def with_micro_batch(self, micro_batch: int) -> TokenSteps:
        """The same steps in micro-batches of another size."""
        steps = self._steps.with_micro_batch(micro_batch)
        return TokenSteps(steps, self._texts, self._tokenizer, captions=self._captions)

    @property
    def micro_batch(self) -> int:
        """Images that go through the encoder at a time."""
        return self._steps.micro_batch

    def name_tiles(self, rows: list[int]) -> list[str]:
        """Ids of images, by their numbers over all sources."""
        return self._steps.name_tiles(rows)

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, item: int) -> dict[str, Any]:
        batch: dict[str, Any] = {**self._steps[item]}
        share, number = self._steps.share, item % self.micro_batches
        sizes, rows = batch['sizes'].tolist(), batch['candidates'].numpy()
        used = [-(-size // self._steps.micro_batch) for size in sizes]  # micro-batches that have images, by process
        parts = np.array_split(rows, sum(used))
        first = np.cumsum([0, *used])
        mine = parts[first[share.rank] + number] if number < used[share.rank] else rows[:0]
        images = min(self._steps.micro_batch, max(0, sizes[share.rank] - number * self._steps.micro_batch))
        weight = 1 / used[share.rank] if images else float(number == 0 and not used[share.rank])
        texts = [sum(len(part) for part in parts[first[r] : first[r + 1]]) for r in range(share.world)]
        shown = mine if len(mine) else rows[:1]
        if self._captions:
            batch |= self._captions_of(batch, rows)
        return batch | {
            'tokens': self._tokenizer(self._texts.take(shown)),
            'own': torch.tensor([images, len(mine)]),
            'text_sizes': torch.tensor(texts),
            'share': torch.tensor(weight, dtype=torch.float64),
        }

    def _captions_of(self, batch: dict[str, Any], rows: np.ndarray) -> dict[str, Tensor]:
        of, there = batch['tile'], len(batch['tile']) > 0
        texts = rows[batch['photo'].numpy()] if there else rows[:1]
        return {
            'captions': self._tokenizer(self._texts.take(texts)),
            'captions_of': of if there else torch.zeros(1, dtype=torch.int64),
            'captioned': torch.full((len(texts),), there),
        }
