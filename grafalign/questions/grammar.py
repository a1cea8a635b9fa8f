"""Questions in English to programs, by templates: those of RSVQA and RSVQAxBEN, and a few of one's own kind.

Objects are [size] [shape] word [relation] other objects: "small residential buildings next to a road". What fits no
template is refused, so that no answer is given to another question than was asked.

Sources: S. Lobry et al., RSVQA: Visual Question Answering for Remote Sensing Data, TGRS 2020, and its published
questions; S. Lobry et al., RSVQA Meets BigEarthNet, IGARSS 2021.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any, get_args

from grafalign.config import shown
from grafalign.datasets.bigearthnet import class_names
from grafalign.errors import InputError
from grafalign.questions.language import LONGEST_WORD, Relation, Shape, Size
from grafalign.questions.parse import check_program

LONGEST_QUESTION = 500
URBAN_FROM = 500
"""Buildings from which an image of RSVQA counts as urban. The rule was never published; of the images on the authors'
site all with up to 397 buildings are rural, and all with 634 or more urban."""
Json = dict[str, Any]
_SIZES, _SHAPES, _RELATIONS = get_args(Size), get_args(Shape), get_args(Relation)
_MOST_WORDS = 5
"""Words of an object's name."""
_NOT_NAMES = frozenset((files('grafalign.questions') / 'not_names.txt').read_text(encoding='utf-8').split())
"""What no object's name has: such words mean that the question says more than the template, or other."""
_PLACES = ('centre', 'center')
"""What is no object by itself, but may be a part of a name (sports centre)."""
_WORD = re.compile(r"[^\W\d][^\W\d/'-]*([/'-][^\W\d]+)*")
_NAMES_WITH_OF = ('place of worship', 'place of worships', 'places of worship')
_CORINE_ABOVE = (
    'forest and semi natural areas',
    'forest and seminatural areas',
    'industrial, commercial and transport units',
    'mine, dump and construction sites',
    'open spaces with little or no vegetation',
    'scrub and/or herbaceous vegetation associations',
    'shrub and/or herbaceous vegetation associations',
)
"""Names of CORINE's upper levels that have `and` or `or` in them."""


class _NotUnderstood(Exception):
    """Why a question fits no template."""


def parse_question(question: str) -> Any:
    """The program of a question.

    Args:
        question: in English.

    Raises:
        InputError: it is empty, too long, or fits no template.

    Example:
        >>> parse_question('How many small buildings are next to a road?').op
        'count'
    """
    if len(question) > LONGEST_QUESTION:
        raise InputError(f'The question has {len(question):,} characters; give at most {LONGEST_QUESTION}.')
    text = ' '.join(question.split()).rstrip('?. ')
    if not text:
        raise InputError('The question is empty; ask for example: How many buildings are next to a road?')
    reason = None
    for pattern, build in _TEMPLATES:
        match = pattern.fullmatch(text)
        if match is None:
            continue
        try:
            return check_program(build(*match.groups()), 'The question')
        except _NotUnderstood as error:
            reason = reason or str(error)
    why = f' ({reason})' if reason else ''
    raise InputError(
        f'The question {shown(question)} fits no template{why}; ask as "{EXAMPLES[0]}" or "{EXAMPLES[4]}", give a '
        'program, or name an --endpoint.'
    )


def _template(pattern: str, build: Callable[..., Json]) -> tuple[re.Pattern[str], Callable[..., Json]]:
    return re.compile(pattern + r'(?: in the (?:image|scene))?', re.IGNORECASE), build


def _name(text: str, plural: bool) -> str:
    """The name of one kind of object, in the singular.

    Raises:
        _NotUnderstood: it is none.
    """
    words = text.lower().split()
    if ' '.join(words) in _NAMES_WITH_OF:
        return _NAMES_WITH_OF[0]
    if not plural and ' '.join(words) in _corine():
        return ' '.join(words)
    strange = [w for w in words if w in _NOT_NAMES or not _WORD.fullmatch(w)]
    if not words or strange or words[0] in _PLACES or len(words) > _MOST_WORDS or len(text) > LONGEST_WORD:
        raise _NotUnderstood(f'{shown(text)} is not understood as the name of one kind of object')
    name = ' '.join(words)
    return singular(name) if plural else name


