"""The text bank: every distinct caption of a set embedded once by the frozen CLIP, as the photo bank does for photos.

    SET/bank/embeddings.npy   float16 [T, D], unit length; memory-mapped
    SET/bank/texts.parquet    the T distinct texts, in the order of their first caption
    SET/bank/numbers.npy      int64 [C]: row of each caption's text, in the order of captions.parquet
    SET/bank/bank.json        `TextBankMarker`; written last

Memory does not grow with the captions but by 16 bytes a distinct text. A killed run goes on where it stopped, and when
a set has got more captions only the new texts are embedded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from grafalign import console
from grafalign.artefacts import Marker
from grafalign.captions.caption_set import CaptionSet
from grafalign.captions.numbering import Numbering
from grafalign.encoders.clip import FrozenClip
from grafalign.errors import DamagedError, InputError, StaleError, naming_full_disk
from grafalign.files import parquet_batches, replacing, write_atomically
from grafalign.locks import exclusive

MARKER = 'bank.json'
_CHUNK = 512
"""Texts that go through CLIP together."""
_BLOCK = 1 << 14
"""Texts between two notes of what is done: what a killed run does again at most."""
_NAMES = ('embeddings.npy', 'texts.parquet', 'numbers.npy')


class TextBankMarker(Marker):
    """`bank.json` of a caption set."""

    REMEDY: ClassVar[str] = 'delete its folder and run `grafalign embed` again'

    format: int
    clip: str
    """Content digest of the CLIP."""
    clip_settings: dict[str, Any]
    """Which CLIP it was, for a sentence."""
    captions: str
    """Digest of the captions' table."""
    texts: int
    """Rows."""
    cut: int
    """Texts that are longer than CLIP reads: what is behind the cut says nothing to it."""


@dataclass(frozen=True)
class TextBank:
    """Embeddings of all distinct texts of a caption set."""

    path: Path
    embeddings: npt.NDArray[np.float16]
    """[T, D], memory-mapped."""
    numbers: npt.NDArray[np.int64]
    """Row of each caption's text, in the order of captions.parquet, [C]; memory-mapped."""
    marker: TextBankMarker

    def texts(self) -> pa.ChunkedArray:
        """The T texts."""
        return pq.read_table(self.path / 'texts.parquet')['text']


def text_bank_folder(captions: CaptionSet) -> Path:
    """Where the bank of a set is."""
    return captions.path / 'bank'


def load_text_bank(captions: CaptionSet, clip: FrozenClip | None = None) -> TextBank:
    """Open a finished text bank.

    Raises:
        GrafalignError: there is none, or it is of other captions or of another CLIP.
    """
    folder = text_bank_folder(captions)
    if not (folder / MARKER).is_file():
        raise DamagedError(f'{captions.path} has no text bank; run `grafalign embed {captions.path}` first.')
    bank = _open(folder)
    if bank.marker.captions != captions.marker.files['captions.parquet']:
        raise StaleError(f'{folder} is of other captions; run `grafalign embed {captions.path}` again.')
    if clip is not None and bank.marker.clip != clip.digest:
        theirs = bank.marker.clip_settings
        raise StaleError(
            f'{folder} was embedded by another CLIP ({theirs.get("model")}, {theirs.get("pretrained")}) than '
            f'{clip.settings.model} ({clip.settings.pretrained}); use that CLIP, or embed with this one.'
        )
    return bank


def _open(folder: Path) -> TextBank:
    marker = TextBankMarker.read(folder / MARKER)
    try:
        embeddings = np.load(folder / 'embeddings.npy', mmap_mode='r')
        numbers = np.load(folder / 'numbers.npy', mmap_mode='r')
        if len(embeddings) != marker.texts:
            raise ValueError(f'{len(embeddings)} rows for {marker.texts} texts')
    except (OSError, ValueError) as error:
        raise DamagedError(f'{folder} is damaged ({error}); {TextBankMarker.REMEDY}.') from None
    return TextBank(folder, embeddings, numbers, marker)


