"""Quotation marks that are never closed: they cost their own row, not the rows behind it.

A quoted value may hold line breaks, so a reader of CSV that meets a mark without a partner takes everything up to the
next mark, or to the end of the file, for one value. Here lines are put together into records before they are parsed: a
record that does not end within `LONGEST_RECORD` lines, has another number of fields than the header, or is made of
lines that are whole rows each, was opened by a stray mark. Its first line is left out and reported; the others are rows
again. As for every reader, only a mark at the begin of a field opens anything: 22" wheel is text.
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
        stream: the bytes of the table; its first line, the names of the columns, goes through as it is.
        fields: columns of the table.
        delimiter: between fields.
        most_bytes: of one record.
        report: called with the number (from 1) and the text of a line that is left out.
        header: whether the first line is the names.
    """

    def __init__(
        self,
        stream: Any,
        fields: int,
        delimiter: str,
        most_bytes: int,
        report: Callable[[int, str], None],
        header: bool = True,
    ) -> None:
        self._stream, self._fields, self._delimiter = stream, fields, delimiter
        self._most_bytes, self._report = most_bytes, report
        self._in_header = header
        self._rest: list[bytes] = []
        """Pieces of a line that has not ended."""
        self._rest_bytes = 0
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
            if self._rest_bytes:
                self._line(b''.join(self._rest))
            while self._open:
                self._drop_first()
            return
        cut = piece.rfind(b'\n') + 1
        if not cut:
            self._keep_rest(piece)
            return
        whole, rest = b''.join([*self._rest, piece[:cut]]), piece[cut:]
        self._rest, self._rest_bytes = [], 0
        if b'"' not in whole and not self._open and not self._in_header:
            self._number += whole.count(b'\n')
            self._ready += whole
        else:
            for line in whole.split(b'\n')[:-1]:
                self._line(line + b'\n')
        if rest:
            self._keep_rest(rest)

    def _keep_rest(self, piece: bytes) -> None:
        self._rest.append(piece)
        self._rest_bytes += len(piece)
        if self._rest_bytes > self._most_bytes:
            raise OSError(f'row {self._number + 1} is longer than {self._most_bytes >> 20} MB')

    def _line(self, line: bytes) -> None:
        self._number += 1
        if self._in_header:
            self._in_header = False
            self._ready += line
        elif not self._open:
            if self._ends_open(line, False):
                self._open = [line]
            else:
                self._ready += line
        else:
            self._open.append(line)
            if not self._ends_open(line, True):
                self._close()
            elif len(self._open) > LONGEST_RECORD or sum(map(len, self._open)) > self._most_bytes:
                self._drop_first()

    def _ends_open(self, line: bytes, inside: bool) -> bool:
        """Whether a line ends inside a quoted value, given whether it begins in one."""
        if b'"' not in line:
            return inside
        mark, at = self._delimiter.encode(), 0
        while at < len(line):
            if not inside:
                if line[at : at + 1] != b'"':  # an unquoted value goes to the next delimiter, whatever is in it
                    following = line.find(mark, at)
                    if following < 0:
                        return False
                    at = following + 1
                    continue
                inside, at = True, at + 1
            closing = line.find(b'"', at)
            if closing < 0:
                return True
            if line[closing + 1 : closing + 2] == b'"':
                at = closing + 2  # two marks are one, inside
                continue
            inside = False
            following = line.find(mark, closing + 1)
            if following < 0:
                return False
            at = following + 1
        return inside

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
        self._number -= len(others)
        self._report(self._number, first.decode('utf-8', 'replace').rstrip('\r\n'))
        for line in others:
            self._line(line)

    def _are_rows(self, lines: list[bytes]) -> bool:
        return bool(lines) and all(self._count(line) == self._fields for line in lines)

    def _count(self, record: bytes) -> int:
        text = io.StringIO(record.decode('utf-8', 'replace'), newline='')
        try:
            return len(next(csv.reader(text, delimiter=self._delimiter), []))
        except csv.Error:
            return 0
