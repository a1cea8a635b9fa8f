"""open_clip's tokenizer as a `tokenizer.json`, so that transformers gives the same token ids.

open_clip mends text before it splits it (ftfy, HTML entities, white space, lower case). The file repeats that: curly
quotes, ligatures, wide letters, control characters and named entities are replaced one by one. What replacement cannot
do is left out: mojibake and numeric entities stay as they are.

Behind the end of a text open_clip fills up with 0, this one with the end token, as OpenAI's CLIP on the Hub does: id 0
is also `!`, and a padding token of that name would be cut out of every text. Embeddings do not change: attention is
causal and the first end token is the one that counts.

Source of the rules: `open_clip.tokenizer.SimpleTokenizer`, `ftfy.fix_text` with its defaults.
"""

from __future__ import annotations

import html.entities
import json
from pathlib import Path
from typing import Any

_CONTROL = r'[\x00-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]'
_SPACE = r'[\s\x85]+'
_WORDS = r"""|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def is_plain(tokenizer: object) -> bool:
    """Whether this is open_clip's usual tokenizer, with its usual cleaning and nothing added."""
    from open_clip.tokenizer import SimpleTokenizer, _clean_lower

    return (
        isinstance(tokenizer, SimpleTokenizer)
        and tokenizer.clean_fn is _clean_lower
        and tokenizer.reduction_fn is None
        and len(tokenizer.all_special_ids) == 2
    )


def write_tokenizer(tokenizer: Any, context_length: int, folder: Path) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json`, `vocab.json` and `merges.txt`.

    Args:
        tokenizer: one that `is_plain`.
        context_length: tokens of a text, with its two ends.
        folder: where to.
    """
    vocab: dict[str, int] = dict(tokenizer.encoder)
    merges = [' '.join(pair) for pair in tokenizer.bpe_ranks]
    start, end = (tokenizer.decoder[i] for i in (tokenizer.sot_token_id, tokenizer.eot_token_id))
    content = {
        'version': '1.0',
        'truncation': None,
        'padding': None,
        'added_tokens': [_added(i, t) for i, t in ((vocab[start], start), (vocab[end], end))],
        'normalizer': {'type': 'Sequence', 'normalizers': _normalizers()},
        'pre_tokenizer': {
            'type': 'Sequence',
            'pretokenizers': [
                {
                    'type': 'Split',
                    'pattern': {'Regex': f'{start}|{end}{_WORDS}'},
                    'behavior': 'Removed',
                    'invert': True,
                },
                {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': True},
            ],
        },
        'post_processor': {
            'type': 'RobertaProcessing',
            'sep': [end, vocab[end]],
            'cls': [start, vocab[start]],
            'trim_offsets': False,
            'add_prefix_space': False,
        },
        'decoder': {
            'type': 'Sequence',
            'decoders': [
                {'type': 'Replace', 'pattern': {'String': '</w>'}, 'content': 'Ġ'},  # how the next step writes a space
                {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': True},
            ],
        },
        'model': {
            'type': 'BPE',
            'dropout': None,
            'unk_token': end,
            'continuing_subword_prefix': '',
            'end_of_word_suffix': '</w>',
            'fuse_unk': False,
            'byte_fallback': False,
            'ignore_merges': False,
            'vocab': vocab,
            'merges': merges,
        },
    }
    settings = {
        # transformers' CLIPTokenizer would build its own cleaning and drop ours
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'bos_token': start,
        'eos_token': end,
        'unk_token': end,
        'pad_token': end,
        'model_max_length': context_length,
        'clean_up_tokenization_spaces': False,
    }
    _write(folder / 'tokenizer.json', json.dumps(content, ensure_ascii=False))
    _write(folder / 'tokenizer_config.json', json.dumps(settings, indent=2) + '\n')
    _write(folder / 'vocab.json', json.dumps(vocab, ensure_ascii=False))
    _write(folder / 'merges.txt', '#version: 0.2\n' + '\n'.join(merges) + '\n')


def _normalizers() -> list[dict[str, Any]]:
    from ftfy import chardata

    steps = [_replace('&amp;', '&'), _replace('&amp;', '&'), _replace('&(apos|#39|#x27);', "'", regex=True)]
    steps += [_replace(f'&{name};', chr(code)) for name, code in html.entities.name2codepoint.items()]
    steps += [_replace(chr(c), text) for c, text in {**chardata.LIGATURES, **chardata.WIDTH_MAP}.items()]
    steps += [
        _replace(chardata.SINGLE_QUOTE_RE.pattern, "'", regex=True),
        _replace(chardata.DOUBLE_QUOTE_RE.pattern, '"', regex=True),
        _replace(_CONTROL, '', regex=True),
        {'type': 'NFC'},
        _replace(_SPACE, ' ', regex=True),
        _replace(r'(?<=\p{L})Σ(?!\p{L})', 'ς', regex=True),  # as Python lowers it
        {'type': 'Lowercase'},
    ]
    return steps


def _replace(old: str, new: str, *, regex: bool = False) -> dict[str, Any]:
    return {'type': 'Replace', 'pattern': {'Regex' if regex else 'String': old}, 'content': new}


def _added(number: int, text: str) -> dict[str, Any]:
    flags = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized'), False)
    return {'id': number, 'content': text, **flags, 'special': True}


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding='utf-8')
