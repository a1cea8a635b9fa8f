"""Is a field whole? Every file's digest."""

from __future__ import annotations

from pathlib import Path

from grafalign.fields.field import Field
from grafalign.files import changed_files
from grafalign.pairing.check import Finding


def check_field(path: Path) -> list[Finding]:
    """Check a field; reads every byte of it once.

    Args:
        path: its folder.

    Raises:
        GrafalignError: there is no finished field, or its marker is damaged.
    """
    files = Field(path).marker.files
    return [Finding('digests', len(files), changed_files(path, files))]
