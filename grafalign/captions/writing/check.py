"""What is wrong with a caption that a model wrote, measured against the records it was given.

Nothing counts that the records do not hold: names, kinds, numbers, directions. A caption with a complaint is sent back
once, and then replaced by a template's.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from grafalign.captions.landmarks.kinds import REFINED, table
from grafalign.captions.writing.template import VisibleLandmark, plural

LONGEST, SHORTEST = 400, 10
_COORDINATES = re.compile(
    r'\d\s*°|\d{1,3}\.\d{3,}|\d{1,3}\.\d+\s*,\s*-?\d{1,3}\.\d+|'
    r'\b(?:latitude|longitude|coordinates?|lat|lon|UTM|WGS ?84|EPSG)\b',
    re.IGNORECASE,
)
_REFUSALS = re.compile(
    r"\b(?:i (?:can ?not|can't|am unable|'m unable|'m sorry|am sorry)|as an ai|language model|i apologi[sz]e|unable to "
    r'(?:see|view|describe)|cannot (?:see|view|describe)|no image (?:was )?(?:provided|attached))\b',
    re.IGNORECASE,
)
_BOILERPLATE = re.compile(
    r'\b(?:records?|landmark ids?|json|prompt|provided (?:data|information|image|list)|based on the|according to the|'
    r'openstreetmap|metadata|instructions?)\b',
    re.IGNORECASE,
)
_NUMBERS = {'two': 2, 'three': 3, 'four': 4, 'five': 5, 'six': 6, 'seven': 7, 'eight': 8, 'nine': 9, 'ten': 10}
_DIRECTIONS = ('north', 'south', 'east', 'west')
_SIDES = re.compile(r'\b(?:left|right|top|bottom|upper|lower)\b', re.IGNORECASE)
_LARGE = r"[A-Z\u00c0-\u00de\u0100-\u017d][\w'\u2019-]*"
_SMALL = r'(?:d[aeo]s?|del|della|la|le|el|of|the|von|van|und|y)'
_NAME = re.compile(rf'{_LARGE}(?:\s+(?:{_SMALL}\s+)*{_LARGE})*')
"""Words written large, and small ones between them."""
_WORD = re.compile(r"[\w'\u2019-]+")
_COMMON = frozenset({'i', 'a', 'the', 'uk', 'usa'})


@dataclass(frozen=True)
class Finding:
    """What a caption says."""

    complaints: tuple[str, ...]
    """One sentence each, for whoever wrote it."""
    names: int
    """Proper nouns in it."""
    foreign_names: int
    """Of these, those that no record holds."""
    kinds: int
    """Kinds of the vocabulary that it names."""
    foreign_kinds: int
    """Of these, those that no record holds."""


def check_caption(text: str, records: Sequence[VisibleLandmark]) -> Finding:
    """Compare a caption with the records that it may rest on.

    Args:
        text: the caption.
        records: those that its writer says it used.

    Example:
        >>> beach = VisibleLandmark('1', 'beach', None, 0.2, 'north', None, None)
        >>> check_caption('A beach with a castle.', [beach]).complaints
        ('castle is not among the records that are used.',)
    """
    complaints = []
    if not SHORTEST <= len(text) <= LONGEST:
        complaints.append(f'Write {SHORTEST} to {LONGEST} characters.')
    if _COORDINATES.search(text):
        complaints.append('Say no coordinates.')
    if _REFUSALS.search(text) or _BOILERPLATE.search(text):
        complaints.append('Describe the image only; say nothing of records, instructions or yourself.')
    names = proper_nouns(_pattern().sub(lambda m: m[0].lower(), text))  # `American football field` is no name
    held = {word for r in records if r.name for word in _words(r.name)}
    foreign = [name for name in names if not set(_words(name)) <= held]
    complaints += [f'{name} is no name of the records that are used.' for name in foreign]
    kinds = kinds_in(text)
    recorded = {_family(r.kind) for r in records}
    strange = [kind for kind in kinds if _family(kind) not in recorded]
    complaints += [f'{kind} is not among the records that are used.' for kind in strange]
    if not any(_family(kind) in recorded for kind in kinds):
        complaints.append('Name a kind of thing of the records that are used.')
    complaints += _wrong_counts(text, records) + _wrong_directions(text, records)
    return Finding(tuple(complaints), len(names), len(foreign), len(kinds), len(strange))


def proper_nouns(text: str) -> list[str]:
    """Runs of capitalised words that do not begin a sentence; small words may stand between (`Estrada da Aguda`).

    Example:
        >>> proper_nouns('A beach called Praia da Aguda. Nearby is a road.')
        ['Praia da Aguda']
    """
    found = []
    for sentence in re.split(r'(?<=[.!?])\s+', text):
        for match in _NAME.finditer(sentence):
            words = match[0].split()
            if match.start() == 0:
                words = words[1:]  # the first word of a sentence is written large whatever it is
                while words and words[0][0].islower():
                    words = words[1:]
            if words and not all(w.lower() in _COMMON for w in words):
                found.append(' '.join(words))
    return found


def kinds_in(text: str) -> list[str]:
    """Kinds of the shipped vocabulary that a text names, singular or plural, the longest reading of each place.

    Example:
        >>> kinds_in('Tennis courts beside a swimming pool and a road')
        ['tennis court', 'swimming pool', 'road']
    """
    return [_vocabulary()[match[1].lower()] for match in _pattern().finditer(text)]


@functools.cache
def _vocabulary() -> dict[str, str]:
    kinds = {kind.name for values in table().values() for kind in values.values()} | set(REFINED.values())
    plurals = {plural(kind).lower(): kind for kind in sorted(kinds)}
    return plurals | {kind.lower(): kind for kind in kinds}  # `garages` is a kind of its own, not several garages


@functools.cache
def _pattern() -> re.Pattern[str]:
    forms = sorted(_vocabulary(), key=len, reverse=True)
    return re.compile(r'\b(' + '|'.join(map(re.escape, forms)) + r')\b', re.IGNORECASE)


@functools.cache
def _counted() -> re.Pattern[str]:
    """A number, perhaps a word, and a kind."""
    forms = '|'.join(map(re.escape, sorted(_vocabulary(), key=len, reverse=True)))
    return re.compile(rf'\b(\d{{1,4}}|{"|".join(_NUMBERS)})\s+(?:\w+\s+)?({forms})\b', re.IGNORECASE)


_FAMILIES = tuple(
    tuple(line.split(' | '))
    for line in """\
