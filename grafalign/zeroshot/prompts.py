"""From class names to class vectors, by a text encoder."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import yaml

from grafalign.encoders import FrozenClip
from grafalign.encoders.ensemble import Vectors, ensemble
from grafalign.errors import InputError

PHOTO_TEMPLATES = ('a photo of {}.',)
"""The satellite encoder lands where CLIP puts *photos*, so photos are what its prompts speak of."""


def class_vectors(clip: FrozenClip, names: Sequence[str], templates: Sequence[str] = PHOTO_TEMPLATES) -> Vectors:
    """Unit vectors [K, D]: the mean over templates of the unit text embeddings, renormalised.

    Args:
        clip: the CLIP whose text encoder to use.
        names: K class names.
        templates: prompts with one `{}` for the name.

    Raises:
        GrafalignError: there is no class, or a template has no `{}`.
    """

    def encode(texts: Sequence[str]) -> Vectors:
        return np.asarray(clip.encode_text(texts).cpu().numpy(), dtype=np.float32)

    return ensemble(prompt_vectors(encode, names, templates))


def prompt_vectors(
    encode: Callable[[Sequence[str]], Vectors], names: Sequence[str], templates: Sequence[str]
) -> Vectors:
    """Unit vectors [P, K, D] of every template with every name.

    Args:
        encode: texts to unit vectors.
        names: K class names.
        templates: P prompts with one `{}`.

    Raises:
        GrafalignError: there is no class, a class has no name, or a template has no `{}`.
    """
    if not names:
        raise InputError('There are no classes; name at least one.')
    blank = next((i for i, name in enumerate(names) if not name.strip()), None)
    if blank is not None:
        raise InputError(f'Class {blank} has no name to put into a prompt; give it one.')
    check_templates(templates, 'The prompts')
    found = encode([t.format(n) for t in templates for n in names])
    return found.reshape(len(templates), len(names), -1)


def load_templates(name: str) -> tuple[str, ...]:
    """Templates by the name of a set that ships (`templates.yaml`), from a text file with one a line, or one itself.

    Raises:
        GrafalignError: there is no such set or file, or a template has no `{}`.
    """
    if '{}' in name:
        return (name,)
    known = yaml.safe_load((files('grafalign.zeroshot') / 'templates.yaml').read_text(encoding='utf-8'))
    if name in known:
        return tuple(t for line in known[name]['templates'] for t in _spell(line, known[name].get('nouns', ())))
    path = Path(name)
    if not path.is_file():
        raise InputError(
            f'There are no prompts {name!r}; give one of {", ".join(known)}, a file with one prompt a '
            'line, or a prompt with {} for the class.'
        )
    try:
        lines = tuple(line.strip() for line in path.read_text(encoding='utf-8').splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f'{path} cannot be read ({error}); give a text file with one prompt a line.') from None
    check_templates(lines, str(path))
    return lines


def check_templates(templates: Sequence[str], where: str) -> None:
    """Refuse prompts that do not name the class.

    Raises:
        GrafalignError: there is none, or one has no `{}` or something else in braces.
    """
    if not templates:
        raise InputError(f'{where}: there is no prompt; write one a line, with {{}} for the class.')
    for template in templates:
        if template.count('{}') != 1 or template.replace('{}', '').count('{') or template.replace('{}', '').count('}'):
            raise InputError(f'The prompt {template!r} must hold {{}} once, for the class name; mend it.')


def _spell(line: str, nouns: Sequence[str]) -> list[str]:
    """A line once for each noun: `{bad noun} of` becomes `a bad aerial image of`, with the article that fits."""
    place = re.search(r'\{([^{}]*?) ?noun\}', line)
    if place is None:
        return [line]
    out = []
    for noun in nouns:
        article, thing = noun.split(' ', 1)
        whole = f'{article} {thing}' if not place[1] else f'a {place[1]} {thing}'
        out.append(line.replace(place[0], whole))
    return out
