"""How pairs that others made are read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from grafalign.config import Settings, settings_digest

MEANING = 1
"""Raised when the same settings come to mean another store."""
Layout = Literal['table', 'cvusa', 'vigor', 'university-1652']
GroundView = Literal['street', 'drone', 'google']


class PairImport(Settings):
    """What `grafalign import-pairs` reads and what becomes of it."""

    source: Path
    """A table of pairs (CSV, TSV, JSONL, Parquet), or the folder of a published layout."""
    layout: Layout = 'table'
    columns: dict[str, str] = {}
    """Our name of a column to the table's, or to a pattern of its columns: `{photo: 'ground/{name}.jpg'}`."""
    root: Path | None = None
    """Folder that the table's files are relative to; the table's own by default."""
    ground: GroundView = 'street'
    """Which views of University-1652 are the ground side."""
    size_px: int | None = Field(default=None, ge=8, le=4096)
    """Side of every tile: the middle square of each picture is brought to it. By default all are as they are, and of
    one size."""
    gsd_m: float | None = Field(default=None, ge=1e-3, le=1e6)
    """Metres a pixel of the pictures, where they do not tell it themselves."""
    bands: tuple[str, ...] | None = None
    """Names of the pictures' bands; red, green and blue by default, and near infrared for a fourth."""
    value_range: tuple[float, float] | None = None
    """Values that become 0 and 1 at the model's input; those of 8 bits by default."""
    shares: dict[str, float] = {'train': 0.8, 'val': 0.1, 'test': 0.1}
    """Of places in train, val and test, where no column says to which a pair belongs."""
    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode='after')
    def _sensible(self) -> Self:
        if set(self.shares) - {'train', 'val', 'test'}:
            raise ValueError('`shares` knows train, val and test')
        if not (abs(sum(self.shares.values()) - 1) <= 1e-6 and min(self.shares.values()) >= 0):
            raise ValueError('`shares` must sum to 1')
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise ValueError('`value_range` must rise')
        if self.layout != 'table' and self.columns:
            raise ValueError(f'`columns` are of tables; the layout {self.layout} has its own')
        return self

    @property
    def digest(self) -> str:
        """Digest of the settings that decide what the store holds; where the source lies does not."""
        return settings_digest(self, MEANING, {'source', 'root'})
