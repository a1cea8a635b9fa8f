"""Files of words, and the list that ships: things that can be seen in places, from the ground or from above."""

from __future__ import annotations

from pathlib import Path

from grafalign.config import read_yaml
from grafalign.errors import InputError
from grafalign.foreign.files import ForeignFileError, open_plain

_MOST_BYTES = 16 << 20
SHIPPED = Path(__file__).with_name('place_words.txt')


def read_words(file: Path) -> list[str]:
    """A word or phrase a line (`#` begins a comment), or a YAML list.

    Raises:
        GrafalignError: it cannot be read, has fewer than two words, or one twice.
    """
    try:
        if file.suffix.lower() in ('.yaml', '.yml'):
            lines = read_yaml(file)
        else:
            with open_plain(file, _MOST_BYTES) as stream:
                text = stream.read().decode('utf-8-sig')
            lines = [line.partition('#')[0] for line in text.splitlines()]
    except (OSError, ValueError, ForeignFileError) as error:  # ValueError: no UTF-8, or no YAML
        raise InputError(f'{file} cannot be read ({error}); give a text file with a word a line.') from None
    if not isinstance(lines, list) or not all(isinstance(word, str) for word in lines):
        raise InputError(f'{file} is no list of words; write `- word` lines.')
    words = [' '.join(line.split()) for line in lines if line.strip()]
    if len(words) < 2:
        raise InputError(f'{file} holds {len(words)} word{"s" * (len(words) != 1)}, and a choice needs two; add some.')
    folded: set[str] = set()
    for word in words:
        if word.casefold() in folded:
            raise InputError(f'{file} lists {word!r} twice, which would count it twice; leave one out.')
        folded.add(word.casefold())
    return words
