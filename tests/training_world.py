"""Short trainings on the small store, for tests."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml
from torch import Tensor

from grafalign.encoders import FrozenClip, PhotoBank
from grafalign.store import PairStore
from grafalign.training import TrainSettings
from grafalign.training.data import PairSteps, Share
from grafalign.training.gather_data import bank_rows
from grafalign.training.task import AlignmentTask


def settings(store: PairStore, clip: FrozenClip, out: Path = Path('no/run'), **changes: object) -> TrainSettings:
    """A short training on the small store."""
    values = {
        'store': store.path,
        'out': out,
        'clip': clip.settings,
        'steps': 6,
        'batch_tiles': 12,
        'photos_per_tile': 4,
        'lr': 1e-3,
        'log_every': 1,
        'validate_every': 6,
        'checkpoint_every': 3,
    }
    return TrainSettings.model_validate(values | changes)


def start(store: PairStore, bank: PhotoBank, clip: FrozenClip, wanted: TrainSettings) -> AlignmentTask:
    """The task of a training, before its first step, on the CPU."""
    torch.manual_seed(0)
    return AlignmentTask.start(clip, store.sensor, wanted, bank_rows(bank, torch.device('cpu'))).train()


def gradient(
    task: AlignmentTask,
    store: PairStore,
    bank: PhotoBank,
    wanted: TrainSettings,
    step: int = 0,
    micro_batch: int | None = None,
    world: int = 1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradient of a step, its micro-batches of all processes added up, and averaged over processes."""
    task.zero_grad()
    loss = torch.zeros(())
    for rank in range(world):
        steps = PairSteps.of_store(store, bank, wanted, Share(rank, world), micro_batch, side=task.encoder.side)
        for number in range(steps.micro_batches):
            part = task(steps[step * steps.micro_batches + number]) / world
            part.backward()
            loss += part.detach()
    return loss, {n: p.grad.clone() for n, p in task.named_parameters() if p.grad is not None}


def launch(
    config: TrainSettings, path: Path, processes: int = 1, program: tuple[str, ...] = ('grafalign', 'train')
) -> subprocess.Popen[bytes]:
    """Start `grafalign train` in processes of its own, joined over gloo where there are several."""
    path.write_text(yaml.safe_dump(config.model_dump(mode='json')))
    launcher = ['-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={processes}'] if processes > 1 else []
    return _start([*launcher, '-m', *program, str(path)], {})


def launch_rank(config: TrainSettings, path: Path, rank: int, world: int, port: int) -> subprocess.Popen[bytes]:
    """Start one of `world` processes of `grafalign train` that meet at `port`, without a launcher that watches them."""
    path.write_text(yaml.safe_dump(config.model_dump(mode='json')))
    numbers = {'RANK': rank, 'LOCAL_RANK': rank, 'WORLD_SIZE': world, 'MASTER_PORT': port}
    return _start(
        ['-m', 'grafalign', 'train', str(path)],
        {'MASTER_ADDR': '127.0.0.1', **{name: str(number) for name, number in numbers.items()}},
    )


def _start(arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'ACCELERATE_USE_CPU': 'true', 'COLUMNS': '200', **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def run_processes(
    config: TrainSettings, path: Path, processes: int = 1, program: tuple[str, ...] = ('grafalign', 'train')
) -> None:
    """Train to the end in several processes."""
    process = launch(config, path, processes, program)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output.decode()


def kill_at_steps(config: TrainSettings, path: Path, processes: int, kills: int) -> None:
    """Start a training again and again, each time killed outright at a later step that is drawn at random."""
    moments = sorted(random.Random(processes * kills).sample(range(1, config.steps or 1), kills))
    for moment in moments:
        process = launch(config, path, processes)
        while _steps_done(config) < moment:
            assert process.poll() is None, process.communicate()[0].decode()
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _steps_done(run: TrainSettings) -> int:
    """The last step in the log."""
    try:
        return int(json.loads((run.out / 'log.jsonl').read_text().splitlines()[-1])['step'])
    except (OSError, ValueError, IndexError):
        return 0
