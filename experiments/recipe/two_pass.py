"""What exactness costs where both towers are trained: two passes in micro-batches beside one pass of the whole batch.

    python -m experiments.recipe.two_pass --data FOLDER          # half an hour on two idle cores

time      seconds of a step of 64 images and their texts: one pass, and two passes in micro-batches of 16 and of 4, in
          turns
mammut    seconds of one pass of a text decoder that only compares, and of one that also writes captions, in turns: 64
          images of 50 tokens (ViT-S/32), and 32 of 197 (ViT-S/16; MaMMUT's own have 256)
memory    peak resident memory of steps of 32 to 256 images in micro-batches of 16, and of one pass, beyond that of a
          step of 16; each in a fresh process

ViT-S/32 and a text tower as wide and as deep, with random weights, float32, on JPEGs with made captions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from experiments.performance.captions.shards import make_shards
from experiments.performance.machine import machine_metadata
from experiments.performance.training.measuring import SEED, peak_beyond, timed
from experiments.performance.training.workload import FULL, make_clip
from grafalign.captions import CaptionSet
from grafalign.captions.import_set import ImportOptions, import_captions
from grafalign.encoders import ClipSettings, FrozenClip, embed_texts, load_clip
from grafalign.encoders.mammut import marked_tokenizer
from grafalign.training import TrainSettings
from grafalign.training.accelerator import make_accelerator
from grafalign.training.data import PairSteps
from grafalign.training.gather_data import gather_data
from grafalign.training.loop import fit
from grafalign.training.mammut import MammutTask
from grafalign.training.token_steps import TokenSteps
from grafalign.training.two_towers import TwoTowerTask

RESULTS = Path(__file__).resolve().parent / 'results'
IMAGES, BATCH, MICRO, SMALL, TURNS, STEPS = 512, 64, 16, 4, 4, 2


def prepare(data: Path, vision: Mapping[str, int] = FULL.vision) -> FrozenClip:
    """A CLIP with random weights, and captioned pictures with their bank."""
    folder = make_clip(data, vision)
    clip = load_clip(ClipSettings(model=str(folder)))
    import_captions(make_shards(data / f'shards{IMAGES}', IMAGES), data / 'set', ImportOptions())
    embed_texts(CaptionSet(data / 'set'), clip)
    return clip


def training(
    data: Path, clip: FrozenClip, batch: int, micro_batch: int, **changes: object
) -> tuple[TwoTowerTask, TokenSteps, Any]:
    """Task, steps and settings."""
    values = {
        'data': str(data / 'set'), 'out': data / 'run', 'clip': clip.settings, 'gsd_m': 1.0, 'steps': 1000,
        'batch_tiles': batch, 'micro_batch': micro_batch, 'precision': 'no', 'trackers': [], 'text_tower': 'trained',
        'photo_to_tile': 1.0, 'learn_tau': True, 'log_every': 10**6,
    }  # fmt: skip
    settings = TrainSettings.model_validate(values | changes)
    gathered = gather_data(settings, clip)
    torch.manual_seed(SEED)
    pairs = PairSteps(gathered.sources, settings, None, micro_batch, size_px=gathered.sensor.size_px)
    if settings.text_tower == 'trained':
        task = TwoTowerTask.start(clip, gathered.sensor, settings)
        return task, TokenSteps(pairs, gathered.texts(), clip.tokenizer), settings
    mammut = MammutTask.start(clip, gathered.sensor, settings)
    tokenizer = marked_tokenizer(clip, mammut.text)
    steps = TokenSteps(pairs, gathered.texts(), tokenizer, captions=settings.caption_weight > 0)
    return mammut, steps, settings


def time_case(data: Path) -> dict[str, Any]:
    """Blocks of steps of either way, in turns."""
    clip = prepare(data)
    ways = {
        'one pass': training(data, clip, BATCH, BATCH),
        'two passes of 16': training(data, clip, BATCH, MICRO),
        'two passes of 4': training(data, clip, BATCH, SMALL),
    }
    return in_turns(ways, [('one pass', 'two passes of 16'), ('one pass', 'two passes of 4')])


def mammut_case(data: Path, patch_px: int, batch: int) -> dict[str, Any]:
    """What writing captions costs beside comparing alone."""
    clip = prepare(data / f'patches_{patch_px}', FULL.vision | {'patch_size': patch_px})
    data = data / f'patches_{patch_px}'
    ways = {
        'compares': training(data, clip, batch, batch, text_tower='decoder', caption_weight=0),
        'also writes': training(data, clip, batch, batch, text_tower='decoder'),
    }
    return {'patch_px': patch_px, 'batch': batch} | in_turns(ways, [('compares', 'also writes')])


def in_turns(ways: dict[str, Any], pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Seconds a step of each way, block by block in turns, and median ratios of some pairs of them."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(TURNS + 1):
        for name, (task, steps, settings) in ways.items():
            spent = timed(lambda: fit(task, steps, STEPS, 1e-5, settings, make_accelerator('no')))  # noqa: B023
            seconds[name].append(spent.wall_s / STEPS)
    later = {name: values[1:] for name, values in seconds.items()}
    ratios = {
        name: statistics.median(more / less for less, more in zip(later[base], later[name], strict=True))
        for base, name in pairs
    }
    return {'seconds_a_step': later, 'median_ratios': ratios}


def memory_case(data: Path, batch: int, micro_batch: int) -> dict[str, Any]:
    """Peak memory of a step beyond that of a step of one micro-batch."""
    clip = prepare(data)
    task, steps, settings = training(data, clip, MICRO, MICRO)
    fit(task, steps, 1, 1e-5, settings, make_accelerator('no'))
    task, steps, settings = training(data, clip, batch, micro_batch)
    spent, peak_mb = peak_beyond(lambda: fit(task, steps, 1, 1e-5, settings, make_accelerator('no')))
    return {'batch': batch, 'micro_batch': micro_batch, 'peak_mb': peak_mb, 'seconds': spent.wall_s}


def main() -> None:
    """Measure all, each case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, default=Path('runs/two_pass'))
    parser.add_argument('--case', nargs='+', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        numbers = [int(n) for n in args.case[1:]]
        cases = {'time': time_case, 'mammut': mammut_case, 'memory': memory_case}
        print(json.dumps(cases[args.case[0]](args.data, *numbers)))  # type: ignore[operator]
        return

    def fresh(*case: object) -> Any:
        command = [sys.executable, '-m', 'experiments.recipe.two_pass', '--data', str(args.data), '--case']
        done = subprocess.run([*command, *map(str, case)], stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    content = {
        'command': 'python -m experiments.recipe.two_pass --data FOLDER',
        'machine': machine_metadata(),
        'versions': {n: version(n) for n in ('grafalign', 'torch', 'open_clip_torch')},
        'settings': {'batch': BATCH, 'micro_batches': [MICRO, SMALL], 'steps_of_a_turn': STEPS, 'seed': SEED},
        'time': fresh('time'),
        'mammut': [fresh('mammut', 32, 64), fresh('mammut', 16, 32)],
        'memory': [fresh('memory', *sizes) for sizes in ((32, 16), (128, 16), (256, 16), (32, 32), (128, 128))],
    }
    (RESULTS / 'two_pass.json').write_text(json.dumps(content, indent=1) + '\n')


if __name__ == '__main__':
    main()
