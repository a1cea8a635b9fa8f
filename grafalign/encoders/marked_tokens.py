"""Token ids that say themselves where a text ends: -1 stands where there is no token.

Tokenizers pad with ids that also mean something (CLIP's 0 is "!", SigLIP's 1 is the end), and put an end where a long
text is cut. A text decoder must not look at pads, nor learn that sentences end where the context does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from grafalign.errors import InputError

NOTHING = -1
"""The id that is none."""
_PROBES = ('a satellite photo of a harbour', 'Two tennis courts, 12 km north!', 'Äcker und Wälder', '')


class MarkedTokenizer:
    """A CLIP's tokenizer for a text decoder.

    Args:
        tokenizer: open_clip's own, or its adapter of one of Hugging Face's.
        context_length: the longest text, in tokens, with begin and end.
        vocabulary: ids that the decoder knows: 0 to vocabulary - 1.

    Example:
        >>> import open_clip
        >>> tokenizer = MarkedTokenizer(open_clip.SimpleTokenizer(), context_length=4, vocabulary=49408)
        >>> tokenizer(['a lake', 'a', 'a lake and a road']).tolist()
        [[49406, 320, 2553, 49407], [49406, 320, 49407, -1], [49406, 320, 2553, 537]]
        >>> tokenizer.decode([49406, 320, 2553, 49407])
        'a lake'
    """

    def __init__(self, tokenizer: Any, context_length: int, vocabulary: int) -> None:
        self.context_length, self.vocabulary = context_length, vocabulary
        self.plain = tokenizer
        """The tokenizer itself."""
        self._inner = getattr(tokenizer, 'tokenizer', None)
        if self._inner is None:
            self.begin, self.end = int(tokenizer.sot_token_id), int(tokenizer.eot_token_id)
        else:
            ends = (self._inner.eos_token_id, self._inner.sep_token_id)
            begins = (self._inner.bos_token_id, self._inner.cls_token_id, *ends)
            self.begin, self.end = (next((i for i in ids if i is not None), 0) for ids in (begins, ends))

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Ids [n, L] of n texts, L being those of the longest.

        Raises:
            GrafalignError: the tokenizer gives an id that the decoder does not know.
        """
        rows = [[self.begin, *ids, self.end][: self.context_length] for ids in self._ids(texts)]
        largest = max((max(row) for row in rows), default=0)
        if largest >= self.vocabulary:
            raise InputError(
                f'The tokenizer gives id {largest} and the text decoder knows {self.vocabulary:,} of them: it belongs '
                "to another model; put the tokenizer's own files beside the CLIP."
            )
        marked = torch.full((len(rows), max(map(len, rows), default=1)), NOTHING)
        for place, row in zip(marked, rows, strict=True):
            place[: len(row)] = torch.tensor(row)
        return marked

    def encode(self, text: str) -> list[int]:
        """Ids of one text, without begin and end."""
        return self._ids([text])[0]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids; begin, end and what is no token are left out."""
        kept = [i for i in ids if i not in (self.begin, self.end, NOTHING)]
        found = self.plain.decode(kept) if self._inner is None else self._inner.decode(kept)
        return ' '.join(found.split())

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if self._inner is None:
            return [list(self.plain.encode(text)) for text in texts]
        found = self._inner([self.plain.clean_fn(text) for text in texts], add_special_tokens=False)
        return [list(ids) for ids in found['input_ids']]


def tokenizer_digest(tokenizer: Callable[[list[str]], Tensor]) -> str:
    """Digest of what a tokenizer makes of a few texts: another one's ids would be read as other words."""
    ids = tokenizer(list(_PROBES)).tolist()
    return hashlib.blake2b(repr(ids).encode(), digest_size=8).hexdigest()
