"""kill -9 of fitting a filter, of filtering and of looking for copies: the end is that of a run without kills."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grafalign.captions import CaptionSet
from grafalign.captions.import_set import import_captions
from grafalign.curation import fit_filter
from grafalign.models import Model
from grafalign.sandbox import TINY_CLIP_DIR
from grafalign.store import PairStore
from tests.caption_world import folder
from tests.curation_world import labels_of, make_kinds, web_set
from tests.killing import killed_at_change, run_through_kills

MOMENTS = (1, 2, 3, 5, 8)


@pytest.fixture(scope='module')
def kinds(tmp_path_factory: pytest.TempPathFactory, store: PairStore, world: Path) -> Path:
    """Folders of tiles, ground photos and charts, 40 each, and the file that names them."""
    return make_kinds(tmp_path_factory.mktemp('kinds'), store, world)


def tables(folder: Path) -> dict[str, bytes]:
    """The files of a folder that hold its content; a marker has paths and pages have dates."""
    return {p.name: p.read_bytes() for p in sorted(folder.rglob('*')) if p.suffix in ('.parquet', '.npy', '.npz')}


@pytest.mark.slow
def test_a_filter_that_was_killed_while_it_was_fitted_is_the_same(kinds: Path, tmp_path: Path) -> None:
    """Thresholds and weights are those of a run without kills."""
    args = ['captions', 'fit-filter', str(kinds / 'kinds.yaml'), '--model', str(TINY_CLIP_DIR), '--rate', '0.05']
    assert not killed_at_change([*args, str(tmp_path / 'whole')], tmp_path, 10**9)
    assert run_through_kills([*args, str(tmp_path / 'broken')], tmp_path / 'broken', MOMENTS) >= len(MOMENTS) / 2
    whole, broken = (json.loads((tmp_path / n / 'filter.json').read_text()) for n in ('whole', 'broken'))
    assert whole.pop('command') != broken.pop('command')  # they name their folders
    assert whole == broken and tables(tmp_path / 'whole') == tables(tmp_path / 'broken')


@pytest.mark.slow
def test_a_selection_that_was_killed_is_the_same(kinds: Path, model: Model, tmp_path: Path) -> None:
    """Features, tables and scores are those of a run without kills, and no part stays."""
    fit_filter(labels_of(kinds), model, tmp_path / 'filter', rate=0.05)
    web_set(kinds, tmp_path / 'one' / 'set')
    web_set(kinds, tmp_path / 'two' / 'set')
    for name, moments in (('one', ()), ('two', MOMENTS)):
        place = tmp_path / name
        args = ['captions', 'filter', str(place / 'set'), str(place / 'kept'), '--model', str(TINY_CLIP_DIR)]
        assert run_through_kills([*args, '--filter', str(tmp_path / 'filter')], place, moments) >= len(moments) / 2
    assert tables(tmp_path / 'one') == tables(tmp_path / 'two')
    assert not list(tmp_path.rglob('*.part'))


@pytest.mark.slow
def test_a_report_of_copies_that_was_killed_is_the_same(tmp_path: Path) -> None:
    """The pairs are those of a run without kills, and until the end there is no report."""
    table = folder(tmp_path / 'pictures', 60)
    copy = (tmp_path / 'pictures' / '007.png').read_bytes()
    (tmp_path / 'pictures' / '031.png').write_bytes(copy)
    for name in ('one', 'two'):
        import_captions(table, tmp_path / name / 'set')
    for name, moments in (('one', ()), ('two', MOMENTS)):
        args = ['captions', 'leaks', str(tmp_path / name / 'set'), '--out', str(tmp_path / name / 'clean')]
        assert run_through_kills(args, tmp_path / name, moments) >= len(moments) / 2
    found = tables(tmp_path / 'one')
    assert found == tables(tmp_path / 'two') and 'pairs.parquet' in found
    assert CaptionSet(tmp_path / 'two' / 'clean').rejected.num_rows == 1
    assert not list(tmp_path.rglob('*.part'))
