"""What no method can beat: the blocks that the tiles touch, each fetched once and decoded once.

`need` counts them from the offsets in the TIFFs. `fetch` and `decoder` measure the two halves by themselves, with the
same threads as the methods: the bytes over HTTP with nothing decoded, and the blocks from local files with nothing
fetched. Decoding is GDAL's; a method with a faster decoder may beat that number.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

import rasterio
from material import BANDS, GSD_M, TILE_PX, Material, block_spans
from rasterio.windows import Window

GAP = 16
"""Blocks of a COG stand between four bytes of length and four of trailer: a gap of up to this is no gap."""

Unit = TypeVar('Unit')


@dataclass(frozen=True)
class Need:
    """What some tiles need of the files of one block size."""

    reads: int
    """Sum over tiles and bands of the blocks they touch."""
    blocks: list[tuple[int, str, int, int]]
    """Item, band, block row and column of every block that is needed, once, in the order of the file."""
    spans: list[tuple[int, str, int, int]]
    """Item, band, first byte and the one after the last, with adjacent blocks in one: the fewest requests."""
    nbytes: int
    """Compressed bytes of the blocks: the fewest bytes."""

    @property
    def reads_per_block(self) -> float:
        """How often a method that remembers nothing reads each block."""
        return self.reads / len(self.blocks)


def need(material: Material, block: int, count: int) -> Need:
    """What the first `count` tiles need; headers of the files are not in it."""
    reads, blocks, spans, nbytes = 0, [], [], 0
    for item in range(len(material.names)):
        tiles = [t for t in material.tiles[:count] if t.item == item]
        for band in BANDS:
            with rasterio.open(material.path(block, item, band)) as dataset:
                where = block_spans(dataset)
                left, top = dataset.transform.c, dataset.transform.f
            wanted: set[tuple[int, int]] = set()
            for tile in tiles:
                row, col = round((top - tile.top) / GSD_M), round((tile.left - left) / GSD_M)
                touched = {
                    (i, j)
                    for i in range(row // block, (row + TILE_PX - 1) // block + 1)
                    for j in range(col // block, (col + TILE_PX - 1) // block + 1)
                }
                reads += len(touched)
                wanted |= touched
            runs: list[list[int]] = []
            for place in sorted(wanted, key=lambda p: where[p]):
                offset, size = where[place]
                blocks.append((item, band, *place))
                nbytes += size
                if runs and 0 <= offset - runs[-1][1] <= GAP:
                    runs[-1][1] = offset + size
                else:
                    runs.append([offset, offset + size])
            spans += [(item, band, first, stop) for first, stop in runs]
    return Need(reads, blocks, spans, nbytes)


def fetch(wanted: Need, material: Material, block: int, root: str, workers: int) -> int:
    """Fetch every span once over `workers` connections that stay open, and drop the bytes; returns how many came."""
    host = urlsplit(root).netloc
    folder = urlsplit(root).path
    got: list[int] = []

    def work(spans: Iterator[tuple[int, str, int, int]], number: int) -> None:
        connection = http.client.HTTPConnection(host, timeout=120)
        buffer = bytearray(1 << 20)
        total = 0
        for item, band, first, stop in spans:
            name = f'{folder}/{block}/{material.names[item]}_{band}.tif'
            connection.request('GET', name, headers={'Range': f'bytes={first}-{stop - 1}'})
            answer = connection.getresponse()
            while part := answer.readinto(buffer):
                total += part
        connection.close()
        got.append(total)

    _share(work, wanted.spans, workers)
    return sum(got)


def decoder(wanted: Need, material: Material, block: int, workers: int) -> Callable[[], int]:
    """Open every file once for each thread, untimed, and return the timed part: every block decoded once."""
    stack = ExitStack()
    stack.enter_context(rasterio.Env(GDAL_CACHEMAX=64))
    files = sorted({(item, band) for item, band, _, _ in wanted.blocks})
    handles = [
        {f: stack.enter_context(rasterio.open(material.path(block, *f), sharing=False)) for f in files}
        for _ in range(workers)
    ]

    def work(units: Iterator[tuple[int, str, int, int]], number: int) -> None:
        for item, band, row, col in units:
            dataset = handles[number][item, band]
            high, wide = min(block, dataset.height - row * block), min(block, dataset.width - col * block)
            dataset.read(1, window=Window(col * block, row * block, wide, high))

    def timed() -> int:
        _share(work, wanted.blocks, workers)
        return len(wanted.blocks)

    return timed


def _share(work: Callable[[Iterator[Unit], int], None], units: list[Unit], workers: int) -> None:
    """Run `work` in threads that take the next unit from one list."""
    lock, source, errors = threading.Lock(), iter(units), []

    def take() -> Iterator[Unit]:
        while True:
            with lock:
                unit = next(source, None)
            if unit is None:
                return
            yield unit

    def guarded(number: int) -> None:
        try:
            work(take(), number)
        except Exception as error:  # told in the main thread
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(n,)) for n in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
