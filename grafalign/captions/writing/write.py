"""Write captions for the images of a set from their landmarks, as a set of its own over the same images.

Templates need no model. With an endpoint each image goes to a vision-language model, and a template stands in where its
caption does not hold up (`check.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grafalign import console
from grafalign.captions.caption_set import CaptionSet, CaptionSetMarker, check_folder, is_caption_set
from grafalign.captions.usable_text import TextError, cleaned
from grafalign.captions.write_set import SetWriter
from grafalign.captions.writing.ask import Asker, visible_by_image
from grafalign.captions.writing.endpoint import JOURNAL, Attempt, EndpointOptions, EndpointWriter
from grafalign.captions.writing.faithful import Faithfulness, Tally
from grafalign.captions.writing.template import VERSION, VisibleLandmark, write_template
from grafalign.errors import InputError, naming_full_disk
from grafalign.files import parquet_batches, remove_parts
from grafalign.locks import exclusive
from grafalign.web.chat import Chat

_BLOCK = 1 << 9


@dataclass(frozen=True)
class TemplateOptions:
    """How templates are filled in."""

    per_image: int = 1
    """Captions of an image; equal ones are written once."""
    names: bool = False
    positions: bool = False


@dataclass(frozen=True)
class WrittenSet:
    """What was written."""

    marker: CaptionSetMarker
    faithful: Faithfulness
    """Of the captions that were kept."""
    first: Faithfulness | None
    """Of what the model wrote at first, where one was asked."""
    shuffled: Faithfulness
    """Of the same captions held against the landmarks of another image: what knowing nothing gives."""
    retried: int
    fell_back: int
    """Images whose model gave nothing usable in two tries; a template stands in."""
    prompt_tokens: int
    answer_tokens: int


def write_captions(
    captions: CaptionSet,
    landmarks: Path,
    out: Path,
    options: TemplateOptions | None = None,
    chat: Chat | None = None,
    asking: EndpointOptions | None = None,
) -> WrittenSet:
    """Write a set whose captions come from landmarks; images without a visible one are rejected rows.

    Args:
        captions: the set of images.
        landmarks: their landmarks, of `captions landmarks`.
        out: folder of the new set.
        options: phrasings of templates.
        chat: a model that writes instead of templates; one caption an image.
        asking: how it is asked.

    Raises:
        GrafalignError: the landmarks are of another set, no image has a visible one, or the endpoint does not answer.
    """
    options, asking = options or TemplateOptions(), asking or EndpointOptions()
    check_folder(out, captions.path, JOURNAL)
    if chat is None and is_caption_set(out) and CaptionSet(out).marker.kinds.get('model'):
        raise InputError(f'{out} holds captions of a model; give another folder for those of templates.')
    template = f'template {VERSION} {options}'
    digest = hashlib.blake2b(template.encode(), digest_size=8).hexdigest()
    with naming_full_disk(out), exclusive(out):
        remove_parts(out)
        asker = None if chat is None else Asker(captions, EndpointWriter(chat, asking, out), asking.abreast)
        tally = Tally(visible_by_image(landmarks, captions))
        with SetWriter(out) as writer, console.progress('writing captions', len(captions)) as bar:
            for block in _blocks(captions, landmarks, 8 * asking.abreast if asker else _BLOCK):
                to_write = [(row, visible) for row, _, visible in block if visible]
                attempts = {} if asker is None else asker.ask(to_write)
                for row, columns, visible in block:
                    attempt = attempts.get(row)
                    if attempt is not None:
                        tally.add_attempt(attempt)
                    rows = list(_texts(columns['image_id'], visible, options, digest, attempt, asker))
                    if not rows:
                        writer.reject('image', columns['image_id'], 'no visible landmark')
                        continue
                    new = writer.add_image(**columns)
                    for made in rows:
                        tally.add(row, visible, made['text'], made['evidence'])
                        writer.add_caption(image=new, image_id=columns['image_id'], **made)
                bar.advance(len(block))
            if not len(writer):
                raise InputError(f'No image of {captions.path} has a visible landmark in {landmarks}; see its reasons.')
            marker = captions.marker
            store = None if marker.store is None or marker.store_digest is None else (marker.store, marker.store_digest)
            settings: dict[str, Any] = {
                'from': {'set': str(captions.path.resolve()), 'digest': captions.digest},
                'landmarks': str(landmarks.resolve()),
                'writer': template if asker is None else f'{asker.model.name} {asker.model.digest}',
            }
            done = writer.finish(settings, marker.root, store)
    return WrittenSet(
        marker=done,
        faithful=tally.faithful(),
        first=None if asker is None else tally.first(),
        shuffled=tally.shuffled(),
        retried=tally.attempts['retried'],
        fell_back=tally.attempts['fell_back'],
        prompt_tokens=tally.attempts['prompt_tokens'],
        answer_tokens=tally.attempts['answer_tokens'],
    )


def _texts(
    image_id: str,
    visible: list[VisibleLandmark],
    options: TemplateOptions,
    digest: str,
    attempt: Attempt | None,
    asker: Asker | None,
) -> Iterator[dict[str, Any]]:
    """Columns of an image's captions: the model's, if it holds up, else a template's."""
    checks = [] if attempt is None else list(attempt.checks)
    if attempt is not None and attempt.text is not None and asker is not None:
        who = {'kind': 'model', 'writer': asker.model.name, 'writer_digest': asker.model.digest}
        yield {'text': attempt.text, 'evidence': list(attempt.used), 'checks': checks, **who}
        return
    done = set()
    for number in range(options.per_image if asker is None else 1):
        written = write_template(image_id, visible, number, options.names, options.positions)
        if written is None:
            return
        try:
            text = cleaned(written.text)  # names are text of others
        except TextError:
            continue
        if text not in done:
            done.add(text)
            who = {'kind': 'template', 'writer': 'template', 'writer_digest': digest}
            yield {'text': text, 'evidence': list(written.evidence), 'checks': checks, **who}


def _blocks(
    captions: CaptionSet, landmarks: Path, size: int
) -> Iterator[list[tuple[int, dict[str, Any], list[VisibleLandmark]]]]:
    """Row, columns and visible landmarks of all images, some at a time."""
    found = visible_by_image(landmarks, captions)
    waiting = next(found, None)
    row = 0
    for batch in parquet_batches(captions.path / 'images.parquet', size):
        block = []
        for columns in batch.to_pylist():
            visible: list[VisibleLandmark] = []
            if waiting is not None and waiting[0] == row:
                visible, waiting = waiting[1], next(found, None)
            block.append((row, columns, visible))
            row += 1
        yield block
