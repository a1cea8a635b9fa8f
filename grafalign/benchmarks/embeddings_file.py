"""Embeddings that somebody else made, so that results can be checked without weights.

`.npz` with arrays

    images   [N, D]
    labels   [N] class numbers, or [N, K] booleans                             for classification and retrieval by class
    texts    [P, K, D] prompts by classes, or [K, D]                            with labels
    texts    [T, D], and text_image [T]: the image of each                      for captions
    classes  [K] names; prompts [P] names; lonlat [N, 2]                        where known

`.parquet` with a row a vector: `kind` (image or text), `embedding` (list), `label` (of an image, or the class of a
text), `prompt` (of a text), `image` (of a caption: the number of its image, counted from 0), `lon`, `lat`.

Vectors must have unit length, as nearly as float16 has it; they are brought to it exactly.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from grafalign.datasets import ImageSet
from grafalign.errors import GrafalignError, InputError
from grafalign.files import file_digest
from grafalign.retrieval import check_vectors

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Embedded:
    """A model's embeddings of one set."""

    name: str
    digest: str
    data: ImageSet
    images: Vectors
    """[N, D]"""
    prompts: Vectors | None
    """[P, K, D]"""
    prompt_names: tuple[str, ...]
    captions: Vectors | None
    """[T, D]"""
    text_image: npt.NDArray[np.int64] | None
    """Image of each caption, [T]."""


def load_embeddings(path: Path, name: str | None = None, classes: list[str] | None = None) -> Embedded:
    """Read a file of embeddings.

    Args:
        path: `.npz` or `.parquet`.
        name: what tables call the model; the file's name by default.
        classes: names of the classes, where the file has none.

    Raises:
        GrafalignError: the file is missing, damaged or lacks something; vectors are not finite or not normalised;
            widths or numbers do not fit each other.
    """
    try:
        arrays = _npz(path) if path.suffix.lower() == '.npz' else _parquet(path)
    except FileNotFoundError:
        raise InputError(f'There is no file {path}; give embeddings as .npz or .parquet.') from None
    except GrafalignError:
        raise
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f'{path} cannot be read as embeddings ({error!r}); save it again.') from None
    if 'images' not in arrays or 'texts' not in arrays:
        raise InputError(f'{path} must hold `images` and `texts`; it holds {", ".join(arrays)}.')
    images = _unit(arrays['images'], f'{path}: images')
    texts: npt.NDArray[Any] = np.asarray(arrays['texts'])
    if 'text_image' in arrays:
        captions: Vectors | None = _unit(texts, f'{path}: texts')
        prompts, kinds = None, None
        text_image = np.asarray(arrays['text_image'])
        if text_image.dtype.kind not in 'iu' or text_image.ndim != 1:
            raise InputError(f'{path}: text_image must hold whole numbers, one for each text; save it so.')
        text_image = text_image.astype(np.int64)
        if len(text_image) != len(texts) or text_image.min(initial=0) < 0 or text_image.max(initial=-1) >= len(images):
            raise InputError(f'{path}: text_image must name an image (0 to {len(images) - 1}) for each of the texts.')
    else:
        captions = text_image = None
        texts = texts[np.newaxis] if texts.ndim == 2 else texts
        if texts.ndim != 3:
            raise InputError(f'{path}: texts must be [prompts, classes, D]; they are {list(texts.shape)}.')
        prompts = _unit(texts.reshape(-1, texts.shape[2]), f'{path}: texts').reshape(texts.shape)
        kinds = int(texts.shape[1])
        if 'labels' not in arrays:
            raise InputError(f'{path} holds no `labels`; add the class of each image.')
    if images.shape[1] != texts.shape[-1]:
        raise InputError(
            f'{path}: images have {images.shape[1]} dimensions and texts {texts.shape[-1]}: they come from different '
            'models; embed both with one.'
        )
    return Embedded(
        name or path.stem,
        file_digest(path),
        _set(path, arrays, len(images), kinds, classes),
        images,
        prompts,
        tuple(str(p) for p in arrays.get('prompts', ())),
        captions,
        text_image,
    )


def _unit(vectors: npt.NDArray[Any], what: str) -> Vectors:
    found = np.asarray(vectors)
    if found.ndim != 2 or not np.issubdtype(found.dtype, np.floating):
        raise InputError(f'{what} must be a table of numbers [rows, D]; it is {found.dtype} {list(found.shape)}.')
    check_vectors(found, what)
    exact = found.astype(np.float32)
    return exact / np.linalg.norm(exact, axis=1, keepdims=True)


