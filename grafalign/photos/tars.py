"""Photos inside tar archives, as img2dataset and WebDataset write them: one by one by an index, or front to back.

Archives are untrusted: headers are read one by one by their checksums, sizes that lie only lead beyond the end, and
members that are links, devices, absolute or climb out with `..` are known by name and refused. Nothing is unpacked.
"""

from __future__ import annotations

import tarfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from pathlib import PurePosixPath

from grafalign.photos.exif import PhotoError

ReadPart = Callable[[int, int], bytes]
"""(offset, size) to bytes; shorter at the end of the archive, empty beyond it."""
MAX_MEMBERS = 1_000_000
"""Members in one archive; an index of so many takes about 200 MB."""
MAX_WALKED_BYTES = 8 << 30
"""Bytes read of an archive for nothing; a shard of 10,000 photos has 1 or 2 GB."""
MAX_REPEATED = 100
"""Members of one name: a few are what appending to a tar leaves, more are made up."""
MAX_CACHED_MEMBERS = 2_000_000
"""Members in all indexes that are kept; the archives used longest ago are forgotten first."""
_LONGEST_HEADER = 1 << 16
"""Bytes of a long name or a pax header; real ones have a few hundred."""
_BLOCK = tarfile.BLOCKSIZE
Place = tuple[int, int] | str
"""Offset and size of a member's content, or the reason why it is refused."""
Index = dict[str, Place]
"""Member name to its place."""


class _Window:
    """Parts of an archive out of larger ones that were read at once.

    Args:
        read: gives parts of the archive.
        ahead: bytes to read at once; more than a block where every read has a price.
    """

    def __init__(self, read: ReadPart, ahead: int) -> None:
        self._read, self._ahead = read, ahead
        self._bytes, self._start = b'', 0
        self._useless = 0

    def note_use(self) -> None:
        """What was read last was of use: an archive that has much that is asked for is not without end."""
        self._useless = 0

    def at(self, offset: int, size: int) -> bytes:
        """Bytes of a part; shorter at the end of the archive."""
        if not (self._start <= offset and offset + size <= self._start + len(self._bytes)):
            rest = (
                self._bytes[offset - self._start :] if self._start <= offset < self._start + len(self._bytes) else b''
            )
            begin = offset + len(rest)
            more = self._read(begin, max(size - len(rest), self._ahead))
            self._bytes, self._start = rest + more, offset
            self._useless += len(more)
            if self._useless > MAX_WALKED_BYTES:
                raise PhotoError(f'a tar without end (more than {MAX_WALKED_BYTES >> 30} GB)')
        return self._bytes[offset - self._start : offset - self._start + size]


def read_index(read: ReadPart, ahead: int = _BLOCK) -> Index:
    """Where the members of an archive lie; of several of one name the last, as appending to a tar leaves them.

    Args:
        read: gives parts of the archive.
        ahead: bytes to read at once.

    Raises:
        PhotoError: it is no tar, is compressed, has too many members or no end, or `read` fails.
    """
    return dict(_walk(_Window(read, ahead)))


def read_members(
    read: ReadPart, names: Collection[str], ahead: int, most: int
) -> Iterator[tuple[str, bytes | PhotoError]]:
    """The content of some members, in the order of the archive, which is read once from front to back.

    Args:
        read: gives parts of the archive.
        names: of the members; one that is there several times is given several times, the last one last.
        ahead: bytes to read at once.
        most: members with more bytes are refused.

    Yields:
        Names, each with its content or the reason why it cannot be had; nothing for members that are not there.

    Raises:
        PhotoError: as `read_index`.
    """
    window = _Window(read, ahead)
    spellings: dict[str, list[str]] = {}
    for name in names:
        spellings.setdefault(_plain(name), []).append(name)
    for name, place in _walk(window):
        if name in spellings:
            content = _content(place, window.at, most)
            yield from ((spelled, content) for spelled in spellings[name])
            window.note_use()


def _content(place: Place, read: ReadPart, most: int) -> bytes | PhotoError:
    """The content of a member, or why it cannot be had."""
    if isinstance(place, str):
        return PhotoError(place)
    offset, size = place
    if size > most:
        return PhotoError(f'more than {most / 1e6:g} MB')
    content = read(offset, size) if size else b''
    return content if len(content) == size else PhotoError('the tar ends before this file does')


