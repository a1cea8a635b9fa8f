"""Words for what land may be, to compare a person's own classes with: the words of "none of these"."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import numpy.typing as npt
import yaml

ALIKE = 0.7
"""Correlation over photos from which two words ask for the same."""


def contrasting_words() -> list[str]:
    """The words that ship (`contrasting_words.yaml`)."""
    content = yaml.safe_load((files('grafalign.calibration') / 'contrasting_words.yaml').read_text(encoding='utf-8'))
    return [word for words in content.values() for word in words]


def apart(
    scores: npt.NDArray[np.floating], contrasting: npt.NDArray[np.floating], most: float = ALIKE
) -> npt.NDArray[np.bool_]:
    """Which contrasting words do not ask for what one of the classes asks for.

    Two words ask for the same where their scores rise and fall together from photo to photo. Cosines of the words
    themselves do not show it: those of CLIP are high between any two.

    Args:
        scores: of the classes for some photos, [P, K].
        contrasting: of the contrasting words for the same photos, [P, C].
        most: correlation from which they are the same.

    Returns:
        [C]

    Example: of two words the first goes with the only class
        >>> apart(np.array([[0.1], [0.2], [0.3]]), np.array([[0.2, 0.3], [0.3, 0.1], [0.4, 0.2]]))
        array([False,  True])
    """
    ours, theirs = (_standard(np.asarray(v, dtype=np.float64)) for v in (scores, contrasting))
    return np.asarray((theirs.T @ ours / len(ours)).max(axis=1) < most)


def _standard(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    values = values - values.mean(axis=0)
    return np.asarray(values / np.maximum(values.std(axis=0), 1e-9))
