"""What readers hand over: some rows of a source under our column names, before any check."""

from __future__ import annotations

from dataclasses import dataclass, field

from grafalign.photos.values import Column


@dataclass(frozen=True)
class Where:
    """Where a table's photos lie."""

    root: str
    """Absolute folder or URL that relative uris start from."""
    given: bool
    """Whether the user named it: a published layout then takes local copies rather than the web's addresses."""


@dataclass(frozen=True)
class Raw:
    """Rows of a source."""

    columns: dict[str, Column]
    """Arrow columns by our names; also `problem` and `detail`, why a row cannot be used."""
    rows: int
    root: str | None
    """What relative uris start from; None where the reader made the uris and they need no check."""
    malformed: list[tuple[str, str]] = field(default_factory=list)
    """Rows that are none: id and what is wrong."""
    places_in_files: bool = False
    """Positions come from the images."""
