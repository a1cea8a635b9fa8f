"""One's own sets from a table, and images with masks for segmentation."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from grafalign.config import read_yaml
from grafalign.datasets.class_folders import places_of
from grafalign.datasets.image_set import RGB, ImageSet
from grafalign.datasets.pictures import (
    BANDS_BY_COUNT,
    check_depth,
    coloured,
    default_range,
    is_picture,
    picture_metadata,
    read_indices,
    read_picture,
)
from grafalign.datasets.tree import Tree
from grafalign.errors import InputError
from grafalign.labels import VOID


def load_table(
    path: Path,
    name: str,
    split: str = 'all',
    bands: tuple[str, ...] | None = None,
    value_range: tuple[float, float] | None = None,
) -> ImageSet:
    """A CSV with a row an image.

    Columns: `image` (path, relative to the table), and any of `label` (one class, or several with `|` between them),
    `caption`, `caption_2`, ... (texts), `split`, `lon` and `lat` (degrees).

    Raises:
        GrafalignError: the table or a column is missing, or a row lacks something; the sentence names file and row.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise InputError(f'There is no file {path}; give a CSV with a column `image`.') from None
    except (OSError, ValueError) as error:
        raise InputError(f'{path} cannot be read as CSV ({error}); mend it.') from None
    if 'image' not in table:
        raise InputError(f'{path} has no column `image`; its columns are {", ".join(table.columns)}.')
    if split != 'all':
        if 'split' not in table:
            raise InputError(f'{path} has no column `split`; take all of it, or add one.')
        table = table[table['split'] == split]
    if table.empty:
        raise InputError(f'{path} has no row{"" if split == "all" else f" of the split {split}"}; add some.')
    texts = [c for c in table.columns if c == 'caption' or c.startswith('caption_')]
    if 'label' not in table and not texts:
        raise InputError(f'{path} has neither `label` nor `caption`; add one of them, or there is nothing to test.')
    for column in ['image', *(['label'] if 'label' in table else []), *texts[:1]]:
        blank = table.index[table[column].str.strip() == '']
        if len(blank):
            raise InputError(f'{path}, row {blank[0] + 2}: `{column}` is empty; fill it, or remove the row.')
    if texts:
        table = _merged(table, texts, path)
    items = table['image'].tolist()
    missing = [i for i in items if not (path.parent / i).is_file()]
    if missing:
        raise InputError(f'{path} names {missing[0]}, which is not there ({len(missing):,} missing); mend the table.')
    metadata = picture_metadata(path.parent / items[0], items[0])
    known = bands or BANDS_BY_COUNT.get(metadata.bands)
    if known is None:
        raise InputError(f'{items[0]} has {metadata.bands} bands; name them, such as --bands red,green,blue,nir.')
    span = value_range or default_range(metadata.dtype, items[0])

    def read(row: int) -> npt.NDArray[Any]:
        pixels = read_picture(path.parent / items[row], items[row])
        pixels = coloured(pixels) if known == RGB else pixels
        if len(pixels) != len(known):
            raise InputError(f'{items[row]} has {len(pixels)} bands and the others {len(known)}; make them alike.')
        check_depth(pixels, span, items[row])
        return pixels

    classes: tuple[str, ...] = ()
    labels = many = None
    if 'label' in table:
        labels_by_row = [tuple(p.strip() for p in value.split('|') if p.strip()) for value in table['label']]
        classes = tuple(sorted({label for labels_ in labels_by_row for label in labels_}))
        if len(classes) < 2 and not texts:
            said = f'only the class {classes[0]}' if classes else 'no class'
            raise InputError(f'{path} has {said}; classification needs two or more.')
    if len(classes) > 1:
        many = np.array([[c in labels_ for c in classes] for labels_ in labels_by_row])
        if (many.sum(1) == 1).all():
            labels, many = many.argmax(1).astype(np.int64), None

    def lonlat() -> npt.NDArray[np.float64] | None:
        if 'lon' in table and 'lat' in table:
            places = table[['lon', 'lat']].apply(pd.to_numeric, errors='coerce').to_numpy()
            return None if np.isnan(places).any() else places
        return places_of(Tree(path.parent), items)

    captions = table['captions'].tolist() if texts else None
    known_classes = classes if len(classes) > 1 else ()
    return ImageSet(
        name,
        split,
        items,
        read,
        known,
        span,
        known_classes,
        labels,
        many,
        captions,
        lonlat=lonlat,
        state=lambda: Tree(path.parent).state([path.name, *items]),
    )


def _merged(table: pd.DataFrame, texts: list[str], path: Path) -> pd.DataFrame:
    """One row an image, whose captions are those of all its rows: many tables have a row a caption."""
    rows = table[texts].to_numpy().tolist()
    table = table.assign(captions=[[text.strip() for text in row if text.strip()] for row in rows])
    others = [c for c in ('label', 'split', 'lon', 'lat') if c in table]
    differ = table.groupby('image', sort=False)[others].nunique().max(axis=1) > 1 if others else None
    if differ is not None and differ.any():
        raise InputError(f'{path}: rows of {differ.idxmax()} differ in {", ".join(others)}; make them alike.')
    merged = table.drop_duplicates('image').set_index('image')
    merged['captions'] = table.groupby('image', sort=False)['captions'].sum()
    return merged.reset_index()


