"""All files of a map, from a field and classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from grafalign import __version__, console
from grafalign.fields import Field
from grafalign.maps.classes import ClassesFile, embed_classes
from grafalign.maps.make import MapSummary, make_map, nodata_of
from grafalign.maps.page import write_page
from grafalign.maps.stac import write_item
from grafalign.models import Model

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
    content: ClassesFile,
    model: Model,
    files: MapFiles,
    *,
    temperature: float | None = None,
    min_area_m2: float = 0.0,
) -> MapSummary:
    """Write a map: rasters, polygons, a STAC item and a page beside them.

    Args:
        field: what is asked.
        content: what for.
        model: the field's model, for its words.
        files: what is written, and where.
        temperature: of the probabilities; the one that the model was trained with by default.
        min_area_m2: smallest polygon.

    Raises:
        GrafalignError: a file cannot be written, or a chunk of the field is damaged.
    """
    classes = embed_classes(content, model.embed_texts)
    temperature = temperature or float(model.metadata.get('tau') or _CLIPS_OWN)
    summary = make_map(field, classes, files.map, temperature, confidence=files.confidence, scores=files.scores)
    if files.polygons is not None:
        from grafalign.maps.polygons import write_polygons

        names = dict(enumerate(classes.names))
        background = [i for i, c in enumerate(classes.classes) if c.background]
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
    write_item(item, field, classes, files.written, nodata_of(len(classes.classes)))
    made = (
        f'grafalign {__version__}, model {field.marker.model}, {field.marker.windows:,} windows of {field.plan.window} '
        f'px with a stride of {field.plan.stride} px, embeddings of {field.plan.of}, temperature {temperature:g}; the '
        'probabilities are not calibrated'
    )
    write_page(page, field, classes, summary, files.written, made)
    return summary
