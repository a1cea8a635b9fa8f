"""Write captions for the images of a set from their landmarks, as a set of its own over the same images."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from grafalign import console
from grafalign.captions.caption_set import OWN_NAMES, CaptionSet, CaptionSetMarker
from grafalign.captions.landmarks.find import read_landmarks
from grafalign.captions.usable_text import TextError, cleaned
from grafalign.captions.write_set import SetWriter
from grafalign.captions.writing.template import VERSION, Seen, write_template
from grafalign.errors import InputError, naming_full_disk
from grafalign.files import remove_parts
from grafalign.locks import LOCK, exclusive

_BLOCK = 1 << 13


@dataclass(frozen=True)
class TemplateOptions:
    """How templates are filled in."""

    per_image: int = 1
    """Captions of an image; equal ones are written once."""
    names: bool = False
    positions: bool = False


def write_captions(
    captions: CaptionSet, landmarks: Path, out: Path, options: TemplateOptions | None = None
) -> CaptionSetMarker:
    """Write a set whose captions come from landmarks; images without a visible one are rejected rows.

    Args:
        captions: the set of images.
        landmarks: their landmarks, of `captions landmarks`.
        out: folder of the new set.
        options: phrasings.

    Raises:
        GrafalignError: the landmarks are of another set, or no image has a visible one.
    """
    options = options or TemplateOptions()
    table = read_landmarks(landmarks, captions)
    others = (
        [p.name for p in out.iterdir() if p.name not in (LOCK, *OWN_NAMES) and p.suffix != '.part']
        if out.is_dir()
        else []
    )
    if others or out.resolve() == captions.path.resolve():
        raise InputError(f'{out} holds {others[0] if others else "the set itself"}; give a new folder.')
    seen = _visible(table)
    told = f'template {VERSION} {options}'
    digest = hashlib.blake2b(told.encode(), digest_size=8).hexdigest()
    with naming_full_disk(out), exclusive(out):
        remove_parts(out)
        with SetWriter(out) as writer:
            for row, columns in enumerate(console.track(_images(captions), 'writing captions', len(captions))):
                texts = list(_texts(columns['image_id'], seen.get(row, []), options))
                if not texts:
                    writer.reject('image', columns['image_id'], 'no visible landmark')
                    continue
                new = writer.add_image(**columns)
                for text, evidence in texts:
                    writer.add_caption(
                        image=new,
                        image_id=columns['image_id'],
                        text=text,
                        kind='template',
                        writer='template',
                        writer_digest=digest,
                        evidence=list(evidence),
                        checks=[],
                    )
            if not len(writer):
                raise InputError(
                    f'No image of {captions.path} has a visible landmark in {landmarks}; look at its reasons.'
                )
            marker = captions.marker
            store = None if marker.store is None or marker.store_digest is None else (marker.store, marker.store_digest)
            settings: dict[str, Any] = {
                'from': {'set': str(captions.path.resolve()), 'digest': captions.digest},
                'landmarks': str(landmarks.resolve()),
                'writer': told,
            }
            return writer.finish(settings, marker.root, store)


def _texts(image_id: str, seen: list[Seen], options: TemplateOptions) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Distinct captions of an image."""
    done = set()
    for number in range(options.per_image):
        written = write_template(image_id, seen, number, options.names, options.positions)
        if written is None:
            return
        try:
            text = cleaned(written.text)  # names are text of others
        except TextError:
            continue
        if text not in done:
            done.add(text)
            yield text, written.evidence


def _visible(table: Any) -> dict[int, list[Seen]]:
    """Visible landmarks by image, the largest first."""
    names = ('image', 'landmark_id', 'kind', 'name', 'share', 'position', 'relation', 'related_to')
    rows = table.filter(table['visible']).select(list(names)).to_pylist()
    return {
        image: [Seen(**{k: v for k, v in row.items() if k != 'image'}) for row in group]
        for image, group in itertools.groupby(rows, key=lambda r: r['image'])
    }


def _images(captions: CaptionSet) -> Iterator[dict[str, Any]]:
    for batch in pq.ParquetFile(captions.path / 'images.parquet').iter_batches(_BLOCK):
        yield from batch.to_pylist()
