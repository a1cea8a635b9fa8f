"""A class as one vector: the prompt ensemble of CLIP (Radford et al. 2021, section 3.1.4)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]


def ensemble(prompts: Vectors) -> Vectors:
    """Class vectors [K, D] of prompts [P, K, D]: the mean of unit vectors, brought to unit length."""
    mean = prompts.mean(0)
    return np.asarray(mean / np.maximum(np.linalg.norm(mean, axis=-1, keepdims=True), 1e-12), dtype=np.float32)
