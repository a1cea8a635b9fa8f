"""A table of no published layout: which of its columns is what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from grafalign.errors import InputError
from grafalign.photos.batches import read_batches
from grafalign.photos.raw import Raw, Where

GUESSES = {
    'photo_id': ('photo_id', 'id', 'name'),
    'uri': ('uri', 'path', 'file', 'filename', 'url'),
    'lon': ('lon', 'longitude', 'lng', 'long'),
    'lat': ('lat', 'latitude'),
    'accuracy_m': ('accuracy_m', 'accuracy'),
    'heading_deg': ('heading_deg', 'heading', 'compass_angle'),
    'field_of_view_deg': ('field_of_view_deg', 'field_of_view', 'fov_deg'),
    'taken_at': ('taken_at', 'datetime', 'date_taken', 'captured_at'),
    'licence': ('licence', 'license'),
    'author': ('author', 'user', 'owner'),
    'source': ('source',),
    'width': ('width',),
    'height': ('height',),
    'digest': ('digest',),
    'dhash': ('dhash',),
}
POINT = {'lon': 'geometry.lon', 'lat': 'geometry.lat'}


def theirs_for_ours(path: str, names: list[str], columns: Mapping[str, str], needed: tuple[str, ...]) -> dict[str, str]:
    """Our column names to those of a table; the points of a GeoJSON or GeoParquet come before its columns.

    Raises:
        GrafalignError: a column that is named or needed is not there.
    """
    others = [n for n in names if n not in POINT.values()]
    shown = ', '.join(others[:40]) + (f' and {len(others) - 40} more' if len(others) > 40 else '')
    lower = {n.lower(): n for n in reversed(names)}
    found: dict[str, str] = {}
    for ours, guesses in GUESSES.items():
        wanted = columns.get(ours)
        if wanted is not None and wanted not in names:
            raise InputError(f'{path} has no column {wanted!r} for {ours}; its columns are {shown}.')
        point = POINT.get(ours)
        if wanted is None and point in names:
            wanted = point
        theirs = wanted or next((lower[g] for g in guesses if g in lower), None)
        if theirs is not None:
            found[ours] = theirs
    missing = [c for c in needed if c not in found]
    if missing:
        raise InputError(
            f'{path} has no column for {" and ".join(missing)}; name it in the recipe, for example '
            f'photos: {{columns: {{{missing[0]}: COLUMN}}}}. Its columns are {shown}.'
        )
    return found


def read_plain(path: str, where: Where, columns: Mapping[str, str]) -> Iterator[Raw]:
    """Stream a table whose columns have names that tell what they are, or that the recipe names."""
    chosen: dict[str, str] = {}

    def choose(names: list[str]) -> list[str]:
        chosen.update(theirs_for_ours(path, names, columns, ('uri', 'lon', 'lat')))
        return list(dict.fromkeys(chosen.values()))

    for batch in read_batches(path, choose):
        found = {ours: batch.table[theirs] for ours, theirs in chosen.items()} if len(batch.table) else {}
        yield Raw(found, len(batch.table), where.root, batch.malformed)
