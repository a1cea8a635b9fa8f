"""Captions of pictures and tiles, by a model that learned to write them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from grafalign import console
from grafalign.encoders.captioning import CaptionOptions
from grafalign.errors import InputError
from grafalign.files import replacing
from grafalign.models import Model
from grafalign.models.embedding import model_inputs
from grafalign.search.sources import open_source


@dataclass(frozen=True)
class Described:
    """What was written."""

    captions: int
    distinct_captions: int
    """Far fewer than captions: the model says the same of most pictures."""
    rejected: int
    """Pictures that cannot be read."""


def describe(model: Model, source: str, out: Path, options: CaptionOptions, workers: int | None = None) -> Described:
    """Write a caption for every picture of a source into a table.

    Args:
        model: one that writes.
        source: folder of pictures, or pair store.
        out: JSON lines, one a picture: `image` (its name in the folder, or its tile), `captions`, `writer`.
        options: how captions are written.
        workers: threads that decode.

    Raises:
        GrafalignError: the model writes none, the source cannot be opened, or `out` has another ending.
    """
    if out.suffix != '.jsonl':
        raise InputError(f'{out} does not end in .jsonl; captions are written as JSON lines.')
    model.check_writes()
    pictures = open_source(source)
    if pictures.tiles is not None:
        raise InputError(f'{source} holds embeddings and no pixels; give the pictures themselves.')
    names = pictures.items['item_id'].astype(str).tolist()
    rejected = dict(pictures.rejected)
    written: list[str] = []
    how = {k: v for k, v in asdict(options).items() if v is not None}
    batches = model_inputs(
        model,
        pictures.read,
        range(len(names)),
        pictures.bands,
        pictures.value_range,
        label='writing captions',
        workers=workers,
        name=names.__getitem__,
        reject=lambda row, reason: rejected.update({names[row]: reason}),
    )
    with replacing(out) as part, part.open('w', encoding='utf-8') as file:
        for rows, inputs in batches:
            texts = model.write_captions(inputs, options, rows[0])
            for row, text in zip(rows, texts, strict=True):
                line = {'image': names[row], 'captions': [text], 'writer': model.name, 'options': how}
                file.write(json.dumps(line, ensure_ascii=False) + '\n')
            written += texts
    for name, reason in rejected.items():
        console.log(f'{name} has no caption: {reason}')
    return Described(len(written), len(set(written)), len(rejected))
