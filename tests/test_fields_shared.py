"""Fields by several workers: threads, processes, Dask, the ranks of a launcher; a worker that dies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.commands import DEADLINE_S, REPOSITORY, Command, contents, finish, refused, start, wait_for
from tests.scenes import patchwork, write_scene
from tests.test_fields import MODEL


@pytest.mark.parametrize(
    'engine', ['threads', *(pytest.param(engine, marks=pytest.mark.slow) for engine in ('processes', 'dask'))]
)
def test_several_workers_make_the_same_bytes(engine: str, tmp_path: Path) -> None:
    """Whoever makes the bands, the field is that of one process."""
    if engine == 'dask':
        pytest.importorskip('distributed')
    scene = write_scene(tmp_path / 's.tif', patchwork(2500, 64))
    for name, options in (('one', ()), ('many', ('--engine', engine, '--workers', 2))):
        code, err = finish(start('field', scene, tmp_path / name, '--model', MODEL, '--stride', 16, *options))
        assert code == 0, err
    assert contents(tmp_path / 'one') == contents(tmp_path / 'many')


@pytest.mark.slow
def test_a_killed_worker_changes_no_byte(tmp_path: Path) -> None:
    """The command ends with one sentence, and the same command again ends with the bytes of one process."""
    scene = write_scene(tmp_path / 's.tif', patchwork(6000, 200))
    options = ('--model', MODEL, '--stride', 16)
    code, err = finish(start('field', scene, tmp_path / 'one', *options))
    assert code == 0, err
    many = ('field', scene, tmp_path / 'many', *options, '--engine', 'processes', '--workers', 2)
    process = start(*many)
    wait_for(process, tmp_path / 'many', 'bands/*.json')
    workers = [p for p in psutil.Process(process.pid).children() if 'spawn_main' in ' '.join(p.cmdline())]
    workers[0].kill()
    code, err = finish(process)
    assert code and 'A worker process died' in err and 'Traceback' not in err
    code, err = finish(start(*many))
    assert code == 0, err
    assert contents(tmp_path / 'one') == contents(tmp_path / 'many')


@pytest.mark.slow
def test_ranks_of_a_launcher_make_the_same_bytes(tmp_path: Path) -> None:
    """Under torchrun, as `accelerate launch` does it, each process makes its share and the first one finishes."""
    scene = write_scene(tmp_path / 's.tif', patchwork(2500, 64))
    options = ('--model', MODEL, '--stride', 16)
    code, err = finish(start('field', scene, tmp_path / 'one', *options))
    assert code == 0, err
    launched = subprocess.run(
        [
            sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=3', '-m', 'grafalign',
            'field', scene, tmp_path / 'many', *map(str, options),
        ],
        env={**os.environ, 'OMP_NUM_THREADS': '1'}, cwd=REPOSITORY, capture_output=True, text=True, timeout=DEADLINE_S,
    )  # fmt: skip
    assert launched.returncode == 0, launched.stderr
    assert contents(tmp_path / 'one') == contents(tmp_path / 'many')


def test_engines_that_make_no_sense_are_one_sentence(tmp_path: Path, command: Command) -> None:
    """An unknown engine, a scheduler without Dask, workers without an engine."""
    scene = write_scene(tmp_path / 's.tif', patchwork(100, 100))
    asked = ('field', scene, tmp_path / 'f', '--model', MODEL)
    refused(command(*asked, '--engine', 'fleet'), "no --engine 'fleet'", 'threads, processes or dask')
    refused(command(*asked, '--scheduler', 'tcp://x:1'), 'needs --engine dask')
    refused(command(*asked, '--workers', 2), '--workers needs --engine')
    refused(command(*asked, '--processes', 2, '--engine', 'threads'), '--processes and --engine say the same')
