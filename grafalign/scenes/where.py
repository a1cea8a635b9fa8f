"""Conditions on item properties: `where: {property: {operator: value}}`, in the spelling of the STAC query extension.

They are always applied here, so the result does not depend on what a server can do; `as_query` and `as_cql2` say the
same to servers that can, which saves the download of what would be dropped.

Rules:

- An item without the property, or with null, does not satisfy a condition on it, not even `neq` (as in SQL and pgstac).
- A number is only compared with a number, a text with a text, a truth value with a truth value; text compares by code
  point, which for ISO times of one spelling is their order. A value of another kind does not satisfy the condition.
- `max_cloud_percent` is no such condition: items that state no cloud cover stay. Only CQL2 can say that (`or isNull`),
  so it is pushed to servers with the filter extension and not to those that have the query extension alone.

Sources: https://github.com/stac-api-extensions/query, https://github.com/stac-api-extensions/filter and OGC 21-065r2
(CQL2).
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Callable, Mapping
from typing import Any

from grafalign.errors import InputError

Value = bool | int | float | str
Where = dict[str, dict[str, Value | list[Value]]]

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    'lt': operator.lt,
    'lte': operator.le,
    'gt': operator.gt,
    'gte': operator.ge,
    'eq': operator.eq,
    'neq': operator.ne,
}
_CQL2 = {'lt': '<', 'lte': '<=', 'gt': '>', 'gte': '>=', 'eq': '=', 'neq': '<>'}
OPERATORS = (*_COMPARE, 'in', 'startsWith')


def check_where(where: Any) -> Any:
    """Pass conditions on if they are well formed.

    Raises:
        ValueError: an operator is unknown or has a value of the wrong kind; the text names property and operator.
    """
    if not isinstance(where, Mapping):
        raise ValueError('write `where` as property: {operator: value}')
    for name, conditions in where.items():
        if not isinstance(conditions, Mapping) or not conditions:
            raise ValueError(f'write the condition on {name} as {{operator: value}}, such as {{lte: 10}}')
        for key, value in conditions.items():
            if key not in OPERATORS:
                near = difflib.get_close_matches(str(key), OPERATORS, 1)
                hint = f'did you mean {near[0]}?' if near else f'known are {", ".join(OPERATORS)}'
                raise ValueError(f'unknown operator {key!r} for {name}; {hint}')
            wanted = value if key == 'in' and isinstance(value, list) else [value]
            if (key == 'in') != isinstance(value, list) or not wanted or not all(_kind(v) for v in wanted):
                kinds = 'a list of numbers or texts' if key == 'in' else 'a number, a text, true or false'
                raise ValueError(f'{key} of {name} needs {kinds} (put a date in quotes)')
            if key == 'startsWith' and not isinstance(value, str):
                raise ValueError(f'startsWith of {name} needs a text')
    return where


def _kind(value: Any) -> str:
    """What a value may be compared with; empty for what cannot be compared."""
    if isinstance(value, bool):
        return 'truth value'
    if isinstance(value, int | float):
        return 'number'
    return 'text' if isinstance(value, str) else ''


class Conditions:
    """Applies `where` to items and remembers which properties were there to compare.

    Args:
        where: conditions that `check_where` has passed.
    """

    def __init__(self, where: Where) -> None:
        self._where = where
        self._compared: set[str] = set()
        self._other_kind: dict[str, Any] = {}
        self._names: set[str] = set()
        self._items = 0

    def hold(self, properties: Mapping[str, Any]) -> bool:
        """Whether all conditions hold for one item."""
        if not self._where:
            return True
        self._items += 1
        self._names.update(properties)
        results = [self._holds(properties, name) for name in self._where]  # every property is looked at
        return all(results)

    def _holds(self, properties: Mapping[str, Any], name: str) -> bool:
        actual = properties.get(name)
        if actual is None:
            return False
        result = True
        for key, value in self._where[name].items():
            values = value if isinstance(value, list) else [value]
            alike = [v for v in values if _kind(v) == _kind(actual)]
            if not alike:
                self._other_kind.setdefault(name, actual)
                result = False
                continue
            self._compared.add(name)
            if key == 'in':
                result &= actual in alike
            elif key == 'startsWith':
                result &= str(actual).startswith(str(value))
            else:
                result &= _COMPARE[key](actual, value)
        return result

    def complain(self, source: str) -> None:
        """Raise if a condition could not be tried on any item: it is misspelt or of the wrong kind.

        Args:
            source: the file or URL to name.

        Raises:
            GrafalignError: no item has a property of `where`, or it is of another kind in all of them.
        """
        for name in self._where if self._items else ():
            if name in self._compared:
                continue
            if name in self._other_kind:
                given = self._other_kind[name]
                raise InputError(
                    f'{source}: scenes.where compares {name} with another kind of value than the items have '
                    f'({given!r}, a {_kind(given) or type(given).__name__}); write such a value, texts in quotes.'
                )
            near = difflib.get_close_matches(name, self._names, 3, 0.5)
            hint = f'did you mean {" or ".join(near)}?' if near else f'they have {", ".join(sorted(self._names)[:12])}.'
            raise InputError(f'{source}: no item has the property {name} of scenes.where; {hint}')


def as_query(where: Where) -> dict[str, Any]:
    """The conditions as the body of the query extension."""
    return {name: dict(conditions) for name, conditions in where.items()}


def as_cql2(where: Where, max_cloud_percent: float | None) -> dict[str, Any] | None:
    """The conditions and the cloud limit as CQL2 JSON; None where there are none."""
    terms: list[dict[str, Any]] = []
    for name, conditions in where.items():
        reference = {'property': name}
        for key, value in conditions.items():
            if key == 'in':
                terms.append({'op': 'in', 'args': [reference, value]})
            elif key == 'startsWith':
                pattern = str(value).replace('\\', '\\\\').replace('%', '\\%').replace('_', '\\_') + '%'
                terms.append({'op': 'like', 'args': [reference, pattern]})
            else:
                terms.append({'op': _CQL2[key], 'args': [reference, value]})
    if max_cloud_percent is not None:
        cloud = {'property': 'eo:cloud_cover'}
        few, none = {'op': '<=', 'args': [cloud, max_cloud_percent]}, {'op': 'isNull', 'args': [cloud]}
        terms.append({'op': 'or', 'args': [few, none]})
    if not terms:
        return None
    return terms[0] if len(terms) == 1 else {'op': 'and', 'args': terms}
