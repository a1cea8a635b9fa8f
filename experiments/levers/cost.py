"""What a step of each lever costs, in turns on one core: `python -m experiments.levers.cost --worlds runs/worlds`.

The cells of `run.py` share their machine with others, so their times of a step cannot be compared.
"""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.levers.gap import TRAIN
from experiments.study import CLIP, study_parser
from grafalign import console
from grafalign.encoders import load_clip
from grafalign.training import TrainSettings
from grafalign.training.data import PairSteps
from grafalign.training.gather_data import gather_data
from grafalign.training.task import AlignmentTask
from grafalign.training.trainer import load_satellite
from grafalign.training.word_anchors import make_word_anchors

HERE = Path(__file__).resolve().parent
STEPS = 40
CONE = {'kind': 'view_cone'}
ARMS: dict[str, dict[str, Any]] = {
    'image: photos': {'level': 'image'},
    'image: words': {'level': 'image', 'word_anchors': {}},
    'patch: photos': {'level': 'patch', 'placement': CONE},
    'patch: attention': {'level': 'patch', 'placement': CONE},
}


def prepared(name: str, world: Path, run: Path) -> tuple[AlignmentTask, PairSteps]:
    """A task with its steps, ready to go; `run` is the one that `attention` asks."""
    values = {**TRAIN, 'store': world / 'dense', 'out': world / 'cost', 'clip': CLIP, **ARMS[name]}
    if name.endswith('attention'):
        values['placement'] = {**CONE, 'attention': {'run': run}}
    settings, clip = TrainSettings.model_validate(values), load_clip(CLIP)
    data = gather_data(settings, clip)
    bank, source = data.bank(torch.device('cpu')), data.sources[0]
    words = None
    if settings.word_anchors is not None:
        words = make_word_anchors(clip, None, bank, np.unique(source.candidate), settings.word_anchors.prior_strength)
    teacher = load_satellite(run, clip).encoder.eval() if settings.placement.attention is not None else None
    task = AlignmentTask.start(clip, data.sensor, settings, bank, word_anchors=words, teacher=teacher)
    return task, PairSteps(data.sources, settings, side=task.encoder.side, size_px=data.sensor.size_px)


def main() -> None:
    """Time forward and backward of the arms, one after the other, again and again."""
    parser = study_parser(__doc__, 'levers', cells=False)
    args = parser.parse_args()
    torch.set_num_threads(1)
    world = args.worlds / '0'
    run = args.runs / 'level-patch_tiles-dense_arm-photos_tau-0.4_world-0'
    ready = {name: prepared(name, world, run) for name in ARMS}
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    for step in console.track(range(STEPS), 'steps', STEPS):
        for name, (task, steps) in ready.items():
            batch = steps[step]
            started = time.perf_counter()
            task(batch).backward()
            seconds[name].append(time.perf_counter() - started)
            task.zero_grad()
    median = {name: float(np.median(values[5:])) for name, values in seconds.items()}
    content = {
        'command': 'python -m experiments.levers.cost --worlds runs/worlds',
        'machine': f'{platform.machine()}, {platform.system()}, one core',
        'versions': {'torch': torch.__version__, 'numpy': np.__version__},
        'settings': {'steps': STEPS, 'batch_tiles': TRAIN['batch_tiles'], 'world': 0},
        'ms_a_step': {name: round(1000 * value, 1) for name, value in median.items()},
        'words_over_photos': round(median['image: words'] / median['image: photos'], 3),
        'attention_over_photos': round(median['patch: attention'] / median['patch: photos'], 3),
    }
    (HERE / 'results' / 'cost.json').write_text(json.dumps(content, indent=1) + '\n')
    print(json.dumps(content, indent=1))


if __name__ == '__main__':
    main()
