"""Which keys of others hold a text, a place, a licence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from grafalign.errors import InputError

GUESSES: dict[str, tuple[str, ...]] = {
    'image_id': ('image_id', 'uid', 'sample_id'),
    'file': ('file', 'path', 'image', 'image_path', 'filepath', 'file_name', 'filename', 'uri'),
    'text': ('text', 'caption', 'captions', 'alt', 'alt_text', 'sentences', 'raw', 'title'),
    'url': ('url', 'image_url'),
    'split': ('split',),
    'label': ('label', 'class', 'class_name'),
    'licence': ('licence', 'license'),
    'author': ('author', 'creator', 'user', 'owner'),
    'lon': ('lon', 'longitude', 'lng'),
    'lat': ('lat', 'latitude'),
    'gsd_m': ('gsd_m', 'gsd', 'resolution_m'),
}
"""Our names to what LAION, img2dataset, Hugging Face's image folders and others call them, in any case."""
METADATA = ('url', 'split', 'label', 'licence', 'author', 'lon', 'lat', 'gsd_m')
_NUMBERS = ('lon', 'lat', 'gsd_m')


def chosen_columns(names: Iterable[str], columns: Mapping[str, str], where: str) -> dict[str, str]:
    """Our names to those of a table.

    Args:
        names: what it has.
        columns: what the user named.
        where: the table, for errors.

    Raises:
        GrafalignError: a named column is not there, or none of ours has that name.
    """
    names = list(names)
    for ours, theirs in columns.items():
        if ours not in GUESSES:
            raise InputError(f'There is no column {ours!r} to name; name one of {", ".join(GUESSES)}.')
        if theirs not in names:
            raise InputError(f'{where} has no column {theirs!r} for {ours}; its columns are {", ".join(names[:40])}.')
    lower = {n.lower(): n for n in reversed(names)}
    guessed = {ours: next((lower[g] for g in guesses if g in lower), None) for ours, guesses in GUESSES.items()}
    return {ours: theirs for ours, theirs in {**guessed, **columns}.items() if theirs is not None}


def metadata_of(entry: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Columns of `images.parquet` that a JSON object tells."""
    lower = {str(k).lower(): v for k, v in entry.items()}
    found: dict[str, Any] = {}
    for ours in METADATA:
        value = entry.get(columns[ours]) if ours in columns else None
        if ours not in columns:
            value = next((lower[g] for g in GUESSES[ours] if lower.get(g) is not None), None)
        value = _number(value) if ours in _NUMBERS else value if isinstance(value, str) and value.strip() else None
        if value is not None:
            found[ours] = value
    return found


def texts_of(entry: Mapping[str, Any], columns: Mapping[str, str]) -> list[str | bytes]:
    """The captions of a JSON object: a text, a list of texts, or a list of objects with `raw` or `caption`."""
    names = (columns['text'],) if 'text' in columns else GUESSES['text']
    lower = {str(k).lower(): v for k, v in entry.items()}
    for name in names:
        value = entry.get(name, lower.get(name.lower()))
        if isinstance(value, str | bytes):
            return [value]
        if isinstance(value, list):
            texts = [v if isinstance(v, str | bytes) else _raw(v) for v in value]
            return [t for t in texts if t is not None]
    return []


def _raw(value: Any) -> str | None:
    found = (
        next((value[k] for k in ('raw', 'caption', 'text') if k in value), None) if isinstance(value, dict) else None
    )
    return found if isinstance(found, str) else None


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
