"""Validation while a training goes on: do held-out images and their photos, or their texts, find each other?

The processes of a training share the batches of images and tell each other what came of them. What a batch holds does
not depend on how many they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn

from grafalign.captions.caption_set import CaptionSet
from grafalign.captions.cider import cider
from grafalign.encoders import (
    Embeddings,
    FrozenClip,
    PhotoBank,
    SatelliteEncoder,
    TextBank,
    load_text_bank,
    select_bands,
)
from grafalign.encoders.captioning import CaptionOptions, write_captions
from grafalign.encoders.marked_tokens import MarkedTokenizer
from grafalign.encoders.text_decoder import TextDecoder
from grafalign.errors import GrafalignError, InputError
from grafalign.processes import this_team
from grafalign.store import PairStore
from grafalign.training.gather_data import TrainingData
from grafalign.training.order import shuffled
from grafalign.training.pixels import Pixels, TilePixels
from grafalign.training.settings import TrainSettings
from grafalign.training.sources import Source, caption_source

_MOST = 2048
Result = TypeVar('Result')
Tokenizer = Callable[[list[str]], Tensor]
"""Makes token ids [n, L] of n texts."""


@dataclass(frozen=True)
class ValidationSet:
    """Held-out images of a caption set."""

    name: str
    images: Source
    bank: TextBank


def sets_to_validate(data: TrainingData, settings: TrainSettings, clip: FrozenClip) -> list[ValidationSet]:
    """The caption sets of a training that have `val` images, and the one that was named for it.

    Raises:
        GrafalignError: the named set has no `val` images or no bank of this CLIP.
    """
    sets = [(captions, bank) for captions, bank in data.sets if captions.marker.splits.get('val')]
    if settings.val_set is not None:
        named = CaptionSet(settings.val_set)
        if not named.marker.splits.get('val'):
            raise InputError(
                f'{named.path} has no image of split val, so it cannot be validated on; import it with --split val.'
            )
        sets.append((named, load_text_bank(named, clip)))
    found: list[ValidationSet] = []
    for captions, bank in sets:
        rows = np.arange(bank.marker.texts)
        name = captions.path.resolve().name
        if any(name == earlier.name for earlier in found):
            name = f'{name} ({len(found) + 1})'
        found.append(ValidationSet(name, caption_source(captions, bank, rows, data.sensor, 'val'), bank))
    return found


def recall(
    model: nn.Module,
    data: TrainingData,
    sets: list[ValidationSet],
    settings: TrainSettings,
    batch: int = 256,
    tokenizer: Tokenizer | None = None,
) -> dict[str, float]:
    """Recall at 1, 5, 10 on the `val` split of everything that has one.

    Args:
        model: the task, prepared or not.
        data: what is trained on.
        sets: caption sets to validate on.
        settings: level and bands.
        batch: images at a time.
        tokenizer: of the text tower that is being trained; without one texts are those of the bank.

    Returns:
        `tile_photo@k` and `photo_tile@k` of the pair store, `image_text@k` and `text_image@k` of the caption sets, with
        the set's name before them where there are several.
    """
    found: dict[str, float] = {}
    if data.store is not None and data.photo_bank is not None:
        found |= photo_tile_recall(model, data.store, data.photo_bank, settings, batch=batch)
    for which in sets:
        prefix = f'{which.name}: ' if len(sets) > 1 else ''
        found |= {prefix + k: v for k, v in image_text_recall(model, which, settings, batch, tokenizer).items()}
    return found


def image_text_recall(
    model: nn.Module,
    which: ValidationSet,
    settings: TrainSettings,
    batch: int = 256,
    tokenizer: Tokenizer | None = None,
) -> dict[str, float]:
    """Recall at 1, 5, 10 between images and distinct texts of a caption set.

    Args:
        model: the task, prepared or not.
        which: the set.
        settings: level.
        batch: images at a time.
        tokenizer: as of `recall`.

    Returns:
        `image_text@k` and `text_image@k`; and the number of `unreadable_val_images`, if there are any.
    """
    from grafalign.retrieval.metrics import recall_at  # loads FAISS, which no command needs that only loads a model

    source = which.images
    chosen = np.sort(shuffled(np.arange(min(_MOST, len(source.rows))), len(source.rows), (0,)))
    rows, vectors = embed_pixels(model, source.pixels, source.rows[chosen], settings.level, batch)
    lost = len(chosen) - len(rows)
    chosen = chosen[np.isin(source.rows[chosen], rows)]
    count = source.last[chosen] - source.first[chosen]
    image = np.repeat(np.arange(len(chosen)), count)
    pair = np.repeat(source.first[chosen], count) + np.arange(len(image)) - np.repeat(np.cumsum(count) - count, count)
    texts, text = np.unique(source.candidate[pair], return_inverse=True)
    found = {'unreadable_val_images': float(lost)} if lost else {}
    if not len(image):
        return found
    if tokenizer is None:
        of_texts = which.bank.embeddings[texts].astype(np.float32)
    else:
        of_texts = embed_words(model, which.bank.texts().take(pa.array(texts)).to_pylist(), tokenizer, batch)
    forth, back = recall_at(vectors, of_texts, image, text), recall_at(of_texts, vectors, text, image)
    return found | {f'image_text@{k}': v for k, v in forth.items()} | {f'text_image@{k}': v for k, v in back.items()}


def caption_quality(
    model: nn.Module,
    encoder: SatelliteEncoder,
    decoder: TextDecoder,
    tokenizer: MarkedTokenizer,
    sets: list[ValidationSet],
    batch: int = 256,
) -> dict[str, float]:
    """How captions of held-out images read beside those they have, and whether they tell images apart.

    Args:
        model: the task, prepared or not.
        encoder: its encoder.
        decoder: its text decoder.
        tokenizer: of the decoder.
        sets: caption sets to validate on.
        batch: images at a time.

    Returns:
        `cider` of greedy captions of at most 256 images of each set, and the share of `distinct_captions` among them (a
        collapsed captioner writes one for all), with the set's name before them where there are several.
    """
    found: dict[str, float] = {}
    for which in sets:
        source = which.images
        chosen = np.sort(shuffled(np.arange(min(_MOST_WRITTEN, len(source.rows))), len(source.rows), (0,)))
        references = {}
        for place in chosen:
            own = source.candidate[source.first[place] : source.last[place]]
            references[int(source.rows[place])] = which.bank.texts().take(pa.array(own)).to_pylist()
        mine = []
        for number, rows, embeddings in embedded(model, source.pixels, source.rows[chosen], batch):
            tokens = encoder.tower.token_norm()(embeddings.tokens)
            texts = write_captions(decoder, tokenizer, tokens, CaptionOptions(most_tokens=_LONGEST_WRITTEN))
            mine.append((number, dict(zip(rows.tolist(), texts, strict=True))))
        written = {row: text for texts in _together(mine) for row, text in texts.items()}
        if not written:
            continue
        prefix = f'{which.name}: ' if len(sets) > 1 else ''
        score = cider(list(written.values()), [references[row] for row in written])
        found[f'{prefix}cider'] = float(np.mean(score))
        found[f'{prefix}distinct_captions'] = len(set(written.values())) / len(written)
    return found


_MOST_WRITTEN, _LONGEST_WRITTEN = 256, 48


def photo_tile_recall(
    model: nn.Module,
    store: PairStore,
    bank: PhotoBank,
    settings: TrainSettings,
    split: str = 'val',
    most: int = _MOST,
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
    bands = select_bands(store.sensor.bands, settings.bands or store.sensor.bands, store.sensor.name)
    tiles, vectors = embed_pixels(model, TilePixels(store, bands), wanted, settings.level, batch)
    found = {'unreadable_val_tiles': float(len(wanted) - len(tiles))} if len(tiles) < len(wanted) else {}
    mine &= np.isin(tile, tiles)
    if not mine.any():
        return found
    t = np.searchsorted(tiles, tile[mine])
    photos, p = np.unique(photo[mine], return_inverse=True)
    of_photos = bank.embeddings[photos].astype(np.float32)
    forth, back = recall_at(vectors, of_photos, t, p), recall_at(of_photos, vectors, p, t)
    return found | {f'tile_photo@{k}': v for k, v in forth.items()} | {f'photo_tile@{k}': v for k, v in back.items()}


def embed_words(model: nn.Module, texts: list[str], tokenizer: Tokenizer, batch: int) -> npt.NDArray[np.float32]:
    """Unit vectors [n, D] of texts by the text tower that is being trained."""
    device, team = next(model.parameters()).device, this_team()
    batches = [texts[first : first + batch] for first in range(0, len(texts), batch)]
    mine = []
    for begin in range(0, len(batches), team.count):
        number = begin + team.rank
        with torch.no_grad():  # all go through the model equally often, as its processes may talk in it
            vectors = model(tokenizer(batches[min(number, len(batches) - 1)]).to(device)).cpu()
        if number < len(batches):
            mine.append((number, vectors.numpy()))
    return np.concatenate(_together(mine)).astype(np.float32)


def embed_pixels(
    model: nn.Module, pixels: Pixels, rows: npt.NDArray[np.int64], level: str, batch: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Embed stored images, at patch level by the mean of their patches.

    Args:
        model: the task, prepared or not.
        pixels: where they come from.
        rows: their rows there.
        level: `image`, `patch` or `both`.
        batch: images at a time.

    Returns:
        The rows of those that could be read, [T], and their unit embeddings, [T, D].
    """
    mine = []
    for number, there, found in embedded(model, pixels, rows, batch):
        mean = found.patches.mean((1, 2)) if level == 'patch' else found.image
        mine.append((number, (there, nn.functional.normalize(mean.float(), dim=-1).cpu().numpy())))
    if not (every := _together(mine)):
        return np.zeros(0, dtype=np.int64), np.zeros((0, 0), dtype=np.float32)
    kept, vectors = zip(*every, strict=True)
    return np.concatenate(kept), np.concatenate(vectors)


