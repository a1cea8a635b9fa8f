"""The chain on a small world, end to end."""

from __future__ import annotations

from grafalign.encoders import PhotoBank
from grafalign.store import PairStore


def test_every_pair_points_into_its_tile(store: PairStore) -> None:
    """Rows and columns of all pairs lie inside the tile."""
    size = store.sensor.size_px
    assert len(store.pairs) > 100
    assert store.pairs['row'].between(0, size, inclusive='left').all()
    assert store.pairs['col'].between(0, size, inclusive='left').all()


def test_the_bank_has_a_row_for_every_photo(store: PairStore, bank: PhotoBank) -> None:
    """The photo bank follows photos.parquet row by row."""
    assert len(bank.embeddings) == len(store.photos) == len(bank.valid)
    assert bank.valid.all()
