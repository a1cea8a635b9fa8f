"""Made-up embeddings with labels, and metrics by their definitions, for tests of benchmarks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from grafalign.datasets import ImageSet
from grafalign.encoders.ensemble import ensemble
from tests.test_ranks import unit


def labelled(images: int, classes: int, seed: int = 0, many: bool = False) -> tuple[np.ndarray, np.ndarray, ImageSet]:
    """Unit images [N, D], prompts [3, K, D] and a set with random labels."""
    rng = np.random.default_rng(seed)
    names = tuple(f'class {i}' for i in range(classes))
    labels = rng.integers(0, classes, images)
    several = rng.random((images, classes)) < 0.3
    several[np.arange(images), labels] = True
    data = ImageSet(
        'made up',
        'all',
        [str(i) for i in range(images)],
        lambda row: np.zeros((3, 4, 4), np.uint8),
        classes=names,
        labels=None if many else labels,
        many=several if many else None,
    )
    prompts = unit(rng, 3 * classes).reshape(3, classes, 16)
    vectors = unit(rng, images) + ensemble(prompts)[labels]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), prompts, data


def values(outcome: object, count: int) -> dict[str, float]:
    """Values of an outcome's statistics."""
    return {n: float(s(np.ones((1, count)))[0]) for n, s in outcome.statistics.items()}  # type: ignore[attr-defined]


def naive_ap(scores: np.ndarray, relevant: np.ndarray, k: int | None = None) -> float:
    """Average precision of one ranking, by its definition."""
    order = np.argsort(-scores, kind='stable')[: k or len(scores)]
    hits = relevant[order]
    found = [hits[: i + 1].mean() for i in np.flatnonzero(hits)]
    return float(np.sum(found) / min(k or len(scores), relevant.sum()))


def saved(path: Path, **arrays: object) -> Path:
    """An embeddings file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path
