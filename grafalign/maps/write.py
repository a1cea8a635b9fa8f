"""All files of a map, from a field and classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from grafalign import __version__, console
from grafalign.calibration import Calibration, PhotoPlaces, calibrate, contrasting_words
from grafalign.encoders.ensemble import ensemble
from grafalign.errors import InputError, StaleError
from grafalign.fields import Field
from grafalign.maps.classes import ClassesFile, MapClasses, embed_classes, question_of
from grafalign.maps.make import MapSummary, make_map, nodata_of, shown_classes
from grafalign.maps.outlines import Outlines
from grafalign.maps.page import write_page
from grafalign.maps.stac import write_item
from grafalign.maps.tuned import TunedWords
from grafalign.models import Model
from grafalign.zeroshot.prompts import prompt_vectors

_CLIPS_OWN = 0.01
"""CLIP's own temperature, for a model that states none."""


@dataclass(frozen=True)
class MapFiles:
    """Where the files of a map go; None is not written."""

    map: Path
    confidence: Path | None = None
    scores: Path | None = None
    polygons: Path | None = None

    @property
    def written(self) -> dict[str, Path]:
        """Those that are written, by what they are."""
        return {name: path for name, path in vars(self).items() if path is not None}


def write_map(
    field: Field,
    content: ClassesFile | TunedWords,
    model: Model,
    files: MapFiles,
    *,
    temperature: float | None = None,
    places: PhotoPlaces | None = None,
    leave_out: float | None = None,
    min_area_m2: float = 0.0,
    outlines: Outlines | None = None,
) -> MapSummary:
    """Write a map: rasters, polygons, a STAC item and a page beside them.

    Args:
        field: what is asked.
        content: what for: words, or words that points have moved, which say how probable they are.
        model: the field's model, for its words.
        files: what is written, and where.
        temperature: of the probabilities, where there are no `places`; the model's own by default.
        places: held-out photos to calibrate on.
        leave_out: pixels that are none of the classes are left out, so that about this share of the places that show
            one is lost; None leaves out none.
        min_area_m2: smallest polygon.
        outlines: makes the outlines of classes follow the scene's pixels.

    Raises:
        GrafalignError: a file cannot be written, or a chunk of the field is damaged.
    """
    if isinstance(content, TunedWords):
        if places is not None or temperature is not None or leave_out is not None:
            raise InputError(
                f'{content.path} says how probable its classes are; leave out --calibration, --temperature and '
                '--leave-out, or give words.'
            )
        content.check(field.plan, field.path)
        classes, calibration = content.classes, uncalibrated(1.0, len(content.about.classes))
        how = f'words tuned to {content.points:,} points'
    else:
        classes = embed_classes(content, model.embed_texts)
        calibration = _calibration(field, content, classes, model, temperature, places, leave_out)
        how = _described(calibration)
    summary = make_map(
        field,
        classes,
        files.map,
        calibration,
        confidence=files.confidence,
        scores=files.scores,
        outlines=outlines,
    )
    shown = shown_classes(classes, calibration)
    if files.polygons is not None:
        from grafalign.maps.polygons import write_polygons

        names = {i: c.name for i, c in enumerate(shown)}
        background = [i for i, c in enumerate(shown) if c.background]
        count = write_polygons(
            files.map,
            files.polygons,
            names,
            confidence=files.confidence,
            min_area_m2=min_area_m2,
            leave_out=background,
        )
        console.log(f'{files.polygons}: {count:,} polygons')
    item, page = files.map.with_suffix('.json'), files.map.with_suffix('.html')
    write_item(item, field, shown, files.written, nodata_of(len(shown)))
    made = (
        f'grafalign {__version__}, model {field.marker.model}, {field.marker.windows:,} windows of {field.plan.window} '
        f'px with a stride of {field.plan.stride} px, embeddings of {field.plan.of}; {how}'
        f'{"; outlines by the pixels of the scene" if outlines else ""}'
    )
    write_page(page, field, shown, summary, files.written, made)
    return summary


def own_temperature(model: Model) -> float:
    """The temperature that a model was trained with."""
    return float(model.metadata.get('tau') or _CLIPS_OWN)


def uncalibrated(temperature: float, classes: int) -> Calibration:
    """Probabilities by a temperature alone."""
    return Calibration(temperature, np.zeros(classes, dtype=np.float32), 0, 0, 0, None)


def _calibration(
    field: Field,
    content: ClassesFile,
    classes: MapClasses,
    model: Model,
    temperature: float | None,
    places: PhotoPlaces | None,
    leave_out: float | None,
) -> Calibration:
    """Probabilities for these classes on this field: from photos where there are any, else by a temperature."""
    if places is None:
        if leave_out is not None:
            raise InputError('What is none of the classes is only known from photos; give --calibration.')
        return uncalibrated(temperature or own_temperature(model), len(classes.classes))
    plan, theirs = field.plan, places.marker
    if (theirs.model_digest, theirs.of) != (plan.model_digest, plan.of):
        raise StaleError(
            f'The calibration is of {theirs.of} of {theirs.model}, and {field.path} of {plan.of} of '
            f'{field.marker.model}; calibrate a field of that model.'
        )
    contrasting = None
    if leave_out is not None:
        contrasting = ensemble(prompt_vectors(model.embed_texts, contrasting_words(), content.templates))
    calibration = calibrate(places, question_of(classes), field.sample(), contrasting, leave_out or 0)
    console.log(_described(calibration))
    return calibration


def _described(calibration: Calibration) -> str:
    if not calibration.photos:
        return f'temperature {calibration.temperature:g}; the probabilities are not calibrated'
    none = ''
    if calibration.contrast is not None:
        none = f'; "none of these" against {len(calibration.contrast.vectors)} contrasting words'
    return (
        f'probabilities calibrated on {calibration.photos:,} held-out photos (temperature '
        f'{calibration.temperature:.3g}, strength of the photo prior {calibration.prior:.2f}){none}'
    )
