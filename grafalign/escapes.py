"""Text of others in files and on screens: escaped here, once for every place that it may end up in.

Names of files, sensors, licences, classes and queries are strangers' texts. In a spreadsheet they may be formulas, in
Markdown they may be HTML, on a terminal they may move the cursor or set the title. Pages escape by themselves (Jinja2).
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

_FORMULA = ('=', '+', '-', '@', '\t', '\r')
"""What spreadsheets take for the begin of a formula (OWASP, CSV injection)."""
_NUMBER = re.compile(r'[-+0-9.,%()eE to]*')
"""Numbers, intervals and shares, which no spreadsheet makes a command of."""
_MARKDOWN = str.maketrans(
    {c: '\\' + c for c in '\\`[]|'} | {'<': '&lt;', '>': '&gt;', '&': '&amp;', '\n': ' ', '\r': ' '}
)
_MOVES = frozenset('\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069')
"""Characters that turn the direction of writing, so that a name reads as another."""


def csv_cell(value: Any) -> Any:
    """A cell of a CSV that no spreadsheet takes for a formula: a leading apostrophe makes it text; numbers stay.

    >>> csv_cell('=1+1'), csv_cell('-0.5'), csv_cell('tile')
    ("'=1+1", '-0.5', 'tile')
    """
    if not isinstance(value, str) or not value.startswith(_FORMULA) or _NUMBER.fullmatch(value):
        return value
    return f"'{value}"


def markdown(text: Any) -> str:
    r"""Text for Markdown: no HTML, no links, no code, no end of a table's cell; emphasis stays.

    >>> markdown('<b>|')
    '&lt;b&gt;\\|'
    """
    return str(text).translate(_MARKDOWN)


def fenced(text: str, language: str = '') -> str:
    """Text as a block of code in Markdown; the fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r'`+', text)), default=0)
    fence = '`' * max(3, longest + 1)
    return f'{fence}{language}\n{text}{"" if text.endswith(chr(10)) else chr(10)}{fence}'


def printable(text: Any) -> str:
    r"""Text for a terminal: control characters are shown, not obeyed; line breaks and tabs stay.

    >>> printable('\x1b]0;title\x07')
    '\\x1b]0;title\\x07'
    """
    plain = str(text)
    if plain.isprintable():
        return plain
    return ''.join(c if _is_harmless(c) else f'\\x{ord(c):02x}' if ord(c) < 256 else f'\\u{ord(c):04x}' for c in plain)


def _is_harmless(character: str) -> bool:
    if character in '\n\t':
        return True
    return unicodedata.category(character) not in ('Cc', 'Cs') and character not in _MOVES
