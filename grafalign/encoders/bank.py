"""The ground bank: every photo of a store embedded once by the frozen CLIP.

    STORE/bank/embeddings.npy   float16 [P, D], unit length, rows in the order of photos.parquet; memory-mapped
    STORE/bank/bank.json        digests of CLIP and of the store, photos that could not be embedded; written last

The photo side never changes, so training needs neither the photos nor CLIP's image encoder again.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from grafalign import console, engine
from grafalign.encoders.clip import FrozenClip
from grafalign.errors import GrafalignError, naming_full_disk
from grafalign.locks import exclusive
from grafalign.photos import open_photo
from grafalign.store import PairStore, write_atomically

_CHUNK = 128
"""Photos decoded together; a few chunks are in memory at a time, 77 MB each at 224 px."""


@dataclass(frozen=True)
class GroundBank:
    """Embeddings of all photos of a store."""

    embeddings: npt.NDArray[np.float16]
    """[P, D], memory-mapped; zero where `valid` is False."""
    valid: npt.NDArray[np.bool_]
    """[P]; False where the photo could not be read."""
    clip_digest: str


def embed(store: PairStore, clip: FrozenClip, out: Path | None = None, workers: int | None = None) -> GroundBank:
    """Embed all photos of a store, resuming what an earlier run left.

    Args:
        store: the pair store.
        clip: the frozen CLIP.
        out: the bank's folder; `STORE/bank` by default.
        workers: threads that decode photos.

    Raises:
        GrafalignError: the folder holds the bank of another CLIP or of another store, another process is writing to it,
            or the disk is full.
    """
    out = out or store.path / 'bank'
    if not (out / 'bank.json').is_file():
        with exclusive(out), naming_full_disk(out):
            _embed(store, clip, out, workers)
    shutil.rmtree(out / 'parts', ignore_errors=True)  # here, as a kill may come right after the marker was written
    (out / 'begun.json').unlink(missing_ok=True)
    return load_bank(store, out, clip)


def _embed(store: PairStore, clip: FrozenClip, out: Path, workers: int | None) -> None:
    identity = {'clip': clip.digest, 'store': store.digest}
    begun = out / 'begun.json'
    if begun.is_file() and json.loads(begun.read_text()) != identity:
        raise GrafalignError(f'{out} was begun with another CLIP or store; give another folder or delete it.')
    parts = out / 'parts'
    parts.mkdir(parents=True, exist_ok=True)
    write_atomically(begun, json.dumps(identity).encode())
    uris = store.photos['uri'].tolist()
    starts = [s for s in range(0, len(uris), _CHUNK) if not (parts / f'{s:09d}.npz').is_file()]

    def decode(start: int) -> tuple[list[torch.Tensor], list[int], list[str]]:
        tensors, rows, problems = [], [], []
        for row in range(start, min(start + _CHUNK, len(uris))):
            try:
                tensors.append(clip.preprocess(open_photo(Path(uris[row]), smallest_px=2 * clip.image_px)))
                rows.append(row)
            except (ValueError, OSError) as error:
                reason = str(error) if isinstance(error, ValueError) else (error.strerror or str(error))
                problems.append(f'{uris[row]}: {reason}')
        return tensors, rows, problems

    decoded = engine.run(decode, starts, workers)
    for index, (tensors, rows, problems) in console.track(decoded, 'embedding photos', len(uris), step=_CHUNK):
        start = starts[index]
        length = min(_CHUNK, len(uris) - start)
        chunk = np.zeros((length, _width(clip)), dtype=np.float16)
        if tensors:
            parts_of = [clip.encode_images(torch.stack(tensors[i : i + 256])) for i in range(0, len(tensors), 256)]
            chunk[np.array(rows) - start] = torch.cat(parts_of).cpu().numpy().astype(np.float16)
        valid = np.isin(np.arange(start, start + length), rows)
        path = parts / f'{start:09d}.npz'
        with path.with_suffix('.part').open('wb') as file:
            np.savez(file, embeddings=chunk, valid=valid, problems=np.array(problems, dtype=str))
        path.with_suffix('.part').replace(path)
    chunks = [np.load(parts / f'{s:09d}.npz') for s in range(0, len(uris), _CHUNK)]
    whole = out / 'embeddings.npy'
    np.save(whole.with_suffix('.part.npy'), np.concatenate([c['embeddings'] for c in chunks]))
    whole.with_suffix('.part.npy').replace(whole)
    valid = np.concatenate([c['valid'] for c in chunks])
    problems = [str(p) for c in chunks for p in c['problems']]
    if not valid.any():
        raise GrafalignError(
            f'None of the {len(uris)} photos could be read (first: {problems[0]}); are they still there?'
        )
    facts = {
        **identity,
        'clip_settings': clip.settings.model_dump(),
        'photos': len(uris),
        'unreadable_rows': np.flatnonzero(~valid).tolist(),
        'problems': problems,
    }
    write_atomically(out / 'bank.json', (json.dumps(facts, indent=2) + '\n').encode())
    if problems:
        console.log(f'{len(problems)} photos could not be read and are left out (first: {problems[0]})')


def _width(clip: FrozenClip) -> int:
    return int(clip.encode_text(['']).shape[1])


def load_bank(store: PairStore, path: Path | None = None, clip: FrozenClip | None = None) -> GroundBank:
    """Open a finished bank.

    Raises:
        GrafalignError: there is none, or it belongs to another store or another CLIP.
    """
    path = path or store.path / 'bank'
    if not (path / 'bank.json').is_file():
        raise GrafalignError(f'{path} holds no finished ground bank; run `grafalign embed {store.path}` first.')
    try:
        facts = json.loads((path / 'bank.json').read_text())
        embeddings = np.load(path / 'embeddings.npy', mmap_mode='r')
        if len(embeddings) != facts['photos']:
            raise ValueError(f'{len(embeddings)} rows for {facts["photos"]} photos')
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GrafalignError(f'{path} is damaged ({error}); delete it and run `grafalign embed` again.') from None
    if facts['store'] != store.digest:
        raise GrafalignError(f'{path} is the bank of another pair store; delete it and run `grafalign embed` again.')
    if clip is not None and facts['clip'] != clip.digest:
        theirs = facts['clip_settings']
        raise GrafalignError(
            f'{path} was embedded by another CLIP ({theirs["model"]}, {theirs["pretrained"]}) than '
            f'{clip.settings.model} ({clip.settings.pretrained}); use that CLIP or embed into another folder.'
        )
    valid = np.ones(facts['photos'], dtype=bool)
    valid[facts['unreadable_rows']] = False
    return GroundBank(embeddings, valid, facts['clip'])
