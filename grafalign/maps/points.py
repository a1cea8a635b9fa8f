"""A person's points: where on a field is what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt

from grafalign import console
from grafalign.errors import InputError
from grafalign.fields import Field
from grafalign.fields.points import embeddings_at, positions_of
from grafalign.foreign.vectors import read_vector


@dataclass(frozen=True)
class Points:
    """Points with the names of their classes."""

    path: Path
    lonlat: npt.NDArray[np.float64]
    """Degrees, [P, 2]."""
    names: tuple[str, ...]
    """[P]"""


@dataclass(frozen=True)
class PointEmbeddings:
    """What a field holds at points that it shows."""

    embeddings: npt.NDArray[np.float32]
    """[P, D]"""
    labels: npt.NDArray[np.int64]
    """Number of each one's class, [P]."""


def read_points(path: Path, column: str = 'class') -> Points:
    """Points of a vector file (GeoJSON, GeoPackage, GeoParquet ...).

    Args:
        path: the file.
        column: the property that names a point's class.

    Raises:
        GrafalignError: it cannot be read, has no such property, or a row (from 1) is no point or has no class.
    """
    try:
        table = read_vector(path)
    except Exception as error:  # pyogrio, pyarrow and GDAL raise types of their own
        reason = ' '.join(str(error).split())[:200]
        raise InputError(f'{path} cannot be read as points ({reason}); give GeoJSON or GeoParquet.') from None
    if not isinstance(table, gpd.GeoDataFrame) or not len(table):
        raise InputError(f'{path} holds no points; give some of each class.')
    if column not in table:
        there = ', '.join(str(name) for name in table.columns.drop(table.geometry.name)) or 'none'
        raise InputError(
            f'{path} has no property {column!r} (it has {there}); give the one that names the class with --column.'
        )
    names = []
    for row, (shape, name) in enumerate(zip(table.geometry, table[column], strict=True), start=1):
        if shape is None or shape.is_empty or not np.isfinite(shape.bounds).all():
            raise InputError(f'{path}: row {row} has no place; give it one, or take it out.')
        if shape.geom_type != 'Point':
            raise InputError(f'{path}: row {row} is a {shape.geom_type}; give points.')
        if not isinstance(name, str) or not name.strip():
            raise InputError(f'{path}: row {row} has no {column}; name the class of each point.')
        names.append(name.strip())
    return Points(path, np.stack([table.geometry.x, table.geometry.y], axis=1), tuple(names))


def embed_points(field: Field, points: Points, classes: list[str]) -> PointEmbeddings:
    """What a field shows at points; those that it does not show are told.

    Args:
        field: the field.
        points: the points.
        classes: all names, in the order of their numbers.

    Raises:
        GrafalignError: a point's class is not among them, the field shows none of the points, or those of one class
            only.
    """
    unknown = next((i for i, name in enumerate(points.names) if name not in classes), None)
    if unknown is not None:
        raise InputError(
            f'{points.path}: row {unknown + 1} is {points.names[unknown]!r}, which is not among the classes '
            f'({", ".join(classes[:10])}{" ..." if len(classes) > 10 else ""}); mend the name, or add the class.'
        )
    positions = positions_of(field, points.lonlat)
    rows = np.flatnonzero(positions.inside)
    vectors, known = embeddings_at(field, positions.row[rows], positions.column[rows], 'looking up points')
    shown = rows[known]
    if not len(shown):
        raise InputError(
            f'{field.path} shows none of the {len(points.names):,} points of {points.path}; are they of this scene, '
            'in longitude and latitude?'
        )
    if len(shown) < len(points.names):
        first = int(np.setdiff1d(np.arange(len(points.names)), shown)[0]) + 1
        console.log(
            f'{len(points.names) - len(shown):,} of {len(points.names):,} points lie outside {field.path} or where it '
            f'is missing (the first is row {first}) and are left out'
        )
    labels = np.array([classes.index(points.names[row]) for row in shown], dtype=np.int64)
    if len(np.unique(labels)) < 2:
        raise InputError(
            f'All points of {points.path} that {field.path} shows are {classes[labels[0]]!r}; give points of at least '
            'two classes.'
        )
    return PointEmbeddings(vectors[known].astype(np.float32), labels)
