"""Photos inside tar archives, as img2dataset and WebDataset write them: an index once, then one read a photo.

Archives are untrusted: headers are read one by one by their checksums, sizes that lie only lead beyond the end, and
members that are links, devices, absolute or climb out with `..` are known by name and refused. Nothing is unpacked.
"""

from __future__ import annotations

import tarfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import PurePosixPath

from grafalign.photos.exif import PhotoError

ReadPart = Callable[[int, int], bytes]
"""(offset, size) to bytes; shorter at the end of the archive, empty beyond it."""
MAX_MEMBERS = 1_000_000
"""Members in one archive; an index of so many takes about 200 MB."""
MAX_WALKED_BYTES = 8 << 30
"""Bytes read while an archive is walked over; a shard of 10,000 photos has 1 or 2 GB."""
MAX_REPEATED = 100
"""Members of one name: a few are what appending to a tar leaves, more are made up."""
MAX_CACHED_MEMBERS = 2_000_000
"""Members in all indexes that are kept; the archives used longest ago are forgotten first."""
_LONGEST_HEADER = 1 << 16
"""Bytes of a long name or a pax header; real ones have a few hundred."""
_BLOCK = tarfile.BLOCKSIZE
Index = dict[str, tuple[int, int] | str]
"""Member name to offset and size, or to the reason why it is refused."""


def read_index(read: ReadPart, ahead: int = _BLOCK) -> Index:
    """Walk over all headers of an uncompressed tar (ustar, GNU and pax).

    Args:
        read: gives parts of the archive.
        ahead: bytes to read at once; more than a block where every read has a price.

    Raises:
        PhotoError: it is no tar, is compressed, has too many members or no end, or `read` fails.
    """
    index: Index = {}
    window, start, fetched = b'', 0, 0

    def at(offset: int, size: int) -> bytes:
        nonlocal window, start, fetched
        if not (start <= offset and offset + size <= start + len(window)):
            window, start = read(offset, max(size, ahead)), offset
            fetched += len(window)
            if fetched > MAX_WALKED_BYTES:
                raise PhotoError(f'a tar without end (more than {MAX_WALKED_BYTES >> 30} GB)')
        return window[offset - start : offset - start + size]

    offset, headers, repeated, renamed, resized = 0, 0, 0, None, None
    while len(block := at(offset, _BLOCK)) == _BLOCK and block.strip(b'\0'):
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
            content = at(body, size)
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
                repeated += _plain(name) in index
                if repeated > MAX_REPEATED:
                    raise PhotoError('a tar that repeats its files')
                index[_plain(name)] = _refusal(name) or (body, size)
            elif head.type != tarfile.DIRTYPE:
                index[_plain(name)] = 'a link or a device in the tar, not a file'
            renamed = resized = None
            if head.type in (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
                size = 0  # these have no content, whatever the header says
        offset = body + -(-size // _BLOCK) * _BLOCK
    if not offset and block.strip(b'\0'):
        packed = block.startswith((b'\x1f\x8b', b'BZh', b'\xfd7zXZ', b'\x28\xb5\x2f\xfd'))
        raise PhotoError('a compressed tar; unpack it to .tar' if packed else 'not a tar')
    return index


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
        if isinstance(place, str):
            raise PhotoError(place)
        offset, size = place
        if size > most:
            raise PhotoError(f'more than {most / 1e6:g} MB')
        content = read(offset, size) if size else b''
        if len(content) < size:
            raise PhotoError('the tar ends before this file does')
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
