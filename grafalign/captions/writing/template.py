"""Captions from landmarks without a model: a few phrasings, drawn by a keyed hash of the image.

What is not on the record is not said: kinds, and where they are asked for names and positions. Nothing is counted, as
maps are never complete: two of a kind are "several". Positions are left out by default, since trainings turn and mirror
their images, after which the north is elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

VERSION = 1
"""Raised when the same landmarks come to be worded otherwise."""
MOST = 3
"""Kinds in one caption."""
_PLAIN = (
    *('street', 'road', 'service road', 'path', 'footpath', 'cycle path', 'dirt track', 'ditch', 'drain', 'grass'),
    *('building', 'house', 'garage', 'shed', 'roof'),
)
"""Kinds that are everywhere and told last."""
_NO_ARTICLE = frozenset(
    {'farmland', 'scrub', 'heath', 'grassland', 'bare rock', 'sand', 'mud', 'scree', 'grass', 'allotments', 'ruins'}
)
_MOSTLY = 0.6
"""Share of the image from which on it is mostly that."""
_FORMS = (
    'an aerial image of {}.',
    'a satellite image of {}.',
    '{} seen from above.',
    '{}.',
    'an aerial photo showing {}.',
    'a view from above of {}.',
)


@dataclass(frozen=True)
class VisibleLandmark:
    """A visible landmark, as far as a caption needs it."""

    landmark_id: str
    kind: str
    name: str | None
    share: float
    position: str
    relation: str | None
    related_to: str | None


@dataclass(frozen=True)
class Written:
    """A caption and the landmarks that it rests on."""

    text: str
    evidence: tuple[str, ...]


def write_template(
    image_id: str, visible: Sequence[VisibleLandmark], number: int = 0, names: bool = False, positions: bool = False
) -> Written | None:
    """A caption of an image; None where nothing is visible.

    Args:
        image_id: decides the phrasing.
        visible: its visible landmarks, the largest first.
        number: which of several captions of the image.
        names: say names.
        positions: say where things lie.

    Example:
        >>> beach = VisibleLandmark('1', 'beach', None, 0.3, 'east', None, None)
        >>> write_template('t', [beach]).text
        'a beach.'
    """
    groups: dict[str, list[VisibleLandmark]] = {}
    for one in visible:
        groups.setdefault(one.kind, []).append(one)
    if not groups:
        return None
    draw = int.from_bytes(hashlib.blake2b(f'{image_id}\0{number}'.encode(), digest_size=8).digest(), 'little')
    order = sorted(groups, key=lambda kind: (kind in _PLAIN, -sum(s.share for s in groups[kind]), kind))
    named = order[: 1 + draw % min(MOST, len(order))]
    draw //= MOST
    phrases = [_phrase(groups[kind], names, positions) for kind in named]
    related = _related(named, groups) if not positions else None
    if related is not None and len(named) == 2:
        text = f'{phrases[0]} {related} {phrases[1]}'
    else:
        text = ' and '.join([', '.join(phrases[:-1]), phrases[-1]]) if len(phrases) > 1 else phrases[0]
    if sum(s.share for s in groups[named[0]]) > _MOSTLY and named[0] not in _PLAIN and len(named) == 1:
        text = f'mostly {text}'
    form = _FORMS[draw % len(_FORMS)]
    evidence = tuple(s.landmark_id for kind in named for s in groups[kind])
    return Written(form.format(text), evidence)


def _phrase(group: Sequence[VisibleLandmark], names: bool, positions: bool) -> str:
    kind = group[0].kind
    if len(group) > 1:
        words = kind if kind in _NO_ARTICLE or kind.endswith('s') else f'several {plural(kind)}'
    else:
        words = kind if kind in _NO_ARTICLE or kind.endswith('s') else f'{article(kind)} {kind}'
        if names and group[0].name:
            words = f'the {kind} {group[0].name}'
    if positions and len(group) == 1:
        words += ' in the centre' if group[0].position == 'centre' else f' in the {group[0].position}'
    return words


def _related(named: Sequence[str], groups: dict[str, list[VisibleLandmark]]) -> str | None:
    """`next to` or `inside`, where the record says so of the first two kinds, each of which there is one of."""
    if len(named) < 2 or any(len(groups[kind]) > 1 for kind in named[:2]):
        return None
    first, second = groups[named[0]][0], groups[named[1]][0]
    for one, other, inside in ((first, second, 'inside'), (second, first, 'around')):
        if one.related_to == other.landmark_id and one.relation in ('next to', 'inside', 'around'):
            if one.relation == 'next to':
                return 'next to'
            return inside if one.relation == 'inside' else {'inside': 'around', 'around': 'inside'}[inside]
    return None


def article(kind: str) -> str:
    """`a` or `an`."""
    return 'an' if kind[0].lower() in 'aeio' or kind.startswith(('under',)) else 'a'


def plural(kind: str) -> str:
    """The plural of a kind.

    Example:
        >>> plural('beach'), plural('railway'), plural('quarry'), plural('place of worship')
        ('beaches', 'railways', 'quarries', 'places of worship')
    """
    head, of, rest = kind.partition(' of ')
    if head.endswith(('ch', 'sh', 'x', 's')):
        head += 'es'
    elif head.endswith('y') and head[-2:-1] not in tuple('aeiou'):
        head = f'{head[:-1]}ies'
    else:
        head += 's'
    return f'{head}{of}{rest}'
