"""Tables of results in README files: `python -m experiments.pages` copies them there, so that none is typed.

Between `<!-- FILE -->` and `<!-- end -->` stands that file; between `<!-- FILE: HEADING -->` and `<!-- end -->` the
first table below that heading of it. Files are named from the top of the repository.
"""

from __future__ import annotations

import re
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
_MARKED = re.compile(r'(<!-- (?P<file>experiments/\S+?\.md)(: (?P<heading>.+?))? -->\n).*?(\n<!-- end -->)', re.DOTALL)


def filled(page: str, top: Path = TOP) -> str:
    r"""A page with its tables as the files have them now.

    Raises:
        ValueError: a file has no such heading, or no table below it.

    Example:
        >>> import tempfile
        >>> top = Path(tempfile.mkdtemp())
        >>> (top / 'experiments').mkdir()
        >>> _ = (top / 'experiments/a.md').write_text('# A\n\nText.\n\n| x |\n|---|\n| 1 |\n\nMore.\n')
        >>> print(filled('<!-- experiments/a.md: A -->\nold\n<!-- end -->', top))
        <!-- experiments/a.md: A -->
        | x |
        |---|
        | 1 |
        <!-- end -->
    """
    return _MARKED.sub(lambda mark: mark[1] + _copied(top / mark['file'], mark['heading']) + mark[5], page)


def _copied(file: Path, heading: str | None) -> str:
    """What of a file is shown."""
    text = file.read_text().strip()
    if heading is None:
        return text
    below = re.search(rf'^#+ {re.escape(heading)}$(?P<section>.*?)(?=^#|\Z)', text, re.DOTALL | re.MULTILINE)
    table = below and re.search(r'^\|.*(?:\n\|.*)*', below['section'], re.MULTILINE)
    if not table:
        raise ValueError(f'{file} has no table below the heading {heading!r}')
    return table[0]


def pages() -> list[Path]:
    """All pages that show results."""
    return [TOP / 'README.md', *sorted((TOP / 'experiments').glob('**/README.md'))]


if __name__ == '__main__':
    for page in pages():
        page.write_text(filled(page.read_text()))
