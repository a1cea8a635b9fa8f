"""Captions by a vision-language model behind an OpenAI-compatible endpoint, checked against the records they rest on.

The tile goes there as a picture, with its pixel size and at most k records. What comes back is a stranger's text: a
caption and the ids of the records that it used. One with a complaint is sent back once; then a template stands in.
Answers are kept in OUT/answers.jsonl by the digest of all that was asked, so that a killed run asks nothing twice.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from grafalign.captions.usable_text import TextError, cleaned
from grafalign.captions.writing.check import Finding, check_caption
from grafalign.captions.writing.template import VisibleLandmark
from grafalign.config import read_yaml
from grafalign.errors import RemoteError
from grafalign.foreign.files import parse_object
from grafalign.web.chat import Chat, RefusedError, without_fence

PROMPT = Path(__file__).with_name('prompt.yaml')
JOURNAL = 'answers.jsonl'
SCHEMA = {
    'type': 'object',
    'properties': {'caption': {'type': 'string'}, 'used': {'type': 'array', 'items': {'type': 'string'}}},
    'required': ['caption', 'used'],
    'additionalProperties': False,
}


@dataclass(frozen=True)
class EndpointOptions:
    """How a model is asked."""

    most_records: int = 12
    """Records that go with a picture, the largest first."""
    names: bool = False
    """Whether records have names."""
    abreast: int = 4
    """Requests at a time."""


@dataclass(frozen=True)
class Attempt:
    """What a model wrote of an image, after its one retry."""

    text: str | None
    """The caption, None where a template must stand in."""
    used: tuple[str, ...]
    """Landmarks that it rests on."""
    checks: tuple[str, ...]
    """Complaints about what it wrote first, and at last."""
    tries: int
    prompt_tokens: int
    answer_tokens: int
    first: tuple[int, ...] = ()
    """Of its first caption: names, foreign names, kinds, foreign kinds; empty where it wrote none."""


class EndpointWriter:
    """Asks a model for captions; used by any number of threads.

    Args:
        chat: the endpoint.
        options: how it is asked.
        out: folder of the journal.
    """

    def __init__(self, chat: Chat, options: EndpointOptions, out: Path) -> None:
        self._chat, self._options, self.name = chat, options, chat.model
        self._prompt = read_yaml(PROMPT)
        request = [self._prompt, chat.model, asdict(options) | {'abreast': 0}]
        self.digest = hashlib.blake2b(json.dumps(request, sort_keys=True).encode(), digest_size=8).hexdigest()
        """Of prompt, model and options."""
        self._journal, self._lock = out / JOURNAL, threading.Lock()
        self._known = _read(self._journal)
        self.reused = 0
        """Answers that were not asked for again."""
        if self._journal.is_file() and not self._journal.read_bytes().endswith(b'\n'):
            with self._journal.open('a') as file:
                file.write('\n')  # after a line that a kill cut off

    def write(self, image_id: str, picture: Image.Image, gsd_m: float, visible: Sequence[VisibleLandmark]) -> Attempt:
        """The caption of an image.

        Args:
            image_id: names it in the journal.
            picture: the image.
            gsd_m: metres a pixel.
            visible: its visible landmarks, the largest first.

        Raises:
            RemoteError: the endpoint does not answer as one does.
        """
        records = list(visible[: self._options.most_records])
        buffer = io.BytesIO()
        picture.save(buffer, 'PNG')
        listed = self._records(records)
        ids = ' '.join(r.landmark_id for r in records)
        request = f'{self.digest} {gsd_m} {listed} {ids} '.encode() + buffer.getvalue()
        key = hashlib.blake2b(request, digest_size=16).hexdigest()
        if key in self._known:
            with self._lock:
                self.reused += 1
            return self._kept(self._known[key])
        found = self._ask(base64.b64encode(buffer.getvalue()).decode(), gsd_m, listed, records)
        line = json.dumps({'key': key, 'image_id': image_id, **asdict(found)}) + '\n'
        with self._lock, self._journal.open('a') as file:
            file.write(line)
        return found

    def _kept(self, offset: int) -> Attempt:
        """An answer of an earlier run."""
        with self._journal.open('rb') as file:
            file.seek(offset)
            return _attempt(json.loads(file.readline()))

    def _ask(self, picture: str, gsd_m: float, listed: str, records: Sequence[VisibleLandmark]) -> Attempt:
        text = self._prompt['user'].format(gsd_m=f'{gsd_m:g}', records=listed or 'none')
        content = [
            {'type': 'text', 'text': text},
            {'type': 'image_url', 'image_url': {'url': f'data:image/png;base64,{picture}'}},
        ]
        messages: list[dict[str, Any]] = [
            {'role': 'system', 'content': self._prompt['system']},
            {'role': 'user', 'content': content},
        ]
        checks: list[str] = []
        sent = written = 0
        first: tuple[int, ...] = ()
        for number in (1, 2):
            try:
                answer = self._chat.complete(messages, 'caption', SCHEMA)
            except RefusedError as error:  # a picture that is too large, or a filter of contents
                return Attempt(None, (), (*checks, str(error)[:200]), number, sent, written, first)
            sent, written = sent + answer.prompt_tokens, written + answer.answer_tokens
            caption, used, complaints, finding = _judge(answer.text, records)
            if number == 1 and finding is not None:
                first = (finding.names, finding.foreign_names, finding.kinds, finding.foreign_kinds)
            if not complaints:
                return Attempt(caption, used, tuple(checks), number, sent, written, first)
            checks += complaints
            messages += [
                {'role': 'assistant', 'content': answer.text[:2000]},
                {'role': 'user', 'content': self._prompt['retry'].format(complaints=' '.join(complaints))},
            ]
        return Attempt(None, (), tuple(checks), 2, sent, written, first)

    def _records(self, records: Sequence[VisibleLandmark]) -> str:
        """Records as JSON lines: text of others stays data."""
        rows = []
        for number, one in enumerate(records, 1):
            row: dict[str, Any] = {
                'id': str(number),
                'kind': one.kind,
                'share': round(one.share, 3),
                'position': one.position,
            }
            if one.relation is not None:
                other = next((str(n) for n, r in enumerate(records, 1) if r.landmark_id == one.related_to), None)
                row |= {} if other is None else {'relation': f'{one.relation} {other}'}
            if self._options.names and one.name:
                row['name'] = one.name[:80]
            rows.append(json.dumps(row, ensure_ascii=False))
        return '\n'.join(rows)


def _judge(
    text: str, records: Sequence[VisibleLandmark]
) -> tuple[str | None, tuple[str, ...], list[str], Finding | None]:
    """Caption, used landmarks and complaints of an answer."""
    try:
        content = parse_object(without_fence(text))
        caption, used = content['caption'], content['used']
        if not isinstance(caption, str) or not isinstance(used, list) or not all(isinstance(u, str) for u in used):
            raise ValueError('caption must be a text and used a list of texts')
        caption = cleaned(caption)
    except (ValueError, KeyError, TextError) as error:
        return None, (), [f'Answer with JSON of caption and used ({str(error)[:100]}).'], None
    by_id = {str(n): r for n, r in enumerate(records, 1)}
    strange = [u for u in used if u not in by_id]
    if strange:
        return None, (), [f'{strange[0][:20]} is no id of a record.'], None
    mine = [by_id[u] for u in dict.fromkeys(used)]
    finding = check_caption(caption, mine)
    return caption, tuple(r.landmark_id for r in mine), list(finding.complaints), finding


def _read(path: Path) -> dict[str, int]:
    """Where the answers of earlier runs lie, by their key; a line that a kill cut off is none."""
    found: dict[str, int] = {}
    if not path.is_file():
        return found
    offset = 0
    with path.open('rb') as file:
        for line in file:
            try:
                row = json.loads(line)
                _attempt(row)
                found[str(row['key'])] = offset
            except (ValueError, KeyError, TypeError):
                pass
            offset += len(line)
    return found


def _attempt(row: dict[str, Any]) -> Attempt:
    listed = {name: value for name, value in row.items() if name not in ('key', 'image_id')}
    return Attempt(**listed | {name: tuple(listed[name]) for name in ('used', 'checks', 'first')})


def endpoint_error(error: RemoteError, done: int) -> RemoteError:
    """The same error, saying that what was written is kept."""
    return RemoteError(f'{error} {done:,} captions are kept; run the same command again to go on.')
