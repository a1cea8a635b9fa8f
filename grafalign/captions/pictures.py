"""The pictures of a caption set, wherever they lie: files, members of tars, addresses."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from grafalign.captions.caption_set import CaptionSet
from grafalign.errors import InputError
from grafalign.foreign.files import ForeignFileError, below, open_plain
from grafalign.photos.exif import MAX_FILE_BYTES, PhotoError, open_photo
from grafalign.photos.fetch import Fetcher, RemoteSettings

_OPEN_FILES = 64


class Pictures:
    """Reads pictures by their row in `images.parquet`; used by any number of threads, and sent to data workers.

    Args:
        captions: the set; one of files.
        remote: how addresses are fetched.

    Raises:
        GrafalignError: its images are tiles of a pair store, or their folder is gone.
    """

    def __init__(self, captions: CaptionSet, remote: RemoteSettings | None = None) -> None:
        root = captions.marker.root
        if root is None:
            raise InputError(f'{captions.path} is a set of tiles; their pixels are in {captions.marker.store}.')
        if not Path(root).is_dir():
            raise InputError(
                f'The images of {captions.path} are gone from {root}; put them back, or import the set again.'
            )
        self._root, self._remote = Path(root), (remote or RemoteSettings()).model_copy(update={'robots': True})
        places = captions.columns_of_images('file', 'byte_offset', 'nbytes')
        files = places['file'].combine_chunks()
        files = files if not hasattr(files, 'chunks') else files.chunk(0)
        self._names: list[str] = files.dictionary.to_pylist()
        self._name: npt.NDArray[np.int32] = files.indices.to_numpy(zero_copy_only=False).astype(np.int32)
        self._offset = places['byte_offset'].fill_null(-1).to_numpy().astype(np.int64)
        self._nbytes = places['nbytes'].fill_null(-1).to_numpy().astype(np.int64)
        remote_names = np.array(['://' in name for name in self._names], dtype=bool)
        self.remote = int(remote_names[self._name].sum()) if len(self._names) else 0
        """How many of the images are addresses."""
        self.path = captions.path
        self._start()

    def _start(self) -> None:
        self._open: OrderedDict[str, BinaryIO] = OrderedDict()
        self._lock, self._process = threading.Lock(), os.getpid()

    @cached_property
    def _fetcher(self) -> Fetcher:
        return Fetcher(self._remote)

    def is_remote(self, row: int) -> bool:
        """Whether an image is an address."""
        return '://' in self._names[self._name[row]]

    def content(self, row: int) -> bytes:
        """The bytes of an image's file.

        Raises:
            PhotoError: why they cannot be had.
        """
        name, offset, nbytes = self._names[self._name[row]], int(self._offset[row]), int(self._nbytes[row])
        if '://' in name:
            return self._fetcher.fetch(name)
        try:
            if offset < 0:
                path = Path(name) if Path(name).is_absolute() else below(self._root, name)
                with open_plain(path, MAX_FILE_BYTES) as file:
                    return file.read()
            content = self._pread(name, offset, nbytes)
        except FileNotFoundError:
            raise PhotoError('file is missing') from None
        except (ForeignFileError, OSError) as error:
            raise PhotoError(f'cannot be read ({getattr(error, "strerror", None) or error})'[:100]) from None
        if len(content) < nbytes:
            raise PhotoError('the tar ends before this file does')
        return content

    def read(self, row: int, smallest_px: int | None = None) -> Image.Image:
        """An image in upright RGB; smaller than it is where `smallest_px` allows, as `open_photo` says.

        Raises:
            PhotoError: why there is none.
        """
        return open_photo(self.content(row), smallest_px)

    def _pread(self, name: str, offset: int, nbytes: int) -> bytes:
        """A part of a shard; those used last stay open."""
        with self._lock:
            if self._process != os.getpid():  # a forked data worker: descriptors of the parent are not ours to share
                self._open, self._process = OrderedDict(), os.getpid()
            if name not in self._open:
                self._open[name] = open_plain(below(self._root, name))
                while len(self._open) > _OPEN_FILES:
                    self._open.popitem(last=False)[1].close()
            self._open.move_to_end(name)
            return os.pread(self._open[name].fileno(), min(nbytes, MAX_FILE_BYTES), offset)

    def close(self) -> None:
        """Close all files and connections."""
        with self._lock:
            for file in self._open.values():
                file.close()
            self._open.clear()
        if '_fetcher' in self.__dict__:
            self._fetcher.close()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ('_open', '_lock', '_fetcher')}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()
