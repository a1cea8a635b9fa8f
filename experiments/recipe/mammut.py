"""E3: contrastive only or captions too, one decoder or two, which loss; beside open_clip's CLIP and CoCa.

    python -m experiments.study --worlds runs/worlds --seeds 0 1 2 7
    python -m experiments.recipe.mammut --worlds runs/worlds --tune      # rates of three families, in world 7
    python -m experiments.recipe.mammut --worlds runs/worlds             # 39 trainings, an hour and a half on two cores
    python -m experiments.recipe.mammut --table

10,000 captioned tiles of random places, one caption each (`experiments/captions/annotator.py`), 400 steps of 64, from
the tiny CLIP's weights. Measured on tiles of the test blocks: zero-shot accuracy over 24 classes; recall both ways
between the tiles of the pair store and an annotator's captions of them; and of models that write, CHAIR over the 24
classes, CIDEr-D beside the annotator's captions, and distinct captions. `two decoders` has one that reads and one that
writes (as CoCa has), both from CLIP's text tower. open_clip's CLIP is its own model and loss in the same loop; its
CoCa's text towers and pooling start from nothing, as no CLIP has them.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.captions.from_maps import caption_sets
from experiments.captions.run import caption_set
from experiments.recipe.sandbox_captions import chair, shares_of_tiles
from experiments.study import (
    CLIP,
    DRAWS,
    Cell,
    as_text,
    chosen,
    labelled,
    load_results,
    mean_over_worlds,
    paired_difference,
    run_cells,
    store_recipe,
    study_parser,
)
from grafalign.benchmarks.sandbox.evaluate import ZeroShotModel, embed_tiles
from grafalign.benchmarks.statistics import Mean, Statistic, estimates, resampling
from grafalign.benchmarks.tasks.image_text import caption_table, retrieve_captions
from grafalign.captions import CaptionSet
from grafalign.captions.cider import cider
from grafalign.encoders import FrozenClip, SatelliteEncoder, TilePreprocessing
from grafalign.encoders.captioning import CaptionOptions, write_captions
from grafalign.encoders.mammut import marked_tokenizer, with_decoder
from grafalign.encoders.text_decoder import KeysValues, TextDecoder
from grafalign.store import PairStore
from grafalign.training import SatelliteModel, TrainSettings, load_satellite, train
from grafalign.training.accelerator import make_accelerator
from grafalign.training.data import PairSteps
from grafalign.training.gather_data import gather_data
from grafalign.training.loop import Run, fit
from grafalign.training.mammut import MammutTask
from grafalign.training.task import viewed
from grafalign.training.token_steps import TokenSteps
from grafalign.zeroshot import class_scores, class_vectors

RESULTS = Path(__file__).resolve().parent / 'results' / 'mammut'
NUMBER, TUNING_WORLD = 10_000, 7
RATES = (5e-4, 1e-3, 2e-3)
TRAIN: dict[str, Any] = {'steps': 400, 'batch_tiles': 64, 'log_every': 20, 'tau': 0.07, 'photo_to_tile': 1.0}
SIGMOID = {'learn_tau': True, 'tau': 0.1, 'lr_scalars': 0.02}
"""SigLIP's start; in 500 steps scalars have to move faster than in its own training."""
ARMS: dict[str, dict[str, Any]] = {
    'texts frozen': {},
    'both towers': {'text_tower': 'trained'},
    'both towers, sigmoid': {'text_tower': 'trained', 'form': 'sigmoid', **SIGMOID},
    'both towers, focal': {'text_tower': 'trained', 'form': 'focal', **SIGMOID},
    'decoder, no captions': {'text_tower': 'decoder', 'caption_weight': 0.0},
    'decoder, captions 0.5': {'text_tower': 'decoder', 'caption_weight': 0.5},
    'decoder, captions 1': {'text_tower': 'decoder', 'caption_weight': 1.0},
    'decoder, captions 2': {'text_tower': 'decoder', 'caption_weight': 2.0},
    'decoder, captions 1, sigmoid': {'text_tower': 'decoder', 'form': 'sigmoid', **SIGMOID},
    'decoder, captions 1, focal': {'text_tower': 'decoder', 'form': 'focal', **SIGMOID},
    'two decoders, captions 1': {'text_tower': 'decoder'},
    'open_clip CLIP': {'text_tower': 'trained'},
    'open_clip CoCa': {'text_tower': 'trained'},
}
FAMILIES = ('texts frozen', 'both towers', 'decoder, captions 1')


