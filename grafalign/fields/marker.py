"""`field.json`, the marker of a field: what it is a field of, by which model, and how its arrays are read."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from grafalign.artefacts import Marker

MARKER = 'field.json'
Of = Literal['patches', 'windows', 'smooth']
Numbers = Literal['float16', 'int8']


class FieldScene(BaseModel):
    """One scene of a field."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    item_id: str
    datetime: str
    """UTC."""
    hrefs: tuple[str, ...]
    """Files of its bands."""


class FieldPlan(BaseModel):
    """All that decides what a field holds."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    crs: str
    """`EPSG:CODE`, or WKT where there is no code."""
    transform: tuple[float, float, float, float, float, float]
    """Of the pixels: x = a * column + b * row + c, y = d * column + e * row + f."""
    height: int
    width: int
    """In pixels."""
    pixel_m: float
    cell: int
    """Pixels along a side of a cell of the lattice."""
    window: int
    patch: int
    stride: int
    """In pixels."""
    of: Of
    """What was embedded: patches of windows, whole windows, or patches by smooth attention (`encoders/smooth.py`)."""
    dimensions: int
    """D."""
    bands: tuple[str, ...]
    value_range: tuple[float, float]
    scenes: tuple[FieldScene, ...]
    """The first one goes first where several have a pixel."""
    batch: int
    """Windows that were encoded at a time: sums of another size differ in their last bits."""
    numbers: Numbers
    model_digest: str
    clip_digest: str | None


class FieldMarker(Marker):
    """`field.json`."""

    REMEDY: ClassVar[str] = 'delete its folder and run `grafalign field` again'

    format: int
    plan: FieldPlan
    model: str
    """How the model was given when the field was made."""
    error: float
    """Largest error of a score (a cosine of a word with an embedding) that storing as `numbers` can make."""
    windows: int
    """Windows that hold anything, all of which were encoded."""
    missing: float
    """Share of the pixels that are missing."""
    saturated: float
    """Share of the others that lie beyond the value range in every band: much of it says that the range is wrong."""
    failed: dict[str, int]
    """Why pieces of scenes could not be read, and how many; they are missing."""
    versions: dict[str, str]
    files: dict[str, str]
    """All others of the folder, each with its digest."""


class FieldDraft(Marker):
    """`draft.json`, while a field is being made: what for, so that another run goes on with it or refuses."""

    REMEDY: ClassVar[str] = 'delete its folder and run `grafalign field` again'

    format: int
    plan: FieldPlan
