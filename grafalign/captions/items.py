"""One image of a source with its texts: what every source yields and what becomes a row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from grafalign.captions.packed_sample import PackedSample


@dataclass(frozen=True)
class Item:
    """An image as a source names it."""

    image_id: str
    texts: tuple[str | bytes, ...] = ()
    """Captions as they stand in the source."""
    file: str | None = None
    """Below the root, or absolute, or an address."""
    byte_offset: int | None = None
    nbytes: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    """Further columns of `images.parquet`."""
    dropped: tuple[tuple[str, str], ...] = ()
    """What the source says of the image and cannot be: reason and value. The image is taken without it."""
    packed: PackedSample | None = None
    """Columns of the captions, and scores, where the source is a packed set."""
    reason: str | None = None
    """Why the image cannot be used, where the source already knows."""
