"""`dataset.json`, the marker of a pair store: what the store is, what it was made from and by, and what it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from grafalign.artefacts import Marker


@dataclass(frozen=True)
class Sensor:
    """What every tile of a store has in common."""

    name: str
    bands: Annotated[tuple[str, ...], Field(min_length=1)]
    gsd_m: Annotated[float, Field(gt=0)]
    size_px: Annotated[int, Field(gt=0, le=1 << 16)]
    value_range: tuple[float, float]
    """Physical values (after scale and offset) that become 0 and 1 at the model's input."""


class PairSummary(BaseModel):
    """Counts of a finished store."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    photos: int
    """Photos in the source, usable or not."""
    rejected: int
    """Photos that are in no pair."""
    tiles: int
    pairs: int
    failed: int
    """Tiles of which no scene could be read; `--retry-failed` tries them again."""
    splits: dict[str, int]
    """Tiles of each split."""
    reasons: dict[str, int]
    """Why photos, tiles and scene reads were rejected."""


class InputStamp(BaseModel):
    """The files of one source, when they were read."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    name: str
    """The key of the recipe that names them."""
    files: int
    bytes: int
    stamp: str
    """Digest of their names, sizes and times of change."""


class StoreMarker(Marker):
    """`dataset.json`."""

    VERSION_KEY: ClassVar[str] = 'schema_version'
    REMEDY: ClassVar[str] = 'pair again into an empty folder'

    schema_version: int
    sensor: Sensor
    dtype: str = ''
    """Data type of all pixels."""
    recipe: dict[str, Any] = {}
    """The recipe, as the release that made the store wrote it."""
    recipe_digest: str = ''
    """Of the recipe, or of `imported`."""
    imported: dict[str, Any] = {}
    """How pairs that others made were read; such stores have no recipe."""
    inputs: tuple[InputStamp, ...] = ()
    """Local files that photos and scenes came from."""
    summary: PairSummary | None = None
    """Only stores that were not made by pairing have none."""
    files: dict[str, str] = {}
    """Tables and shards, each with its digest."""
    digest: str
    """One for all of them."""
