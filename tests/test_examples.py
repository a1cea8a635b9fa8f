"""Examples of docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import grafalign

TOP = Path(grafalign.__file__).parent.parent
MODULES = (p for folder in ('grafalign', 'experiments') for p in (TOP / folder).rglob('*.py'))
WITH_EXAMPLES = sorted(p.relative_to(TOP) for p in MODULES if '>>> ' in p.read_text())


@pytest.mark.parametrize('path', WITH_EXAMPLES, ids=str)
def test_the_examples_of_a_module_are_true(path: Path) -> None:
    """Each is run; examples that are comments alone have nothing to run."""
    module = importlib.import_module('.'.join(path.with_suffix('').parts).removesuffix('.__init__'))
    assert doctest.testmod(module).failed == 0


def test_examples_are_run() -> None:
    """Two lines of code stand in this one."""
    assert doctest.testmod(importlib.import_module('grafalign.captions.numbering')).attempted == 3
