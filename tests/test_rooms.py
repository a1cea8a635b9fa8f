"""The rooms of the house keep their doors shut."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import grafalign


@pytest.mark.parametrize(
    ('room', 'never'),
    [
        ('cli', 'torch'),
        ('cli', 'faiss'),
    ],
)
def test_a_room_does_not_import_what_it_must_not(room: str, never: str) -> None:
    """The world is made without torch, and help comes without heavy imports; `make lint` checks all other doors."""
    code = f'import sys, grafalign.{room}; print({never!r} in sys.modules)'
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == 'False'


GATED = re.compile(r'\b(Image\.open|rasterio\.open|urllib\.request\.urlopen|requests\.(get|post)|yaml\.load)\(')
OURS = ('foreign/', 'sandbox/', 'benchmarks/sandbox/', 'config.py', 'maps/cog.py')
"""The gates themselves, the made-up world, which reads what it wrote, and what only writes."""


def test_nothing_opens_files_or_addresses_beside_the_gates() -> None:
    """Whoever adds a reader of data from elsewhere goes through `grafalign.foreign` and `grafalign.web`."""
    root = Path(grafalign.__file__).parent
    found = [
        f'{path.relative_to(root)}:{number}'
        for path in sorted(root.rglob('*.py'))
        if not str(path.relative_to(root)).startswith(OURS)
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if GATED.search(line)
    ]
    assert found == []
