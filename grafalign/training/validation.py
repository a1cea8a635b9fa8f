"""Validation without a label: do tiles and photos of a held-out split find each other?"""

from __future__ import annotations

import contextlib

import numpy as np
import torch
from torch import nn

from grafalign.encoders import PhotoBank, select_bands
from grafalign.errors import GrafalignError
from grafalign.store import PairStore
from grafalign.training.order import shuffled
from grafalign.training.settings import TrainSettings


def photo_tile_recall(
    model: nn.Module,
    store: PairStore,
    bank: PhotoBank,
    settings: TrainSettings,
    split: str = 'val',
    most: int = 2048,
    batch: int = 256,
) -> dict[str, float]:
    """Recall at 1, 5, 10 between tiles and photos of a held-out split: validation without a label.

    At patch level a tile counts by the mean of its patch embeddings.

    Args:
        model: the task, prepared or not.
        store: the pair store.
        bank: its photo bank.
        settings: level and bands.
        split: tiles of this split.
        most: no more tiles than this, the first of a fixed shuffle.
        batch: tiles at a time.

    Returns:
        `tile_photo@k` and `photo_tile@k`, nothing where the split is empty; and the number of `unreadable_val_tiles`,
        which are left out, if there are any.
    """
    from grafalign.retrieval.metrics import recall_at  # loads FAISS, which no command needs that only loads a model

    tiles = store.tiles_of(split)
    tiles = tiles[shuffled(np.arange(min(most, len(tiles))), max(1, len(tiles)), (0,))]
    tile, photo = (store.pairs[name].to_numpy() for name in ('tile', 'photo'))
    mine = np.isin(tile, tiles) & bank.valid[photo]
    wanted = np.unique(tile[mine])
    tiles, vectors = embed_store_tiles(model, store, wanted, settings, batch)
    found = {'unreadable_val_tiles': float(len(wanted) - len(tiles))} if len(tiles) < len(wanted) else {}
    mine &= np.isin(tile, tiles)
    if not mine.any():
        return found
    t = np.searchsorted(tiles, tile[mine])
    photos, p = np.unique(photo[mine], return_inverse=True)
    bank_rows = bank.embeddings[photos].astype(np.float32)
    forth, back = recall_at(vectors, bank_rows, t, p), recall_at(bank_rows, vectors, p, t)
    return found | {f'tile_photo@{k}': v for k, v in forth.items()} | {f'photo_tile@{k}': v for k, v in back.items()}


def embed_store_tiles(
    model: nn.Module, store: PairStore, tiles: np.ndarray, settings: TrainSettings, batch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Embed stored tiles, at patch level by the mean of their patches.

    Args:
        model: the task, prepared or not.
        store: the pair store.
        tiles: row numbers.
        settings: level and bands.
        batch: tiles at a time.

    Returns:
        The row numbers of those that could be read, [T], and their unit embeddings, [T, D].
    """
    device = next(model.parameters()).device
    bands = select_bands(store.sensor.bands, settings.bands or store.sensor.bands, store.sensor.name)
    scale, offset = (v[:, bands] for v in store.radiometry)
    rows, vectors = [], []
    for part in np.array_split(tiles, -(-len(tiles) // batch)) if len(tiles) else []:
        pixels = {}
        for row in part:
            with contextlib.suppress(GrafalignError):
                pixels[int(row)] = store.read_tile(int(row))[bands]
        if not pixels:
            continue
        there = np.array(list(pixels))
        inputs = (np.stack(list(pixels.values())), scale[there], offset[there])
        with torch.no_grad():
            found = model(tuple(torch.from_numpy(v).to(device) for v in inputs))
        mean = found.patches.mean((1, 2)) if settings.level == 'patch' else found.image
        rows.append(there)
        vectors.append(nn.functional.normalize(mean.float(), dim=-1).cpu().numpy())
    if not rows:
        return np.zeros(0, dtype=np.int64), np.zeros((0, 0), dtype=np.float32)
    return np.concatenate(rows), np.concatenate(vectors)
