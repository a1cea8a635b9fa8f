"""An answer as files: numbers (answer.json), polygons (evidence.parquet), and a page with a picture (answer.html)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import shapely
from PIL import Image, ImageDraw
from pydantic import BaseModel
from pyproj import CRS, Transformer

from grafalign import __version__
from grafalign.fields import Field
from grafalign.files import make_folder, replacing, write_atomically
from grafalign.maps.geoparquet import polygon_writer
from grafalign.pages import picture_url, render
from grafalign.questions.conventions import Conventions
from grafalign.questions.evaluate import Answer, Step
from grafalign.questions.look import Legend
from grafalign.questions.objects import SceneObjects

COLUMNS = {'number': pa.int32(), 'step': pa.string(), 'area_m2': pa.float64(), 'mean_confidence': pa.float64()}
_LONGEST_PX = 900
_COLOURS = ((230, 85, 13), (49, 130, 189), (227, 74, 160), (255, 217, 47), (49, 163, 84), (117, 107, 177))


def write_evidence(
    out: Path,
    question: str,
    program: BaseModel,
    answer: Answer,
    objects: SceneObjects,
    field: Field,
    legend: Legend,
    conventions: Conventions,
    min_area_m2: float,
) -> None:
    """Write an answer with all that it rests on.

    Args:
        out: folder to write.
        question: as it was asked.
        program: what was run.
        answer: what came out.
        objects: of all its words.
        field: what was asked.
        legend: what its cells were compared with.
        conventions: what sizes and nearness mean.
        min_area_m2: smallest object.
    """
    make_folder(out)
    with replacing(out / 'evidence.parquet') as path, polygon_writer(path, COLUMNS, objects.crs) as writer:
        for number, step in enumerate(answer.steps, start=1):
            if step.rows is not None and len(step.rows):
                columns = {
                    'number': [number] * len(step.rows),
                    'step': [step.text] * len(step.rows),
                    'area_m2': objects.areas_m2[step.rows],
                    'mean_confidence': objects.confidence[step.rows],
                }
                writer.write(columns, objects.shapes[step.rows])
    limits = _limits(field, legend, conventions, objects, min_area_m2)
    content = {
        'question': question,
        'answer': answer.text,
        'value': answer.value,
        'unit': answer.unit,
        'program': program.model_dump(exclude_none=True),
        'steps': [
            {'step': s.text, 'value': s.value, 'unit': s.unit, **({} if s.rows is None else _numbers(s, objects))}
            for s in answer.steps
        ],
        'rests on': limits,
        'grafalign': __version__,
    }
    write_atomically(out / 'answer.json', (json.dumps(content, indent=2) + '\n').encode())
    sets = answer.shown[: len(_COLOURS)]
    page = render(
        'grafalign.questions',
        'answer.html',
        title='Answer',
        question=question,
        answer=answer.text,
        picture=picture_url(draw_objects(field, objects, sets), _LONGEST_PX),
        sets=[
            {'text': s.text, 'count': int(s.value or 0), 'colour': '#{:02x}{:02x}{:02x}'.format(*c)}
            for s, c in zip(sets, _COLOURS, strict=False)
        ],
        steps=[
            {
                'text': s.text,
                'result': conventions.spelled(s.value, s.unit),
                'confidence': _percent(_numbers(s, objects)['mean_confidence']) if s.rows is not None else '',
            }
            for s in answer.steps
        ],
        limits=limits,
        program=json.dumps(content['program'], indent=2),
        made=f'grafalign {__version__}, model {field.marker.model}, field {field.path}',
    )
    write_atomically(out / 'answer.html', page.encode())


def _numbers(step: Step, objects: SceneObjects) -> dict[str, float | None]:
    """Area and confidence of a step's objects."""
    rows = step.rows if step.rows is not None else np.empty(0, np.int64)
    areas, sure = objects.areas_m2[rows], objects.confidence[rows]
    known = ~np.isnan(sure)
    mean = float(np.average(sure[known], weights=areas[known])) if known.any() else None
    return {'area_m2': round(float(areas.sum()), 1), 'mean_confidence': None if mean is None else round(mean, 4)}


def _percent(share: float | None) -> str:
    return '' if share is None else f'{100 * share:.0f} %'


def _limits(
    field: Field, legend: Legend, conventions: Conventions, objects: SceneObjects, min_area_m2: float
) -> Mapping[str, Any]:
    """What would have made another answer."""
    return {
        'field': str(field.path),
        'model': field.marker.model,
        'a pixel is of the word that scores highest, compared with': ', '.join(legend.compared) or 'each other',
        'temperature of confidences': legend.calibration.temperature,
        'smallest object, m²': min_area_m2,
        'conventions': conventions.name,
        'small below, large from, m²': f'{conventions.small_below_m2:g}, {conventions.large_from_m2:g}',
        'next to: nearer than': f'{conventions.near_m:g} ' + ('units of EPSG:3857' if conventions.mercator else 'm'),
        'land seen, km²': round(objects.extent_m2 / 1e6, 4),
    }


def draw_objects(field: Field, objects: SceneObjects, sets: list[Step]) -> Image.Image:
    """The scene, a pixel a cell or smaller, with the objects of some steps filled in lightly and outlined."""
    image = Image.fromarray(field.preview())
    scale = min(8.0, _LONGEST_PX / max(image.size))
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    inverse = ~field.geobox.affine
    transformer = Transformer.from_crs(objects.crs, CRS(str(field.geobox.crs)), always_xy=True)
    per_pixel = scale / field.plan.cell
    for step, colour in zip(sets, _COLOURS, strict=False):
        layer = Image.new('RGBA', image.size)
        draw = ImageDraw.Draw(layer)
        shapes = objects.shapes[step.rows if step.rows is not None else slice(0)]
        for shape in sorted(shapes, key=lambda shape: -shape.envelope.area):  # an island after the one around it
            for number, ring in enumerate((shape.exterior, *shape.interiors)):
                x, y = transformer.transform(*shapely.get_coordinates(ring).T)
                column, row = inverse * (np.asarray(x), np.asarray(y))
                points = list(zip((column * per_pixel).tolist(), (row * per_pixel).tolist(), strict=True))
                draw.polygon(points, fill=(0, 0, 0, 0) if number else (*colour, 90), outline=(*colour, 255), width=2)
        image = Image.alpha_composite(image.convert('RGBA'), layer)
    return image.convert('RGB')