def embed_texts(captions: CaptionSet, clip: FrozenClip) -> TextBank:
    """Embed all distinct texts of a set, keeping those that an earlier bank of the same CLIP has.

    Args:
        captions: the set.
        clip: the frozen CLIP.

    Raises:
        GrafalignError: the set has no captions, another process is writing, or the disk is full.
    """
    folder = text_bank_folder(captions)
    if not captions.marker.captions:
        raise InputError(f'{captions.path} has no captions yet; write some with `grafalign captions write`.')
    with naming_full_disk(folder), exclusive(folder):
        earlier = None
        if (folder / MARKER).is_file():
            earlier = _open(folder)
            if earlier.marker.clip != clip.digest:
                earlier = None
            elif earlier.marker.captions == captions.marker.files['captions.parquet']:
                return earlier
        count = _list_texts(captions, folder)
        cut = _embed(folder, clip, count, earlier, captions.marker.files['captions.parquet'])
        (folder / MARKER).unlink(missing_ok=True)
        for name in _NAMES:
            (folder / f'next-{name}').replace(folder / name)
        TextBankMarker(
            format=TextBankMarker.NEWEST,
            clip=clip.digest,
            clip_settings=clip.settings.model_dump(),
            captions=captions.marker.files['captions.parquet'],
            texts=count,
            cut=cut,
        ).write(folder / MARKER)
        (folder / _PROGRESS).unlink(missing_ok=True)
        return _open(folder)


_PROGRESS = 'progress.json'


def _list_texts(captions: CaptionSet, folder: Path) -> int:
    """Write the distinct texts and each caption's number; return how many texts there are."""
    numbering = Numbering()
    schema = pa.schema([('text', pa.string())])
    numbers = np.lib.format.open_memmap(
        folder / 'numbers.npy.part', mode='w+', dtype=np.int64, shape=(captions.marker.captions,)
    )
    at = 0
    with replacing(folder / 'next-texts.parquet') as path, pq.ParquetWriter(path, schema) as writer:
        for batch in parquet_batches(captions.path / 'captions.parquet', _BLOCK, ['text']):
            before = len(numbering)
            found = numbering.numbers(batch.column(0).to_pylist())
            numbers[at : at + len(batch)] = found
            at += len(batch)
            new, first = np.unique(found, return_index=True)
            writer.write_table(pa.table({'text': batch.column(0).take(pa.array(first[new >= before]))}, schema))
    numbers.flush()
    (folder / 'numbers.npy.part').replace(folder / 'next-numbers.npy')
    return len(numbering)


def _embed(folder: Path, clip: FrozenClip, count: int, earlier: TextBank | None, digest: str) -> int:
    """Write the embeddings, from where a killed run stopped; return how many texts are cut."""
    path, progress = folder / 'next-embeddings.npy', folder / _PROGRESS
    of = {'captions': digest, 'clip': clip.digest, 'texts': count}
    done = cut = 0
    if progress.is_file() and path.is_file():
        noted = json.loads(progress.read_text())
        if {k: noted.get(k) for k in of} == of:
            done, cut = noted['done'], noted['cut']
    rows: Any = np.load(path, mmap_mode='r+') if done else None
    old = _numbers_of(earlier) if earlier is not None and done < count else None
    with console.progress('embedding texts', count) as bar:
        bar.advance(done)
        for first, texts in _blocks(folder / 'next-texts.parquet', done):
            vectors = np.empty((len(texts), 0), dtype=np.float16)
            known = [-1 if old is None else old(text) for text in texts]
            new = [i for i, row in enumerate(known) if row < 0]
            for start in range(0, len(new), _CHUNK):
                part = [texts[i] for i in new[start : start + _CHUNK]]
                found = clip.encode_text(part).cpu().numpy().astype(np.float16)
                if not vectors.shape[1]:
                    vectors = np.empty((len(texts), found.shape[1]), dtype=np.float16)
                vectors[new[start : start + _CHUNK]] = found
            if len(new) < len(texts) and earlier is not None:
                if not vectors.shape[1]:
                    vectors = np.empty((len(texts), earlier.embeddings.shape[1]), dtype=np.float16)
                kept = [i for i, row in enumerate(known) if row >= 0]
                vectors[kept] = earlier.embeddings[[known[i] for i in kept]]
            cut += clip.count_cut(texts)
            if rows is None:
                rows = np.lib.format.open_memmap(path, mode='w+', dtype=np.float16, shape=(count, vectors.shape[1]))
            rows[first : first + len(texts)] = vectors
            rows.flush()
            write_atomically(progress, json.dumps({**of, 'done': first + len(texts), 'cut': cut}).encode())
            bar.advance(len(texts))
    return cut


def _blocks(path: Path, first: int) -> Iterator[tuple[int, list[str]]]:
    """Texts behind the first ones, in blocks, with the number of each block's first."""
    at = 0
    for batch in parquet_batches(path, _BLOCK):
        texts = batch.column(0).to_pylist()
        if at + len(texts) > first:
            skip = max(0, first - at)
            yield at + skip, texts[skip:]
        at += len(texts)


def _numbers_of(bank: TextBank) -> Any:
    """From a text to its row in an earlier bank, -1 where it is new."""
    numbering = Numbering()
    for batch in parquet_batches(bank.path / 'texts.parquet', _BLOCK):
        numbering.numbers(batch.column(0).to_pylist())
    return numbering.get
