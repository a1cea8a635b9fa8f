"""Made-up embeddings that are like real ones, and what "like" means here.

A mixture: scenes belong to kinds (Zipf: few are common), a kind is a patch of low dimension somewhere in a narrow cone,
and every scene adds a little of its own. `likeness` measures what decides how hard search is: the mean cosine of two
random vectors (the cone), of nearest neighbours (the clusters), and the intrinsic dimension around a vector.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
KINDS = 4000
CONE, SPREAD, OWN = 1.0, 0.62, 0.16
"""Length of the common direction; of the places of kinds around it, of a scene within its kind, see `clustered`."""
KIND_DIMENSIONS, SCENE_DIMENSIONS = 48, 18


def clustered(count: int, width: int = 512, seed: int = 0, draw: int = 0) -> Vectors:
    """Unit vectors [count, width]; equal seeds share their KINDS, `draw` tells one sample of them from another."""
    world = np.random.default_rng(seed)
    common = world.normal(size=width)
    common *= CONE / np.linalg.norm(common)
    basis = np.linalg.qr(world.normal(size=(width, KIND_DIMENSIONS)))[0].T
    centres = common + SPREAD * world.normal(size=(KINDS, KIND_DIMENSIONS)) / KIND_DIMENSIONS**0.5 @ basis
    shapes = [np.linalg.qr(world.normal(size=(width, SCENE_DIMENSIONS)))[0].T.astype(np.float32) for _ in range(64)]
    shape_of = world.integers(0, len(shapes), KINDS)
    weight = 1 / np.arange(1, KINDS + 1) ** 0.8
    rng = np.random.default_rng((seed, draw, 1))
    kind = np.sort(rng.choice(KINDS, count, p=weight / weight.sum()))
    out = np.empty((count, width), dtype=np.float32)
    scale = (1 / np.arange(1, SCENE_DIMENSIONS + 1) ** 0.5).astype(np.float32)
    scale *= 0.45 / np.linalg.norm(scale)
    for start in range(0, count, 100_000):
        part = kind[start : start + 100_000]
        place = rng.normal(size=(len(part), SCENE_DIMENSIONS)).astype(np.float32) * scale
        made = centres[part].astype(np.float32)
        for number, shape in enumerate(shapes):
            here = shape_of[part] == number
            made[here] += place[here] @ shape
        made += OWN * rng.normal(size=made.shape).astype(np.float32) / width**0.5
        out[start : start + len(part)] = made / np.linalg.norm(made, axis=1, keepdims=True)
    rng.shuffle(out)
    return out


def likeness(vectors: Vectors, k: int = 20, sample: int = 500) -> dict[str, float]:
    """What decides how hard search is.

    Returns:
        `mean_cosine` of random pairs, `nearest_cosine` of nearest neighbours, and `dimension`: the intrinsic dimension
        by maximum likelihood from the distances to k neighbours (Levina and Bickel, NeurIPS 2004, with the mean of the
        inverse, as MacKay and Ghahramani proposed).
    """
    rng = np.random.default_rng(0)
    rows = rng.choice(len(vectors), min(sample, len(vectors)), replace=False)
    scores = vectors[rows] @ vectors.T
    scores[np.arange(len(rows)), rows] = -np.inf
    top = -np.sort(-scores, axis=1)[:, :k]
    distance = np.sqrt(np.maximum(2 - 2 * top, 1e-12))
    inverse = np.log(distance[:, -1:] / distance[:, :-1]).mean(1)
    others = rng.choice(len(vectors), len(rows))
    return {
        'mean_cosine': round(float((vectors[rows] * vectors[others]).sum(1).mean()), 3),
        'nearest_cosine': round(float(top[:, 0].mean()), 3),
        'dimension': round(float(1 / inverse.mean()), 1),
    }