def _walk(window: _Window) -> Iterator[tuple[str, Place]]:
    """Go over all headers of an uncompressed tar (ustar, GNU and pax): plain names, and where the content lies."""
    offset, headers, repeated, renamed, resized = 0, 0, 0, None, None
    names: set[str] = set()
    while len(block := window.at(offset, _BLOCK)) == _BLOCK and block.strip(b'\0'):
        try:
            head = tarfile.TarInfo.frombuf(block, 'utf-8', 'surrogateescape')
        except tarfile.HeaderError:
            break  # what lies before the damage can be used
        headers += 1
        if headers > MAX_MEMBERS:
            raise PhotoError(f'a tar of more than {MAX_MEMBERS:,} files')
        body, size = offset + _BLOCK, head.size
        if size < 0:
            break
        if head.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            if not 0 <= size <= _LONGEST_HEADER:
                break
            content = window.at(body, size)
            if head.type == tarfile.GNUTYPE_LONGNAME:
                renamed = content.split(b'\0', 1)[0].decode('utf-8', 'surrogateescape')
            elif head.type != tarfile.GNUTYPE_LONGLINK:
                records = _pax(content)
                renamed, resized = records.get('path', renamed), records.get('size', resized)
        else:
            if resized is not None and resized.isascii() and resized.isdigit() and len(resized) < 20:
                size = int(resized)
            name = renamed if renamed is not None else head.name
            if head.type == tarfile.XGLTYPE:
                pass
            elif head.type in tarfile.REGULAR_TYPES and head.type != tarfile.GNUTYPE_SPARSE:
                repeated += _plain(name) in names
                if repeated > MAX_REPEATED:
                    raise PhotoError('a tar that repeats its files')
                names.add(_plain(name))
                yield _plain(name), _refusal(name) or (body, size)
            elif head.type != tarfile.DIRTYPE:
                names.add(_plain(name))
                yield _plain(name), 'a link or a device in the tar, not a file'
            renamed = resized = None
            if head.type in (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
                size = 0  # these have no content, whatever the header says
        offset = body + -(-size // _BLOCK) * _BLOCK
    if not offset and block.strip(b'\0'):
        packed = block.startswith((b'\x1f\x8b', b'BZh', b'\xfd7zXZ', b'\x28\xb5\x2f\xfd'))
        raise PhotoError('a compressed tar; unpack it to .tar' if packed else 'not a tar')


def _pax(content: bytes) -> dict[str, str]:
    """Records `LENGTH KEY=VALUE` of a pax header (POSIX.1-2001); what is damaged is left out."""
    records = {}
    while content:
        digits, space, _ = content.partition(b' ')
        if not space or not digits.isdigit() or len(digits) > 6 or not int(digits):
            break
        record, content = content[len(digits) + 1 : int(digits) - 1], content[int(digits) :]
        key, equals, value = record.partition(b'=')
        if equals:
            records[key.decode('utf-8', 'replace')] = value.decode('utf-8', 'surrogateescape')
    return records


def _plain(name: str) -> str:
    return name.removeprefix('./')


def _refusal(name: str) -> str | None:
    path = PurePosixPath(name)
    if path.is_absolute() or '..' in path.parts:
        return 'its name in the tar leads out of it'
    return None


class Tars:
    """Members of any number of archives, with the indexes of those used last; used by any number of threads."""

    def __init__(self) -> None:
        self._indexes: OrderedDict[str, Index] = OrderedDict()
        self._building: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def member(self, archive: str, name: str, read: ReadPart, ahead: int, most: int) -> bytes:
        """The content of one member.

        Args:
            archive: what the index is kept under.
            name: the member.
            read: gives parts of the archive.
            ahead: see `read_index`.
            most: refuse members with more bytes.

        Raises:
            PhotoError: the reason why it cannot be had.
        """
        place = self._index(archive, read, ahead).get(_plain(name))
        if place is None:
            raise PhotoError('not in the tar')
        content = _content(place, read, most)
        if isinstance(content, PhotoError):
            raise content
        return content

    def _index(self, archive: str, read: ReadPart, ahead: int) -> Index:
        with self._lock:
            building = self._building.setdefault(archive, threading.Lock())
        with building:
            with self._lock:
                if archive in self._indexes:
                    self._indexes.move_to_end(archive)
                    return self._indexes[archive]
            index = read_index(read, ahead)
            with self._lock:
                self._indexes[archive] = index
                while len(self._indexes) > 1 and sum(map(len, self._indexes.values())) > MAX_CACHED_MEMBERS:
                    forgotten, _ = self._indexes.popitem(last=False)
                    self._building.pop(forgotten, None)
            return index
