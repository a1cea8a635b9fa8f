"""Programs from JSON, checked before they run: they can come from a stranger or from a language model."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError

from grafalign.config import shown
from grafalign.errors import InputError
from grafalign.foreign.files import parse_json
from grafalign.questions.language import Program

MOST_NODES = 64
MOST_DEPTH = 16
MOST_CHARACTERS = 20_000
"""Of a program's JSON."""
_PROGRAM: TypeAdapter[Any] = TypeAdapter(Program)


def program_schema() -> dict[str, Any]:
    """The JSON schema of programs."""
    return _PROGRAM.json_schema()


def parse_program(text: str, name: str = 'The program') -> Any:
    """Read and check a program.

    Args:
        text: its JSON.
        name: of it, for messages.

    Returns:
        A `Program`.

    Raises:
        InputError: it is no JSON, too large or too deep, has an unknown operator, or arguments of a wrong kind.
    """
    if len(text) > MOST_CHARACTERS:
        raise InputError(f'{name} has {len(text):,} characters; at most {MOST_CHARACTERS:,} are read.')
    try:
        content = parse_json(text)
    except ValueError as error:
        raise InputError(f'{name} is no JSON ({error}); mend it.') from None
    return check_program(content, name)


def check_program(content: object, name: str = 'The program') -> Any:
    """Check a program that has been read; as `parse_program`."""
    depth, nodes = _extent(content)
    if depth > MOST_DEPTH or nodes > MOST_NODES:
        much = f'{depth} operators inside each other' if depth > MOST_DEPTH else f'{nodes} operators'
        raise InputError(f'{name} has {much}; give at most {MOST_DEPTH} inside each other, and {MOST_NODES} in all.')
    try:
        return _PROGRAM.validate_python(content)
    except ValidationError as error:
        raise InputError(f'{name}: {_reason(error)}') from None


def _extent(content: object) -> tuple[int, int]:
    """How deep operators lie inside each other, and how many there are; no recursion, as it may be anything."""
    deepest = nodes = 0
    waiting: list[tuple[object, int]] = [(content, 0)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, dict):
            nodes, depth = nodes + 1, depth + 1
            waiting += [(v, depth) for v in value.values()]
        elif isinstance(value, list):
            waiting += [(v, depth) for v in value]
        deepest = max(deepest, depth)
    return deepest, nodes


def _reason(error: ValidationError) -> str:
    """The first fault as a sentence: where, what, and what may stand there."""
    first = error.errors()[0]
    where = '.'.join(str(part) for part in first['loc'])
    at = f' at {where}' if where else ''
    given = first['input']
    context = first.get('ctx', {})
    if first['type'] == 'union_tag_invalid':
        return f'there is no operator {shown(context["tag"])}{at}; give {context["expected_tags"]}.'
    if first['type'] in ('union_tag_not_found', 'model_attributes_type', 'model_type'):
        return f'{shown(given)}{at} is no operator; give an object with "op" and its arguments.'
    if first['type'] == 'extra_forbidden':
        return f'unknown key {where!r}; leave it out.'
    if first['type'] == 'missing':
        return f'the key {where!r} is missing; add it.'
    message = first['msg'].removeprefix('Value error, ')
    shown_value = f' (it is {shown(given)})' if not isinstance(given, dict) else ''
    return f'{message[:1].lower()}{message[1:]}{at}{shown_value}; mend it.'
