r"""A small SAM of transformers' own classes, trained on outlines of single objects in other worlds than are measured.

    for seed in 3 4 5; do grafalign sandbox runs/sam_worlds/world$seed --seed $seed --photos 480; done
    python -m experiments.refine.train_sam --worlds runs/sam_worlds/world* \
        --model runs/map_worlds/world7/grafalign_patch --out runs/sam        # 40 minutes on one core

No weights of SAM can be had without a network, so that what `--refine sam` is worth is measured with a model that is to
SAM what the sandbox's tiny CLIP is to CLIP: it knows what things look like from above, and no classes. Of each tile of
256 px the true classes are blurred to cells of 16 px, with noise, as the scores of a field are; of the blobs that come
out `grafalign.maps.sam` makes its prompts; and the mask that comes nearest to the true object is drawn to it (binary
cross-entropy and Dice). World 7 gives bands and value range alone.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import torch
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from scipy import ndimage
from torch.nn import functional

from experiments.maps.worlds import clear_item
from grafalign.console import log
from grafalign.fields import FieldOptions, field_input
from grafalign.fields.build import geobox_of
from grafalign.fields.strips import Strips
from grafalign.labels import VOID
from grafalign.maps.sam import Prompt, Sam, blobs_of, margin_of, prompt_of
from grafalign.models import load_model
from grafalign.models.thumbnails import shown_bands
from grafalign.sandbox.classes import CLASS_NAMES
from grafalign.sandbox.land import OBJECT_KINDS

SIDE, CELL = 256, 16
STEPS, RATE, WARM = 6000, 5e-4, 200
MOST = 12
THINGS = {i for i, name in enumerate(CLASS_NAMES) if name in OBJECT_KINDS}
Floats = npt.NDArray[np.float32]


def make_sam() -> Any:
    """SAM's own classes, with 1.6 M parameters."""
    from transformers import (
        SamConfig,
        SamMaskDecoderConfig,
        SamModel,
        SamPromptEncoderConfig,
        SamVisionConfig,
    )

    vision = SamVisionConfig(
        hidden_size=128,
        output_channels=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=8,
        window_size=8,
        global_attn_indexes=[2, 5],
        num_pos_feats=32,
        mlp_dim=512,
        initializer_range=0.02,
    )
    prompts = SamPromptEncoderConfig(hidden_size=64, image_size=SIDE, patch_size=8, mask_input_channels=8)
    decoder = SamMaskDecoderConfig(
        hidden_size=64, mlp_dim=128, num_hidden_layers=2, num_attention_heads=4, iou_head_hidden_dim=64
    )
    return SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder))


def scenes_of(worlds: list[Path], model_name: str) -> list[tuple[Floats, npt.NDArray[np.int64]]]:
    """Colours [3, H, W] in 0 to 1 and classes [H, W] of both sides of worlds."""
    model = load_model(model_name)
    found = []
    for world in worlds:
        for side in ('west', 'east'):
            source = field_input(str(clear_item(world, side)), model, FieldOptions(of='patches'))
            box, plan = geobox_of(source.plan), source.plan
            strips = Strips(box, source.scenes, plan.value_range, source.reader, 0, plan.height)
            pixels, present = (part.numpy() for part in strips.rows(0, plan.height))
            strips.close()
            with (
                rasterio.open(world / 'truth' / 'classes.tif') as raster,
                WarpedVRT(
                    raster,
                    crs=str(box.crs),
                    transform=box.affine,
                    width=plan.width,
                    height=plan.height,
                    resampling=Resampling.nearest,
                ) as warped,
            ):
                labels = warped.read(1).astype(np.int64)
            found.append((pixels[shown_bands(plan.bands)], np.where(present, labels, VOID)))
            log(f'{world.name} {side}: {plan.width} x {plan.height} px')
    return found


