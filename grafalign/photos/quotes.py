"""Quotation marks that are never closed: they cost their own row, not the rows behind it.

A quoted value may hold line breaks, so a reader of CSV that meets a mark without a partner takes everything up to the
next mark, or to the end of the file, for one value. Here lines are put together into records before they are parsed: a
record that does not end within `LONGEST_RECORD` lines, has another number of fields than the header, or is made of
lines that are whole rows each, was opened by a stray mark. Its first line is left out and reported; the others are rows
again.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any

LONGEST_RECORD = 200
"""Lines of one value, at most: longer texts are no part of a table of photos."""
_PIECE = 4 << 20


class WholeRecords(io.RawIOBase):
    """A stream of CSV without lines that open a quotation and do not close it.

    Args:
        stream: the bytes of the table, from its first line on.
        fields: columns of the table.
        delimiter: between fields.
        report: called with the number (from 1) and the text of a line that is left out.
    """

    def __init__(self, stream: Any, fields: int, delimiter: str, report: Callable[[int, str], None]) -> None:
        self._stream, self._fields, self._delimiter, self._report = stream, fields, delimiter, report
        self._rest = b''
        self._number = 0
        self._open: list[bytes] = []
        """Lines of a record that is not closed yet."""
        self._ready = bytearray()
        self._ended = False

    def readable(self) -> bool:
        """It can be read."""
        return True

    def read(self, size: int = -1) -> bytes:
        """The next bytes, all that are left where no size is given."""
        while not self._ended and (size < 0 or len(self._ready) < size):
            self._fill()
        count = len(self._ready) if size < 0 else min(size, len(self._ready))
        piece = bytes(self._ready[:count])
        del self._ready[:count]
        return piece

    def _fill(self) -> None:
        piece = self._stream.read(_PIECE)
        if not piece:
            self._ended = True
            if self._rest:
                self._lines([self._rest], [b''])
            while self._open:
                self._drop_first()
            return
        whole = self._rest + piece
        if b'"' not in whole and not self._open:
            cut = whole.rfind(b'\n') + 1
            self._number += whole.count(b'\n', 0, cut)
            self._ready += whole[:cut]
            self._rest = whole[cut:]
            return
        lines = whole.split(b'\n')
        self._rest = lines.pop()
        self._lines(lines, [b'\n'] * len(lines))

    def _lines(self, lines: list[bytes], ends: list[bytes]) -> None:
        for line, end in zip(lines, ends, strict=True):
            self._number += 1
            odd = line.count(b'"') % 2 == 1
            if not self._open:
                if odd:
                    self._open = [line + end]
                else:
                    self._ready += line + end
                continue
            self._open.append(line + end)
            if odd:
                self._close()
            elif len(self._open) > LONGEST_RECORD:
                self._drop_first()

    def _close(self) -> None:
        """A line ends what an earlier one began: one record, or two lines with a stray mark each."""
        if self._count(b''.join(self._open)) == self._fields and not self._are_rows(self._open[1:-1]):
            self._ready += b''.join(self._open)
            self._open = []
        else:
            self._drop_first()

    def _drop_first(self) -> None:
        """Leave out the line that began a record, and look at the others anew."""
        first, others = self._open[0], self._open[1:]
        self._open = []
        self._report(self._number - len(others), first.decode('utf-8', 'replace').rstrip('\r\n'))
        self._number -= len(others)
        self._lines([o.removesuffix(b'\n') for o in others], [b'\n' if o.endswith(b'\n') else b'' for o in others])

    def _are_rows(self, lines: list[bytes]) -> bool:
        return bool(lines) and all(self._count(line) == self._fields for line in lines)

    def _count(self, record: bytes) -> int:
        text = io.StringIO(record.decode('utf-8', 'replace'), newline='')
        try:
            return len(next(csv.reader(text, delimiter=self._delimiter), []))
        except csv.Error:
            return 0
