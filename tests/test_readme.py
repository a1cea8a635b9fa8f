"""What the README shows is what runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from experiments.pages import filled, pages
from experiments.sandbox.headline import headline
from grafalign.encoders import FrozenClip
from grafalign.pairing import Recipe
from tests.conftest import REPOSITORY


def test_the_python_example_does_the_whole_chain(
    world: Path, recipe: Recipe, clip: FrozenClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The README's example, run as it stands beside a recipe and a training file, ends in a report with results."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'sandbox').symlink_to(world)
    (tmp_path / 'recipe.yaml').write_text(yaml.safe_dump(recipe.model_dump(mode='json')))
    training = {
        'store': 'store',
        'out': 'run',
        'clip': clip.settings.model_dump(),
        'steps': 4,
        'batch_tiles': 8,
        'lr': 1e-3,
    }
    (tmp_path / 'train.yaml').write_text(yaml.safe_dump(training))
    example = re.findall(r'```python\n(.*?)```', (REPOSITORY / 'README.md').read_text(), re.DOTALL)[0]
    scope: dict[str, object] = {}
    exec(example, scope)
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    assert 'grafalign' in (tmp_path / 'report' / 'report.html').read_text()
    assert {'frozen_clip', 'mine', 'supervised'} <= set(scope['result'].classification)  # type: ignore[attr-defined]


def test_tables_of_results_are_those_of_the_results() -> None:
    """README's figures are those of the quickstarts, and every page shows its tables as its script made them."""
    assert (REPOSITORY / 'experiments/sandbox/results/headline.md').read_text() == headline() + '\n'
    marks = 0
    for page in pages():
        assert page.read_text() == filled(page.read_text()), page
        marks += page.read_text().count('<!-- end -->')
    assert marks >= 5


def test_every_command_in_the_readme_exists() -> None:
    """Each `grafalign COMMAND` of the README and of the page on captions is a command, or one of a group."""
    from grafalign.cli import app

    known = {(c.name or c.callback.__name__) for c in app.registered_commands if c.callback}
    for group in app.registered_groups:
        assert group.typer_instance is not None
        known |= {f'{group.name} {c.name}' for c in group.typer_instance.registered_commands}
    groups = '|'.join(str(group.name) for group in app.registered_groups)
    text = ''.join((REPOSITORY / name).read_text() for name in ('README.md', 'docs/captions.md'))
    used = set(re.findall(rf'^grafalign ((?:{groups}) [\w-]+|(?!(?:{groups}) )[\w-]+)', text, re.MULTILINE))
    assert used and used <= known
