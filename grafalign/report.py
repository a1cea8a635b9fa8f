"""`report.json`: how well runs do on held-out blocks of a world whose truth is known, beside floor and bound.

Written by `grafalign evaluate`, `run` and `quickstart`; read by `grafalign export` for the model card. Without labels
it holds counts, runs and seconds only.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from grafalign.artefacts import Marker
from grafalign.estimate import Estimate
from grafalign.training.run_marker import RunMarker


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class ClassificationScores(_Part):
    """Of one model on the test tiles."""

    accuracy: Estimate


class SegmentationScores(_Part):
    """Of one model on the test chips."""

    miou: Estimate
    pixel_accuracy: float
    iou: dict[str, float]
    """Intersection over union of each class."""


class RetrievalScores(_Part):
    """Of one model, the classes' names as queries on the test tiles."""

    map_at_20: Estimate


class LabelledSets(_Part):
    """What the scores were measured on."""

    test_tiles: int
    test_tiles_per_class: list[int] = []
    chips: int = 0
    chip_px: int = 0
    classes: list[str]
    chance: float = 0.0
    """Accuracy of guessing."""
    tile_unit: str = 'tiles'
    """What the bootstrap draws for the intervals: tiles, or blocks of land."""
    chip_unit: str = 'chips'
    """The same for segmentation: chips, or blocks of land."""


class Setting(_Part):
    """How the figures were made."""

    settings: dict[str, Any] | None = None
    """The experiment's file, where there was one."""
    seed: int | None = None
    cores: int | None = None
    command: str | None = None
    machine: str
    versions: dict[str, str]


class Report(Marker):
    """`report.json`."""

    NEWEST: ClassVar[int] = 1
    OLDEST: ClassVar[int] = 0  # of before it said its format
    REMEDY: ClassVar[str] = 'give the report.json of `grafalign evaluate`'

    format: int = 0
    pairs: dict[str, int] = {}
    """Photos, rejected photos, tiles and pairs of the store."""
    classification: dict[str, ClassificationScores] = {}
    """By model: runs, `frozen_clip`, `supervised`; with `_with_prior` the photo prior is added."""
    segmentation: dict[str, SegmentationScores] = {}
    retrieval: dict[str, RetrievalScores] = {}
    sets: LabelledSets | None = None
    runs: dict[str, RunMarker] = {}
    seconds: dict[str, float] = {}
    """Of each step, and `total`."""
    setting: Setting | None = None
