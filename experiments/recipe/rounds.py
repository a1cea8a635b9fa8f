"""E7: does a model get better at places by learning its own answers? Pseudo-labels of patches, in three rounds.

    (the commands of experiments/recipe/localisation.py first: its runs are where this starts)
    python -m experiments.recipe.rounds --worlds runs/worlds --tune      # how many labels are kept, in world 7
    python -m experiments.recipe.rounds --worlds runs/worlds             # a quarter of an hour a world and core
    python -m experiments.recipe.rounds --worlds runs/worlds --setting
    python -m experiments.recipe.rounds --table

The image-level model of `localisation.py` scores imagery of the training blocks (200 chips of 640 m, no photos needed)
for the 24 class names by smooth attention, the best that it does without labels. Of each class's patches the surest are
kept as labels (the share is tuned), the rest are ignored, and both heads learn on: patches by cross-entropy over the
classes' text vectors, images by the photos as ever, which holds on to what was learned. In the next round the new
model gives the labels in the same way. Arms, all of the same number of steps:

    rounds      labels of the model itself, new in every round
    oracle      the truth instead: what perfect labels would give
    shuffled    labels of the start, each of another tile: what labels without content give
    anchor      no labels: what more steps on photos give
    setting     one round by `grafalign train` itself (`self_labels`): as many steps, labels of the tiles with photos
                alone, each scored by itself

The paper calls such rounds ongoing research; thresholds, loss and number of rounds could not be read of it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.captions.run import TRAIN
from experiments.recipe.localisation import TAU, TILES, chips_of
from experiments.recipe.ways import Patches, Windows
from experiments.study import CLIP, DRAWS, as_text, mean_over_worlds, paired_difference, store_recipe, study_parser
from grafalign.benchmarks.sandbox.evaluate import chip_counts
from grafalign.benchmarks.sandbox.sandbox_set import LabelledTiles, SandboxTruth
from grafalign.benchmarks.statistics import MeanIou, estimates, resampling
from grafalign.encoders import SatelliteEncoder, load_clip
from grafalign.encoders.smooth import SmoothAttention
from grafalign.store import PairStore
from grafalign.training import TrainSettings, load_satellite, train
from grafalign.training.accelerator import make_accelerator
from grafalign.training.data import PairSteps
from grafalign.training.gather_data import gather_data
from grafalign.training.loop import fit
from grafalign.training.self_labels import NONE, surest
from grafalign.training.steps import Steps
from grafalign.training.task import AlignmentTask, viewed
from grafalign.training.views import symmetry
from grafalign.zeroshot import class_vectors, segment

RESULTS = Path(__file__).resolve().parent / 'results' / 'rounds'
ROUNDS, STEPS, BATCH, CHIPS, STRIDE = 3, 80, 32, 200, 32
LR, LABEL_TAU = 5e-4, 0.07
FINE = TILES['fine']
SHARES = (0.25, 0.75)
"""Of each class's patches, the surest of which are kept; tried in world 7."""
TUNING_WORLD = 7
ARMS = ('rounds', 'oracle', 'shuffled', 'anchor')
SETTING = 'setting'
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Land:
    """Imagery of a world's training blocks, cut into tiles."""

    chips: LabelledTiles
    side: int
    """Patches along a side of a tile."""

    def inputs(self, task: AlignmentTask) -> Tensor:
        """Normalised chips, [N, C, S, S]."""
        return normalised(task, self.chips)

    def tiles(self, grids: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Chips [N, ..., S, S] as tiles [4 N, ..., S / 2, S / 2]."""
        half = grids.shape[-1] // 2
        quarters = [grids[..., r : r + half, c : c + half] for r in (0, half) for c in (0, half)]
        return np.concatenate(quarters)

    def truth(self, classes: int) -> Labels:
        """The most frequent true class of every patch, [4 N, side, side]."""
        labels = self.tiles(self.chips.labels)
        patch = labels.shape[-1] // self.side
        cells = labels.reshape(len(labels), self.side, patch, self.side, patch).transpose(0, 1, 3, 2, 4)
        flat = cells.reshape(-1, patch * patch)
        counts = np.stack([(flat == c).sum(1) for c in range(classes)], axis=1)
        most = np.where(counts.sum(1) > 0, counts.argmax(1), NONE)
        return most.reshape(len(labels), self.side, self.side)


def normalised(task: AlignmentTask, chips: LabelledTiles) -> Tensor:
    """Chips as the encoder's input."""
    arrays = (torch.from_numpy(np.asarray(v)) for v in (chips.pixels, chips.scale, chips.offset))
    found: Tensor = task.preprocess(*arrays)
    return found


def surest_labels(scores: npt.NDArray[np.floating], share: float) -> Labels:
    """Labels of the patches that are surest of their class, of scores [N, K, h, w]; the others have none."""
    first_two = np.sort(scores, axis=1)[:, -2:]
    best = scores.argmax(1).astype(np.int16)
    return surest(best, first_two[:, 1] - first_two[:, 0], share).astype(np.int64)


def scores_of_patches(way: Any, inputs: Tensor, vectors: npt.NDArray[np.floating], patch_px: int) -> npt.NDArray[Any]:
    """Scores [N, K, h, w] of the patches of images, through overlapping windows."""
    found = [functional.avg_pool2d(segment(way, one[None], vectors, STRIDE), patch_px) for one in inputs]
    return torch.cat(found).numpy()


class LabelledSteps(Steps):
    """Steps of photos, each with as many tiles of labelled land."""

    def __init__(self, steps: PairSteps, pixels: Tensor, labels: Labels, seed: int) -> None:
        self._steps, self._pixels, self._labels, self._seed = steps, pixels, torch.from_numpy(labels), seed
        self.micro_batches, self.steps_per_epoch = 1, None

    def with_micro_batch(self, micro_batch: int) -> LabelledSteps:
        """Never asked for: one micro-batch a step."""
        raise NotImplementedError

    def name_tiles(self, rows: list[int]) -> list[str]:
        """Ids of images."""
        return self._steps.name_tiles(rows)

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, item: int) -> dict[str, Any]:
        rng = np.random.default_rng((self._seed, 53, item))
        rows = torch.from_numpy(rng.choice(len(self._pixels), BATCH, replace=False))
        code = torch.from_numpy(rng.integers(0, 8, BATCH))
        return {**self._steps[item], 'land': self._pixels[rows], 'labels': self._labels[rows], 'land_code': code}


