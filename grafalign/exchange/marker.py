"""`grafalign_export.json`, the marker of an export: what the folder is, and what a program must know to use it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict

from grafalign.artefacts import Marker

MARKER = 'grafalign_export.json'
Format = Literal['open_clip', 'transformers']


class ExportInput(BaseModel):
    """How pixels become the input of the exported encoder."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    bands: tuple[str, ...]
    """In the order of the input."""
    level: Literal['image', 'patch', 'both'] = 'image'
    """Which embedding was trained."""
    value_range: tuple[float, float] | None
    """Physical values that become 0 and 1; None where nobody has said."""
    size_px: int
    """Side of a tile."""
    canvas_px: int
    """Side of the zero-padded image that the tile lies in; `size_px` where it is not padded."""
    start_px: int
    """Row and column of the tile's corner in it."""


class ExportMarker(Marker):
    """`grafalign_export.json`."""

    NEWEST: ClassVar[int] = 1
    OLDEST: ClassVar[int] = 0  # of before it said its version
    VERSION_KEY: ClassVar[str] = 'version'
    REMEDY: ClassVar[str] = 'export again'

    version: int = 0
    format: Format
    name: str
    grafalign: str
    """Release that wrote it."""
    input: ExportInput | None = None
    """Not in exports of earlier releases, which are of red, green and blue at CLIP's own size."""
    files: dict[str, str] = {}
    """All others of the folder, each with its digest."""

    @classmethod
    def of(cls, folder: Path) -> Self | None:
        """The marker of a folder, or None if the folder is no export of ours.

        Raises:
            GrafalignError: it is damaged, or of a later release.
        """
        return cls.read(folder / MARKER) if (folder / MARKER).is_file() else None
