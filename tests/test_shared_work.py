"""Filters, searches, labels and validation by several processes are those of one."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from grafalign.captions.import_set import import_captions
from grafalign.curation import fit_filter
from grafalign.errors import MachineError
from grafalign.models import Model
from grafalign.processes import Team
from grafalign.sandbox import TINY_CLIP_DIR
from grafalign.search import Catalog, build_index, search
from grafalign.store import PairStore
from tests.caption_world import folder
from tests.commands import contents
from tests.curation_world import labels_of, make_kinds
from tests.launched import ended, ranks, start, with_one_killed


@pytest.mark.slow
def test_a_caption_set_filtered_by_several_processes_is_the_same_bytes(
    store: PairStore, world: Path, model: Model, tmp_path: Path
) -> None:
    """One of two or four killed on the way: the others say so, and the same command again ends as one process does."""
    (tmp_path / 'kinds').mkdir()
    kinds = make_kinds(tmp_path / 'kinds', store, world)
    fit_filter(labels_of(kinds), model, tmp_path / 'filter', rate=0.5)
    images = folder(tmp_path / 'web', 700)
    judged = ('--filter', tmp_path / 'filter', '--model', TINY_CLIP_DIR)
    for count in (1, 2, 4):
        import_captions(images, tmp_path / f'set{count}')
        command = ('captions', 'filter', tmp_path / f'set{count}', tmp_path / f'kept{count}', *judged)
        if count > 1:
            parts = tmp_path / f'set{count}' / 'features'
            with_one_killed(count, lambda: any(parts.glob('*/parts-*/*.parquet')), *command)  # noqa: B023
        assert all(ended(process)[0] == 0 for process in ranks(count, *command))
    vectors = [contents(tmp_path / f'set{count}' / 'features') for count in (1, 2, 4)]
    assert vectors[0] == vectors[1] == vectors[2] and any(name.endswith('vectors.npy') for name in vectors[0])
    kept = [(tmp_path / f'kept{count}' / 'images.parquet').read_bytes() for count in (1, 2, 4)]
    assert kept[0] == kept[1] == kept[2]


@pytest.mark.slow
def test_many_queries_by_several_processes_are_answered_as_by_one(
    store: PairStore, model: Model, tmp_path: Path
) -> None:
    """Words, signs and places: the answers of two and four processes are those of one, in the order of the queries."""
    build_index(str(store.path), tmp_path / 'index', model, str(TINY_CLIP_DIR))
    queries = [f'{number} {word}' for number in range(200) for word in ('fields', 'a road -trees', 'water')]
    (tmp_path / 'queries.txt').write_text('\n'.join(queries))
    asked = ('search', tmp_path / 'index', '--queries', tmp_path / 'queries.txt', '-k', 3)
    for count in (1, 2, 4):
        code, said = ended(start(*asked, '--out', tmp_path / f'{count}.csv', '--processes', count))
        assert code == 0, said
    answers = [(tmp_path / f'{count}.csv').read_text() for count in (1, 2, 4)]
    assert answers[0] == answers[1] == answers[2] and answers[0].count('\n') == 3 * len(queries) + 1
    alone = search(Catalog(tmp_path / 'index'), queries[400:401], 3, model=model)
    together = search(Catalog(tmp_path / 'index'), queries, 3, model=model)
    assert alone['item_id'].tolist() == together.loc[together['number'] == 400, 'item_id'].tolist()


VALIDATION = """
import sys
import numpy as np
import torch
from torch import nn
from grafalign.encoders import Embeddings
from grafalign.errors import InputError
from grafalign.processes import meet_on_cpu, this_team
from grafalign.training.validation import embed_pixels

class Pixels:
    def read(self, row):
        if 3 <= row < 6 or row == 9:
            raise InputError('broken')
        return np.full((3, 4, 4), row, dtype=np.uint8)
    def radiometry(self, rows):
        return np.ones((len(rows), 3), dtype=np.float32), np.zeros((len(rows), 3), dtype=np.float32)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)  # its buffers are what processes exchange when they go through a model
        self.head = nn.Linear(3, 5)
    def forward(self, shown):
        pixels, scale, offset = shown
        image = self.head(self.norm(pixels.float().mean((2, 3)) * scale + offset))
        return Embeddings(image, image[:, None, None], image)

torch.manual_seed(0)
net = Net().eval()
if this_team().count > 1:
    from accelerate import Accelerator
    meet_on_cpu()
    net = Accelerator().prepare(net)
rows, vectors = embed_pixels(net, Pixels(), np.arange(11), 'image', 3)
np.savez(f'{sys.argv[1]}-{this_team().rank}.npz', rows=rows, vectors=vectors)
"""


@pytest.mark.slow
def test_processes_that_validate_together_embed_what_one_does(tmp_path: Path) -> None:
    """More processes than batches, a batch of which no image can be read: all end, with all that one has, in order."""
    files = []
    for count in (1, 2, 5):
        out = tmp_path / f'of{count}'
        for process in ranks(count, '-c', VALIDATION, out):
            code, said = ended(process)
            assert code == 0, said
        files += sorted(tmp_path.glob(f'of{count}-*.npz'))
    assert len(files) == 8
    alone = np.load(files[0])
    assert alone['rows'].tolist() == [0, 1, 2, 6, 7, 8, 10] and alone['vectors'].shape == (7, 5)
    for file in files[1:]:
        assert all(np.array_equal(np.load(file)[name], alone[name]) for name in ('rows', 'vectors'))


def test_a_file_that_a_shared_folder_shows_late_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that never comes is one sentence that names it."""
    late = threading.Timer(0.5, (tmp_path / 'late').touch)
    late.start()
    Team(0, 2).see([tmp_path / 'late'])
    assert (tmp_path / 'late').exists()
    monkeypatch.setattr('grafalign.processes._SIGHT_S', 0.3)
    with pytest.raises(MachineError, match='Process 1 does not see'):
        Team(1, 2).see([tmp_path / 'never'])
