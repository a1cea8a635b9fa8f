"""Questions to programs by a language model behind an OpenAI-compatible endpoint; never asked unless it is named.

Only the question goes there, never a picture or a place. What comes back is a stranger's text: it is read as a program,
checked as any other, and can do no more than a program can. If the check fails, its complaint is sent back once.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import Any

from grafalign.errors import InputError, RemoteError
from grafalign.questions.parse import parse_program, program_schema
from grafalign.web.addresses import WebError, host_of, is_private_host
from grafalign.web.post import post_json

KEY = 'GRAFALIGN_ENDPOINT_KEY'
"""Variable of the environment that holds the key, where the endpoint wants one."""
_TIMEOUT_S = 120.0
_MOST_BYTES = 1 << 20
_EXAMPLE = {
    'op': 'count',
    'of': {
        'op': 'relate',
        'relation': 'next to',
        'of': {'op': 'filter', 'size': 'small', 'of': {'op': 'find', 'word': 'building'}},
        'to': {'op': 'find', 'word': 'road'},
    },
}
_TASK = """You turn a question about one satellite image into a program. Answer with the JSON of one program and \
nothing else. Words of `find` are names of one kind of object or land in the singular, in English. A number to compare \
with is {"op": "number", "value": 3}, with the unit of the other side: "objects", "m2", "share", "per km2" or "m".

"How many small buildings are next to a road?" is """


@dataclass(frozen=True)
class Endpoint:
    """A language model that writes programs."""

    url: str
    """Its root, such as http://localhost:8000 or https://api.example.org/v1."""
    model: str
    """Name of the model there."""

    def __post_init__(self) -> None:
        plain = re.fullmatch(r'https?://[^\s@?#]+', self.url)
        if plain is None or not host_of(self.url):
            raise InputError(
                '--endpoint is no plain address; give http://HOST:PORT or https://HOST/v1, and a key in '
                f'{KEY}, not in the address.'
            )
        if not (self._key.isascii() and self._key.isprintable()):
            raise InputError(f'{KEY} has characters that no key has; set it anew.')
        if self._key and self.url.startswith('http://') and not is_private_host(self.url):
            raise InputError(f'{KEY} would go to {host_of(self.url)} unencrypted; give an https:// address.')

    @property
    def _key(self) -> str:
        return os.environ.get(KEY, '').strip()

    def translate(self, question: str) -> Any:
        """The program of a question.

        Raises:
            RemoteError: there is no answer, or none that is a program, even after the complaint was sent back.
        """
        messages = [
            {'role': 'system', 'content': _TASK + json.dumps(_EXAMPLE)},
            {'role': 'user', 'content': f'The question: {json.dumps(question, ensure_ascii=False)}'},
        ]
        complaint = ''
        for _ in range(2):
            text = self._complete(messages)
            try:
                return parse_program(_without_fence(text), 'The program of the endpoint')
            except InputError as error:
                complaint = str(error)
            messages += [
                {'role': 'assistant', 'content': text[:2000]},
                {'role': 'user', 'content': f'{complaint} Answer with the JSON of the program only.'},
            ]
        raise RemoteError(
            f'{self.url} gave no program that can be run, in two tries. {complaint} Ask in other words, or give a '
            'program.'
        )

    def _complete(self, messages: list[dict[str, str]]) -> str:
        root = self.url.rstrip('/')
        url = f'{root if root.endswith("/v1") else root + "/v1"}/chat/completions'
        content = {
            'model': self.model,
            'messages': messages,
            'temperature': 0,
            'response_format': {'type': 'json_schema', 'json_schema': {'name': 'program', 'schema': program_schema()}},
        }
        headers = {'Authorization': f'Bearer {self._key}'} if self._key else {}
        try:
            answer = post_json(url, content, headers, timeout_s=_TIMEOUT_S, most_bytes=_MOST_BYTES)
        except WebError as error:
            hint = (
                f'set {KEY} to its key' if 'HTTP 401' in str(error) or 'HTTP 403' in str(error) else 'try again later'
            )
            raise RemoteError(f'{url} cannot be asked ({error}); {hint}, or give a program.') from None
        match answer:
            case {'choices': [{'message': {'content': str(text)}}, *_]}:
                return text
        raise RemoteError(f'{url} answers with no `choices` of a message; give an OpenAI-compatible endpoint.')


def _without_fence(text: str) -> str:
    """JSON out of the fence that models like to put around it."""
    match = re.fullmatch(r'\s*```(?:json)?\s*(.*?)\s*```\s*', text, re.DOTALL)
    return match[1] if match else text
