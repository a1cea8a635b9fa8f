"""Result files and tables: the documented form, damage, protocols side by side, marks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from grafalign.benchmarks import evaluate, read_results
from grafalign.benchmarks.results import ModelMetadata, Protocol, Result, SetMetadata, read_result
from grafalign.benchmarks.suite import Suite
from grafalign.benchmarks.table import by_set, newest, tables
from grafalign.encoders import FrozenClip
from grafalign.errors import GrafalignError
from grafalign.estimate import Estimate
from tests.commands import Command, refused
from tests.labelled_sets import labelled
from tests.test_datasets import paint


def test_results_of_changed_weights_take_the_place_of_old_ones(tmp_path: Path) -> None:
    """A table shows what was asked last of a name; two models of one name at once are refused."""
    images, prompts, data = labelled(40, 4)
    path = tmp_path / 'here' / 'mine.npz'
    path.parent.mkdir()
    for noise in (0.0, 3.0):
        moved = images + noise * np.random.default_rng(9).normal(size=images.shape)
        moved /= np.linalg.norm(moved, axis=1, keepdims=True)
        np.savez(path, images=moved, labels=data.labels, texts=prompts)
        evaluate([str(path)], Suite(draws=100), tmp_path / 'out')
    found = read_results(tmp_path / 'out')
    assert len(found) == 4 and len(newest(found)) == 2
    last = next(r for _, r in newest(found) if r.task == 'classification')
    first = next(r for _, r in found if r.task == 'classification' and r.key != last.key)
    assert last.metrics['top1'].value < first.metrics['top1'].value
    with pytest.raises(GrafalignError, match='Two models are called mine'):
        evaluate([str(path), f'mine={path}'], Suite(), tmp_path / 'out')


def test_damaged_results_are_named(
    folders: Path, clip: FrozenClip, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """A result of another form, cut short, or without its arrays is named with its key; evaluating again mends it."""
    suite = Suite(sets=[f'folder:{folders}'], draws=100)
    done = evaluate([clip.settings.model], suite, tmp_path)
    path = done.paths[0]
    whole = path.read_text()
    for broken, said in (
        (json.dumps(json.loads(whole) | {'nonsense': 1}), 'nonsense'),
        (
            json.dumps(json.loads(whole) | {'metrics': {'top1': {'value': 7, 'low': 0, 'high': 1}}}),
            'metrics.top1.value',
        ),
        (whole[:100], 'is damaged'),
    ):
        path.write_text(broken)
        capsys.readouterr()
        refused(command('table', tmp_path), path, said)
    assert evaluate([clip.settings.model], suite, tmp_path).computed == 1
    beside = path.with_suffix('.npz')
    beside.write_bytes(beside.read_bytes()[:200])
    assert evaluate([clip.settings.model], suite, tmp_path).computed == 1
    capsys.readouterr()
    refused(command('table', tmp_path / 'none'), 'no folder')
    (tmp_path / 'empty').mkdir()
    refused(command('table', tmp_path / 'empty'), 'holds no results')


def test_results_of_version_1_are_read(folders: Path, clip: FrozenClip, tmp_path: Path) -> None:
    """A file that calls the model's metadata `facts` gives the same result, and answers the same question."""
    suite = Suite(sets=[f'folder:{folders}'], draws=100)
    path = evaluate([clip.settings.model], suite, tmp_path).paths[0]
    result = read_result(path)
    content = json.loads(path.read_text())
    content['schema_version'] = 1
    content['model']['facts'] = content['model'].pop('metadata')
    path.write_text(json.dumps(content))
    assert read_result(path) == result.model_copy(update={'schema_version': 1})
    assert evaluate([clip.settings.model], suite, tmp_path).computed == 0


def test_the_documented_schema_is_the_one_that_is_checked() -> None:
    """Docs of the result file name every key of the model, and no other."""
    page = (Path(__file__).parent.parent / 'docs' / 'benchmarks.md').read_text()
    table = page[page.index('## The result file') :]
    told = [
        key
        for line in table.splitlines()
        if line.startswith('| `')
        for key in re.findall('`(\\w+)`', line.split('|')[1])
    ]
    assert sorted(told) == sorted(Result.model_fields)
    nested = [f for model in (ModelMetadata, SetMetadata, Protocol, Estimate) for f in model.model_fields]
    assert all(f'`{field}`' in table for field in nested)


def test_by_set_keeps_protocols_and_sets_apart(folders: Path, clip: FrozenClip, tmp_path: Path) -> None:
    """Two prompts of one model are two columns, and sets of one name but other images are two tables."""
    model = [clip.settings.model]
    for templates in ('photo', 'graft'):
        evaluate(model, Suite(sets=[f'folder:{folders}'], draws=100, templates=templates), tmp_path / 'out')
    other = tmp_path / 'colours'
    for name in ('a', 'b'):
        paint(other / name / '0.png')
    evaluate(model, Suite(sets=[f'folder:{other}'], draws=100), tmp_path / 'out')
    shown = by_set([r for _, r in read_results(tmp_path / 'out')])
    assert len(shown) == 2 and {len(t.head) for t in shown} == {2, 3}
    with pytest.raises(GrafalignError, match='Two sets are called colours'):
        evaluate(model, Suite(sets=[f'folder:{folders}', f'folder:{other}']), tmp_path / 'out')


def test_marked_values_are_never_the_best(folders: Path, clip: FrozenClip, tmp_path: Path) -> None:
    """A transductive figure and one of part of a set carry their marks, and no star, in every table."""
    suite = Suite(sets=[f'folder:{folders}'], tasks=['classification'], draws=100)
    for transductive in (False, True):
        evaluate([clip.settings.model], suite.model_copy(update={'transductive': transductive}), tmp_path / 'out')
    found = [r for _, r in read_results(tmp_path / 'out')]
    assert sorted(r.protocol.transductive for r in found) == [False, True]
    (table,) = tables(found)
    cells = {row[1]: row[2] for row in table.rows}
    marked = next(v for rule, v in cells.items() if 'transductive' in rule)
    plain = next(v for rule, v in cells.items() if 'transductive' not in rule)
    assert '†' in marked and '*' not in marked and '*' in plain and any('†' in note for note in table.notes)
    part = [r.model_copy(update={'data': r.data.model_copy(update={'partial': True})}) for r in found]
    assert all('‡' in row[2] and '*' not in row[2] for row in tables(part)[0].rows)
