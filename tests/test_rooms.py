"""The rooms of the house keep their doors shut."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ('room', 'never'),
    [
        ('pairing', 'torch'),
        ('training', 'rasterio'),
        ('training', 'pystac'),
        ('sandbox.world', 'torch'),
        ('datasets', 'torch'),
        ('retrieval', 'rasterio'),
        ('retrieval', 'open_clip'),
        ('cli', 'torch'),
        ('cli', 'faiss'),
    ],
)
def test_a_room_does_not_import_what_it_must_not(room: str, never: str) -> None:
    """Pairing and data sets work without torch, training without rasterio and pystac, help without either."""
    code = f'import sys, grafalign.{room}; print({never!r} in sys.modules)'
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == 'False'