def embedded(
    model: nn.Module, pixels: Pixels, rows: npt.NDArray[np.int64], batch: int
) -> Iterator[tuple[int, npt.NDArray[np.int64], Embeddings]]:
    """This process's batches of stored images through the encoder.

    All processes go through the model equally often, as a model that is spread over them talks in it: one that has no
    image left shows it an empty one.

    Yields:
        The number of the batch, the rows that could be read, and what the encoder makes of them.
    """
    device, team = next(model.parameters()).device, this_team()
    parts = np.array_split(rows, -(-len(rows) // batch)) if len(rows) else []
    for begin in range(0, len(parts), team.count):
        number = begin + team.rank
        read = {}
        for row in parts[number] if number < len(parts) else ():
            with contextlib.suppress(GrafalignError):
                read[int(row)] = pixels.read(int(row))
        there = np.array(list(read), dtype=np.int64)
        inputs = (np.stack(list(read.values())), *pixels.radiometry(there)) if read else None
        shapes = team.exchange(None if inputs is None else [(v.shape[1:], v.dtype) for v in inputs])
        shape = next((s for s in shapes if s is not None), None)
        if shape is None:
            continue
        with torch.no_grad():
            shown = inputs or [np.ones((1, *size), dtype) for size, dtype in shape]
            found: Embeddings = model(tuple(torch.from_numpy(v).to(device) for v in shown))
        if read:
            yield number, there, found


def _together(mine: list[tuple[int, Result]]) -> list[Result]:
    """What all processes made of their batches, in the order of the batches."""
    every = [numbered for theirs in this_team().exchange(mine) for numbered in theirs]
    return [result for _, result in sorted(every, key=lambda numbered: numbered[0])]
