"""What one worker is given, a thread, a process or a machine: the tiles of a few shards, their scenes, the recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from grafalign.pairing.recipe import Recipe
from grafalign.scenes import Scene


class PlannedTile(NamedTuple):
    """A tile of the plan."""

    tile_id: str
    epsg: int
    left: float
    """Easting of its left edge, metres."""
    top: float
    """Northing of its top edge, metres."""
    split: str


@dataclass(frozen=True)
class TileJob:
    """One tile to cut."""

    number: int
    """Row in the plan."""
    planned: PlannedTile
    photos: int
    scenes: list[int]
    """Candidates, best first."""
    coverage: list[float]
    """Share of the tile that each candidate covers."""
    days_apart: list[float]
    """Mean days between each candidate and the tile's photos; NaN where no photo says when it was taken."""
    considered: int
    """Scenes that were compared."""
    mates: list[list[int]] = field(default_factory=list)
    """For each candidate the scenes that may fill what it leaves missing."""
    made_from: str = ''
    """Digest of all that decides its pixels, see `pairing.inputs`."""
    kept: tuple[str, int, int] | None = None
    """Where the same tile stands in an earlier state of the store: shard, byte offset and length."""
    refused: tuple[str, str] | None = None
    """Why the same tile was rejected there: reason and detail."""


@dataclass(frozen=True)
class ShardJob:
    """One shard: its name below the store, the name of its sidecar, and its tiles in the order they are written."""

    name: str
    sidecar: str
    tiles: list[TileJob]


@dataclass(frozen=True)
class CutJob:
    """Shards to write."""

    out: str
    """Folder or URL of the store."""
    shards: list[ShardJob]
    scenes: dict[int, Scene]
    """All candidates and mates of the tiles, by number."""
    recipe: Recipe
    dtype: str = ''
    """Data type of all pixels of the store; any where it is empty."""


@dataclass(frozen=True)
class CutResult:
    """Counts of a job."""

    tiles: int
    failed: int
    """Tiles of which no scene could be read: worth another try."""
    rejected: int
    """Tiles that no scene covers, or only with clouds or holes."""
