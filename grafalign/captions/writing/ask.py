"""Ask a model for the captions of a set, some images at a time; and first of a few, to tell what it will cost."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from grafalign import console
from grafalign.captions.caption_set import CaptionSet
from grafalign.captions.landmarks.find import read_landmarks
from grafalign.captions.pictures import Pictures
from grafalign.captions.writing.endpoint import Attempt, EndpointOptions, EndpointWriter, endpoint_error
from grafalign.captions.writing.template import Seen
from grafalign.errors import RemoteError, naming_full_disk
from grafalign.locks import exclusive
from grafalign.photos.exif import PhotoError
from grafalign.store import PairStore
from grafalign.web.chat import Chat

SAMPLE = 20
"""Images that are asked for before a run, to tell what it will cost."""


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
    seen = visible(read_landmarks(landmarks, captions))
    rows = np.random.default_rng(0).permutation(sorted(seen))[:SAMPLE].tolist()
    with naming_full_disk(out), exclusive(out):
        model = EndpointWriter(chat, asking, out)
        started = time.perf_counter()
        found = ask_all(captions, {row: seen[row] for row in rows}, model, asking.abreast)
        seconds = time.perf_counter() - started
    factor = len(seen) / max(1, len(found))
    sent, written = (sum(getattr(a, n) for a in found.values()) * factor for n in ('prompt_tokens', 'answer_tokens'))
    money = None if prices is None else (sent * prices[0] + written * prices[1]) / 1e6
    return Cost(len(seen), len(found), round(sent), round(written), money, seconds * factor / 3600)


def visible(table: Any) -> dict[int, list[Seen]]:
    """Visible landmarks by image, the largest first."""
    names = ('image', 'landmark_id', 'kind', 'name', 'share', 'position', 'relation', 'related_to')
    rows = table.filter(table['visible']).select(list(names)).to_pylist()
    return {
        image: [Seen(**{k: v for k, v in row.items() if k != 'image'}) for row in group]
        for image, group in itertools.groupby(rows, key=lambda r: r['image'])
    }


def ask_all(
    captions: CaptionSet, seen: dict[int, list[Seen]], model: EndpointWriter, abreast: int
) -> dict[int, Attempt]:
    """What the model writes of every image with a landmark."""
    read = _reader(captions)
    told = captions.images.select(['image_id', 'gsd_m']).to_pylist()
    found: dict[int, Attempt] = {}

    def ask(row: int) -> tuple[int, Attempt] | None:
        try:
            picture = read(row)
        except PhotoError:
            return None  # training will name it; a template can still speak of it
        return row, model.write(told[row]['image_id'], picture, told[row]['gsd_m'] or 1.0, seen[row])

    rows = sorted(seen)
    with (
        ThreadPoolExecutor(abreast, thread_name_prefix='captions') as pool,
        console.progress('asking', len(rows)) as bar,
    ):
        try:
            for first in range(0, len(rows), 8 * abreast):
                for answer in pool.map(ask, rows[first : first + 8 * abreast]):
                    bar.advance(1, rejected=int(answer is not None and answer[1].text is None))
                    if answer is not None:
                        found[answer[0]] = answer[1]
        except RemoteError as error:
            pool.shutdown(cancel_futures=True)
            raise endpoint_error(error, len(found)) from None
    return found


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