def _set(path: Path, arrays: dict[str, Any], count: int, width: int | None, classes: list[str] | None) -> ImageSet:
    labels, many = _labels(path, arrays.get('labels'), count)
    names: tuple[str, ...] = ()
    if labels is not None or many is not None:
        kinds = many.shape[1] if many is not None else width or len(arrays.get('classes', ())) or int(labels.max()) + 1  # type: ignore[union-attr]
        if width is not None and kinds != width:
            raise InputError(f'{path} has labels of {kinds} classes and texts of {width}; there must be one for each.')
        if labels is not None and labels.max() >= kinds:
            raise InputError(
                f'{path}: labels go up to {labels.max()} and the texts are of {kinds} classes; count classes from 0.'
            )
        given = classes or [str(c) for c in arrays.get('classes', ())]
        if given and len(given) != kinds:
            raise InputError(f'{path} has {kinds} classes and {len(given)} names were given; give one for each.')
        names = tuple(given) or tuple(f'class {i}' for i in range(kinds))

    def read(row: int) -> npt.NDArray[Any]:
        raise InputError(f'{path} holds embeddings and no pictures.')

    places: Any = arrays.get('lonlat')
    if places is not None:
        places = np.asarray(places)
        if places.shape != (count, 2) or places.dtype.kind not in 'fiu' or not np.isfinite(places).all():
            raise InputError(f'{path}: lonlat must be longitude and latitude of each image, [{count}, 2]; mend it.')
        places = places.astype(np.float64)
    items = [str(i) for i in range(count)]
    # files of several models in one folder are of one set
    title = path.resolve().parent.name
    return ImageSet(
        title,
        'all',
        items,
        read,
        classes=names,
        labels=labels,
        many=many,
        captions=_owners(arrays, count),
        lonlat=lambda: places,
    )


def _owners(arrays: dict[str, Any], count: int) -> list[list[str]] | None:
    """Numbers of each image's texts in place of the texts themselves, which the file has not."""
    if 'text_image' not in arrays:
        return None
    owners: list[list[str]] = [[] for _ in range(count)]
    for text, image in enumerate(np.asarray(arrays['text_image']).tolist()):
        owners[image].append(str(text))
    return owners


def _labels(path: Path, labels: Any, count: int) -> tuple[npt.NDArray[np.int64] | None, npt.NDArray[np.bool_] | None]:
    """Class numbers [N], or which classes [N, K]."""
    if labels is None:
        return None, None
    found = np.asarray(labels)
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.ndim not in (1, 2) or len(found) != count:
        raise InputError(f'{path} has {count:,} images and labels {list(found.shape)}; there must be one for each.')
    whole = found.dtype.kind in 'iub' or (
        found.dtype.kind == 'f' and np.isfinite(found).all() and (found % 1 == 0).all()
    )
    if not whole or found.min() < 0 or (found.ndim == 2 and found.max() > 1):
        raise InputError(f'{path}: labels must be class numbers from 0, or zeros and ones [N, K]; save them so.')
    return (found.astype(np.int64), None) if found.ndim == 1 else (None, found.astype(bool))


def _npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _parquet(path: Path) -> dict[str, Any]:
    table = pd.read_parquet(path)
    kinds = set(table['kind'])
    if not kinds <= {'image', 'text'}:
        raise InputError(f'{path}: `kind` is image or text, not {sorted(kinds - {"image", "text"})[0]!r}.')
    image, text = table[table['kind'] == 'image'], table[table['kind'] == 'text']
    arrays: dict[str, Any] = {
        'images': np.stack(image['embedding'].tolist()),
        'texts': np.stack(text['embedding'].tolist()),
    }
    if {'lon', 'lat'} <= set(table) and image[['lon', 'lat']].notna().all(axis=None):
        arrays['lonlat'] = image[['lon', 'lat']].to_numpy()
    known = 'label' in table and image['label'].notna().all()
    if 'image' in table and text['image'].notna().all():
        arrays['text_image'] = text['image'].to_numpy(dtype=np.int64)
        if known:
            arrays['classes'], arrays['labels'] = np.unique(image['label'].astype(str), return_inverse=True)
        return arrays
    if not known or text['label'].isna().any():
        raise InputError(f'{path}: every image and every text needs a `label`, or every text an `image`.')
    classes = list(dict.fromkeys(text['label'].astype(str)))
    labels = pd.Index(classes).get_indexer(pd.Index(image['label'].astype(str)))
    if (labels < 0).any():
        row = int(np.flatnonzero(labels < 0)[0])
        raise InputError(f'{path}: the class {image["label"].iloc[row]!r} of an image has no text; add one.')
    prompt = text['prompt'].astype(str) if 'prompt' in text else pd.Series('', index=text.index)
    prompts = list(dict.fromkeys(prompt))
    grid = np.full((len(prompts), len(classes)), -1)
    grid[pd.Index(prompts).get_indexer(prompt), pd.Index(classes).get_indexer(text['label'].astype(str))] = range(
        len(text)
    )
    if (grid < 0).any():
        p, c = np.argwhere(grid < 0)[0]
        raise InputError(f'{path}: the prompt {prompts[p]!r} lacks the class {classes[c]!r}; add that text.')
    return arrays | {'labels': labels, 'texts': arrays['texts'][grid], 'classes': classes, 'prompts': prompts}
