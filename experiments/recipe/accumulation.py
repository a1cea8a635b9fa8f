"""What accumulating gradients does to the temperature: open_clip's own trainer beside `TwoTowerTask`.

    python -m experiments.recipe.accumulation        # needs pip install "open_clip_torch[training]"

One batch of 32 noise images with captions goes through the tiny CLIP at once, and in 2, 4 and 8 parts: by
`open_clip_train.train.train_one_epoch` with `accum_freq`, and by the two passes of `grafalign.training.two_towers`.
Gradients are caught before the optimizer's step. Exact accumulation gives the same gradient whatever the parts.
"""

from __future__ import annotations

import copy
import json
import math
from argparse import Namespace
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip_train.train import train_one_epoch
from torch import Tensor, nn
from torch.nn import functional

from grafalign.encoders import ClipSettings, load_clip
from grafalign.sandbox import TINY_CLIP_DIR
from grafalign.sandbox.classes import LAND_CLASSES
from grafalign.training.objective import Pairs
from grafalign.training.vector_gradients import PairLoss, vector_gradients

RESULTS = Path(__file__).resolve().parent / 'results' / 'accumulation.json'
BATCH, PARTS, TAU = 32, (1, 2, 4, 8), 0.07


class Loader:
    """A data loader of one step, in parts."""

    def __init__(self, images: Tensor, tokens: Tensor, parts: int) -> None:
        self._batches = list(zip(images.chunk(parts), tokens.chunk(parts), strict=True))
        self.num_batches, self.num_samples = parts, len(images)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._batches)


class Catcher(torch.optim.SGD):
    """An optimizer that keeps the gradients and leaves the weights alone."""

    caught: dict[int, Tensor]

    def step(self, closure: Any = None) -> None:
        """Keep what `backward` left."""
        self.caught = {id(p): p.grad.clone() for g in self.param_groups for p in g['params'] if p.grad is not None}


def of_open_clip(model: nn.Module, images: Tensor, tokens: Tensor, parts: int) -> dict[str, Tensor]:
    """Gradients of open_clip's trainer."""
    model = copy.deepcopy(model).requires_grad_(True)
    model.output_dict = True  # type: ignore[assignment]
    optimizer = Catcher(model.parameters(), lr=0.0)
    names = ('distill', 'skip_scheduler', 'horovod', 'wandb')
    args = Namespace(
        device='cpu', precision='fp32', accum_freq=parts, grad_clip_norm=None, log_every_n_steps=10**6, rank=0,
        world_size=1, batch_size=BATCH // parts, log_local=False, **dict.fromkeys(names, False),
    )  # fmt: skip
    args.skip_scheduler = True

    class Data:
        dataloader = Loader(images, tokens, parts)

        def set_epoch(self, epoch: int) -> None:
            """Nothing is shuffled."""

    train_one_epoch(model, {'train': Data()}, open_clip.ClipLoss(), 0, optimizer, None, None, None, args)
    return {n: optimizer.caught[id(p)] for n, p in model.named_parameters() if id(p) in optimizer.caught}


def of_two_passes(model: nn.Module, images: Tensor, tokens: Tensor, parts: int) -> dict[str, Tensor]:
    """Gradients of the two passes of ours, of the same loss: the mean of both directions."""
    model = copy.deepcopy(model).requires_grad_(True)
    batches = list(Loader(images, tokens, parts))

    def vectors(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        towers: Any = model
        return towers.encode_image(batch[0], normalize=True), towers.encode_text(batch[1], normalize=True)

    with torch.no_grad():
        parts_of_batch = [vectors(batch) for batch in batches]
    everything = [torch.cat(v) for v in zip(*parts_of_batch, strict=True)]
    number = torch.arange(BATCH)
    pairs = Pairs(number, number, torch.full((BATCH,), 1 / BATCH, dtype=images.dtype))
    scale = model.get_parameter('logit_scale')
    whole = vector_gradients(
        everything[0], everything[1], scale.reshape(1), torch.zeros(1, dtype=scale.dtype), pairs, PairLoss('softmax')
    )
    for batch, of_images, of_texts in zip(batches, whole.images.chunk(parts), whole.texts.chunk(parts), strict=True):
        v, t = vectors(batch)
        ((v * of_images).sum() / 2 + (t * of_texts).sum() / 2).backward()
    scale.grad = whole.log_scale.reshape(scale.shape) / 2
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def main() -> None:
    """Measure, and keep the figures."""
    torch.manual_seed(0)
    clip = load_clip(ClipSettings(model=str(TINY_CLIP_DIR)))
    model = clip.model.double().train()
    with torch.no_grad():
        model.get_parameter('logit_scale').fill_(math.log(1 / TAU))
    images = torch.randn(BATCH, 3, clip.image_px, clip.image_px, dtype=torch.float64)
    tokens = clip.tokenizer([f'a photo of {LAND_CLASSES[n % len(LAND_CLASSES)].name}.' for n in range(BATCH)])
    rows = []
    for name, way in (('open_clip', of_open_clip), ('grafalign', of_two_passes)):
        whole = way(model, images, tokens, 1)
        for parts in PARTS:
            of_parts = way(model, images, tokens, parts)
            towers = [n for n in whole if n != 'logit_scale']
            flat = [torch.cat([g[n].flatten() for n in towers]) for g in (of_parts, whole)]
            rows.append(
                {
                    'trainer': name,
                    'parts': parts,
                    'gradient_of_log_scale_over_that_of_the_whole': float(
                        of_parts['logit_scale'] / whole['logit_scale']
                    ),
                    'relative_error_of_the_towers': float((flat[0] - flat[1]).norm() / flat[1].norm()),
                    'cosine_of_the_towers': float(functional.cosine_similarity(flat[0], flat[1], dim=0)),
                }
            )
    RESULTS.parent.mkdir(exist_ok=True)
    versions = {n: version(n) for n in ('grafalign', 'torch', 'open_clip_torch')}
    settings = {'batch': BATCH, 'tau': TAU, 'precision': 'float64', 'seed': 0}
    content = {
        'command': 'python -m experiments.recipe.accumulation',
        'versions': versions,
        'settings': settings,
        'rows': rows,
    }
    RESULTS.write_text(json.dumps(content, indent=1) + '\n')
    for row in rows:
        print(*row.values())


if __name__ == '__main__':
    main()
