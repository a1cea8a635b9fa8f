"""Names of tiles that can stand in an archive: short, without folders, each once."""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath

import pandas as pd

_LONGEST = 90
"""Characters; a member of a USTAR archive has 100 with its suffix."""


def tile_ids(files: pd.Series) -> pd.Series:
    """An id for every distinct file: its name without suffix, with its folders where two files have one name.

    Args:
        files: as the table names them; missing where a row has no tile.

    Example:
        >>> tile_ids(pd.Series(['a/1.png', 'b/1.png', 'a/1.png'])).tolist()
        ['a-1', 'b-1', 'a-1']
    """
    paths = {name: PurePosixPath(name) for name in files.dropna().unique()}
    stems = pd.Series({name: path.stem for name, path in paths.items()}, dtype='object')
    if stems.duplicated().any():
        stems = pd.Series({n: '-'.join(p.with_suffix('').parts).lstrip('/-') for n, p in paths.items()}, dtype='object')
    if stems.duplicated().any():  # they differ in their suffix alone
        stems = pd.Series({name: '-'.join(path.parts).lstrip('/-') for name, path in paths.items()}, dtype='object')
    return files.map({name: in_archive(stem) for name, stem in stems.items()}).astype('string')


def in_archive(name: str) -> str:
    """A name without folders, not longer than an archive takes."""
    plain = name.replace('/', '-')
    if len(plain.encode()) <= _LONGEST:
        return plain
    digest = hashlib.blake2b(name.encode(), digest_size=6).hexdigest()
    return f'{plain.encode()[: _LONGEST - 13].decode(errors="ignore")}-{digest}'