def examples(
    image: Floats, labels: npt.NDArray[np.int64], rng: np.random.Generator
) -> tuple[Floats, list[Prompt], list[npt.NDArray[np.bool_]]] | None:
    """A tile with prompts and true outlines; None where it shows no thing."""
    top, left = (int(rng.integers(0, length - SIDE)) for length in labels.shape)
    pixels, classes = image[:, top : top + SIDE, left : left + SIDE], labels[top : top + SIDE, left : left + SIDE]
    turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
    pixels, classes = np.rot90(pixels, turns, (1, 2)), np.rot90(classes, turns)
    if mirrored:
        pixels, classes = pixels[:, :, ::-1], classes[:, ::-1]
    present = sorted(set(np.unique(classes).tolist()) - {VOID})
    if not THINGS & set(present):
        return None
    shift = rng.integers(0, CELL, 2)
    planes = np.stack([(classes == k).astype(np.float32) for k in present])
    cells = ndimage.uniform_filter(planes, (0, CELL, CELL))[:, shift[0] :: CELL, shift[1] :: CELL]
    cells = cells + rng.normal(0, rng.uniform(0, 0.25), cells.shape)
    blurred = functional.interpolate(torch.from_numpy(cells)[None].float(), (SIDE, SIDE), mode='bilinear')[0].numpy()
    guess = blurred.argmax(0)
    prompts, truths = [], []
    for k, number in enumerate(present):
        if number not in THINGS:
            continue
        numbered, _ = ndimage.label(classes == number)
        for _, blob in blobs_of(guess == k, k):
            inside = np.bincount(numbered[blob], minlength=2)[1:]
            if blob.sum() < CELL**2 // 4 or not inside.any():
                continue
            truths.append(numbered == inside.argmax() + 1)
            prompts.append(prompt_of(blob, margin_of(blurred, k), guess, SIDE))
    if not prompts:
        return None
    chosen = rng.permutation(len(prompts))[:MOST]
    gain = rng.uniform(0.85, 1.15, (3, 1, 1))
    tile = np.clip(pixels * gain, 0, 1).astype(np.float32)
    return tile, [prompts[i] for i in chosen], [truths[i] for i in chosen]


def loss_of(masks: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Of each thing that of its best mask, and a tenth of the mean of all."""
    target = truth[:, None].expand_as(masks)
    entropy = functional.binary_cross_entropy_with_logits(masks, target, reduction='none').mean((2, 3))
    share = masks.sigmoid()
    dice = 1 - (2 * (share * target).sum((2, 3)) + 1) / (share.sum((2, 3)) + target.sum((2, 3)) + 1)
    each = 5 * entropy + dice
    return (each.min(1).values + 0.1 * each.mean(1)).mean()


def main() -> None:
    """Train, and save as transformers does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--worlds', type=Path, nargs='+', required=True)
    parser.add_argument('--model', required=True, help='run whose bands and value range scenes are read with')
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--steps', type=int, default=STEPS)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    scenes = scenes_of(arguments.worlds, arguments.model)
    net = make_sam()
    log(f'{sum(p.numel() for p in net.parameters()):,} parameters')
    sam = Sam(net.train(), SIDE, SIDE // 2)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.01)
    began, losses = time.perf_counter(), []
    for step in range(arguments.steps):
        found = None
        while found is None:
            found = examples(*scenes[rng.integers(len(scenes))], rng)
        tile, prompts, truths = found
        rate = RATE * min(1, (step + 1) / WARM) * 0.5 * (1 + np.cos(np.pi * step / arguments.steps))
        for group in optimizer.param_groups:
            group['lr'] = rate
        embeddings = net.vision_encoder(sam.pixels(tile)).last_hidden_state  # `get_image_embeddings` has no gradient
        masks = sam.masks(embeddings, prompts, SIDE)
        loss = loss_of(masks, torch.from_numpy(np.stack(truths)).float())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % 100 == 99:
            log(f'step {step + 1}: loss {np.mean(losses[-100:]):.4f}, {time.perf_counter() - began:.0f} s')
    net.eval().save_pretrained(arguments.out)


if __name__ == '__main__':
    main()
