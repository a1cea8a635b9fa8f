"""The pair store: the folder that pairing writes and training reads, and all that either knows of the other.

    dataset.json        schema version, sensor, counts, settings, digests; written last
    photos.parquet      one row a photo, sorted by photo_id (GeoParquet)
    tiles.parquet       one row a tile: geometry, scene metadata, split, and where its bytes lie (GeoParquet)
    pairs.parquet       tile_id, photo_id, row, col, days_apart
    rejected.parquet    every photo, tile or scene read that was not used, with its reason
    scenes.parquet      the STAC items that were used (stac-geoparquet)
    tiles/00000.tar     WebDataset shards: TILE_ID.npy (pixels [C, H, W] as stored) and TILE_ID.json (metadata)

Pixels are plain .npy inside plain tar: with the byte offset of tiles.parquet one `pread` fetches a tile and no decoder
runs, every WebDataset tool streams the same files, and the values are exact for any number of bands and bits.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import tarfile
import tempfile
import threading
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from tokenize import TokenError
from types import TracebackType
from typing import Any, BinaryIO

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd

from grafalign.errors import DamagedError, InputError, MachineError, StaleError
from grafalign.files import ME, Place, make_folder, place, read_range, stream_digest
from grafalign.foreign.files import PASSING, below, open_plain, parse_object
from grafalign.store_marker import StoreMarker

SCHEMA_VERSION = StoreMarker.NEWEST
MARKER = 'dataset.json'
_OPEN_SHARDS = 64
"""Shards that are open at a time: a process may have a thousand files, and a store many thousands of shards."""
_PASSING = {
    errno.EMFILE: 'this process has too many files open: raise its limit (ulimit -n) or use fewer workers',
    errno.ENFILE: 'this machine has too many files open: wait, or close others',
    errno.EIO: 'the disk does not answer as it should: check it, the file itself may be whole',
    errno.ESTALE: 'the network disk has lost the file: mount it again',
    errno.ETIMEDOUT: 'the network disk does not answer: try again',
    errno.ENOMEM: 'there is no memory left: use fewer workers',
}
"""What helps where reading failed for a reason that says nothing of the file."""
_COLUMNS = {
    'tiles': ('tile_id', 'shard', 'byte_offset', 'nbytes', 'split', 'scale', 'offset', 'geometry'),
    'photos': ('photo_id', 'uri', 'geometry'),
    'pairs': ('tile_id', 'photo_id', 'row', 'col'),
    'rejected': ('kind', 'id', 'reason'),
}


def shard_name(index: int) -> str:
    """File name of a shard below the store."""
    return f'tiles/{index:05d}.tar'


class ShardWriter:
    """Writes one shard beside its final name and moves it there in one step.

    Used as a context: leaving it normally commits the shard (a rename, or one upload), leaving it by an exception
    removes what was written.
    """

    def __init__(self, path: Place) -> None:
        self._path = path
        make_folder(path.parent)
        # named after this process: a worker that was given up for dead may still be writing the same shard
        self._part = path.with_suffix(f'.{ME}.part') if isinstance(path, Path) else _scratch_file()

    def __enter__(self) -> ShardWriter:
        self._file = self._part.open('w+b')
        self._tar = tarfile.open(fileobj=self._file, mode='w', format=tarfile.USTAR_FORMAT)
        return self

    def add(self, tile_id: str, pixels: npt.NDArray[np.generic], metadata: dict[str, Any]) -> tuple[int, int]:
        """Append a tile; return the byte offset and length of its .npy inside the shard."""
        buffer = io.BytesIO()
        np.save(buffer, pixels)
        place = self._member(f'{tile_id}.npy', buffer.getvalue())
        self._member(f'{tile_id}.json', json.dumps(metadata, sort_keys=True).encode())
        return place

    def _member(self, name: str, content: bytes) -> tuple[int, int]:
        info = tarfile.TarInfo(name)
        info.size = len(content)  # every other field keeps its fixed default: equal input gives equal bytes
        offset = self._tar.offset + tarfile.BLOCKSIZE
        self._tar.addfile(info, io.BytesIO(content))
        return offset, len(content)

    def seal(self) -> str:
        """End the shard, on disk but not yet under its name; return its digest."""
        self._tar.close()  # harmless the second time
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.seek(0)
        return stream_digest(self._file)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.seal()
                self._file.close()
                if isinstance(self._path, Path):
                    self._part.replace(self._path)
                else:
                    self._path.fs.put_file(str(self._part), self._path.path)
        finally:
            with contextlib.suppress(OSError):  # on a full disk closing fails too, and the part would stay
                self._file.close()
            self._part.unlink(missing_ok=True)


def _scratch_file() -> Path:
    handle, name = tempfile.mkstemp(suffix='.tar', prefix='grafalign-')
    os.close(handle)
    return Path(name)


def read_member(shard: Path, offset: int, nbytes: int) -> tuple[npt.NDArray[np.generic], dict[str, Any]]:
    """Pixels and metadata of one tile, as they stand in a shard.

    Args:
        shard: a file of this machine.
        offset: where the tile's .npy begins.
        nbytes: how long it is.

    Raises:
        OSError, ValueError: it cannot be read, or is no such tile.
    """
    block = tarfile.BLOCKSIZE
    with open_plain(shard) as file:
        pixels = np.lib.format.read_array(io.BytesIO(os.pread(file.fileno(), nbytes, offset)), allow_pickle=False)
        head = offset + -(-nbytes // block) * block  # the .json of a tile follows its .npy
        try:
            member = tarfile.TarInfo.frombuf(os.pread(file.fileno(), block, head), 'utf-8', 'strict')
        except tarfile.TarError as error:
            raise ValueError(str(error)) from None
        return np.asarray(pixels), parse_object(os.pread(file.fileno(), member.size, head + block))


class PairStore:
    """Read a finished pair store.

    Args:
        path: the store's folder or URL.

    Raises:
        GrafalignError: there is no finished store, or it was written by a newer grafalign.
    """

    def __init__(self, path: Place | str) -> None:
        self.path = place(path)
        marker = self.path / MARKER
        if not marker.exists():
            started = (self.path / 'tiles').is_dir()
            remedy = (
                'it is unfinished: run the same `grafalign pair` again' if started else 'make one with `grafalign pair`'
            )
            raise DamagedError(f'{self.path} is not a finished pair store (no {MARKER}); {remedy}.')
        try:
            self.marker = StoreMarker.read(marker)
        except StaleError:
            if (self.path / 'captions.parquet').exists():
                raise InputError(f'{self.path} is a caption set, not a pair store; give a pair store.') from None
            raise
        self.sensor = self.marker.sensor
        self._shards: OrderedDict[str, BinaryIO] = OrderedDict()
        self._lock = threading.Lock()
        self._process = os.getpid()

    @cached_property
    def tiles(self) -> gpd.GeoDataFrame:
        """Tiles in the order of their numbers."""
        return self._table('tiles')

    @cached_property
    def photos(self) -> gpd.GeoDataFrame:
        """Photos, sorted by `photo_id`; the rows of a photo bank follow them."""
        return self._table('photos')

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """Pairs with two columns added: `tile` and `photo`, the row numbers in the other two tables."""
        pairs = self._table('pairs')
        tile = pd.Index(self.tiles['tile_id']).get_indexer(pairs['tile_id'])
        photo = pd.Index(self.photos['photo_id']).get_indexer(pairs['photo_id'])
        return pairs.assign(tile=tile, photo=photo)

    @cached_property
    def rejected(self) -> pd.DataFrame:
        """What was not used and why."""
        return self._table('rejected')

    @property
    def digest(self) -> str:
        """One digest for all the content."""
        return self.marker.digest

    def _table(self, name: str) -> Any:
        path = self.path / f'{name}.parquet'
        try:
            with open_plain(path) if isinstance(path, Path) else path.open('rb') as file:
                table = gpd.read_parquet(file) if name in ('tiles', 'photos') else pd.read_parquet(file)
        except OSError as error:
            if error.errno in PASSING:
                raise MachineError(f'{path} cannot be read now ({error.strerror}); {_PASSING[error.errno]}.') from None
            raise DamagedError(f'{path} cannot be read ({error}); pair again into an empty folder.') from None
        except Exception as error:  # Arrow, Shapely and GeoPandas raise types of their own on damage
            reason = ' '.join(str(error).split())[:200]
            raise DamagedError(f'{path} cannot be read ({reason}); pair again into an empty folder.') from None
        lacking = [column for column in _COLUMNS[name] if column not in table]
        if lacking:
            raise DamagedError(f'{path} has no column {lacking[0]}; pair again into an empty folder.')
        return table

    def tiles_of(self, split: str) -> npt.NDArray[np.int64]:
        """Row numbers of the tiles of a split."""
        return np.flatnonzero((self.tiles['split'] == split).to_numpy())

    def read_tile(self, index: int) -> npt.NDArray[np.generic]:
        """Stored pixels [C, H, W] of one tile, by row number.

        Raises:
            GrafalignError: the shard is missing or shorter than it should be, or cannot be read for now.
        """
        shard, offset, nbytes = self.places[0][index], self.places[1][index], self.places[2][index]
        try:
            if not 0 <= nbytes <= self._most_bytes or offset < 0:
                raise ValueError(f'{nbytes} bytes at {offset} are no tile')
            if isinstance(self.path, Path):
                content = self._pread(shard, nbytes, offset)
            else:
                content = read_range(self.path / shard, offset, nbytes)
            pixels = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
            if pixels.shape != self._shape:
                raise ValueError(f'its shape is {pixels.shape}, not {self._shape}')
            return np.asarray(pixels)
        except OSError as error:
            remedy = _PASSING.get(error.errno or 0, 'copy it again from where it is whole, or pair again')
            raise DamagedError(
                f'{self.path}/{shard}: tile {index} cannot be read ({error.strerror or error}); {remedy}.'
            ) from None
        except (ValueError, EOFError, TokenError, SyntaxError, MemoryError, TypeError) as error:
            raise DamagedError(
                f'{self.path}/{shard}: tile {index} cannot be read ({error}); the shard is damaged, '
                'pair again into an empty folder.'
            ) from None

    @cached_property
    def _most_bytes(self) -> int:
        """Bytes of a tile's .npy, at most: 16 a number, and the head."""
        bands, height, width = self._shape
        return 16 * bands * height * width + 4096

    @cached_property
    def _shape(self) -> tuple[int, int, int]:
        return len(self.sensor.bands), self.sensor.size_px, self.sensor.size_px

    @cached_property
    def places(self) -> tuple[list[str], list[int], list[int]]:
        """Shard, byte offset and length of every tile."""
        return self.tiles['shard'].tolist(), self.tiles['byte_offset'].tolist(), self.tiles['nbytes'].tolist()

    @cached_property
    def _tile_digests(self) -> list[str] | None:
        return self.tiles['digest'].astype(str).tolist() if 'digest' in self.tiles else None

    def tile_digest(self, row: int) -> str:
        """Content digest of a tile's pixels.

        In stores of before there was one: of its shard, and its place there, as a shard is the same or another as a
        whole.
        """
        if self._tile_digests is not None:
            return self._tile_digests[row]
        shards, offsets, _ = self.places
        return f'{self.marker.files.get(shards[row], self.digest)}-{offsets[row]}'

    @cached_property
    def radiometry(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Scale and offset of every tile and band, float32 [T, C] each.

        Raises:
            GrafalignError: one is not finite.
        """
        scale, offset = (np.array(self.tiles[c].tolist(), dtype=np.float32) for c in ('scale', 'offset'))
        odd = np.flatnonzero(~(np.isfinite(scale) & np.isfinite(offset)).all(axis=-1))
        if len(odd):
            name = self.tiles['tile_id'].iloc[odd[0]]
            raise DamagedError(
                f'{self.path}: scale or offset of tile {name} is no finite number ({len(odd)} such tiles); pair again, '
                'with sensor.overrides if its scenes misstate them.'
            )
        return scale, offset

    def _pread(self, name: str, nbytes: int, offset: int) -> bytes:
        """Bytes of a shard; the descriptors of the shards used last stay open."""
        with self._lock:
            if self._process != os.getpid():  # a forked data worker: descriptors of the parent are not ours to share
                self._shards, self._process = OrderedDict(), os.getpid()
            if name not in self._shards:
                self._shards[name] = open_plain(below(Path(str(self.path)), name))
                while len(self._shards) > _OPEN_SHARDS:
                    self._shards.popitem(last=False)[1].close()
            self._shards.move_to_end(name)
            return os.pread(self._shards[name].fileno(), nbytes, offset)

    def close(self) -> None:
        """Close all shards."""
        with self._lock:
            for file in self._shards.values():
                file.close()
            self._shards.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ('_shards', '_lock')}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._shards, self._lock = OrderedDict(), threading.Lock()
