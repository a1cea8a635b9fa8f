"""Words with signs: `harbour -ships` looks for harbours that do not look like ships, `meadow +trees` for both."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from grafalign.errors import InputError

_AWAY = 0.5
"""How far a vector is drawn away from words with a minus. All words share a large part, which must not be lost."""
Floats = npt.NDArray[np.float32]


def split_signs(text: str) -> tuple[list[str], list[str]]:
    """Words that are wanted, and words that are not.

    A sign stands before a word, after a space; one inside a word is part of it.

    Raises:
        InputError: nothing is wanted.

    Example:
        >>> split_signs('semi-detached houses +trees -swimming pool')
        (['semi-detached houses', 'trees'], ['swimming pool'])
    """
    parts = re.findall(r'(?:^|(?<=\s))([+-]?)(.+?)(?=\s[+-]\S|$)', ' '.join(text.split()))
    found = [(sign, words.strip()) for sign, words in parts if words.strip()]
    wanted = [words for sign, words in found if sign != '-']
    if not wanted:
        raise InputError(f'The query {text[:60]!r} only says what is not wanted; begin with words that are.')
    return wanted, [words for sign, words in found if sign == '-']


def signed_vectors(texts: Sequence[str], embed: Callable[[Sequence[str]], Floats]) -> Floats:
    """Unit vectors of words with signs, [N, D].

    Args:
        texts: N queries.
        embed: texts to unit vectors [T, D]; called once.
    """
    split = [split_signs(text) for text in texts]
    every = iter(embed([words for wanted, unwanted in split for words in (*wanted, *unwanted)]))
    vectors = []
    for wanted, unwanted in split:
        vector = np.mean([next(every) for _ in wanted], axis=0)
        if unwanted:
            vector = vector - _AWAY * np.mean([next(every) for _ in unwanted], axis=0)
        vectors.append(vector / np.linalg.norm(vector))
    return np.asarray(vectors, dtype=np.float32)
