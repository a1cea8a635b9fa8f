"""Questions to programs by a language model behind an OpenAI-compatible endpoint; never asked unless it is named.

Only the question goes there, never a picture or a place. What comes back is a stranger's text: it is read as a program,
checked as any other, and can do no more than a program can. If the check fails, its complaint is sent back once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from grafalign.errors import InputError, RemoteError
from grafalign.questions.parse import parse_program, program_schema
from grafalign.web.chat import Chat, without_fence

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
class Endpoint(Chat):
    """A language model that writes programs."""

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
            text = self.complete(messages, 'program', program_schema()).text
            try:
                return parse_program(without_fence(text), 'The program of the endpoint')
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