class RoundTask(nn.Module):
    """The loss of photos on images, and that of labels on patches."""

    def __init__(self, alignment: AlignmentTask, vectors: npt.NDArray[np.floating]) -> None:
        super().__init__()
        self.alignment = alignment
        self.register_buffer('vectors', torch.as_tensor(vectors, dtype=torch.float32), persistent=False)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """The loss of a batch."""
        alignment = self.alignment
        images = viewed(alignment.preprocess, batch, alignment.settings.augment)
        loss: Tensor = alignment._loss(alignment.encoder(images), batch)
        labels = symmetry(batch['labels'][:, None], batch['land_code'])[:, 0]
        if not bool((labels != NONE).any()):
            return loss
        patches = alignment.encoder(symmetry(batch['land'], batch['land_code'])).patches
        logits = patches @ self.get_buffer('vectors').T / LABEL_TAU
        return loss + functional.cross_entropy(logits.flatten(0, 2), labels.flatten(), ignore_index=NONE)


WAYS = ('patches', 'windows', 'smooth')


def mious(encoder: SatelliteEncoder, inputs: Tensor, chips: LabelledTiles, vectors: Any, how: Any) -> dict[str, Any]:
    """Mean IoU by each of `WAYS`, with draws."""
    found = {}
    ways = {'patches': Patches(encoder), 'windows': Windows(encoder), 'smooth': SmoothAttention(encoder)}
    for name, way in ways.items():
        guess = np.concatenate([segment(way, one[None], vectors, STRIDE).argmax(1).numpy() for one in inputs])
        counts = MeanIou(chip_counts(chips.labels, guess, len(vectors)))
        draws = np.concatenate([counts(weights) for weights in how.weights()])
        found[name] = {
            'miou': estimates({'miou': counts}, how)['miou'].model_dump(),
            'draws': {'miou': [round(float(v), 4) for v in draws]},
        }
    return found


