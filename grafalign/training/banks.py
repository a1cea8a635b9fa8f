"""Several banks as one: photos first, then texts, each distinct text once; and the texts themselves by those rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from grafalign.captions.numbering import Numbering
from grafalign.encoders import TextBank


class JoinedBank:
    """Rows of several banks, looked up where they lie; nothing is copied.

    Args:
        parts: embeddings [P_i, D] each.
        part: which of them a row of the joined bank is in, [K].
        row: its row there, [K].
    """

    def __init__(self, parts: Sequence[Tensor], part: npt.NDArray[np.int64], row: npt.NDArray[np.int64]) -> None:
        self.parts, self._part, self._row = list(parts), torch.from_numpy(part), torch.from_numpy(row)
        self.device, self.shape = parts[0].device, (len(part), parts[0].shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Embeddings [n, D] of some rows."""
        rows = rows.cpu()
        part, row = self._part[rows], self._row[rows]
        found = self.parts[0].new_empty(len(rows), self.shape[1])
        for number, bank in enumerate(self.parts):
            mine = part == number
            if mine.any():
                found[mine.to(found.device)] = bank[row[mine].to(bank.device)].to(found.device)
        return found


def joined_rows(photos: int, banks: Sequence[TextBank]) -> list[npt.NDArray[np.int64]]:
    """For the texts of each bank their row in the joined bank: equal texts of several banks are one row.

    Args:
        photos: rows of the photo bank, which come first.
        banks: text banks.

    Returns:
        An array [T_i] for each bank.
    """
    if len(banks) == 1:
        return [photos + np.arange(banks[0].marker.texts)]
    numbering = Numbering()
    return [
        np.array(
            [photos + numbering.number(text) for chunk in bank.texts().chunks for text in chunk.to_pylist()], np.int64
        )
        for bank in banks
    ]


def join_banks(
    photos: Tensor | None, texts: Sequence[Tensor], rows: Sequence[npt.NDArray[np.int64]]
) -> Tensor | JoinedBank:
    """One bank of a photo bank and text banks.

    Args:
        photos: embeddings of the photo bank, if there is one.
        texts: embeddings of the text banks.
        rows: what `joined_rows` says of them.
    """
    if not texts and photos is not None:
        return photos
    if photos is None and len(texts) == 1:
        return texts[0]
    part, row = _places(0 if photos is None else len(photos), rows)
    return JoinedBank([*([] if photos is None else [photos]), *texts], part, row)


class JoinedTexts:
    """Texts of several banks by their row in the joined bank, without photos.

    Args:
        texts: those of each bank.
        rows: what `joined_rows` says of them.
    """

    def __init__(self, texts: Sequence[pa.ChunkedArray], rows: Sequence[npt.NDArray[np.int64]]) -> None:
        self._texts = [pa.chunked_array(t.chunks or [pa.array([], pa.string())]) for t in texts]
        self._part, self._row = _places(0, rows)

    def take(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """The texts of some rows."""
        part, row = self._part[rows], self._row[rows]
        texts_of_rows = np.empty(len(rows), dtype=object)
        for number, texts in enumerate(self._texts):
            mine = part == number
            texts_of_rows[mine] = texts.take(pa.array(row[mine])).to_pylist()
        return list(texts_of_rows)


def _places(photos: int, rows: Sequence[npt.NDArray[np.int64]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which bank each row of the joined bank is in, photos being the first one, and its row there, [K] each."""
    total = max([photos, *(int(r.max(initial=-1)) + 1 for r in rows)])
    part, row = np.zeros(total, np.int64), np.arange(total)
    for number in reversed(range(len(rows))):  # of equal texts the first bank's is taken
        part[rows[number]], row[rows[number]] = bool(photos) + number, np.arange(len(rows[number]))
    return part, row
