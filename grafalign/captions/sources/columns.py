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
_RANGES = {'lon': (-180.0, 180.0), 'lat': (-90.0, 90.0), 'gsd_m': (1e-3, 1e5)}
"""Numbers, and what they can be."""


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


def metadata_of(
    entry: Mapping[str, Any], columns: Mapping[str, str]
) -> tuple[dict[str, Any], tuple[tuple[str, str], ...]]:
    """Columns of `images.parquet` that a JSON object tells, and what it says that cannot be: reason and value.

    Example:
        >>> metadata_of({'longitude': '-76.6', 'lat': 392.8}, {})
        ({'lon': -76.6}, (('lat is not between -90 and 90', '392.8'),))
    """
    lower = {str(k).lower(): v for k, v in entry.items()}
    found: dict[str, Any] = {}
    dropped: list[tuple[str, str]] = []
    for ours in METADATA:
        value = entry.get(columns[ours]) if ours in columns else None
        if ours not in columns:
            value = next((lower[g] for g in GUESSES[ours] if lower.get(g) is not None), None)
        if ours in _RANGES:
            number, (low, high) = _number(value), _RANGES[ours]
            missing = value in (None, '') or value != value  # tables write NaN for what is not there
            if not missing and not (number is not None and low <= number <= high):
                dropped.append((f'{ours} is not between {low:,g} and {high:,g}', str(value)[:100]))
                number = None
            value = number
        elif isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        elif not isinstance(value, str) or not value.strip():
            value = None
        if value is not None:
            found[ours] = value
    return found, tuple(dropped)


def texts_of(entry: Mapping[str, Any], columns: Mapping[str, str]) -> list[str | bytes]:
    """The captions of a JSON object: a text, a list of texts, or a list of objects with `raw` or `caption`."""
    names = (columns['text'],) if 'text' in columns else GUESSES['text']
    lower = {str(k).lower(): v for k, v in entry.items()}
    for name in names:
        value = entry.get(name, lower.get(name.lower()))
        if isinstance(value, str | bytes):
            return [value]
        if isinstance(value, list):
            return [v if isinstance(v, str | bytes) else _raw(v) for v in value]
    return []


def _raw(value: Any) -> str:
    entry = value if isinstance(value, dict) else {}
    found = next((entry[k] for k in ('raw', 'caption', 'text') if k in entry), None)
    return found if isinstance(found, str) else ''


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
