"""An index on disk.

    index.json            model, counts, tuning, names and sizes of the files below; written last
    vectors-00000.f32     unit vectors, float32 [N, D], only ever appended to
    items-00000.parquet   GeoParquet, one row a vector: item_id, geometry, datetime, source, stamp
    removed-00000.npy     rows that are no longer there
    ann-00000.faiss       FAISS's approximate index of the first rows, where there are many (see retrieval/ann.py)

    rejected.parquet      pictures that are in none of these, with their reason

index.json names every file that counts, with its size and digest; of the vectors, which grow, it has the digest of each
stretch that was added (`grafalign check INDEX` compares them). Whatever else is there is what a killed run left, and
the next run writes over it or removes it: a kill at any moment leaves the index of the last commit.
"""

from __future__ import annotations

import hashlib
import io
import os
from functools import cached_property
from pathlib import Path
from tokenize import TokenError
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import psutil

from grafalign import console
from grafalign.errors import DamagedError, GrafalignError, InputError, StaleError
from grafalign.files import file_digest, write_atomically, write_table
from grafalign.foreign import below
from grafalign.retrieval.ann import FEWEST_ROWS, Ann, Kind, choose
from grafalign.retrieval.exact import check_vectors, check_width, nearest
from grafalign.search.marker import ApproximateIndex, IndexMarker, IndexModel, IndexSource

MARKER = 'index.json'
_VECTORS = 'vectors-00000.f32'
_MANY_FILES = 8
_COPY_ROWS = 65_536
_TAIL = 0.1
"""Share of rows that may wait outside the approximate index, searched exactly, before it takes them in."""
_GROWN = 2.0
"""So many times larger than when its cells were learned, an index learns them anew."""
_DEAD = 0.25
"""Once so large a share of rows was removed, the next run writes the others anew."""
Scores = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


