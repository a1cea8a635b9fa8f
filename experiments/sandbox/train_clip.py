"""Make the tiny CLIP that ships with grafalign: `python experiments/sandbox/train_clip.py`.

Photos and captions come from worlds 9001 to 9003; its accuracy is read off photos of world 9004. The quickstart runs
in worlds 0 to 2, so the model has never seen the places that it is used on, and no tile of any world. It is a
model of open_clip with a config of its own, trained with CLIP's symmetric loss.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from grafalign.sandbox import TINY_CLIP_DIR
from grafalign.sandbox.classes import LandClass, kinds_of
from grafalign.sandbox.ground import render
from grafalign.sandbox.junk import indoor_photo, junk_photo
from grafalign.sandbox.land import make_land
from grafalign.sandbox.noise import FloatArray
from grafalign.sandbox.photographers import INDOOR, JUNK, stand
from grafalign.sandbox.structures import build

MODEL_CONFIG: dict[str, Any] = {
    'embed_dim': 96,
    'vision_cfg': {'image_size': 64, 'layers': 4, 'width': 128, 'head_width': 32, 'patch_size': 16},
    'text_cfg': {'context_length': 24, 'vocab_size': 49408, 'width': 48, 'heads': 3, 'layers': 2},
}
# The photos' own statistics do not matter at this size; CLIP's are kept so that no second convention arises.
PREPROCESS_CONFIG: dict[str, Any] = {
    'mean': [0.48145466, 0.4578275, 0.40821073],
    'std': [0.26862954, 0.26130258, 0.27577711],
    'interpolation': 'bicubic',
    'resize_mode': 'shortest',
}
_TEMPLATES = ('a photo of {}.', 'a photo of {}.', '{}.', 'this is {}.', 'a picture of {}.', 'a snapshot of {}.')


def caption(share: FloatArray, kinds: Sequence[LandClass], rng: np.random.Generator) -> str:
    """Say what a photo shows, as somebody would who looks at it: its main subject, perhaps a second one."""
    order = np.argsort(-share)
    words = []
    for i in order[:2]:
        known = kinds[int(i)]
        words.append(known.name if rng.random() < 0.55 else str(rng.choice(known.synonyms)))
    second = share[order[1]] > 0.3 or (share[order[1]] > 0.12 and rng.random() < 0.4)
    return str(rng.choice(_TEMPLATES)).format(f'{words[0]} and {words[1]}' if second else words[0])


def photos_with_captions(
    seed: int, count: int, shape: tuple[int, int] = (3072, 3840), tints: int = 1
) -> tuple[npt.NDArray[np.uint8], list[str], FloatArray]:
    """Photos [P, 64, 64, 3], their captions, and the share of each kind in them [P, kinds]."""
    land = make_land(seed, shape, tints)
    structures = build(land)
    cameras, phones = stand(land, structures, count, seed)
    images, shares = render(land, structures, cameras, seed)
    rng = np.random.default_rng((seed, 2))
    captions = []
    for i, kind in enumerate(phones.kind):
        if kind == INDOOR:
            images[i], shares[i] = indoor_photo(rng), 0
            captions.append(str(rng.choice(['a photo taken indoors.', 'a room with furniture.', 'an indoor photo.'])))
        elif kind == JUNK:
            images[i], shares[i] = junk_photo(rng), 0
            captions.append(str(rng.choice(['a photo of food.', 'a screenshot of text.', 'not a photo of a place.'])))
        else:
            captions.append(caption(shares[i], land.kinds, rng))
    return images, captions, shares


def train_clip(
    out: Path, seeds: tuple[int, ...], photos_per_seed: int, epochs: int, tints: int = 1
) -> dict[str, float]:
    """Train the tiny CLIP and save it as an open_clip folder (`local-dir:`).

    Args:
        out: folder for `open_clip_config.json` and `open_clip_model.safetensors` (float16).
        seeds: worlds to take photos from; the last one is held out for the reported accuracy.
        photos_per_seed: photos in each world.
        epochs: passes over the photos.
        tints: colours of the worlds' land.

    Returns:
        Zero-shot accuracy on held-out photos that show mainly one class, the seconds and the number of photos.
    """
    import open_clip
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = CLIP(**MODEL_CONFIG)
    tokenizer = open_clip.SimpleTokenizer(context_length=MODEL_CONFIG['text_cfg']['context_length'])
    worlds = [photos_with_captions(seed, photos_per_seed, tints=tints) for seed in seeds]
    images = torch.from_numpy(np.concatenate([w[0] for w in worlds[:-1]]))
    tokens, caption_of = torch.unique(tokenizer([c for w in worlds[:-1] for c in w[1]]), dim=0, return_inverse=True)
    batch, total = 256, epochs * (len(images) // 256)
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{'params': decay, 'weight_decay': 0.1}, {'params': plain, 'weight_decay': 0.0}], lr=1.5e-3, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / 100, 0.5 + 0.5 * math.cos(math.pi * s / total))
    )
    started, step = time.perf_counter(), 0
    for epoch in range(epochs):
        for rows in torch.randperm(len(images)).split(batch)[: len(images) // batch]:
            pixels = normalised(images[rows])
            if torch.rand(()) < 0.5:
                pixels = pixels.flip(-1)
            said, which = torch.unique(caption_of[rows], return_inverse=True)  # equal captions are encoded once
            a, b, scale = model(pixels, tokens[said])
            logits = scale * a @ b[which].T
            target = torch.arange(len(rows))
            loss = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))
            step += 1
        print(f'epoch {epoch + 1}/{epochs}  loss {loss.item():.3f}  {time.perf_counter() - started:.0f} s', flush=True)
    model.eval()
    names = [kind.name for kind in kinds_of(tints)]
    held_out, _, share = worlds[-1]
    with torch.no_grad():
        text = functional.normalize(model.encode_text(tokenizer([f'a photo of {n}.' for n in names])), dim=-1)
        seen = torch.cat([model.encode_image(normalised(part)) for part in torch.from_numpy(held_out).split(500)])
        guess = (functional.normalize(seen, dim=-1) @ text.T).argmax(1).numpy()
    clear = share.max(1) > 0.6
    accuracy = float((guess == share.argmax(1))[clear].mean())
    out.mkdir(parents=True, exist_ok=True)
    config = {'model_cfg': MODEL_CONFIG, 'preprocess_cfg': PREPROCESS_CONFIG}
    (out / 'open_clip_config.json').write_text(json.dumps(config, indent=2) + '\n')
    weights = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    save_file(weights, str(out / 'open_clip_model.safetensors'))
    return {'accuracy': accuracy, 'seconds': time.perf_counter() - started, 'photos': len(images)}


def normalised(images: torch.Tensor) -> torch.Tensor:
    """uint8 [B, H, W, 3] to CLIP's normalised float [B, 3, H, W]."""
    mean, std = (torch.tensor(PREPROCESS_CONFIG[k]).view(1, 3, 1, 1) for k in ('mean', 'std'))
    return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=TINY_CLIP_DIR)
    parser.add_argument('--photos', type=int, default=16000, help='photos in each world')
    parser.add_argument('--epochs', type=int, default=16)
    parser.add_argument('--tints', type=int, default=1, help='colours of the land; 9 make 216 kinds')
    args = parser.parse_args()
    seeds = (9001, 9002, 9003, 9004)
    result = train_clip(args.out, seeds, args.photos, args.epochs, args.tints)
    record = {
        'what': 'zero-shot accuracy of the tiny CLIP on held-out ground photos that show mainly one class',
        **result,
        'worlds': list(seeds),
        'epochs': args.epochs,
        'command': f'python experiments/sandbox/train_clip.py --photos {args.photos} --epochs {args.epochs}',
        'versions': {name: version(name) for name in ('torch', 'open_clip_torch', 'numpy')},
        'machine': f'{platform.machine()}, CPU',
    }
    (args.out / 'training.json').write_text(json.dumps(record, indent=2) + '\n')
    print(json.dumps(record, indent=2))
