"""Ask a model for the captions of a set, some images at a time; and first of a few, to tell what it will cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from grafalign.captions.caption_set import CaptionSet
from grafalign.captions.landmarks.find import open_landmarks
from grafalign.captions.pictures import Pictures
from grafalign.captions.writing.endpoint import Attempt, EndpointOptions, EndpointWriter, endpoint_error
from grafalign.captions.writing.template import VisibleLandmark
from grafalign.errors import DamagedError, RemoteError, naming_full_disk
from grafalign.locks import exclusive
from grafalign.photos.exif import PhotoError
from grafalign.store import PairStore
from grafalign.web.chat import Chat

SAMPLE = 20
"""Images that are asked for before a run, to tell what it will cost."""
_BLOCK = 1 << 13


@dataclass(frozen=True)
class Cost:
    """What a run will take, from a sample."""

    images: int
    """With a visible landmark."""
    asked: int
    """In the sample."""
    prompt_tokens: int
    answer_tokens: int
    money: float | None
    """In the currency of the prices."""
    hours: float


def explain(
    captions: CaptionSet,
    landmarks: Path,
    out: Path,
    chat: Chat,
    asking: EndpointOptions | None = None,
    prices: tuple[float, float] | None = None,
) -> Cost:
    """Ask for a sample of captions, and tell what all of them will take; the sample is kept for the run.

    Args:
        captions: the set.
        landmarks: their landmarks.
        out: folder of the set to be.
        chat: the model.
        asking: how it is asked.
        prices: of a million tokens that are sent, and of a million that are written.
    """
    asking = asking or EndpointOptions()
    rows = np.array([row for row, _ in visible_by_image(landmarks, captions)], dtype=np.int64)
    chosen = set(np.random.default_rng(0).permutation(rows)[:SAMPLE].tolist())
    sample = [(row, visible) for row, visible in visible_by_image(landmarks, captions) if row in chosen]
    with naming_full_disk(out), exclusive(out):
        asker = Asker(captions, EndpointWriter(chat, asking, out), asking.abreast)
        started = time.perf_counter()
        found = asker.ask(sample)
        seconds = time.perf_counter() - started
    factor = len(rows) / max(1, len(found))
    sent, written = (sum(getattr(a, n) for a in found.values()) * factor for n in ('prompt_tokens', 'answer_tokens'))
    hours = seconds / max(1, len(found) - asker.model.reused) * len(rows) / 3600  # what was kept took no time
    money = None if prices is None else (sent * prices[0] + written * prices[1]) / 1e6
    return Cost(len(rows), len(found), round(sent), round(written), money, hours)


def visible_by_image(folder: Path, captions: CaptionSet) -> Iterator[tuple[int, list[VisibleLandmark]]]:
    """Rows of images and their visible landmarks, the largest first, in the order of the images; read as it goes.

    Raises:
        GrafalignError: there are none, or they are of another set.
    """
    names = ['image', 'visible', 'landmark_id', 'kind', 'name', 'share', 'position', 'relation', 'related_to']
    image, visible = -1, list[VisibleLandmark]()
    for batch in open_landmarks(folder, captions).iter_batches(_BLOCK, columns=names):
        for row in batch.filter(batch['visible']).to_pylist():
            if row['image'] != image:
                if visible:
                    yield image, visible
                image, visible = row['image'], []
            visible.append(VisibleLandmark(**{k: v for k, v in row.items() if k not in ('image', 'visible')}))
    if visible:
        yield image, visible


class Asker:
    """Asks a model for the captions of a set, some images at a time.

    Args:
        captions: the set.
        model: writes captions.
        abreast: requests at a time.
    """

    def __init__(self, captions: CaptionSet, model: EndpointWriter, abreast: int) -> None:
        self.model, self._abreast = model, abreast
        self._read = _reader(captions)
        self._ids = captions.images['image_id']
        self._gsd_m = captions.images['gsd_m']
        self._done = 0

    def ask(self, rows: Sequence[tuple[int, list[VisibleLandmark]]]) -> dict[int, Attempt]:
        """What the model writes of images with landmarks; nothing of one that cannot be read.

        Raises:
            RemoteError: the endpoint does not answer as one does.
        """
        found: dict[int, Attempt] = {}
        with ThreadPoolExecutor(self._abreast, thread_name_prefix='captions') as pool:
            try:
                for (row, _), attempt in zip(rows, pool.map(lambda r: self._one(*r), rows), strict=True):
                    self._done += 1
                    if attempt is not None:
                        found[row] = attempt
            except RemoteError as error:
                pool.shutdown(cancel_futures=True)
                raise endpoint_error(error, self._done) from None
        return found

    def _one(self, row: int, visible: list[VisibleLandmark]) -> Attempt | None:
        try:
            picture = self._read(row)
        except (PhotoError, DamagedError):
            return None  # training will name it; a template can still speak of it
        return self.model.write(self._ids[row].as_py(), picture, self._gsd_m[row].as_py() or 1.0, visible)


def _reader(captions: CaptionSet) -> Callable[[int], Image.Image]:
    """Reads images as pictures, whether they are files or tiles."""
    if captions.marker.store is None:
        return Pictures(captions).read
    store = PairStore(captions.marker.store)
    low, high = store.sensor.value_range
    scale, offset = store.radiometry
    places = {name: row for row, name in enumerate(store.tiles['tile_id'])}
    ids = captions.images['image_id'].to_pylist()
    lower = [b.lower() for b in store.sensor.bands]
    bands = [next((i for i, b in enumerate(lower) if b in names), 0) for names in _COLOURS]

    def read(row: int) -> Image.Image:
        tile = places[ids[row]]
        pixels = store.read_tile(tile)[bands] * scale[tile][bands, None, None] + offset[tile][bands, None, None]
        unit = np.clip(np.nan_to_num((pixels - low) / (high - low)), 0, 1)
        return Image.fromarray((unit * 255).round().astype(np.uint8).transpose(1, 2, 0))

    return read


_COLOURS = (('red', 'r', 'b04'), ('green', 'g', 'b03'), ('blue', 'b', 'b02'))