_SINGULAR = {'prairies': 'prairie', 'leaves': 'leaf', 'oases': 'oasis', 'gases': 'gas', 'gas': 'gas', 'oasis': 'oasis'}


def singular(name: str) -> str:
    """A name in the singular, by its last letters.

    Example:
        >>> [singular(name) for name in ('residential areas', 'churches', 'cemeteries', 'grass', 'barrackss', 'buses')]
        ['residential area', 'church', 'cemetery', 'grass', 'barracks', 'bus']
    """
    before, _, last = name.rpartition(' ')
    if last in _SINGULAR:
        return f'{before} {_SINGULAR[last]}'.strip()
    if name.endswith('ies') and len(name) > 4:
        return name[:-3] + 'y'
    if re.search(r'(ch|sh|x|ss|[bpt]us)es$', name):
        return name[:-2]
    return name[:-1] if re.search(r'[^su]s$|[^aeious]ss$', name) else name


_ADJECTIVES = {word: ('size', word) for word in _SIZES} | {word: ('shape', word) for word in _SHAPES}
_ADJECTIVES |= {'big': ('size', 'large'), 'round': ('shape', 'circular')}


def _kind(text: str, plural: bool) -> Json:
    """[size] [shape] word, in any order."""
    limits: Json = {}
    first, _, rest = text.strip().partition(' ')
    while rest and first.lower().rstrip(',') in _ADJECTIVES:
        key, value = _ADJECTIVES[first.lower().rstrip(',')]
        if key in limits:
            raise _NotUnderstood(f'{shown(text)} has two words for its {key}')
        limits[key] = value
        text = rest
        first, _, rest = text.strip().partition(' ')
    found: Json = {'op': 'find', 'word': _name(text, plural)}
    return {'op': 'filter', **limits, 'of': found} if limits else found


_RELATED = re.compile(
    rf'(.+?) (?:(?:are |is )?({"|".join(_RELATIONS)})|(?:are |is )?within (\d+(?:\.\d+)?) ?m(?:etres|eters)? of)'
    r' (?:the|a|an) (.+)',
    re.IGNORECASE,
)


def _objects(text: str, plural: bool) -> Json:
    """[size] [shape] word [relation a other objects]."""
    match = _RELATED.fullmatch(text.strip())
    if match is None:
        return _kind(text, plural)
    of, relation, metres, to = match.groups()
    related: Json = {'op': 'relate', 'relation': (relation or 'next to').lower()}
    related |= {'of': _kind(of, plural), 'to': _kind(to, plural=False)}
    return related | ({'within_m': float(metres)} if metres else {})


def _of(op: str, plural: bool = True) -> Callable[[str], Json]:
    """What builds an operator with one argument from the text of objects."""
    return lambda text: {'op': op, 'of': _objects(text, plural)}


def _compare(than: str) -> Callable[[str, str], Json]:
    def build(left: str, right: str) -> Json:
        sides = [{'op': 'count', 'of': _objects(side, plural=True)} for side in (left, right)]
        return {'op': 'compare', 'left': sides[0], 'than': than, 'right': sides[1]}

    return build


def _rural_or_urban() -> Json:
    buildings = {'op': 'count', 'of': {'op': 'find', 'word': 'building'}}
    many = {'op': 'number', 'value': URBAN_FROM - 1}
    return {
        'op': 'choose', 'when': {'op': 'compare', 'left': buildings, 'than': 'more', 'right': many},
        'then': 'urban', 'otherwise': 'rural',
    }  # fmt: skip


