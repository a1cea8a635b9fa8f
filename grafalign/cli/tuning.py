"""Commands by which a person's own points enter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from grafalign.cli.app import Json, app, show
from grafalign.errors import InputError


@app.command('tune-words')
def tune_words(
    field: Annotated[Path, typer.Argument(help='Field that shows the points.')],
    points: Annotated[Path, typer.Argument(help='Points with the names of their classes (GeoJSON, GeoPackage ...).')],
    out: Annotated[Path, typer.Option(help='The tuned words, .npz: give them wherever words are.')],
    words: Annotated[
        list[str] | None, typer.Option(help="Classes, or classes.yaml; the points' own names by default.")
    ] = None,
    column: Annotated[str, typer.Option(help="Property that names a point's class.")] = 'class',
    seed: Annotated[int, typer.Option(help='Of the land that stands for the scene.', min=0)] = 0,
    model: Annotated[str | None, typer.Option(help="Where the field's model is now, if it moved.")] = None,
    clip: Annotated[str | None, typer.Option('--clip', help='CLIP of a GRAFT checkpoint, if it moved.')] = None,
    as_json: Json = False,
) -> None:
    """Move words towards a few points of each class, in seconds.

    Example: grafalign tune-words runs/field points.geojson --out words.npz

    Example: grafalign map runs/field --words words.npz --out map.tif
    """
    from grafalign.errors import naming_full_disk
    from grafalign.fields import open_field
    from grafalign.maps import embed_classes, load_classes, read_points
    from grafalign.maps import tune_words as tune
    from grafalign.models import load_model

    if out.suffix.lower() != '.npz':
        raise InputError(f'--out {out} is no .npz; give a name that ends in .npz.')
    given = read_points(points, column)
    content = load_classes(words or list(dict.fromkeys(given.names)))
    source = open_field(field)
    loaded = load_model(model or source.marker.model, clip)
    source.check_model(loaded.digest, loaded.name)
    with naming_full_disk(out):
        tuned = tune(source, embed_classes(content, loaded.embed_texts), given, out, seed)
    about = tuned.about
    show(
        {
            **{f'points of {c.name}': c.points for c in about.classes},
            'right by the words': about.right_by_words,
            'right when left out': about.right,
            'the words count as points': about.weight,
        },
        str(out),
        as_json,
    )
