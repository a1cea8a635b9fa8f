"""Names of tiles that can stand in an archive: short, without folders and dots, each for one file."""

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
    members = [in_archive(stem) for stem in stems]
    twice = pd.Series(members).duplicated(keep=False)
    ids = {
        name: _with_digest(member, name) if again else member
        for name, member, again in zip(stems.index, members, twice, strict=True)
    }
    return files.map(ids).astype('string')


def in_archive(name: str) -> str:
    """A name that a member of a WebDataset can have: no folders, no dots (they end its key), not too long.

    Example:
        >>> in_archive('satellite_40.5_-79.9')
        'satellite_40p5_-79p9'
    """
    plain = name.replace('/', '-').replace('.', 'p')
    return plain if len(plain.encode()) <= _LONGEST else _with_digest(plain, name)


def _with_digest(member: str, name: str) -> str:
    """The beginning of a member's name with a digest of the whole one."""
    digest = hashlib.blake2b(name.encode(), digest_size=6).hexdigest()
    return f'{member.encode()[: _LONGEST - 13].decode(errors="ignore")}-{digest}'
