"""A language model behind an OpenAI-compatible endpoint (`/v1/chat/completions`), which a person named.

vLLM, SGLang, llama.cpp, Ollama, LM Studio, `transformers serve` and the vendors' compatible addresses all speak it. The
key comes from the environment alone, and never goes to a public host without TLS.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from grafalign.errors import InputError, RemoteError
from grafalign.web.addresses import WebError, host_of, is_private_host
from grafalign.web.post import post_json

KEY = 'GRAFALIGN_ENDPOINT_KEY'
"""Variable of the environment that holds the key, where the endpoint wants one."""
_TIMEOUT_S = 120.0
_MOST_BYTES = 1 << 20


class RefusedError(RemoteError):
    """The endpoint refuses this message, and may take others."""


@dataclass(frozen=True)
class Answer:
    """What a model wrote, and what it cost."""

    text: str
    prompt_tokens: int
    """0 where the endpoint does not say."""
    answer_tokens: int


@dataclass(frozen=True)
class Chat:
    """An endpoint and a model there."""

    url: str
    """Its root, such as http://localhost:8000 or https://api.example.org/v1."""
    model: str
    """Name of the model there."""
    timeout_s: float = _TIMEOUT_S
    """For one answer."""

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

    def complete(self, messages: list[dict[str, Any]], name: str, schema: dict[str, Any]) -> Answer:
        """The model's next message.

        Args:
            messages: the conversation so far.
            name: of the JSON schema.
            schema: what the message must be.

        Raises:
            RefusedError: it takes no such message (HTTP 400, 413, 422).
            RemoteError: there is no answer, or none of an OpenAI-compatible endpoint.
        """
        root = self.url.rstrip('/')
        url = f'{root if root.endswith("/v1") else root + "/v1"}/chat/completions'
        content = {
            'model': self.model,
            'messages': messages,
            'temperature': 0,
            'response_format': {'type': 'json_schema', 'json_schema': {'name': name, 'schema': schema}},
        }
        headers = {'Authorization': f'Bearer {self._key}'} if self._key else {}
        try:
            answer = post_json(url, content, headers, timeout_s=self.timeout_s, most_bytes=_MOST_BYTES)
        except WebError as error:
            if error.status in (400, 413, 422):
                raise RefusedError(f'{url} refuses this message ({error}); send another one.') from None
            hint = f'set {KEY} to its key' if error.status in (401, 403) else 'try again later'
            raise RemoteError(f'{url} cannot be asked ({error}); {hint}.') from None
        match answer:
            case {'choices': [{'message': {'content': str() | None as text}}, *_]}:
                usage = answer.get('usage')
                return Answer(text or '', _count(usage, 'prompt_tokens'), _count(usage, 'completion_tokens'))
        raise RemoteError(f'{url} answers with no `choices` of a message; give an OpenAI-compatible endpoint.')


def _count(usage: Any, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9 else 0


def without_fence(text: str) -> str:
    """JSON out of the fence that models like to put around it."""
    match = re.fullmatch(r'\s*```(?:json)?\s*(.*?)\s*```\s*', text, re.DOTALL)
    return match[1] if match else text
