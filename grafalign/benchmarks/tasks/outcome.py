"""What a task hands back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from grafalign.benchmarks.statistics import Statistic


@dataclass(frozen=True)
class Outcome:
    """Statistics of a task over N images, and what the report shows."""

    statistics: Mapping[str, Statistic]
    """By the name of the metric."""
    main: str
    """The one that tables show first."""
    per_class: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    """Metric to class to value; None where the set has no such image."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    """guess, confusion, rank_of_image ... for pictures."""


def by_class(classes: tuple[str, ...], values: npt.NDArray[np.floating]) -> dict[str, float | None]:
    """Values of classes for a result file."""
    return {c: None if not np.isfinite(v) else round(float(v), 6) for c, v in zip(classes, values, strict=True)}
