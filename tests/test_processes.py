"""Work that several processes share: the same bytes, whoever does it, and one sentence when they cannot."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import yaml

from grafalign.benchmarks import read_result
from grafalign.encoders import PhotoBank
from grafalign.sandbox import TINY_CLIP_DIR
from grafalign.store import PairStore
from tests.commands import contents
from tests.launched import ended, ranks, start, with_one_killed
from tests.made_pairs import picture

CLIP = ('--model', str(TINY_CLIP_DIR))


@pytest.fixture
def bare(store: PairStore, tmp_path: Path) -> Path:
    """A copy of the store without its bank."""
    out = tmp_path / 'pairs'
    shutil.copytree(str(store.path), out)
    shutil.rmtree(out / 'bank', ignore_errors=True)
    return out


def test_a_bank_by_several_processes_is_the_same_bytes(
    store: PairStore, bank: PhotoBank, bare: Path, tmp_path: Path
) -> None:
    """Two that the command starts itself leave the files that one process leaves."""
    code, said = ended(start('embed', bare, '--out', tmp_path / 'many', '--processes', 2, *CLIP))
    assert code == 0, said
    assert contents(tmp_path / 'many') == contents(Path(str(store.path)) / 'bank')


@pytest.mark.slow
@pytest.mark.parametrize('count', [2, 4])
def test_a_bank_that_lost_one_of_its_processes_is_the_same_bytes(
    count: int, store: PairStore, bank: PhotoBank, bare: Path, tmp_path: Path
) -> None:
    """The others say so and end; the same command again goes on with the parts that are there."""
    killed = tmp_path / 'killed'
    with_one_killed(count, lambda: any(killed.glob('parts-*/*.parquet')), 'embed', bare, '--out', killed, *CLIP)
    assert all(ended(process)[0] == 0 for process in ranks(count, 'embed', bare, '--out', tmp_path / 'killed', *CLIP))
    assert contents(tmp_path / 'killed') == contents(Path(str(store.path)) / 'bank')


@pytest.mark.slow
def test_an_index_and_a_table_by_several_processes_are_the_same_bytes(
    store: PairStore, bank: PhotoBank, tmp_path: Path
) -> None:
    """Vectors, items and figures are those of one process."""
    for processes in (1, 2):
        index = ('index', store.path, tmp_path / f'index{processes}', '--model', TINY_CLIP_DIR)
        code, said = ended(start(*index, '--processes', processes))
        assert code == 0, said
        asked = ('evaluate', TINY_CLIP_DIR, '--data', f'pairs:{store.path}', '--set', 'draws=100')
        code, said = ended(start(*asked, '--out', tmp_path / f'out{processes}', '--processes', processes))
        assert code == 0, said
    assert contents(tmp_path / 'index1') == contents(tmp_path / 'index2')
    embeddings = [{p.name: p.read_bytes() for p in (tmp_path / f'out{n}' / 'cache').iterdir()} for n in (1, 2)]
    assert embeddings[0] == embeddings[1] and any(name.endswith('.f32') for name in embeddings[0])
    figures = [[read_result(p).metrics for p in sorted((tmp_path / f'out{n}').glob('*.json'))] for n in (1, 2)]
    assert figures[0] == figures[1] and figures[0]


def test_a_picture_that_one_process_cannot_read_is_one_sentence(tmp_path: Path) -> None:
    """All processes end this question together, whichever of them met the picture, and the next one is answered."""
    for name, broken in (('bad', 150), ('good', None)):
        for number in range(200):
            path = tmp_path / name / ('beach' if number % 2 else 'forest') / f'{number:03d}.png'
            picture(path, number)
            if number == broken:
                path.write_bytes(path.read_bytes()[:60])
    asked = ('evaluate', TINY_CLIP_DIR, '--set', 'draws=100', '--out', tmp_path / 'out', '--processes', 2)
    sets = [a for name in ('bad', 'good') for a in ('--data', f'folder:{tmp_path / name}')]
    code, said = ended(start(*asked, *sets))
    assert code == 1 and '150.png' in said and 'Traceback' not in said and 'is gone' not in said, said
    assert {read_result(p).data.name for p in (tmp_path / 'out').glob('*.json')} == {'good'}


def test_processes_that_do_other_things_are_refused(bare: Path, tmp_path: Path) -> None:
    """Two that look for each other with other stores: both say so, and nothing is written."""
    other = shutil.copytree(bare, tmp_path / 'other')
    marker = other / 'dataset.json'
    digest = PairStore(bare).digest
    marker.write_text(marker.read_text().replace(digest, f'{digest[:-1]}{"0" if digest[-1] != "0" else "1"}'))
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    shared = {'WORLD_SIZE': 2, 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port}
    team = [
        start('embed', store, '--out', tmp_path / 'out', *CLIP, **shared, RANK=rank, LOCAL_RANK=rank)
        for rank, store in enumerate((bare, other))
    ]
    for process in team:
        code, said = ended(process)
        assert code == 7 and 'Process 1 has another question' in said and 'Traceback' not in said, said
    assert not [p for p in (tmp_path / 'out').rglob('*') if p.suffix in ('.parquet', '.npy')]


@pytest.mark.slow
def test_processes_of_folders_that_are_not_one_are_refused(bare: Path, tmp_path: Path) -> None:
    """As on two machines whose disks are not shared; a shared one may take a minute to show a file."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    shared = {'WORLD_SIZE': 2, 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port}
    team = [
        start('embed', bare, '--out', tmp_path / f'out{rank}', *CLIP, **shared, RANK=rank, LOCAL_RANK=rank)
        for rank in range(2)
    ]
    for process in team:
        code, said = ended(process)
        assert code == 7 and 'Process 1 does not see what process 0 wrote' in said, said


@pytest.mark.slow
def test_a_training_starts_its_processes_itself(bare: Path, tmp_path: Path) -> None:
    """`train --processes 2` is a training of two, which ends as one of one does."""
    assert ended(start('embed', bare, *CLIP))[0] == 0
    settings = {'store': str(bare), 'clip': {'model': str(TINY_CLIP_DIR)}, 'steps': 4, 'batch_tiles': 8, 'log_every': 1}
    settings |= {'validate_every': 2}
    logs = []
    for processes in (1, 2):
        out = tmp_path / f'run{processes}'
        (tmp_path / 'train.yaml').write_text(yaml.safe_dump(settings | {'out': str(out)}))
        code, said = ended(start('train', tmp_path / 'train.yaml', '--processes', processes))
        assert code == 0, said
        logs.append([json.loads(line) for line in (out / 'log.jsonl').read_text().splitlines()])
    losses = [[line['loss'] for line in log] for log in logs]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
    recalls = [[{k: v for k, v in line.items() if '@' in k} for line in log] for log in logs]
    assert recalls[1] == recalls[0] and [bool(r) for r in recalls[0]] == [False, True, False, True]
