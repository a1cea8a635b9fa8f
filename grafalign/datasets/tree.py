"""The files of a data set, in a folder or still inside the zip archive it was published as."""

from __future__ import annotations

import hashlib
import os
import re
import threading
import zipfile
import zlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path, PurePosixPath

from grafalign.errors import InputError

_HIDDEN = re.compile(r'(^|/)(\.|__MACOSX/|Thumbs\.db)')
"""What systems leave beside data."""
_PACKED = ('.rar', '.7z', '.tar', '.gz', '.tgz', '.bz2', '.zst')


class Tree:
    """Files by their relative names.

    Args:
        path: a folder or a zip archive.
        inside: a folder below it that is taken for the root.

    Raises:
        GrafalignError: there is no such folder or archive, or it is packed in a way that cannot be read in place.
    """

    def __init__(self, path: Path, inside: str = '') -> None:
        self.path, self.inside = path, inside
        self._local = threading.local()
        if path.is_file() and path.suffix.lower() in _PACKED:
            raise InputError(f'{path} is packed; unpack it and give the folder (zip archives are read as they are).')
        if not path.is_dir() and not zipfile.is_zipfile(path):
            raise InputError(f'There is no folder or zip archive {path}; give the path of the data set.')

    @cached_property
    def names(self) -> list[str]:
        """Relative names of all files, sorted, `/` between folders."""
        if self.path.is_dir():
            root = self.path / self.inside
            cut = len(str(root)) + 1
            found = [
                f'{folder}/{file}'[cut:].replace('\\', '/') for folder, _, files in os.walk(root) for file in files
            ]
        else:
            lead = f'{self.inside}/' if self.inside else ''
            found = [n[len(lead) :] for n in self._zip.namelist() if n.startswith(lead) and not n.endswith('/')]
        return sorted(n for n in found if not _HIDDEN.search(n))

    def state(self, names: Iterable[str]) -> str:
        """Changes when one of these files does: sizes and times, in an archive sizes and checksums."""
        hasher = hashlib.blake2b(digest_size=16)
        root = self.path / self.inside
        for name in names:
            if self.path.is_dir():
                metadata = (root / name).stat() if (root / name).exists() else None
                stamp = (name, metadata.st_size, metadata.st_mtime_ns) if metadata else (name,)
            else:
                there = self.has(name)
                info = self._zip.getinfo(str(PurePosixPath(self.inside) / name)) if there else None
                stamp = (name, info.file_size, info.CRC) if info else (name,)
            hasher.update(repr(stamp).encode())
        return hasher.hexdigest()

    @property
    def _zip(self) -> zipfile.ZipFile:
        """The archive, opened once a thread: one handle is read by one thread at a time."""
        if not hasattr(self._local, 'zip'):
            self._local.zip = zipfile.ZipFile(self.path)
        found: zipfile.ZipFile = self._local.zip
        return found

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""
        if self.path.is_dir():
            return (self.path / self.inside / name).is_file()
        return name in self._known

    @cached_property
    def _known(self) -> set[str]:
        return set(self.names)

    def source(self, name: str) -> Path | bytes:
        """A file, or its bytes where it is in an archive.

        Raises:
            GrafalignError: it is not there, or the archive is damaged.
        """
        if self.path.is_dir():
            return self.path / self.inside / name
        try:
            return self._zip.read(str(PurePosixPath(self.inside) / name))
        except KeyError:
            raise InputError(f'{self.path} holds no {name}; the archive is not whole, get it again.') from None
        except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, OSError) as error:
            raise InputError(f'{self.path}: {name} cannot be read ({error}); get the archive again.') from None

    def text(self, name: str) -> str:
        """A text file.

        Raises:
            GrafalignError: it is not there or is no UTF-8.
        """
        source = self.source(name)
        try:
            return (source if isinstance(source, bytes) else source.read_bytes()).decode('utf-8-sig')
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f'{self.path}: {name} cannot be read ({error}); get it again.') from None

    def below(self, folder: str) -> Tree:
        """The tree of a folder inside."""
        return Tree(self.path, str(PurePosixPath(self.inside) / folder) if self.inside else folder)

    def find_folder(self, candidates: list[str]) -> Tree | None:
        """The first of several folders that is there, in any case."""
        folders = {str(PurePosixPath(n).parent).lower(): str(PurePosixPath(n).parent) for n in self.names}
        for name in list(folders.values()):
            for parent in PurePosixPath(name).parents:
                folders.setdefault(str(parent).lower(), str(parent))
        for candidate in candidates:
            found = folders.get(candidate.lower())
            if found is not None and found != '.':
                return self.below(found)
        return None
