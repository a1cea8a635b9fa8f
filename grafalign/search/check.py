"""Is an index whole? Every file's digest, and every stretch of the vectors."""

from __future__ import annotations

import hashlib
from pathlib import Path

from grafalign import console
from grafalign.errors import GrafalignError
from grafalign.files import changed_files
from grafalign.pairing.check import Finding
from grafalign.search.catalog import Catalog


def check_index(path: Path) -> list[Finding]:
    """Check an index; reads every byte of it once.

    Args:
        path: the folder.

    Raises:
        GrafalignError: there is no index, or its marker is damaged.
    """
    catalog = Catalog(path)
    digests = {n: d for n, d in catalog.marker.digests.items() if n in catalog.marker.files}
    findings = [Finding('digests', len(digests), changed_files(catalog.path, digests)), _vectors(catalog)]
    try:
        items = Finding('items', len(catalog.items), ())
        len(catalog)  # what was removed can be read
    except GrafalignError as error:
        items = Finding('items', 0, (str(error),))
    return [*findings, items]


def _vectors(catalog: Catalog) -> Finding:
    """Every stretch of the vectors has the digest that it was added with."""
    stretches = catalog.marker.stretches
    if stretches is None:
        return Finding('vectors', 0, ())  # of an earlier grafalign, which kept no digests
    problems, first = [], 0
    name = next(n for n in catalog.marker.files if n.startswith('vectors-'))
    with (catalog.path / name).open('rb') as file:
        for rows, digest in console.track(stretches, 'checking vectors'):
            content = file.read(rows * catalog.width * 4)
            if hashlib.blake2b(content, digest_size=16).hexdigest() != digest:
                problems.append(
                    f'{name}: rows {first} to {first + rows - 1} have other content than when they were added'
                )
            first += rows
    if first != catalog.total:
        problems.append(f'{name} has digests for {first} rows and not for {catalog.total}')
    return Finding('vectors', catalog.total, tuple(problems))
