"""Run by `test_training.py` in two processes: train, and say how many numbers went through collectives."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import yaml

from grafalign.training import TrainSettings, train


def main(config: Path) -> None:
    """Write the elements of all tensors that were reduced, by call."""
    settings = TrainSettings.model_validate(yaml.safe_load(config.read_text()))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        run = train(settings)
    calls = [e for e in profile.events() if e.name == 'gloo:all_reduce']
    elements = [sum(torch.Size(shape).numel() for shape in call.input_shapes) for call in calls]
    (settings.out / f'wire_{run.processes}.json').write_text(json.dumps(elements))


if __name__ == '__main__':
    main(Path(sys.argv[1]))
