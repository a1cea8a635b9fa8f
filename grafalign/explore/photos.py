"""Ground photos beside a place, where their licence allows showing them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import shapely

from grafalign.errors import GrafalignError
from grafalign.pages import jpeg
from grafalign.photos.exif import PhotoError, load_photo
from grafalign.store import PairStore

_MOST = 24
"""Photos of a place."""
_SIDE_PX = 512
_OPEN = ('CC', 'PDM')
"""Licences by which anybody may show a photo, with its author's name."""


class GroundPhotos:
    """The photos of a store.

    Args:
        store: the store.
    """

    def __init__(self, store: PairStore) -> None:
        self._photos = store.photos

    def near(self, place: shapely.Geometry) -> list[dict[str, Any]]:
        """Photos that were taken inside a shape: row, author, licence, day, and whether they may be shown."""
        rows = sorted(self._photos.sindex.query(place, predicate='intersects').tolist())[:_MOST]
        return [
            {
                'row': row,
                'author': _text(photo.get('author')),
                'licence': _text(photo.get('licence')),
                'day': '' if pd.isna(photo['taken_at']) else f'{photo["taken_at"]:%Y-%m-%d}',
                'shown': self.may_show(row),
                'lon': photo.geometry.x,
                'lat': photo.geometry.y,
            }
            for row, (_, photo) in zip(rows, self._photos.iloc[rows].iterrows(), strict=True)
        ]

    def may_show(self, row: int) -> bool:
        """Whether a photo may be shown: by an open licence, or because it is a file of this machine without one."""
        photo = self._photos.iloc[row]
        licence, local = _text(photo.get('licence')), '://' not in str(photo['uri'])
        return local and (not licence or licence.upper().startswith(_OPEN))

    def picture(self, row: int) -> bytes:
        """A photo as JPEG; empty where it must not be shown, is not there, or is not the one that was paired.

        Raises:
            IndexError: there is no such photo.
        """
        photo = self._photos.iloc[row]
        if not self.may_show(row):
            return b''
        try:
            image, metadata = load_photo(Path(photo['uri']), _SIDE_PX, exif=False)
        except (PhotoError, GrafalignError, OSError):
            return b''
        return jpeg(image, _SIDE_PX) if metadata.digest == photo['digest'] else b''


def _text(value: Any) -> str:
    return '' if value is None or pd.isna(value) else str(value)