class World:
    """What all arms of a world share.

    Args:
        world: folder of the sandbox world.
        run: folder of the world's runs of `localisation.py`.
        seed: the world's.
    """

    def __init__(self, world: Path, run: Path, seed: int) -> None:
        self.seed, self.world, self.run = seed, world, run
        self.clip = load_clip(CLIP)
        self.settings = TrainSettings.model_validate(
            {
                **TRAIN, 'store': run / 'pairs', 'out': run / 'rounds', 'clip': CLIP, 'seed': seed, 'level': 'image',
                'tau': TAU['image'], 'steps': STEPS, 'batch_tiles': BATCH, 'lr': LR, 'trackers': (), 'log_every': STEPS,
            }
        )  # fmt: skip
        self.data = gather_data(self.settings, self.clip)
        truth = SandboxTruth(world / 'sandbox', PairStore(run / 'pairs'))
        self.vectors = class_vectors(self.clip, truth.classes)
        self.test = chips_of(world, run, seed, FINE)
        block_km = store_recipe(world).split.block_km
        self.how = resampling(len(self.test.labels), self.test.lonlat, DRAWS, block_km=block_km)
        start = self.start()
        side = FINE.size_px // start.encoder.patch_px
        self.land = Land(truth.chips('train', CHIPS, FINE.chip_px, seed), side)

    def start(self) -> AlignmentTask:
        """A task from the image-level run's weights, with both heads learning."""
        task = AlignmentTask.start(self.clip, self.data.sensor, self.settings, self.data.bank(torch.device('cpu')))
        task.encoder.load_state_dict(load_satellite(self.run / 'image').encoder.state_dict())
        for parameter in task.encoder.patch_head:
            parameter.requires_grad_(True)
        return task

    def own_labels(self, task: AlignmentTask, share: float) -> Labels:
        """What a model says of the land by smooth attention, where it is sure."""
        encoder = task.encoder.eval()
        inputs = self.land.inputs(task)
        scores = scores_of_patches(SmoothAttention(encoder), inputs, self.vectors, encoder.patch_px)
        return self.land.tiles(surest_labels(scores, share))

    def measured(self, task: AlignmentTask) -> dict[str, Any]:
        """Mean IoU of a model on the test chips."""
        encoder = task.encoder.eval()
        return mious(encoder, normalised(task, self.test), self.test, self.vectors, self.how)

    def learn(self, task: AlignmentTask, labels: Labels, number: int) -> None:
        """One round."""
        torch.manual_seed(self.seed)
        settings = self.settings.model_copy(update={'seed': self.seed + 1000 * number})
        pairs = PairSteps(self.data.sources, settings, None, size_px=FINE.size_px)
        pixels = torch.from_numpy(self.land.tiles(self.land.inputs(task).numpy()))
        steps = LabelledSteps(pairs, pixels, labels, settings.seed)
        fit(RoundTask(task.train(), self.vectors), steps, STEPS, settings.peak_lr, settings, make_accelerator('no'))

    def arm(self, name: str, share: float, first: Labels) -> dict[str, Any]:
        """Three rounds of an arm, measured after each.

        Args:
            name: of `ARMS`.
            share: of each class's patches that keep their label.
            first: labels of the start.
        """
        truth = self.land.truth(len(self.vectors))
        task = self.start()
        rounds, right = [], []
        labels = first
        if name == 'oracle':
            labels = truth
        elif name == 'shuffled':
            labels = np.random.default_rng((self.seed, 59)).permutation(first)
        elif name == 'anchor':
            labels = np.full_like(first, NONE)
        for number in range(1, ROUNDS + 1):
            if name == 'rounds' and number > 1:
                labels = self.own_labels(task, share)
            there = (labels != NONE) & (truth != NONE)
            right.append([float((labels != NONE).mean()), float((labels == truth)[there].mean()) if there.any() else 0])
            self.learn(task, labels, number)
            if number == ROUNDS or name == 'rounds':
                rounds.append({'round': number} | self.measured(task))
        return {'rounds': rounds, 'labels': [{'share': s, 'right': r} for s, r in right]}


def by_setting(shared: World, share: float, out: Path) -> dict[str, Any]:
    """The same by the product's own setting, measured at its end."""
    words = out / 'words.txt'
    out.mkdir(parents=True, exist_ok=True)
    words.write_text('\n'.join(SandboxTruth(shared.world / 'sandbox', PairStore(shared.run / 'pairs')).classes) + '\n')
    changes = {'self_labels': {'run': shared.run / 'image', 'words': words, 'share': share, 'tau': LABEL_TAU}}
    values = shared.settings.model_dump(mode='json') | changes | {'out': out / 'run', 'steps': ROUNDS * STEPS}
    train(TrainSettings.model_validate(values))
    task = shared.start()
    task.encoder.load_state_dict(load_satellite(out / 'run').encoder.state_dict())
    return {'rounds': [{'round': 1} | shared.measured(task)], 'labels': [{'share': share, 'right': None}]}


