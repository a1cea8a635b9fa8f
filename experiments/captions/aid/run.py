"""AID with RSICD's captions: what 7,946 captioned images teach, from ImageNet features and from scratch.

    grafalign captions import AID_TRAIN/captions.jsonl runs/aid/train --kind human
    grafalign captions import AID_VAL/captions.jsonl runs/aid/val --kind human --split val
    python -m experiments.captions.aid.word_clip runs/aid/clip runs/aid/train
    grafalign embed runs/aid/train --model runs/aid/clip
    grafalign embed runs/aid/val --model runs/aid/clip
    grafalign train experiments/captions/aid/scratch.yaml
    python -m experiments.captions.aid.run --val AID_VAL

Arms, all towards the same frozen texts (`word_clip.py`) and measured on the 1,027 images of the official val split:

- *from scratch*: the run above, a vision transformer of 2.8 million parameters;
- *ImageNet features*: one linear layer on features of EfficientNet-Lite0, four quarter turns of each image, by the same
  loss in both directions, in the product's own training loop;
- *shuffled captions*: the same with the captions of another image;
- *ridge*: texts regressed on the same features, in closed form, its strength chosen on a tenth of the training images;
- *chance*: random vectors.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.captions.aid.lite0 import features_of
from grafalign.benchmarks.statistics import estimates, resampling
from grafalign.benchmarks.tasks.image_text import caption_table, retrieve_captions
from grafalign.captions import CaptionSet
from grafalign.datasets import ImageSet, open_set
from grafalign.encoders import ClipSettings, FrozenClip, load_clip, load_text_bank
from grafalign.models import load_model
from grafalign.models.embedding import embed_pictures
from grafalign.training.accelerator import make_accelerator
from grafalign.training.loop import fit
from grafalign.training.objective import Candidates, Pairs, contrastive_loss, photo_to_tile_loss
from grafalign.training.order import shuffled
from grafalign.training.settings import LoopSettings
from grafalign.training.steps import Steps

HERE = Path(__file__).resolve().parent
TURNS = (0, 1, 2, 3)
TAU, SEED = 0.07, 0
LOOP = LoopSettings(steps=1500, batch_tiles=512, lr=1e-3, weight_decay=1.0, log_every=500, seed=SEED)
"""Steps, rate and decay were chosen on a tenth of the training images."""
Vectors = npt.NDArray[np.float32]
DRAWS = 1000


class Batch(TypedDict):
    """B images as features, with their texts."""

    pixels: Tensor
    """[B, 1280]"""
    candidates: Tensor
    """Rows of the bank, [K]."""
    tile: Tensor
    photo: Tensor
    weight: Tensor


class FeatureSteps(Steps):
    """Batches of features in ever new order, a quarter turn drawn for each image."""

    def __init__(self, features: Vectors, image: npt.NDArray[np.int64], text: npt.NDArray[np.int64]) -> None:
        self.features = features
        pairs = np.unique(np.stack([image, text], axis=1), axis=0)
        self.first = np.searchsorted(pairs[:, 0], np.arange(features.shape[1] + 1))
        self.text = pairs[:, 1]

    def __len__(self) -> int:
        return 2**31 - 1

    def __getitem__(self, step: int) -> Batch:
        count, size = self.features.shape[1], LOOP.batch_tiles
        epoch, place = divmod(step, count // size)
        rows = shuffled(np.arange(place * size, (place + 1) * size), count, (SEED, 0, epoch))
        turn = np.random.default_rng((SEED, 1, step)).integers(0, len(self.features), size)
        many = self.first[rows + 1] - self.first[rows]
        owner = np.repeat(np.arange(size), many)
        pair = np.repeat(self.first[rows], many) + np.arange(len(owner)) - np.repeat(np.cumsum(many) - many, many)
        candidates, position = np.unique(self.text[pair], return_inverse=True)
        return Batch(
            pixels=torch.from_numpy(self.features[turn, rows]),
            candidates=torch.from_numpy(candidates),
            tile=torch.from_numpy(owner),
            photo=torch.from_numpy(position),
            weight=torch.from_numpy((1 / (size * many[owner])).astype(np.float32)),
        )


class HeadTask(nn.Module):
    """A linear head on standardised features."""

    def __init__(self, features: Vectors, bank: Tensor) -> None:
        super().__init__()
        flat = features.reshape(-1, features.shape[-1])
        self.register_buffer('mean', torch.from_numpy(flat.mean(0)))
        self.register_buffer('scale', torch.from_numpy(flat.std(0) + 1e-6))
        self.head = nn.Linear(flat.shape[1], bank.shape[1])
        self._bank = [bank]

    def embed(self, features: Tensor) -> Tensor:
        """Unit embeddings [B, D]."""
        x = (features - self.get_buffer('mean')) / self.get_buffer('scale')
        return functional.normalize(self.head(x), dim=-1)

    def forward(self, batch: Batch) -> Tensor:
        """Both directions."""
        scaled = self.embed(batch['pixels']) / TAU
        candidates = Candidates(self._bank[0], batch['candidates'])
        pairs = Pairs(batch['tile'], batch['photo'], batch['weight'])
        return contrastive_loss(scaled, candidates, pairs) + photo_to_tile_loss(scaled, candidates, pairs)


def train_head(features: Vectors, image: npt.NDArray[np.int64], text: npt.NDArray[np.int64], bank: Tensor) -> HeadTask:
    """Train the head on features [turns, N, 1280] and pairs of image and text."""
    torch.manual_seed(SEED)
    task = HeadTask(features, bank)
    assert LOOP.steps is not None
    fit(task, FeatureSteps(features, image, text), LOOP.steps, LOOP.lr or 1e-3, LOOP, make_accelerator('no'))
    return task


def ridge(
    features: Vectors, image: npt.NDArray[np.int64], text: npt.NDArray[np.int64], bank: Vectors, new: Vectors
) -> Vectors:
    """Images of `new` [M, 1280] as the texts that a ridge regression expects, unit length."""
    target = np.zeros((features.shape[1], bank.shape[1]))
    np.add.at(target, image, bank[text])
    target /= np.bincount(image, minlength=len(target))[:, None]
    mean, scale = features[0].mean(0), features[0].std(0) + 1e-6
    x = ((features[0] - mean) / scale).astype(np.float64)
    held = np.arange(len(x)) % 10 == 0
    best, strength = np.inf, 0.0
    for candidate in 10.0 ** np.arange(0, 6):
        guess = x[held] @ _solve(x[~held], target[~held], candidate)
        loss = float(((guess - target[held]) ** 2).sum())
        best, strength = min((loss, candidate), (best, strength))
    found = ((new - mean) / scale) @ _solve(x, target, strength)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), dtype=np.float32)


def _solve(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], strength: float) -> npt.NDArray[np.float64]:
    return np.asarray(np.linalg.solve(x.T @ x + strength * np.eye(x.shape[1]), x.T @ y))


def scores(images: Vectors, data: ImageSet, clip: FrozenClip) -> dict[str, Any]:
    """Recall both ways under both rules, with intervals over images."""
    assert data.captions is not None
    found = {}
    for rule in ('own', 'shared'):
        texts, text, image = caption_table(data.captions, rule)  # type: ignore[arg-type]
        different = list(dict.fromkeys(texts))
        parts = [clip.encode_text(different[i : i + 512]).numpy() for i in range(0, len(different), 512)]
        row = {t: i for i, t in enumerate(different)}
        vectors = np.concatenate(parts)[[row[t] for t in texts]]
        outcome = retrieve_captions(images, vectors, text, image)
        how = resampling(len(images), None, DRAWS, SEED)
        found[rule] = {k: v.model_dump() for k, v in estimates(outcome.statistics, how).items()}
    return found


def main() -> None:
    """Run all arms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--runs', type=Path, default=Path('runs/aid'))
    parser.add_argument('--val', type=Path, required=True, help="folder of the val split's images and captions.jsonl")
    parser.add_argument('--results', type=Path, default=HERE.parent / 'results')
    args = parser.parse_args()
    clip = load_clip(ClipSettings(model=str(args.runs / 'clip')))
    train, data = CaptionSet(args.runs / 'train'), open_set(f'captions:{args.val}@all')
    root = Path(train.marker.root or '')
    files = [root / name for name in train.images['file'].to_pylist()]
    features = features_of(files, TURNS, args.runs / 'train.npy')
    val = features_of([args.val / item for item in data.items], (0,), args.runs / 'val.npy')[0]
    bank = load_text_bank(train, clip)
    vectors = torch.from_numpy(np.array(bank.embeddings))
    image, text = train.image_of_caption, np.array(bank.numbers)
    mixed = np.random.default_rng(SEED).permutation(len(train))[image]
    arms: dict[str, Vectors] = {}
    for name, owner in (('ImageNet features, linear head', image), ('the same, captions shuffled', mixed)):
        head = train_head(features, owner, text, vectors)
        arms[name] = head.embed(torch.from_numpy(val)).detach().numpy()
    arms['ridge regression'] = ridge(features, image, text, bank.embeddings.astype(np.float32), val)
    if (args.runs / 'scratch' / 'model.json').is_file():
        model = load_model(str(args.runs / 'scratch'))
        parts = embed_pictures(model, data.read, range(len(data)), data.bands, data.value_range)
        arms['vision transformer from scratch'] = np.concatenate([v for _, v in parts])
    noise = np.random.default_rng(SEED).normal(size=arms['ridge regression'].shape)
    arms['chance'] = np.asarray(noise / np.linalg.norm(noise, axis=1, keepdims=True), dtype=np.float32)
    command = ' '.join(['python -m experiments.captions.aid.run', *sys.argv[1:]])
    versions = {n: version(n) for n in ('grafalign', 'torch', 'open_clip_torch', 'numpy')}
    results = {
        'command': command.replace(str(args.val), 'AID_VAL'),
        'versions': versions | {'python': platform.python_version()},
        'seed': SEED,
        'settings': {'loop': LOOP.model_dump(mode='json'), 'tau': TAU, 'turns': TURNS, 'draws': DRAWS},
        'images': {'train': len(train), 'val': len(data)},
        'arms': {name: scores(found, data, clip) for name, found in arms.items()},
    }
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / 'aid.json').write_text(json.dumps(results, indent=1) + '\n')
    (args.results / 'aid.md').write_text(table(results) + '\n')


def table(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = ['# Recall on the val split of RSICD, AID scenes', '']
    for rule, what in (
        ('own', 'every copy of a caption is a text of its own'),
        ('shared', 'equal captions are one text'),
    ):
        lines += [
            f'`{rule}`: {what}',
            '',
            '| arm | text to image @1 | @5 | @10 | image to text @1 | @5 | @10 | mean recall (95 %) |',
        ]
        lines.append('|---|---|---|---|---|---|---|---|')
        for name, found in results['arms'].items():
            values = found[rule]
            cells = [
                f'{values[f"{way}_r@{k}"]["value"]:.3f}'
                for way in ('text_to_image', 'image_to_text')
                for k in (1, 5, 10)
            ]
            mean = values['mean_recall']
            lines.append(
                f'| {name} | {" | ".join(cells)} | {mean["value"]:.3f} ({mean["low"]:.3f} to {mean["high"]:.3f}) |'
            )
        lines.append('')
    return '\n'.join(lines)


if __name__ == '__main__':
    main()
