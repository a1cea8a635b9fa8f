"""Models that FSDP shards over processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from grafalign.encoders import PhotoBank
from grafalign.store import PairStore


def in_two_processes(module: str, folder: Path) -> None:
    """Run a module of the tests in two processes."""
    command = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', '-m', module, str(folder)]
    done = subprocess.run([sys.executable, *command], cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_sharded_checkpoint_is_whole(tmp_path: Path) -> None:
    """Saved from two sharded processes it is loaded by two or by one, and both go on as if nothing had happened."""
    in_two_processes('tests.sharded_checkpoint', tmp_path)


@pytest.mark.slow
def test_a_sharded_task_has_the_gradient_of_the_whole(store: PairStore, bank: PhotoBank) -> None:
    """The task of a training, spread over two processes, gives loss and gradient of one process with the batch."""
    in_two_processes('tests.sharded_gradient', store.path)
