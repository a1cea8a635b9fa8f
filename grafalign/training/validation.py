"""Validation without a label: do tiles and photos of a held-out split find each other?"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from grafalign.encoders import GroundBank, select_bands
from grafalign.retrieval.metrics import recall_at
from grafalign.store import PairStore
from grafalign.training.order import shuffled
from grafalign.training.settings import TrainSettings


def photo_tile_recall(
    model: nn.Module, store: PairStore, bank: GroundBank, settings: TrainSettings, split: str = 'val', most: int = 2048
) -> dict[str, float]:
    """Recall at 1, 5, 10 between tiles and photos of a held-out split: validation without a label.

    At patch level a tile counts by the mean of its patch embeddings.

    Args:
        model: the task, prepared or not.
        store: the pair store.
        bank: its ground bank.
        settings: level and bands.
        split: tiles of this split.
        most: no more tiles than this, the first of a fixed shuffle.

    Returns:
        `tile_photo@k` and `photo_tile@k`; nothing where the split is empty.
    """
    tiles = store.tiles_of(split)
    tiles = tiles[shuffled(np.arange(min(most, len(tiles))), max(1, len(tiles)), (0,))]
    pairs = store.pairs
    mine = np.isin(pairs['tile'].to_numpy(), tiles) & bank.valid[pairs['photo'].to_numpy()]
    if not mine.any():
        return {}
    tile, photo = pairs['tile'].to_numpy()[mine], pairs['photo'].to_numpy()[mine]
    tiles, t = np.unique(tile, return_inverse=True)
    photos, p = np.unique(photo, return_inverse=True)
    vectors = embed_store_tiles(model, store, tiles, settings)
    bank_rows = bank.embeddings[photos].astype(np.float32)
    forth, back = recall_at(vectors, bank_rows, t, p), recall_at(bank_rows, vectors, p, t)
    return {f'tile_photo@{k}': v for k, v in forth.items()} | {f'photo_tile@{k}': v for k, v in back.items()}


def embed_store_tiles(
    model: nn.Module, store: PairStore, tiles: np.ndarray, settings: TrainSettings, batch: int = 256
) -> np.ndarray:
    """Unit embeddings [len(tiles), D] of stored tiles, by row number; at patch level the mean of the patches."""
    device = next(model.parameters()).device
    bands = select_bands(store.sensor, settings.bands or store.sensor.bands)
    scale, offset = (v[:, bands] for v in store.radiometry)
    out = []
    with torch.no_grad():
        for part in np.array_split(tiles, max(1, -(-len(tiles) // batch))):
            pixels = np.stack([store.read_tile(int(i))[bands] for i in part])
            found = model(tuple(torch.from_numpy(v).to(device) for v in (pixels, scale[part], offset[part])))
            vectors = found.patches.mean((1, 2)) if settings.level == 'patch' else found.image
            out.append(nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy())
    return np.concatenate(out)
