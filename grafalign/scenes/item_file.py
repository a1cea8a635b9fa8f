"""STAC items on disk, one after another, each read by its place: what is known of a scene is small, its item is not.

An item is its length in four bytes, then its JSON, compressed. Nothing else is in the file; whoever writes it keeps the
places.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any, overload

from grafalign.files import Place

_LENGTH_BYTES = 4


class ItemFile:
    """Items in a file, read by many threads at a time.

    Args:
        path: a file of items, read where it lies, or fetched first if it is on a URL; by default a new one, which ends
            with this object.
    """

    def __init__(self, path: Place | None = None) -> None:
        self._path = path if isinstance(path, Path) else None
        self._own: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115, as long as this object
        if path is not None and self._path is None:
            with path.open('rb') as remote:
                shutil.copyfileobj(remote, self._own)
        self._end = self._own.seek(0, os.SEEK_END)
        self._lock = threading.Lock()

    def add(self, item: dict[str, Any]) -> int:
        """Write an item behind the others; its place.

        Example:
            >>> items = ItemFile()
            >>> places = [items.add({'id': 'a'}), items.add({'id': 'b'})]
            >>> items.read(places[1])
            {'id': 'b'}
        """
        packed = zlib.compress(json.dumps(item, separators=(',', ':')).encode(), 1)
        with self._lock:
            place = self._end
            self._own.write(len(packed).to_bytes(_LENGTH_BYTES, 'little') + packed)
            self._end += _LENGTH_BYTES + len(packed)
        return place

    def read(self, place: int) -> dict[str, Any]:
        """The item at a place."""
        with self._lock:
            self._own.flush()
        with self._opened() as file:
            length = int.from_bytes(os.pread(file.fileno(), _LENGTH_BYTES, place), 'little')
            packed = os.pread(file.fileno(), length, place + _LENGTH_BYTES)
        item: dict[str, Any] = json.loads(zlib.decompress(packed))
        return item

    def _opened(self) -> AbstractContextManager[IO[bytes]]:
        """The file; one that lies in a folder of the user is open no longer than it is read."""
        return nullcontext(self._own) if self._path is None else self._path.open('rb')

    def copy_to(self, sink: IO[bytes]) -> None:
        """Write all items to another file, at the same places."""
        with self._lock, self._opened() as file:
            file.seek(0)
            shutil.copyfileobj(file, sink)
            file.seek(0, os.SEEK_END)


class Items(Sequence[dict[str, Any]]):
    """Some items as a sequence, each read when it is asked for.

    Args:
        read: gives an item by its place (or number).
        places: of those that are meant.
    """

    def __init__(self, read: Callable[[int], dict[str, Any]], places: Sequence[int]) -> None:
        self._read, self._places = read, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self._read(place) for place in self._places[index]]
        return self._read(self._places[index])
