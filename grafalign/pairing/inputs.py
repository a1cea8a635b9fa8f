"""What a store was made from: so the same command notices what has come since, and an update cuts only what differs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from grafalign.errors import GrafalignError
from grafalign.files import Place
from grafalign.pairing.recipe import Recipe
from grafalign.photos.opening import files_of, is_url
from grafalign.photos.sources import IMAGE_SUFFIXES
from grafalign.scenes import Scene, band_sources, cloud_mask
from grafalign.scenes.geotiffs import raster_files
from grafalign.store_marker import InputStamp

INPUTS = 'inputs.json'
"""In the folder of the stages: when pairing began, and the stamps of its sources then."""


_SCENE_SUFFIXES = ('.json', '.tif', '.tiff', '.jp2', '.msk')


def input_stamps(recipe: Recipe, out: Place) -> tuple[InputStamp, ...]:
    """Stamps of the recipe's photos and scenes; sources on URLs have none.

    Of a folder of photos those files count that are named as images or have no suffix; of a catalog the documents and
    rasters below its folder; of a folder of rasters those and the masks beside them.

    Args:
        recipe: names the sources.
        out: the store, which may lie in one of their folders and does not count.

    Raises:
        GrafalignError: a table or a folder of rasters that the recipe names is not there.
    """
    photos, scenes = recipe.photos, recipe.scenes
    named: list[tuple[str, Iterator[Path]]] = []
    if photos.folder is not None:
        named.append(('photos.folder', _below(photos.folder, (*IMAGE_SUFFIXES, ''), out)))
    if photos.webdataset is not None and not is_url(str(photos.webdataset)):
        named.append(('photos.webdataset', _below(Path(photos.webdataset), ('.tar', '.parquet', '.json'), out)))
    if photos.table is not None:
        named.append(('photos.table', (Path(f) for f in files_of(photos.table) if not is_url(f))))
    if scenes.catalog is not None:
        named.append(('scenes.catalog', _below(scenes.catalog.parent, _SCENE_SUFFIXES, out)))
    if scenes.items is not None:
        named.append(('scenes.items', iter([scenes.items])))
    if scenes.folder is not None:
        rasters = raster_files(scenes.folder)
        named.append(('scenes.folder', (f for r in rasters for f in (r, r.with_name(f'{r.name}.msk')))))
    return tuple(_stamp(name, files) for name, files in named)


def has_remote_source(recipe: Recipe) -> bool:
    """Whether photos or scenes come from a URL, of which only reading them again tells whether they have changed."""
    photos = recipe.photos
    tables = [] if photos.table is None else files_of(photos.table)
    return recipe.scenes.api is not None or is_url(str(photos.webdataset)) or any(is_url(f) for f in tables)


def _below(folder: Path, suffixes: tuple[str, ...], out: Place) -> Iterator[Path]:
    """Files with some suffixes below a folder, in the order of their names; none of the store."""
    own = out.resolve() if isinstance(out, Path) else None
    for parent, folders, files in os.walk(folder.resolve()):
        folders[:] = sorted(name for name in folders if Path(parent, name) != own)
        paths = (Path(parent, name) for name in sorted(files))
        yield from (path for path in paths if path.suffix.lower() in suffixes)


def _stamp(name: str, files: Iterator[Path]) -> InputStamp:
    count = total = 0
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        try:
            status = path.stat()
        except OSError:  # removed meanwhile, or a link that leads nowhere
            continue
        count, total = count + 1, total + status.st_size
        digest.update(os.fsencode(path) + f'\0{status.st_size}\0{status.st_mtime_ns}\n'.encode())
    return InputStamp(name=name, files=count, bytes=total, stamp=digest.hexdigest())


def changes(before: tuple[InputStamp, ...], now: tuple[InputStamp, ...]) -> list[str]:
    """What has changed, as parts of a sentence; sources that either side knows nothing of do not count.

    Example:
        >>> old = InputStamp(name='photos.folder', files=480, bytes=9, stamp='a')
        >>> changes((old,), (InputStamp(name='photos.folder', files=492, bytes=11, stamp='b'),))
        ['photos.folder has 492 files instead of 480']
    """
    old_stamps = {stamp.name: stamp for stamp in before}
    sentences = []
    for stamp in now:
        old = old_stamps.get(stamp.name)
        if old is None or old.stamp == stamp.stamp:
            continue
        sentences.append(
            f'{stamp.name} has other content (or times) than then'
            if old.files == stamp.files
            else f'{stamp.name} has {stamp.files:,} files instead of {old.files:,}'
        )
    return sentences


def scene_digest(scene: Scene, recipe: Recipe) -> str:
    """Digest of all of a scene that decides what is cut out of it.

    These are where its bands lie and what their numbers mean, what a tile records of it, and for files of this machine
    their size and time.
    """
    sensor = recipe.sensor
    parts: list[object] = [scene.item_id, scene.collection, scene.when.isoformat(), scene.cloud_percent, scene.baseline]
    try:
        sources = band_sources(scene.item, sensor.bands, sensor.gsd_m, sensor.overrides)
    except GrafalignError as error:
        return _digest([*parts, str(error)])
    mask = cloud_mask(scene.item) if recipe.max_tile_cloud_percent is not None else None
    files = [*sources, *([mask] if mask is not None else [])]
    for source in files:
        parts.append(repr(source))
        if '://' not in source.href:
            parts += [_size_and_time(Path(source.href)), _size_and_time(Path(f'{source.href}.msk'))]
    return _digest(parts)


def _size_and_time(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return 'not there'
    return f'{status.st_size} {status.st_mtime_ns}'


def made_from_digest(tile_id: str, scenes: list[str], mates: list[list[str]], dtype: str) -> str:
    """Digest of all that decides a tile's pixels, of one recipe.

    Args:
        tile_id: its place and shape.
        scenes: digests of its candidates, best first.
        mates: for each candidate the digests of those that may fill its holes.
        dtype: that of the store.
    """
    return _digest([tile_id, scenes, mates, dtype])


def _digest(parts: list[object]) -> str:
    return hashlib.blake2b(repr(parts).encode('utf-8', 'backslashreplace'), digest_size=16).hexdigest()
