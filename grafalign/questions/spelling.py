"""Operators in plain words, for people who check what was computed."""

from __future__ import annotations

from pydantic import BaseModel

from grafalign.questions.language import (
    All,
    AnyOf,
    Area,
    Choose,
    Classify,
    Compare,
    Count,
    Density,
    Distance,
    Exists,
    Filter,
    Find,
    ListWords,
    Nearest,
    Relate,
    Share,
    Value,
)


def spelled(node: BaseModel) -> str:
    """An operator in plain words.

    Example:
        >>> spelled(Count(op='count', of=Find(op='find', word='road')))
        'number of (road)'
    """
    match node:
        case Find(word=word):
            return word
        case Filter():
            least = '' if node.at_least_m2 is None else f'at least {node.at_least_m2:g} m²'
            most = '' if node.at_most_m2 is None else f'at most {node.at_most_m2:g} m²'
            limits = [part for part in (node.size, node.shape, least, most) if part]
            return f'{", ".join(limits)} {_inner(node.of)}'
        case Relate(within_m=None):
            return f'{_inner(node.of, Filter)} {node.relation} {_inner(node.to, Filter)}'
        case Relate():
            return f'{_inner(node.of, Filter)} within {node.within_m:g} m of {_inner(node.to, Filter)}'
        case Nearest():
            return f'the {_inner(node.of, Filter)} nearest to {_inner(node.to, Filter)}'
        case Distance():
            return f'distance from {spelled(node.of)} to {spelled(node.to)}'
        case Count() | Area() | Share() | Density():
            names = {'count': 'number', 'area': 'area', 'share': 'share', 'density': 'density'}
            return f'{names[node.op]} of ({spelled(node.of)})'
        case Value():
            return f'{node.value:g} {node.unit}'
        case Exists():
            return f'there is a {spelled(node.of)}'
        case Compare():
            than = {'less': 'is less than', 'equal': 'is equal to', 'more': 'is more than'}[node.than]
            return f'{spelled(node.left)} {than} {spelled(node.right)}'
        case All() | AnyOf():
            return (' and ' if isinstance(node, All) else ' or ').join(f'({spelled(part)})' for part in node.of)
        case Classify():
            within = f' in {spelled(node.within)}' if node.within is not None else ''
            return f'which of {", ".join(node.words)} covers most{within}'
        case ListWords():
            return f'which of {", ".join(node.words)} are there'
        case Choose():
            return f'{node.then} if {spelled(node.when)}, otherwise {node.otherwise}'
    raise TypeError(f'{type(node).__name__} is no operator')


def _inner(node: BaseModel, *plain: type[BaseModel]) -> str:
    """An operand, in brackets but for a word and what else cannot be misread here."""
    return spelled(node) if isinstance(node, (Find, *plain)) else f'({spelled(node)})'