def table(records: list[dict[str, Any]]) -> str:
    """Means over worlds, beside what the start gives without any labels."""
    lines = ['# Rounds of pseudo-labels', '']
    lines.append(f"{records[0]['share']:.0%} of each class's patches keep their label (tuned in world 7).")
    lines += ['', '| arm | round | labels right | by | mIoU (95 %) | each world | minus windows of the start |']
    lines[-1] += ' minus smooth attention of the start |'
    lines.append(f'|{"---|" * 8}')
    named = [('start', 0, [r['start'] for r in records], '')]
    for name in (*ARMS, *([SETTING] if all(SETTING in r['arms'] for r in records) else [])):
        for place, last in enumerate(records[0]['arms'][name]['rounds']):
            mine = [r['arms'][name]['rounds'][place] for r in records]
            right = [r['arms'][name]['labels'][last['round'] - 1]['right'] for r in records]
            named.append((name, last['round'], mine, '' if not all(right) else f'{np.mean(right):.3f}'))
    for name, number, mine, of_labels in named:
        for way in WAYS:
            sides = [o[way] for o in mine]
            each = ', '.join(f'{o["miou"]["value"]:.3f}' for o in sides)
            cells = [name, str(number), of_labels, way, as_text(mean_over_worlds(sides, 'miou')), each]
            for before in ('windows', 'smooth'):
                starts = [r['start'][before] for r in records]
                cells.append(as_text(paired_difference(sides, starts, 'miou'), '+') if sides != starts else '')
            lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def main() -> None:
    """Do the rounds of worlds, or make the table."""
    parser = study_parser(__doc__, 'localisation', cells=False)
    parser.add_argument('--tune', action='store_true', help='compare shares of labels in world 7 instead')
    parser.add_argument('--setting', action='store_true', help="add the product's own setting to worlds that are done")
    args = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    about = {
        'versions': {n: version(n) for n in ('grafalign', 'torch', 'open_clip_torch', 'numpy')},
        'settings': {
            'rounds': ROUNDS, 'steps': STEPS, 'batch': BATCH, 'chips': CHIPS, 'stride': STRIDE, 'lr': LR,
            'label_tau': LABEL_TAU, 'photo_tau': TAU['image'],
        },
    }  # fmt: skip
    if args.tune:
        shared = World(args.worlds / str(TUNING_WORLD), args.runs / str(TUNING_WORLD), TUNING_WORLD)
        tried = {}
        for share in SHARES:
            found = shared.arm('rounds', share, shared.own_labels(shared.start(), share))
            tried[str(share)] = [{w: r[w]['miou']['value'] for w in WAYS} for r in found['rounds']]
        record = about | {'command': 'python -m experiments.recipe.rounds --tune', 'shares': tried}
        (RESULTS / 'tuning.json').write_text(json.dumps(record, indent=1) + '\n')
        return
    tried = json.loads((RESULTS / 'tuning.json').read_text())['shares']
    share = max(SHARES, key=lambda s: max(tried[str(s)][-1].values()))
    for seed in args.seeds if args.setting else ():
        path = RESULTS / f'world{seed}.json'
        record = json.loads(path.read_text())
        shared = World(args.worlds / str(seed), args.runs / str(seed), seed)
        record['arms'][SETTING] = by_setting(shared, share, args.runs / str(seed) / 'self_labels')
        path.write_text(json.dumps(record) + '\n')
    for seed in () if args.table or args.setting else args.seeds:
        shared = World(args.worlds / str(seed), args.runs / str(seed), seed)
        start = shared.start()
        first = shared.own_labels(start, share)
        record = about | {
            'command': f'python -m experiments.recipe.rounds --seeds {seed}', 'world': seed, 'share': share,
            'start': shared.measured(start), 'arms': {name: shared.arm(name, share, first) for name in ARMS},
        }  # fmt: skip
        (RESULTS / f'world{seed}.json').write_text(json.dumps(record) + '\n')
    records = [json.loads(p.read_text()) for p in sorted(RESULTS.glob('world*.json'))]
    if records:
        (RESULTS / 'table.md').write_text(table(records))


if __name__ == '__main__':
    main()