@functools.cache
def _corine() -> tuple[str, ...]:
    """Names of CORINE's classes, the longest first."""
    return tuple(sorted((*_CORINE_ABOVE, *(name.lower() for name in class_names(43))), key=len, reverse=True))


def _split(text: str, word: str) -> list[str]:
    """Parts of a text between a word, which may also be in one of CORINE's names."""
    held = text.lower()
    for number, name in enumerate(_corine()):
        held = held.replace(name, f'<{number}>')
    return [re.sub(r'<(\d+)>', lambda m: _corine()[int(m[1])], part) for part in held.split(f' {word} ')]


def _presence(text: str) -> Json:
    """Names with `and` and `or` between them: `and` binds closer, as it does in logic."""
    either = []
    for part in _split(text, 'or'):
        both = [{'op': 'exists', 'of': _kind(n, plural=n not in _corine())} for n in _split(part, 'and')]
        either.append(both[0] if len(both) == 1 else {'op': 'all', 'of': both})
    return either[0] if len(either) == 1 else {'op': 'any', 'of': either}


def _classify(one: str, other: str) -> Json:
    return {'op': 'classify', 'words': [_name(one, plural=False), _name(other, plural=False)]}


def _besides(text: str) -> Json:
    """CORINE's classes but some."""
    names = [name.lower() for name in class_names(43)]
    left_out = _split(text, 'and')
    strange = next((name for name in left_out if name not in names), None)
    if strange is not None:
        raise _NotUnderstood(f'{shown(strange)} is none of the 43 classes of CORINE')
    return {'op': 'list', 'words': [name for name in names if name not in left_out]}


def _between(op: str) -> Callable[[str, str], Json]:
    return lambda of, to: {'op': op, 'of': _kind(of, plural=False), 'to': _kind(to, plural=False)}


_A = r'(?:a|an|the) '
_TEMPLATES: Sequence[tuple[re.Pattern[str], Callable[..., Json]]] = (
    _template('is it (?:a rural or an urban|an urban or a rural) area', _rural_or_urban),
    _template('is there (?:a|an) (.+?)', _of('exists', plural=False)),
    _template('is (?:a|an) (.+?) present', _of('exists', plural=False)),
    _template('how many (.+?) (?:are|is) there per square (?:kilometre|kilometer)', _of('density')),
    _template('how many (.+?) are there', _of('count')),
    _template(r'how many (.+? are (?:at|on|next|within) .+?)', _of('count')),
    _template('what is the (?:number|amount) of (.+?)', _of('count')),
    _template('are there (?:less|fewer) (.+?) than (.+?)', _compare('less')),
    _template('are there more (.+?) than (.+?)', _compare('more')),
    _template('is the number of (.+?) equal to the number of (.+?)', _compare('equal')),
    _template('what is the area (?:covered by|of)(?: the)? (.+?)', _of('area')),
    _template('what (?:share|part) of the (?:image|scene) is(?: covered by)? (.+?)', _of('share')),
    _template('what is the density of (.+?)', _of('density')),
    _template(f'how far is {_A}(.+?) from {_A}(.+?)', _between('distance')),
    _template(f'which (.+?) is (?:the )?nearest to {_A}(.+?)', _between('nearest')),
    _template(f'is it (?!a rural or|an urban or){_A}(.+?) or {_A}(.+?)', _classify),
    _template('are (?:there )?some (.+?)(?: present)?', _presence),
    _template('are there (?!less |fewer |more |some |any )(.+?)', _presence),
    _template('are there any (.+?)', _of('exists')),
    _template('are (?!there |some )(.+?) present', _presence),
    _template('besides (.+?), what classes are', _besides),
)
EXAMPLES = (
    'How many small buildings are next to a road?',
    'Is there a lake?',
    'Are there more houses than roads?',
    'What is the area covered by forests?',
    'What share of the scene is forest?',
    'How many farms are there per square kilometre?',
    'How far is a house from a quarry?',
    'Which house is nearest to a lake?',
    'Is it a forest or a meadow?',
)
"""One question of each kind."""