def load_masks(
    path: Path,
    name: str,
    bands: tuple[str, ...] | None = None,
    value_range: tuple[float, float] | None = None,
) -> ImageSet:
    """Images with masks for segmentation: PATH/images/A.tif, PATH/masks/A.png (any picture endings), PATH/classes.yaml.

    `classes.yaml` maps the values of the masks to class names: `1: forest`. Other values, and 255, do not count.

    Raises:
        GrafalignError: a part is missing, an image has no mask, or a mask has another size than its image.
    """
    if not path.is_dir():
        raise InputError(f'{path} is no folder; give one with images/, masks/ and classes.yaml (unpack an archive).')
    tree = Tree(path)
    words = _mask_classes(path / 'classes.yaml')
    images, masks = (_by_stem(tree, folder) for folder in ('images', 'masks'))
    if not images:
        raise InputError(f'{path} has no pictures in images/; put images there and masks of the same names in masks/.')
    bare = sorted(set(images) - set(masks))
    if bare:
        raise InputError(
            f'{path}: {images[bare[0]]} has no mask of that name in masks/ ({len(bare):,} missing); add it.'
        )
    stems = sorted(images)
    items = [images[s] for s in stems]
    metadata = picture_metadata(tree.source(items[0]), items[0])
    known = bands or BANDS_BY_COUNT.get(metadata.bands)
    if known is None:
        raise InputError(f'{items[0]} has {metadata.bands} bands; name them, such as --bands red,green,blue,nir.')
    span = value_range or default_range(metadata.dtype, items[0])
    numbers = np.full(65_536, VOID, dtype=np.int64)
    for index, value in enumerate(words):
        numbers[value] = index

    def read(row: int) -> npt.NDArray[Any]:
        pixels = read_picture(tree.source(items[row]), items[row])
        pixels = coloured(pixels) if known == RGB else pixels
        if len(pixels) != len(known):
            raise InputError(f'{items[row]} has {len(pixels)} bands and the others {len(known)}; make them alike.')
        check_depth(pixels, span, items[row])
        return pixels

    def mask(row: int) -> npt.NDArray[np.int64]:
        where = masks[stems[row]]
        pixels = _mask_values(tree.source(where), where)
        size = read_picture(tree.source(items[row]), items[row]).shape[-2:]
        if pixels.shape != size:
            raise InputError(f'{where} is {pixels.shape} px and {items[row]} is {size}; make them alike.')
        valid = np.isfinite(pixels) & (pixels >= 0) & (pixels < 65_536)
        return np.where(valid, numbers[np.where(valid, pixels, 0).astype(np.int64)], VOID)

    return ImageSet(
        name,
        'all',
        items,
        read,
        known,
        span,
        tuple(words.values()),
        mask=mask,
        lonlat=lambda: places_of(tree, items),
        state=lambda: tree.state(['classes.yaml', *items, *(masks[s] for s in stems)]),
    )


def _by_stem(tree: Tree, folder: str) -> dict[str, str]:
    """Pictures of a folder by their paths in it without endings."""
    found: dict[str, str] = {}
    for name in tree.names:
        if name.startswith(f'{folder}/') and is_picture(name):
            stem = str(PurePosixPath(name).relative_to(folder).with_suffix(''))
            if stem in found:
                raise InputError(f'{tree.path}: {found[stem]} and {name} have one name; leave one of them out.')
            found[stem] = name
    return found


def _mask_values(source: Path | bytes, where: str) -> npt.NDArray[Any]:
    """The numbers of a mask; of a palette its indices, not its colours."""
    if where.lower().endswith('.png'):
        indices = read_indices(source, where)
        if indices is not None:
            return indices
        raise InputError(f'{where} has colours where a mask has one number a pixel; save it as indices.')
    pixels = read_picture(source, where, palette=False)
    if len(pixels) != 1:
        raise InputError(f'{where} has {len(pixels)} bands where a mask has one; save it as indices.')
    return pixels[0]


def _mask_classes(path: Path) -> dict[int, str]:
    try:
        content = read_yaml(path)
        words = {int(k): str(v) for k, v in content.items()}
    except FileNotFoundError:
        raise InputError(f'There is no file {path}; write a line such as `1: forest` for each class.') from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f'{path} is no list of `value: class` lines ({error}); mend it.') from None
    if len(words) > VOID:
        raise InputError(f'{path} has {len(words)} classes; masks tell {VOID} apart at most.')
    if len(words) < 2:
        raise InputError(f'{path} has fewer than two classes; segmentation needs two or more.')
    outside = [v for v in words if not 0 <= v < 65_536 or v == VOID]
    if outside:
        raise InputError(f'{path}: {outside[0]} is no value of a class; give 0 to 65535, without {VOID} (no class).')
    return words
