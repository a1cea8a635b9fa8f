"""Checkpoints of models that FSDP shards over processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_a_sharded_checkpoint_is_whole(tmp_path: Path) -> None:
    """Saved from two sharded processes it is loaded by two or by one, and both go on as if nothing had happened."""
    command = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', '-m', 'tests.sharded_checkpoint']
    done = subprocess.run(
        [sys.executable, *command, str(tmp_path)], cwd=Path(__file__).parent.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
