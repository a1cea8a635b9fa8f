"""The folder of a calibration: photos whose class CLIP knows, and what a model sees of the ground they show.

No word is in it, so one folder serves every question that is put to fields of the same model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from grafalign.artefacts import Marker
from grafalign.errors import DamagedError
from grafalign.fields.marker import Of
from grafalign.files import file_digest

MARKER = 'calibration.json'
ARRAYS = 'places.safetensors'
Vectors = npt.NDArray[np.float16]


class CalibrationMarker(Marker):
    """`calibration.json`."""

    REMEDY: ClassVar[str] = 'delete its folder and run `grafalign calibrate` again'

    format: int
    model: str
    """How the model was given when the fields were made."""
    model_digest: str
    of: Of
    """Whether the fields hold patches or windows."""
    fields: tuple[str, ...]
    store: str
    photos: int
    """Photos that no training saw."""
    without: int
    """Such photos that were left out, as a part of the ground they may show is not in the fields."""
    seed: int
    versions: dict[str, str]
    digest: str
    """Of `places.safetensors`."""


@dataclass(frozen=True)
class PhotoPlaces:
    """Photos that no training saw, with the ground they may show; D is the width of the model's space."""

    marker: CalibrationMarker
    photos: Vectors
    """CLIP's unit embeddings of the photos, [P, D]."""
    view: Vectors
    """The field's embeddings at points in the photos' fields of view, [P, S, D]."""
    bank: Vectors
    """CLIP's unit embeddings of a sample of all photos, [B, D]: how often photos show what."""


def open_places(folder: Path) -> PhotoPlaces:
    """Open the folder of a calibration.

    Raises:
        GrafalignError: there is none, or it is damaged.
    """
    if not (folder / MARKER).is_file():
        raise DamagedError(f'{folder} holds no calibration; make one with `grafalign calibrate FIELD --store STORE`.')
    marker = CalibrationMarker.read(folder / MARKER)
    path = folder / ARRAYS
    try:
        if file_digest(path) != marker.digest:
            raise DamagedError(f'{path} is damaged (its digest differs); {CalibrationMarker.REMEDY}.')
        arrays = load_file(path)
        photos, view, bank = (arrays[name] for name in ('photos', 'view', 'bank'))
    except (OSError, SafetensorError, KeyError) as error:
        raise DamagedError(f'{path} is damaged ({error}); {CalibrationMarker.REMEDY}.') from None
    count, width = len(photos), photos.shape[-1]
    shapes = [(count, width), (count, view.shape[1], width), (len(bank), width)]
    if [array.shape for array in (photos, view, bank)] != shapes:
        raise DamagedError(f'{path} is damaged (its arrays do not go together); {CalibrationMarker.REMEDY}.')
    return PhotoPlaces(marker, photos, view, bank)