class TwoDecoders(nn.Module):
    """A decoder that reads and one that writes."""

    def __init__(self, reader: TextDecoder) -> None:
        super().__init__()
        self.reader, self.writer = reader, copy.deepcopy(reader)
        for unused in (*reader.writing_parameters(), self.writer.text_projection):
            unused.requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Vectors of texts."""
        found: Tensor = self.reader(tokens)
        return found

    def look(self, image_tokens: Tensor) -> list[KeysValues]:
        """As of the one that writes."""
        return self.writer.look(image_tokens)

    def caption_loss(self, tokens: Tensor, seen: list[KeysValues], image: Tensor) -> Tensor:
        """As of the one that writes."""
        return self.writer.caption_loss(tokens, seen, image)


class OpenClipTask(nn.Module):
    """A model of open_clip with its own loss, in our loop; every image with its caption, equal ones too."""

    def __init__(self, model: Any, preprocess: TilePreprocessing, settings: TrainSettings, *, captions: bool) -> None:
        super().__init__()
        from open_clip.loss import ClipLoss, CoCaLoss

        self.model, self.preprocess, self.settings, self.captions = model, preprocess, settings, captions
        self.loss = CoCaLoss(1.0, 1.0) if captions else ClipLoss()

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """The loss of a batch."""
        images = viewed(self.preprocess, batch, self.settings.augment)[batch['tile']]
        out = self.model(images, batch['tokens'][batch['photo']])
        if not self.captions:
            found: Tensor = self.loss(*out[:3])
            return found
        parts = self.loss(*(out[k] for k in ('image_features', 'text_features', 'logits', 'labels', 'logit_scale')))
        return parts[0] + parts[1]


def coca(clip: FrozenClip) -> Any:
    """open_clip's CoCa around the tiny CLIP's image tower."""
    from open_clip.coca_model import CoCa

    config = json.loads((Path(CLIP.model) / 'open_clip_config.json').read_text())['model_cfg']
    width = config['embed_dim']
    pooled = {'attentional_pool': True, 'attn_pooler_heads': 3, 'attn_pooler_queries': 16, 'output_tokens': True}
    text = {'context_length': 24, 'vocab_size': 49408, 'width': width, 'heads': 3, 'layers': 2}
    reading = {'embed_cls': True, 'output_tokens': True}
    model = CoCa(width, {**text, 'attn_pooler_heads': 3}, {**text, **reading}, config['vision_cfg'] | pooled)
    state = {k: v for k, v in clip.model.state_dict().items() if k.startswith('visual.')}
    mine = model.state_dict()
    model.load_state_dict({k: v for k, v in state.items() if k in mine and mine[k].shape == v.shape}, strict=False)
    return model


def trainer(cell: Cell, world: Path, settings: TrainSettings) -> SatelliteModel:
    """Train as the arm says."""
    from grafalign.encoders import load_clip

    arm = cell.values['arm']
    data = caption_set(world, cell.world, NUMBER)
    values = settings.model_dump(mode='json') | {'store': None, 'data': str(data)} | ARMS[arm]
    settings = TrainSettings.model_validate(values)
    if not arm.startswith(('two decoders', 'open_clip')):
        train(settings)
        return load_satellite(settings.out)
    clip = load_clip(CLIP)
    gathered = gather_data(settings, clip)
    torch.manual_seed(settings.seed)
    sensor = gathered.sensor
    preprocess = TilePreprocessing(sensor, clip)
    pairs = PairSteps(gathered.sources, settings, None, size_px=sensor.size_px)
    tokenizer: Any = clip.tokenizer
    task: Any
    if arm.startswith('two decoders'):
        task = MammutTask.start(clip, sensor, settings)
        tokenizer, task.text = marked_tokenizer(clip, task.text), TwoDecoders(task.text)
    else:
        model: Any = coca(clip) if 'CoCa' in arm else copy.deepcopy(clip.model)
        task = OpenClipTask(model.requires_grad_(True), preprocess, settings, captions='CoCa' in arm)
    steps = TokenSteps(pairs, gathered.texts(), tokenizer, captions=arm.startswith('two decoders'))
    settings.out.mkdir(parents=True, exist_ok=True)
    run = Run(settings.out, arm)
    fit(task, steps, settings.steps or 1, settings.peak_lr, settings, make_accelerator('no'), run)
    if arm.startswith('two decoders'):
        clip = with_decoder(clip, task.text.reader)
        return SatelliteModel(task.encoder.eval(), preprocess, clip, sensor, None, task.text.writer)  # type: ignore[arg-type]
    trained = replace(clip, model=task.model.eval().requires_grad_(False))
    encoder = SatelliteEncoder(trained, sensor.bands, sensor.size_px).eval() if 'CoCa' not in arm else Pooled(trained)
    return SatelliteModel(encoder, preprocess, trained, sensor, None)  # type: ignore[arg-type]


class Pooled(nn.Module):
    """CoCa's image embedding where the measurements expect an encoder's."""

    def __init__(self, clip: FrozenClip) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, images: Tensor) -> Any:
        """An object with `image` alone."""
        from types import SimpleNamespace

        return SimpleNamespace(image=self.clip.encode_images(images))


def measure(model: SatelliteModel, world: Path, seed: int) -> dict[str, Any]:
    """Accuracy, recall and captions on tiles of the test blocks."""
    test, _, classes = labelled(world, seed)
    bands = range(len(model.sensor.bands))
    ready = ZeroShotModel(model.encoder, model.preprocess, class_vectors(model.clip, classes), bands)
    right = class_scores(embed_tiles(ready, test), ready.classes).argmax(1) == test.labels
    said = CaptionSet(caption_sets(world, seed)['annotator'])
    rows = said.rows_of('test')
    store = PairStore(world / 'pairs')
    table = said.captions.to_pandas().groupby('image')['text'].apply(list)
    captions = [table[row] for row in rows]
    row_of = {name: row for row, name in enumerate(store.tiles['tile_id'].astype(str))}
    tiles = [row_of[said.images['image_id'][int(row)].as_py()] for row in rows]
    scale, offset = store.radiometry
    pixels = torch.from_numpy(np.stack([store.read_tile(int(t)) for t in tiles]))
    inputs = model.preprocess(pixels, torch.from_numpy(scale[tiles]), torch.from_numpy(offset[tiles]))
    with torch.no_grad():
        images = torch.cat([model.encoder(part).image for part in inputs.split(256)]).numpy()
    texts, text, image = caption_table(captions, 'shared')
    outcome = retrieve_captions(images, model.clip.encode_text(texts).numpy(), text, image)
    block_km = store_recipe(world).split.block_km
    of_tiles = resampling(len(right), test.lonlat, DRAWS, block_km=block_km)
    lonlat = store.tiles.geometry.representative_point().get_coordinates().to_numpy()[tiles]
    of_images = resampling(len(rows), lonlat, DRAWS, block_km=block_km)
    accuracy: dict[str, Statistic] = {'accuracy': Mean(right.astype(np.float64), np.ones(len(right)))}
    found: dict[str, Any] = {k: v.model_dump() for k, v in estimates(accuracy, of_tiles).items()}
    found |= {k: v.model_dump() for k, v in estimates(outcome.statistics, of_images).items()}
    found['draws'] = {
        'accuracy': _draws(accuracy['accuracy'], of_tiles),
        'mean_recall': _draws(outcome.statistics['mean_recall'], of_images),
    }
    if model.decoder is not None and cross_attends(model):
        norm = model.encoder.tower.token_norm()
        with torch.no_grad():
            tokens = [norm(model.encoder(part).tokens) for part in inputs.split(256)]
        tokenizer: Any = model.clip.tokenizer
        written = [t for part in tokens for t in write_captions(model.decoder, tokenizer, part, CaptionOptions())]
        found['captions'] = about(written, captions, shares_of_tiles(world)[tiles])
        found['annotator'] = about([c[0] for c in captions], captions, shares_of_tiles(world)[tiles])
    return found


def cross_attends(model: SatelliteModel) -> bool:
    """Whether a decoder was trained to write: a run says so, and ours of two always was."""
    return model.marker is None or model.marker.writes_captions


def about(written: Sequence[str], references: Sequence[Sequence[str]], shares: Any) -> dict[str, Any]:
    """What captions say, and how many different ones there are."""
    return {
        **chair(written, shares),
        'cider': float(np.mean(cider(written, references))),
        'distinct': len(set(written)) / len(written),
        'examples': list(written[:6]),
    }


def _draws(statistic: Statistic, how: Any) -> list[float]:
    return [round(float(v), 4) for v in np.concatenate([statistic(weights) for weights in how.weights()])]


def cells(seeds: Sequence[int], rates: dict[str, float]) -> list[Cell]:
    """One of every arm and world; an arm has the rate of its family."""
    found = []
    for seed in seeds:
        for arm, changes in ARMS.items():
            train = TRAIN | {'lr': rates[family_of(arm)]}
            found.append(Cell(seed, {'arm': arm}, train, options={'changes': changes}))
    return sorted(found, key=lambda cell: cell.values['arm'] == 'open_clip CoCa')  # it takes the longest by far


def family_of(arm: str) -> str:
    """The arm whose rate an arm takes."""
    if arm == 'texts frozen':
        return arm
    return 'decoder, captions 1' if 'decoder' in arm else 'both towers'


def best_rates(folder: Path) -> dict[str, float]:
    """For each family the rate with the best sum of accuracy and mean recall in the tuning world."""
    outcomes = load_results(folder)
    return {
        family: max(
            RATES,
            key=lambda rate, f=family: sum(  # type: ignore[misc]
                chosen(outcomes, arm=f, lr=rate)[0][m]['value'] for m in ('accuracy', 'mean_recall')
            ),
        )
        for family in FAMILIES
    }


def table(outcomes: list[dict[str, Any]], rates: dict[str, float]) -> str:
    """Means over worlds, and paired differences to the frozen texts and to the decoder that only compares."""
    lines = ['# One tower, two towers, one decoder', '']
    lines.append('| arm | accuracy | image to text @1, 5, 10 | text to image @1, 5, 10 | mean recall | s a step | MB |')
    lines.append('|---|---|---|---|---|---|---|')
    for arm in ARMS:
        mine = chosen(outcomes, arm=arm)
        if not mine:
            continue
        cells_ = [as_text(mean_over_worlds(mine, metric)) for metric in ('accuracy', 'mean_recall')]
        ways = [
            ', '.join(f'{np.mean([o[f"{way}_r@{k}"]["value"] for o in mine]):.3f}' for k in (1, 5, 10))
            for way in ('image_to_text', 'text_to_image')
        ]
        cost = [np.mean([o[k] for o in mine]) for k in ('step_ms', 'peak_memory_mb')]
        lines.append(
            f'| {arm} | {cells_[0]} | {ways[0]} | {ways[1]} | {cells_[1]} | {cost[0] / 1000:.2f} | {cost[1]:,.0f} |'
        )
    lines += ['', '| paired difference | accuracy | mean recall |', '|---|---|---|']
    for one, other in (
        ('both towers', 'texts frozen'),
        ('decoder, captions 1', 'texts frozen'),
        ('decoder, captions 1', 'both towers'),
        ('decoder, captions 1', 'decoder, no captions'),
        ('two decoders, captions 1', 'decoder, captions 1'),
        ('both towers, sigmoid', 'both towers'),
        ('both towers, focal', 'both towers'),
        ('open_clip CLIP', 'both towers'),
        ('open_clip CoCa', 'decoder, captions 1'),
    ):
        both = [chosen(outcomes, arm=arm) for arm in (one, other)]
        worlds = {o['world'] for o in both[0]} & {o['world'] for o in both[1]}
        if not worlds:
            continue
        sides = [[o for o in side if o['world'] in worlds] for side in both]
        row = ' | '.join(as_text(paired_difference(*sides, metric), '+') for metric in ('accuracy', 'mean_recall'))
        where = '' if len(worlds) == len(both[1]) else f', world {", ".join(map(str, sorted(worlds)))} alone'
        lines.append(f'| {one} minus {other}{where} | {row} |')
    lines += ['', '| captions | CHAIR_i | CHAIR_s | things named | name the largest | CIDEr-D | distinct |']
    lines.append('|---|---|---|---|---|---|---|')
    writers = {arm: [o['captions'] for o in chosen(outcomes, arm=arm) if 'captions' in o] for arm in ARMS}
    writers['the annotator'] = [o['annotator'] for o in chosen(outcomes, arm='decoder, captions 1')]
    for arm, found_ in writers.items():
        if found_:
            keys = ('chair_i', 'chair_s', 'named', 'names_the_largest', 'cider', 'distinct')
            lines.append(f'| {arm} | {" | ".join(f"{np.mean([f[k] for f in found_]):.3f}" for k in keys)} |')
    told = ', '.join(f'{family} {rate:g}' for family, rate in rates.items())
    return '\n'.join([*lines, '', f'Rates, chosen in world 7 of {RATES}: {told}.']) + '\n'


def main() -> None:
    """Run all cells, or make the table."""
    parser = study_parser(__doc__, 'mammut')
    parser.add_argument('--tune', action='store_true', help='compare rates in world 7 instead')
    args = parser.parse_args()
    if not args.table:
        for seed in (TUNING_WORLD,) if args.tune else args.seeds:  # before cells that share them
            caption_set(args.worlds / str(seed), seed, NUMBER)
            caption_sets(args.worlds / str(seed), seed)
            shares_of_tiles(args.worlds / str(seed))
    if args.tune:
        tuned = [
            Cell(TUNING_WORLD, {'arm': arm, 'lr': rate}, TRAIN | {'lr': rate}, options={'changes': ARMS[arm]})
            for arm in FAMILIES
            for rate in RATES
        ]
        run_cells(tuned, args.worlds, RESULTS / 'tuning', args.runs / 'tuning', trainer, args.abreast, measure)
        return
    rates = best_rates(RESULTS / 'tuning')
    if not args.table:
        run_cells(cells(args.seeds, rates), args.worlds, RESULTS, args.runs, trainer, args.abreast, measure)
    (RESULTS / 'table.md').write_text(table(load_results(RESULTS), rates))


if __name__ == '__main__':
    main()
