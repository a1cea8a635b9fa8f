"""Errors have kinds: programs catch them by class, scripts by exit code, people read one sentence."""

from __future__ import annotations

import ast
import json
import pickle
from pathlib import Path

import pytest
import torch
import yaml

import grafalign
from grafalign.encoders import FrozenClip
from grafalign.errors import (
    BusyError,
    DamagedError,
    GrafalignError,
    InputError,
    MachineError,
    RemoteError,
    StaleError,
    error_of,
)
from grafalign.locks import exclusive
from grafalign.pairing import Recipe
from tests.commands import Command


@pytest.fixture
def recipe_file(recipe: Recipe, tmp_path: Path) -> Path:
    """The recipe of the shared store as a file."""
    path = tmp_path / 'recipe.yaml'
    path.write_text(yaml.safe_dump(recipe.model_dump(mode='json', exclude_defaults=True)))
    return path


def test_every_kind_has_its_exit_code(
    recipe_file: Path, own_store: Path, clip: FrozenClip, tmp_path: Path, command: Command
) -> None:
    """One command that fails of each kind ends with the code that `grafalign --help` tells."""
    training = {'store': str(own_store), 'out': str(tmp_path / 'run'), 'clip': clip.settings.model_dump(), 'steps': 1}
    (tmp_path / 'train.yaml').write_text(yaml.safe_dump(training))
    out = tmp_path / 'out'
    with exclusive(out):
        assert command('pair', recipe_file, out)[0] == BusyError.exit_code == 6
    assert command('pair', tmp_path / 'none.yaml', out)[0] == InputError.exit_code == 1
    assert command('nonsense')[0] == 2
    assert command('pair', recipe_file, own_store, '--set', 'sensor.size_px=32')[0] == StaleError.exit_code == 3
    recipe = yaml.safe_load(recipe_file.read_text())
    recipe['scenes'] = {'api': 'http://127.0.0.1:9', 'collections': ['x'], 'retries': 1}
    (tmp_path / 'remote.yaml').write_text(yaml.safe_dump(recipe))
    assert command('pair', tmp_path / 'remote.yaml', out)[0] == RemoteError.exit_code == 5
    if not torch.cuda.is_available():
        lacking = command('train', tmp_path / 'train.yaml', '--set', 'precision=fp16')
        assert lacking[0] == MachineError.exit_code == 7 and 'GPU' in lacking[1]
    (own_store / 'dataset.json').write_text('{')
    assert command('train', tmp_path / 'train.yaml')[0] == DamagedError.exit_code == 4


def test_a_check_that_finds_damage_ends_alike_for_people_and_programs(own_store: Path, command: Command) -> None:
    """`check` of a damaged store has the code of damage, with `--json` and without."""
    marker = json.loads((own_store / 'dataset.json').read_text())
    (own_store / marker['files'].popitem()[0]).unlink()
    assert command('check', own_store)[0] == command('check', own_store, '--json')[0] == DamagedError.exit_code


def test_kinds_and_codes_go_both_ways() -> None:
    """A code names its kind, unknown codes are about input, and errors travel between processes."""
    kinds = GrafalignError.__subclasses__()
    assert len({kind.exit_code for kind in kinds}) == len(kinds) == 6
    assert all(error_of(kind.exit_code) is kind for kind in kinds) and error_of(99) is InputError
    travelled = pickle.loads(pickle.dumps(RemoteError('no answer')))
    assert type(travelled) is RemoteError and str(travelled) == 'no answer'


def test_every_error_says_its_kind() -> None:
    """Nothing raises the base class, which would say nothing to a program; and no `assert` guards product code."""
    root = Path(grafalign.__file__).parent
    bare = [
        f'{path.relative_to(root)}:{node.lineno}'
        for path in sorted(root.rglob('*.py'))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
        or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'GrafalignError')
    ]
    assert bare == []