class Catalog:
    """Vectors, items and, where there are many, an approximate index of them.

    Args:
        path: the folder.

    Raises:
        GrafalignError: there is no index, it is damaged, or a newer grafalign wrote it.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        marker = self.path / MARKER
        if not marker.is_file():
            raise InputError(f'{self.path} is no index (no {MARKER}); make one with `grafalign index`.')
        self.marker = IndexMarker.read(marker)
        try:
            self._files = {below(self.path, n).name: size for n, size in self.marker.files.items()}
            vectors = self._files[self._vectors]
            if vectors != self.total * self.width * 4:
                raise ValueError(f'{self.total} vectors of {self.width} numbers are not {vectors} bytes')
        except (ValueError, KeyError, IndexError) as error:
            raise DamagedError(f'{marker} is damaged ({error!r}); {_AGAIN}') from None
        for name, size in self._files.items():
            if name.startswith('ann-'):
                continue  # can be made again from the vectors
            size_on_disk = (self.path / name).stat().st_size if (self.path / name).is_file() else None
            if size_on_disk is None or (size_on_disk < size if name.startswith('vectors-') else size_on_disk != size):
                state = (
                    'missing (or another process is writing the index now)'
                    if size_on_disk is None
                    else f'damaged ({size_on_disk:,} bytes instead of {size:,})'
                )
                raise DamagedError(f'{self.path / name} is {state}; {_AGAIN}')

    @property
    def width(self) -> int:
        """D."""
        return self.marker.width

    @property
    def total(self) -> int:
        """Rows, removed ones among them."""
        return self.marker.rows

    @classmethod
    def create(cls, path: Path, width: int, model: IndexModel, target: float) -> Catalog:
        """Begin an empty index.

        Args:
            path: a folder that is empty or not there.
            width: D.
            model: what made the vectors.
            target: recall that an approximate index must reach.
        """
        path.mkdir(parents=True, exist_ok=True)
        (path / _VECTORS).write_bytes(b'')
        marker = IndexMarker(
            format=IndexMarker.NEWEST,
            width=width,
            rows=0,
            model=model,
            target=target,
            sources={},
            kind=None,
            stretches=(),
            files={_VECTORS: 0},
        )
        marker.write(path / MARKER)
        return cls(path)

    @cached_property
    def vectors(self) -> npt.NDArray[np.float32]:
        """All vectors ever added, memory-mapped, [rows, D]."""
        if not self.total:
            return np.zeros((0, self.width), dtype=np.float32)
        return np.memmap(self.path / self._vectors, dtype=np.float32, mode='r', shape=(self.total, self.width))

    @cached_property
    def items(self) -> gpd.GeoDataFrame:
        """What each row is; rows that were removed are still among them, see `alive`."""
        parts = []
        for name in self._names('items-'):
            try:
                part = gpd.read_parquet(self.path / name)
                parts.append(part.rename(columns={'signature': 'stamp'}))  # its earlier name
            except Exception as error:  # Arrow and Shapely raise types of their own on damage
                raise DamagedError(f'{self.path / name} is damaged ({error}); {_AGAIN}') from None
            if not {'item_id', 'datetime', 'source', 'stamp'} <= set(parts[-1].columns):
                raise DamagedError(f'{self.path / name} is damaged (a column lacks); {_AGAIN}')
        if not parts:
            empty = {'item_id': [], 'datetime': pd.to_datetime([], utc=True), 'source': [], 'stamp': []}
            return gpd.GeoDataFrame(empty, geometry=[], crs='EPSG:4326')
        table = parts[0] if len(parts) == 1 else pd.concat(parts, ignore_index=True)
        if len(table) != self.total:
            raise DamagedError(f'{self.path} has {self.total:,} vectors and {len(table):,} items; {_AGAIN}')
        return table

    @cached_property
    def alive(self) -> npt.NDArray[np.bool_]:
        """Rows that are there, [rows]."""
        there = np.ones(self.total, dtype=bool)
        for name in self._names('removed-'):
            try:
                there[np.load(self.path / name, allow_pickle=False)] = False
            except (OSError, ValueError, IndexError, EOFError, SyntaxError, TokenError, MemoryError) as error:
                raise DamagedError(f'{self.path / name} is damaged ({error}); {_AGAIN}') from None
        return there

    @cached_property
    def ann(self) -> Ann | None:
        """The approximate index, opened when first asked for; None where there is none, or its file cannot be used."""
        made = self.marker.ann
        if made is None:
            return None
        try:
            path = below(self.path, made.file)
            if not path.is_file() or path.stat().st_size != self._files[made.file]:
                raise DamagedError(f'{path} is missing or damaged')
            found = Ann.load(path, made.kind, self.marker.target, list(made.search_parameters))
            if found.rows != made.rows or found.index.d != self.width:
                raise StaleError(f'{path} belongs to another index')
        except (GrafalignError, KeyError, TypeError, ValueError, AttributeError) as error:
            console.log(f'{error}: searching exactly, which is slower; run `grafalign index` again to make it anew.')
            return None
        return found

    def __len__(self) -> int:
        """Items that can be found."""
        return int(self.alive.sum())

    def check_model(self, digest: str, name: str) -> None:
        """Refuse a model that did not make this index.

        Raises:
            GrafalignError: it is another one.
        """
        made = self.marker.model
        if digest != made.digest:
            raise StaleError(
                f'{self.path} was made by another model ({made.name}, {made.spec}) than {name}; use that one, or '
                'index again into another folder.'
            )

    def search(
        self, queries: npt.NDArray[np.floating], k: int, allowed: npt.NDArray[np.bool_] | None = None
    ) -> tuple[Scores, Rows]:
        """Scores and rows [Q, k] of the nearest items, best first; fewer columns where there are fewer items.

        A filter is applied before the search, which is exact among the rows that it leaves, however few or many: where
        these are and what they look like goes together, and an approximate index, whose search parameters were tuned
        with all rows, would miss neighbours without a sign.

        Args:
            queries: unit vectors [Q, D].
            k: how many.
            allowed: rows that may be found, [rows]; all that are there by default.

        Raises:
            GrafalignError: the queries have another width, are not finite, or are not normalised.
        """
        check_width(queries, self.width)
        check_vectors(queries, 'The queries')
        mask = self.alive if allowed is None else self.alive & allowed
        count = int(mask.sum())
        if not count:
            return np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
        k = min(k, count)
        ann = None if allowed is not None else self.ann
        found = None if ann is None else self._approximate(ann, queries, k)
        if found is None or ann is None:
            return nearest(queries, self.vectors, k, None if count == self.total else np.flatnonzero(mask))
        scores, rows = found
        tail = np.flatnonzero(mask[ann.rows :]) + ann.rows
        if len(tail):
            more, others = nearest(queries, self.vectors, k, tail)
            scores, rows = np.concatenate([scores, more], axis=1), np.concatenate([rows, others], axis=1)
            best = np.argsort(-scores, axis=1, kind='stable')[:, :k]
            scores, rows = np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
        return scores, rows

    def _approximate(self, ann: Ann, queries: npt.NDArray[np.floating], k: int) -> tuple[Scores, Rows] | None:
        """The k nearest indexed rows that are there; None where exact search is the better way.

        Rows that were removed are still in the index, often all of one kind: more neighbours are asked for until k of
        them are there, so that the recall that was tuned for so many holds.
        """
        count, alive = k, self.alive[: ann.rows]
        while count <= ann.rows // 10:
            scores, rows = ann.search(queries, self.vectors, count)
            there = (rows >= 0) & alive[rows]
            if (there.sum(1) >= k).all():
                best = np.argsort(~there, axis=1, kind='stable')[:, :k]
                return np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
            if (rows < 0).any():
                return None  # its cells hold too few
            count *= 2
        return None

    def append(
        self,
        items: gpd.GeoDataFrame,
        vectors: npt.NDArray[np.float32],
        instead_of: Rows | None = None,
        source: IndexSource | None = None,
    ) -> None:
        """Add items and their unit vectors, in one commit.

        Args:
            items: what they are, one row a vector.
            vectors: [n, D].
            instead_of: rows that these replace.
            source: what to remember of the items' source.

        Raises:
            GrafalignError: a vector is not finite or not normalised, or the widths differ.
        """
        check_width(vectors, self.width)
        check_vectors(vectors)
        with (self.path / self._vectors).open('r+b') as file:
            file.truncate(self._files[self._vectors])  # a killed run may have written more
            file.seek(0, os.SEEK_END)
            content = np.ascontiguousarray(vectors, dtype='<f4').tobytes()
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        name = self._new_name('items-', '.parquet')
        write_table(items, self.path / name)
        stretches = self.marker.stretches
        if stretches is not None:
            stretches = (*stretches, (len(vectors), hashlib.blake2b(content, digest_size=16).hexdigest()))
        files = [*self._files, name]
        if instead_of is not None and len(instead_of):
            files = [*(n for n in files if not n.startswith('removed-')), self._write_removed(instead_of)]
        sources = dict(self.marker.sources)
        if source is not None and len(items):
            sources[str(items['source'].iloc[0])] = source
        self._commit({'rows': self.total + len(vectors), 'sources': sources, 'stretches': stretches}, files)

    def remove(self, rows: Rows) -> int:
        """Take rows out; how many were there."""
        before = len(self)
        self._commit({}, [*self._without('removed-'), self._write_removed(rows)])
        return before - len(self)

    def _write_removed(self, rows: Rows) -> str:
        gone = ~self.alive
        gone[rows] = True
        name = self._new_name('removed-', '.npy')
        buffer = io.BytesIO()
        np.save(buffer, np.flatnonzero(gone))
        write_atomically(self.path / name, buffer.getvalue())
        return name

    def rows_of(self, item_ids: list[str], source: str) -> Rows:
        """Rows of items of a source that are there, by their ids.

        Raises:
            GrafalignError: the source is not there, or an item; the sentence names the first.
        """
        if source not in self.marker.sources:
            raise InputError(
                f'{self.path} holds nothing of {source}; its sources are {", ".join(self.marker.sources)}.'
            )
        known = self.items['item_id'].to_numpy()
        there = self.alive & (self.items['source'] == source).to_numpy(dtype=bool)
        missing = sorted(set(item_ids) - set(known[there]))
        if missing:
            more = f' and {len(missing) - 1} more' if len(missing) > 1 else ''
            raise InputError(f'{self.path} has no item {missing[0]}{more}; `grafalign search` shows the ids.')
        return np.flatnonzero(np.isin(known, item_ids) & there)

    def optimise(
        self, queries: npt.NDArray[np.float32], kind: Kind | None = None, most_bytes: int | None = None
    ) -> None:
        """Make the approximate index fit the rows: make it, add to it, or make it anew.

        Args:
            queries: text queries as unit vectors [Q, D]: search parameters are tuned and recall is measured with them.
            kind: by size and memory otherwise.
            most_bytes: memory that it may take; half of what is free by default.
        """
        if self.total and not self.alive.mean() > 1 - _DEAD:
            self._drop_removed()
        if len(self._names('items-')) > _MANY_FILES:
            self._merge_items()
        limit = most_bytes or psutil.virtual_memory().available // 2
        made = self.marker.ann
        chosen = kind or self.marker.kind
        wanted = chosen or (made.kind if made else choose(self.total, self.width, limit))
        if self.total < FEWEST_ROWS:
            wanted = 'exact'
        if self.marker.kind != chosen:
            self._commit({'kind': chosen}, list(self._files))
        if wanted == 'exact':
            if made is not None:
                self._commit({'ann': None}, self._without('ann-'))
            return
        keep = (
            made is not None
            and made.kind == wanted
            and self.ann is not None
            and self.total <= _GROWN * made.trained_rows
        )
        target = self.marker.target
        if made is not None and keep and made.target == target and self.total - made.rows <= _TAIL * made.rows:
            return
        if made is not None and keep:
            ann = Ann.load(self.path / made.file, wanted, target, [], mapped=False)
            ann.add(self.vectors[ann.rows :])
            ann.tune(self.vectors, queries)
        else:
            ann = Ann.build(self.vectors, queries, wanted, target, limit)
        name = self._new_name('ann-', '.faiss')
        ann.save(self.path / name)
        with (self.path / name).open('rb') as file:
            os.fsync(file.fileno())
        new = ApproximateIndex(
            file=name,
            kind=wanted,
            rows=ann.rows,
            target=target,
            trained_rows=made.trained_rows if made is not None and keep else ann.rows,
            search_parameters=tuple(ann.search_parameters),
        )
        self._commit({'ann': new}, [*self._without('ann-'), name])
        for parameters in ann.search_parameters:
            if parameters.recall < target:
                console.log(
                    f'recall@{parameters.k} is {parameters.recall:.3f}, below the target of {target:g}; '
                    'make the index again with another --kind.'
                )

    def _merge_items(self) -> None:
        name = self._new_name('items-', '.parquet')
        write_table(self.items, self.path / name)
        self._commit({}, [*self._without('items-'), name])

    def _drop_removed(self) -> None:
        """Write the rows that are there anew, and forget the others."""
        kept = np.flatnonzero(self.alive)
        vectors = self._new_name('vectors-', '.f32')
        stretches = []
        with (self.path / vectors).open('wb') as file:
            for start in range(0, len(kept), _COPY_ROWS):
                rows = kept[start : start + _COPY_ROWS]
                content = np.ascontiguousarray(self.vectors[rows], dtype='<f4').tobytes()
                file.write(content)
                stretches.append((len(rows), hashlib.blake2b(content, digest_size=16).hexdigest()))
            file.flush()
            os.fsync(file.fileno())
        items = self._new_name('items-', '.parquet')
        write_table(self.items.iloc[kept].reset_index(drop=True), self.path / items)
        self._commit({'rows': len(kept), 'ann': None, 'stretches': tuple(stretches)}, [vectors, items])

    @property
    def _vectors(self) -> str:
        return self._names('vectors-')[0]

    def _without(self, prefix: str) -> list[str]:
        return [n for n in self._files if not n.startswith(prefix)]

    def _names(self, prefix: str) -> list[str]:
        return sorted(n for n in self._files if n.startswith(prefix))

    def _new_name(self, prefix: str, suffix: str) -> str:
        known = [int(n[len(prefix) :].partition('.')[0]) for n in self._names(prefix)]
        return f'{prefix}{max(known, default=-1) + 1:05d}{suffix}'

    def aim_at(self, target: float) -> None:
        """Change the recall that an approximate index must reach; kept with the next commit."""
        self.marker = self.marker.model_copy(update={'target': target})

    def _commit(self, changes: dict[str, Any], names: list[str]) -> None:
        """Write index.json with these files, and forget what it no longer names."""
        rows = changes.get('rows', self.total)
        sizes = {n: (self.path / n).stat().st_size for n in dict.fromkeys(names)}
        sizes |= {n: rows * self.width * 4 for n in sizes if n.startswith('vectors-')}
        known = self.marker.digests
        digests = {n: known.get(n) or file_digest(self.path / n) for n in sizes if not n.startswith('vectors-')}
        self.marker = self.marker.model_copy(update={**changes, 'files': sizes, 'digests': digests})
        self.marker.write(self.path / MARKER)
        self._files = sizes
        for name in ('vectors', 'items', 'alive', 'ann'):
            self.__dict__.pop(name, None)
        for path in self.path.iterdir():
            if path.name not in sizes and path.name.startswith(('vectors-', 'items-', 'removed-', 'ann-')):
                path.unlink(missing_ok=True)


_AGAIN = f'{IndexMarker.REMEDY}.'