forest | wood | broadleaf forest | conifer forest | broadleaf wood | conifer wood | tree | row of trees
road | main road | street | service road | motorway | pedestrian street | dirt track | path | footpath | cycle path
building | house | apartment building | residential building | commercial building | industrial building | shop building
lake | pond | reservoir | basin | lagoon
sports pitch | football pitch | tennis court | basketball court | baseball field | American football field
grass | meadow | grassland | park | garden | common | recreation ground
wetland | marsh | salt marsh | reed bed | tidal flat | mangrove swamp
beach | sand | dune | shingle beach
railway | light railway | tramway | narrow gauge railway | railway yard
river | stream | canal | ditch | drain
school | school building | college | university
place of worship | church | cathedral | mosque | temple
solar farm | solar panels
wind farm | wind turbine
garage | garages
greenhouse | greenhouses""".splitlines()
)
"""Kinds that one word may stand for another of: a pond is a lake to many."""


def _family(kind: str) -> str:
    return next((family[0] for family in _FAMILIES if kind in family), kind)


def _words(name: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(name)]


def _wrong_counts(text: str, records: Sequence[VisibleLandmark]) -> list[str]:
    """Numbers before a kind that the records do not have."""
    found = []
    for match in _counted().finditer(text):
        stated = _NUMBERS.get(match[1].lower()) or int(match[1])
        kind = _vocabulary()[match[2].lower()]
        there = sum(_family(r.kind) == _family(kind) for r in records)
        if stated != there:
            found.append(f'There are {there} of {kind} among the records that are used, not {match[1]}; count nothing.')
    return found


def _wrong_directions(text: str, records: Sequence[VisibleLandmark]) -> list[str]:
    """Clauses that place their one kind where no record of it lies; sides are no directions of a map."""
    found = []
    if _SIDES.search(text):
        found.append('Say no left, right, top or bottom.')
    for clause in re.split(r'[,.;]|\band\b|\bwith\b|\bwhile\b', text):
        kinds = kinds_in(clause)
        stated = [d for d in _DIRECTIONS if re.search(rf'\b{d}', clause, re.IGNORECASE)]
        if len(kinds) != 1 or not stated:
            continue
        places = [r.position for r in records if _family(r.kind) == _family(kinds[0])]
        if places and not any(all(d in place for d in stated) for place in places):
            found.append(f'{kinds[0]} lies {" or ".join(sorted(set(places)))}, not {"-".join(stated)}.')
    return found
