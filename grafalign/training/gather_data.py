"""Open all that a training learns from: stores and sets with their banks, as sources of one sensor and one bank."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from grafalign.captions.caption_set import CaptionSet
from grafalign.captions.leaks import leaking_rows
from grafalign.encoders import FrozenClip, PhotoBank, TextBank, load_bank, load_text_bank, select_bands
from grafalign.errors import InputError
from grafalign.store import PairStore
from grafalign.store_marker import Sensor
from grafalign.training.banks import JoinedBank, JoinedTexts, join_banks, joined_rows
from grafalign.training.mixture import Mixture, Turn
from grafalign.training.pixels import PICTURE_BANDS
from grafalign.training.rows import caption_rows_digest, training_rows_digest
from grafalign.training.settings import TrainSettings
from grafalign.training.sources import Source, caption_source, store_source


@dataclass(frozen=True)
class TrainingData:
    """What a training learns from."""

    sources: list[Source]
    """In the order of the settings."""
    sensor: Sensor
    """Bands, size and value range that all images are brought to."""
    store: PairStore | None
    photo_bank: PhotoBank | None
    sets: list[tuple[CaptionSet, TextBank]]
    set_rows: list[np.ndarray]
    """For each set the row in the joined bank of each of its bank's texts."""
    rows_digest: str
    """Of the images, pairs and bank rows that are trained on."""

    def bank(self, device: torch.device) -> Tensor | JoinedBank:
        """The joined bank; on a GPU where it fits."""
        photos = None if self.photo_bank is None else bank_rows(self.photo_bank, device)
        return join_banks(photos, [bank_rows(bank, device) for _, bank in self.sets], self.set_rows)

    def texts(self) -> JoinedTexts:
        """All distinct texts, by their row in the joined bank."""
        return JoinedTexts([bank.texts() for _, bank in self.sets], self.set_rows)

    @property
    def width(self) -> int:
        """Columns of the banks."""
        bank = self.photo_bank or self.sets[0][1]
        return int(bank.embeddings.shape[1])

    @property
    def digest(self) -> str:
        """One digest of all stores and sets as a whole."""
        parts = [] if self.store is None else [self.store.digest]
        parts += [captions.digest for captions, _ in self.sets]
        return parts[0] if len(parts) == 1 else hashlib.blake2b(' '.join(parts).encode(), digest_size=16).hexdigest()


def gather_data(settings: TrainSettings, clip: FrozenClip) -> TrainingData:
    """Open the sources of a training.

    Args:
        settings: the settings.
        clip: the CLIP that all banks must be of.

    Raises:
        GrafalignError: a store, set or bank is missing or of another CLIP, or images do not fit together.
    """
    where = next((s.store for s in settings.sources if s.store is not None), None)
    store = None if where is None else PairStore(where)
    photo_bank = None if store is None else load_bank(store, settings.bank, clip)
    sets = [CaptionSet(s.set) for s in settings.sources if s.set is not None]
    banked = [(captions, load_text_bank(captions, clip)) for captions in sets]
    tiles = store or next((PairStore(s.marker.store) for s in sets if s.marker.store is not None), None)
    sensor = _sensor(settings, clip, sets) if tiles is None else _chosen(tiles.sensor, settings)
    rows = joined_rows(0 if photo_bank is None else len(photo_bank.embeddings), [bank for _, bank in banked])
    sources, digests, left = [], [], iter(zip(banked, rows, strict=True))
    for source in settings.sources:
        if source.store is not None and store is not None and photo_bank is not None:
            bands = select_bands(store.sensor.bands, sensor.bands, store.sensor.name)
            sources.append(store_source(store, photo_bank, bands, settings.placement.unknown_accuracy_m))
            digests.append(training_rows_digest(store, photo_bank))
        else:
            (captions, bank), of_bank = next(left)
            left_out = _leaks(captions, settings)
            sources.append(caption_source(captions, bank, of_bank, sensor, without=left_out))
            digests.append(caption_rows_digest(captions, sensor, left_out))
    digest = (
        digests[0] if len(digests) == 1 else hashlib.blake2b(' '.join(digests).encode(), digest_size=16).hexdigest()
    )
    return TrainingData(sources, sensor, store, photo_bank, banked, rows, digest)


def mixture_of(data: TrainingData, settings: TrainSettings, steps: int) -> Mixture | None:
    """How the sources share a training of so many steps; None for one source, which goes from epoch to epoch."""
    if len(data.sources) == 1:
        return None
    turns = tuple(Turn(s.weight, s.after, s.until) for s in settings.sources)
    return Mixture(turns, tuple(len(s.rows) for s in data.sources), settings.batch_tiles, steps, settings.seed)


def _leaks(captions: CaptionSet, settings: TrainSettings) -> np.ndarray:
    """Rows of a set that the training may not see, as it will be tested on them.

    Raises:
        GrafalignError: there are some, and nobody said to drop them; or nobody looked.
    """
    found = [leaking_rows(captions, name) for name in settings.tested_on]
    rows = np.unique(np.concatenate([np.zeros(0, np.int64), *found]))
    if len(rows) and settings.leaks == 'refuse':
        counts = ', '.join(f'{len(r):,} in {n}' for n, r in zip(settings.tested_on, found, strict=True) if len(r))
        raise InputError(
            f'{len(rows):,} images of {captions.path} are also in sets that the model will be tested on ({counts}); '
            'set `leaks: drop` to train without them.'
        )
    return rows


def bank_rows(bank: PhotoBank | TextBank, device: torch.device) -> Tensor:
    """A bank's embeddings [P, D] as a tensor.

    On a GPU if they take at most a quarter of its free memory. Otherwise nothing is copied: rows are read from the
    mapped file when they are looked up.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # the array is read-only, and so is what is done with it
        rows = torch.from_numpy(bank.embeddings)
    if device.type == 'cuda' and rows.nbytes < torch.cuda.mem_get_info(device)[0] / 4:
        return rows.to(device)
    return rows


def _chosen(sensor: Sensor, settings: TrainSettings) -> Sensor:
    chosen = select_bands(sensor.bands, settings.bands or sensor.bands, sensor.name)
    return replace(sensor, bands=tuple(sensor.bands[i] for i in chosen))


def _sensor(settings: TrainSettings, clip: FrozenClip, sets: list[CaptionSet]) -> Sensor:
    """The sensor of pictures alone: red, green, blue of 8 bits."""
    known = (
        [v for s in sets for v in s.images['gsd_m'].drop_null().to_pylist() if v > 0] if settings.gsd_m is None else []
    )
    gsd_m = settings.gsd_m or (float(np.median(known)) if known else None)
    if gsd_m is None:
        raise InputError(
            f'{sets[0].path} does not say how large its pixels are on the ground; give `gsd_m`, metres a pixel of a '
            'typical image: maps and fields of the model will read scenes at that size.'
        )
    size = settings.size_px or clip.image_px
    chosen = select_bands(PICTURE_BANDS, settings.bands or PICTURE_BANDS, 'a picture')
    return Sensor('pictures', tuple(PICTURE_BANDS[i] for i in chosen), gsd_m, size, (0.0, 255.0))
