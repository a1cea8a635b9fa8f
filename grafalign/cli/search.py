"""Commands that index satellite images and search among them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from grafalign.cli.app import Json, Processes, Workers, app, show
from grafalign.errors import InputError

Clip = Annotated[str | None, typer.Option('--clip', help='CLIP of a GRAFT checkpoint, or of a run whose CLIP moved.')]


@app.command()
def index(
    source: Annotated[
        str, typer.Argument(help='Pair store, field, scene (GeoTIFF, STAC item), or folder of pictures.')
    ],
    out: Annotated[Path, typer.Argument(help='Folder of the index; one that is there is brought up to date.')],
    model: Annotated[
        str | None, typer.Option(help='Run, export, open_clip NAME:TAG or NAME:FILE, transformers folder, GRAFT .ckpt.')
    ] = None,
    clip: Clip = None,
    recall: Annotated[
        float | None, typer.Option(help='Share of the true nearest that a search must find; 0.99 for a new index.')
    ] = None,
    kind: Annotated[str | None, typer.Option(help='exact, ivf, ivfpq or hnsw; by size and memory otherwise.')] = None,
    memory_gb: Annotated[
        float | None, typer.Option(help='Memory that the approximate index may take.', min=0.001, max=1e6)
    ] = None,
    fit: Annotated[str, typer.Option(help='resize, or pad with zeros.')] = 'resize',
    bands: Annotated[str | None, typer.Option(help='Names of the bands of pictures: red,green,blue,nir.')] = None,
    value_range: Annotated[
        tuple[float, float] | None, typer.Option(help='Values that become black and white, for other than 8 bits.')
    ] = None,
    remove: Annotated[
        list[str] | None,
        typer.Option(
            help='Take an item of SOURCE out by its id; the next index of SOURCE brings it back if it is still there.'
        ),
    ] = None,
    workers: Workers = None,
    processes: Processes = None,
    as_json: Json = False,
) -> None:
    """Index satellite images, so that words, pictures and places find them.

    A scene becomes a field first, which is kept in OUT.field; its tiles are indexed.

    Example: grafalign index runs/pairs runs/index --model runs/image

    Example: grafalign index scene.tif runs/index --model runs/patch

    Example: grafalign index runs/pairs runs/index --remove 32633_500000_5250000
    """
    from grafalign.cli.maps import make_scene_field
    from grafalign.errors import naming_full_disk
    from grafalign.fields import FieldOptions
    from grafalign.fields.source import is_scene
    from grafalign.launch import launch
    from grafalign.locks import exclusive
    from grafalign.models import load_model
    from grafalign.search import Catalog, build_index

    if remove:
        Catalog(out)  # that it is there
        with exclusive(out), naming_full_disk(out):
            catalog = Catalog(out)
            name = source if '://' in source else str(Path(source).resolve())
            gone = catalog.remove(catalog.rows_of(remove, name))
        show({'removed': gone, 'items': len(catalog)}, str(out), as_json)
        return
    if model is None:
        raise InputError('--model is missing; give the model that embeds the images, such as runs/image.')
    kinds = ('exact', 'ivf', 'ivfpq', 'hnsw')
    if kind not in (None, *kinds):
        raise InputError(f'There is no kind of index {kind!r}; give one of {", ".join(kinds)}.')
    if fit not in ('resize', 'pad'):
        raise InputError(f'There is no --fit {fit!r}; give resize or pad.')
    launch(processes)
    if is_scene(source):
        folder = out.with_name(f'{out.name}.field')
        names = None if bands is None else tuple(bands.split(','))
        make_scene_field(source, folder, model, clip, FieldOptions(bands=names, value_range=value_range))
        source, bands, value_range = str(folder), None, None
    catalog = build_index(
        source,
        out,
        load_model(model, clip),
        model,
        recall=recall,
        kind=kind,  # type: ignore[arg-type]
        most_bytes=None if memory_gb is None else int(memory_gb * 1e9),
        fit=fit,  # type: ignore[arg-type]
        bands=None if bands is None else tuple(bands.split(',')),
        value_range=value_range,
        workers=workers,
        clip=clip,
    )
    summary: dict[str, Any] = {'items': len(catalog), 'kind': 'exact', 'bytes': sum(catalog.marker.files.values())}
    ann = catalog.marker.ann
    if ann is not None:
        summary |= {'kind': ann.kind, **{f'recall@{e.k}': e.recall for e in ann.search_parameters}}
    show(summary, str(out), as_json)


@app.command('export-index')
def export_index(
    index: Annotated[Path, typer.Argument(help='Folder of an index.')],
    out: Annotated[Path, typer.Argument(help='The GeoParquet file to write.')],
    as_json: Json = False,
) -> None:
    """Write items and vectors as GeoParquet, which LanceDB, DuckDB, Qdrant, Milvus and others load.

    Example: grafalign export-index runs/index tiles.parquet
    """
    from grafalign.search import Catalog
    from grafalign.search.parquet import write_parquet

    catalog = Catalog(index)
    count = write_parquet(catalog, out)
    show({'items': count, 'dimensions': catalog.width, 'bytes': out.stat().st_size}, str(out), as_json)


@app.command()
def search(
    index: Annotated[Path, typer.Argument(help='Folder of an index.')],
    words: Annotated[
        list[str] | None,
        typer.Argument(help='Further indexes, if any; then what to look for, each a query. Signs: harbour -ships.'),
    ] = None,
    image: Annotated[list[Path] | None, typer.Option(help='Look for what looks like this picture.')] = None,
    lonlat: Annotated[
        tuple[float, float] | None, typer.Option(help='Look for what looks like this place: longitude latitude.')
    ] = None,
    queries: Annotated[Path | None, typer.Option(help='A file with one text a line.')] = None,
    tuned: Annotated[
        Path | None, typer.Option(help='The words are classes of this words.npz (`grafalign tune-words`).')
    ] = None,
    k: Annotated[int, typer.Option('-k', help='Answers to each query.')] = 10,
    bbox: Annotated[
        tuple[float, float, float, float] | None, typer.Option(help='Only within west south east north (degrees).')
    ] = None,
    region: Annotated[Path | None, typer.Option(help='Only within these shapes (GeoJSON, GeoParquet ...).')] = None,
    begin: Annotated[str | None, typer.Option('--from', help='Only of this day (or time, UTC) or later.')] = None,
    end: Annotated[str | None, typer.Option('--to', help='Only before this day (or time, UTC).')] = None,
    out: Annotated[list[Path] | None, typer.Option(help='Write .html, .geojson, .parquet or .csv.')] = None,
    model: Annotated[str | None, typer.Option(help='Where the model of the index is now, if it moved.')] = None,
    clip: Clip = None,
    processes: Processes = None,
    as_json: Json = False,
) -> None:
    """Find satellite images by words, a picture or a place. Several indexes of one model answer as one.

    Example: grafalign search runs/index "a harbour with sailing boats" --out harbours.html

    Example: grafalign search runs/italy runs/austria vineyard -k 20

    Example: grafalign search runs/index --lonlat 11.3 44.1 --bbox 11 44 12 45 --from 2023-05-01 --out similar.geojson
    """
    import itertools

    import shapely

    from grafalign import console
    from grafalign.launch import launch
    from grafalign.processes import this_team
    from grafalign.search import Catalog, Query
    from grafalign.search import search as run
    from grafalign.search.page import check_format, plain, write_answers
    from grafalign.search.query import read_region
    from grafalign.search.sources import box_of

    for path in out or ():
        check_format(path)
    further = list(itertools.takewhile(_is_index, words or ()))
    texts = [*(words or ())[len(further) :], *(_lines(queries) if queries is not None else ())]
    if tuned is None:
        query_list = [Query(text=text) for text in texts]
    else:
        from grafalign.maps import load_tuned

        moved = load_tuned(tuned)
        query_list = [Query(text=text, vector=moved.unit_vector(text)) for text in texts]
    query_list += [Query(image=path) for path in image or ()]
    query_list += [Query(lonlat=lonlat)] if lonlat is not None else []
    catalogs = [Catalog(path) for path in (index, *map(Path, further))]
    catalog = catalogs[0]
    if tuned is not None:
        catalog.check_model(moved.about.model_digest, moved.about.model)
    shape = None
    if bbox is not None:
        west, south, east, north = bbox
        if not (south < north and west != east and -180 <= west <= 180 and -180 <= east <= 180):
            raise InputError(f'--bbox {" ".join(f"{v:g}" for v in bbox)} is no box; give west south east north.')
        shape = box_of(west, south, east, north)
    if region is not None:
        found = read_region(region)
        shape = found if shape is None else shapely.intersection(shape, found)
    if processes is not None:  # a few queries are answered before several processes have begun
        launch(processes)
    team = this_team()
    answers = run(
        catalogs if further else catalog,
        query_list,
        k,
        model=_given_model(catalog, model, clip),
        region=shape,
        begin=_time(begin, '--from'),
        end=_time(end, '--to'),
        team=team,
    )
    if not team.first:
        return
    for path in out or ():
        write_answers(answers, catalogs, path)
    if as_json:
        print(plain(answers).to_json(drop_id=True))
        return
    for _, part in plain(answers).groupby('number', sort=False):
        places = part.geometry.representative_point()
        rows = [
            (
                str(a.rank),
                f'{a.score:.3f}',
                a.item_id,
                a.datetime[:10] if isinstance(a.datetime, str) else '',
                f'{p.x:.4f}, {p.y:.4f}' if p is not None else '',
            )
            for a, p in zip(part.itertuples(), places, strict=True)
        ]
        console.table(str(part['query'].iloc[0]), ('', 'score', 'item', 'date', 'longitude, latitude'), rows)
    if len(answers) < k * len(query_list):
        console.log(
            f'Only {len(answers):,} of {k * len(query_list):,} answers: the index has no more items that are allowed.'
        )
    for path in out or ():
        console.log(str(path))


def _is_index(word: str) -> bool:
    """Whether a word of the command is an index and no query."""
    from grafalign.search.catalog import MARKER

    return (Path(word) / MARKER).is_file()


def _given_model(catalog: Any, model: str | None, clip: str | None) -> Any:
    """The model, where the command names it or its CLIP; None to take what the index says."""
    from grafalign.models import load_model

    if model is None and clip is None:
        return None
    made = catalog.marker.model
    return load_model(model or made.spec, clip or made.clip)


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding='utf-8-sig').splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f'{path} cannot be read ({error}); give a text file with one query a line.') from None
    found = [line for line in lines if line]
    if not found:
        raise InputError(f'{path} holds no query; write one a line.')
    return found


def _time(text: str | None, name: str) -> Any:
    from datetime import datetime

    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
        if not 1700 < found.year < 2200:
            raise ValueError
        return found
    except ValueError:
        raise InputError(f'{name} {text} is no date; write 2023-05-01 or 2023-05-01T10:00:00Z.') from None
