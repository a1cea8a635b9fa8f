"""From class names to class vectors, by CLIP's text encoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch.nn import functional

from grafalign.encoders import FrozenClip
from grafalign.errors import GrafalignError

PHOTO_TEMPLATES = ('a photo of {}.',)
"""The satellite encoder lands where CLIP puts *photos*, so photos are what its prompts speak of."""


def class_vectors(
    clip: FrozenClip, names: Sequence[str], templates: Sequence[str] = PHOTO_TEMPLATES
) -> npt.NDArray[np.float32]:
    """Unit vectors [K, D]: the mean over templates of the unit text embeddings, renormalised.

    Args:
        clip: the CLIP whose text encoder to use.
        names: K class names.
        templates: prompts with one `{}` for the name.

    Raises:
        GrafalignError: there is no class, or a template has no `{}`.
    """
    if not names:
        raise GrafalignError('There are no classes; name at least one.')
    for template in templates:
        if '{}' not in template:
            raise GrafalignError(f'The prompt {template!r} has no {{}} for the class name; add it.')
    texts = clip.encode_text([t.format(n) for n in names for t in templates])
    vectors = functional.normalize(texts.view(len(names), len(templates), -1).mean(1), dim=-1)
    return vectors.cpu().numpy().astype(np.float32)
