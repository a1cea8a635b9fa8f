"""Commands that make fields of scenes, and maps of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from grafalign.cli.app import Json, Processes, Workers, app, show
from grafalign.errors import InputError

Scene = Annotated[
    str,
    typer.Argument(help='GeoTIFF (path or URL), folder of them, STAC item file, or YAML with `scenes:` and `bbox:`.'),
]
Clip = Annotated[str | None, typer.Option('--clip', help='CLIP of a GRAFT checkpoint, or of a run whose CLIP moved.')]
Kind = Annotated[str | None, typer.Option('--of', help="patches, smooth or windows; the model's own by default.")]
Overlap = Annotated[float | None, typer.Option(help='How often an average pixel is encoded; 4, and 16 for windows.')]
Stride = Annotated[int | None, typer.Option(help='Pixels from window to window, in place of --overlap.', min=1)]
Bands = Annotated[str | None, typer.Option(help="The scene's bands in the model's order: red,green,blue.")]
ValueRange = Annotated[
    tuple[float, float] | None,
    typer.Option(help='Physical values that become black and white, if the model says none.'),
]
Batch = Annotated[int, typer.Option(help='Windows that are encoded at a time.', min=1)]
EngineKind = Annotated[
    str | None, typer.Option(help='Share the work: threads, processes, or dask; one process by default.')
]
Scheduler = Annotated[str | None, typer.Option(help='Address of a running Dask scheduler, tcp://HOST:PORT.')]
AnyGsd = Annotated[bool, typer.Option('--any-gsd', help="Resample by more than a factor of two to the model's pixels.")]


@app.command()
def field(
    scene: Scene,
    out: Annotated[Path, typer.Argument(help='Folder of the field; one that was begun is gone on with.')],
    model: Annotated[str, typer.Option(help='Run, export, open_clip NAME:TAG or NAME:FILE, GRAFT .ckpt.')],
    of: Kind = None,
    overlap: Overlap = None,
    stride: Stride = None,
    bands: Bands = None,
    value_range: ValueRange = None,
    numbers: Annotated[str, typer.Option(help='float16, or int8 for half the bytes; the error is stated.')] = 'float16',
    batch: Batch = 32,
    any_gsd: AnyGsd = False,
    like: Annotated[
        Path | None, typer.Option(help='Field of another date on whose grid this one is made, for `grafalign change`.')
    ] = None,
    clip: Clip = None,
    engine: EngineKind = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    processes: Processes = None,
    as_json: Json = False,
) -> None:
    """Encode a scene once, so that any words can be asked for.

    On several machines that share the folder: accelerate launch -m grafalign field SCENE ...

    Example: grafalign field scene.tif runs/field --model runs/patch

    Example: grafalign field scene.tif runs/field --model runs/patch --engine processes --workers 8

    Example: grafalign field scene_2024.tif runs/field_2024 --model runs/patch --like runs/field

    Example: grafalign map runs/field --words forest,water,town --out map.tif
    """
    from dataclasses import replace

    from grafalign.launch import launch

    if engine is None:
        launch(processes)
    elif processes is not None:
        raise InputError('--processes and --engine say the same; give one of them.')
    if like is not None and (of, overlap, stride) != (None, None, None):
        raise InputError('--like takes --of, --overlap and --stride from the other field; leave them out.')
    options = field_options(of, overlap, stride, bands, value_range, numbers, batch, any_gsd)
    options = replace(options, like=None if like is None else str(like))
    marker = make_scene_field(scene, out, model, clip, options, engine, workers, scheduler)
    summary = {
        'cells': f'{marker.plan.height // marker.plan.cell} x {marker.plan.width // marker.plan.cell}',
        'cell_m': marker.plan.cell * marker.plan.pixel_m,
        'windows': marker.windows,
        'missing': marker.missing,
        'unreadable_pieces': sum(marker.failed.values()),
        'largest_error': float(f'{marker.error:.2g}'),
        'bytes': sum((out / name).stat().st_size for name in marker.files),
    }
    show(summary, str(out), as_json)


@app.command('map')
def map_(
    scene: Annotated[str, typer.Argument(help='Field, or a scene as `grafalign field` takes it.')],
    words: Annotated[
        list[str], typer.Option(help='Classes, separated by commas, classes.yaml, or words.npz of `tune-words`.')
    ],
    out: Annotated[Path, typer.Option(help='The class map, a COG; .json (STAC) and .html go beside it.')],
    model: Annotated[str | None, typer.Option(help="The model; a field's own by default.")] = None,
    keep_field: Annotated[
        Path | None, typer.Option('--field', help='Keep the field of the scene in this folder.')
    ] = None,
    polygons: Annotated[Path | None, typer.Option(help='Also write polygons (GeoParquet).')] = None,
    min_area: Annotated[float, typer.Option(help='Smallest polygon, in square metres.', min=0)] = 0.0,
    scores: Annotated[
        Path | None, typer.Option(help='Also write one band of scores a class (COG, a pixel a cell).')
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Probabilities are softmax(scores / temperature); the model's own by default.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help='Folder of `grafalign calibrate`, for probabilities that can be relied on.')
    ] = None,
    leave_out: Annotated[
        float | None,
        typer.Option(
            help='Leave out pixels that are none of the classes, and with them about this share of those that are one.',
            min=0,
            max=0.5,
        ),
    ] = None,
    refine: Annotated[
        str,
        typer.Option(
            help='Outlines that follow the pixels of the scene: guided, superpixels, or sam; none by default.'
        ),
    ] = 'none',
    sam: Annotated[
        str | None, typer.Option(help='For --refine sam: folder or hub name of SAM, SAM 2 or SAM 3 (transformers).')
    ] = None,
    pixels: Annotated[
        str | None, typer.Option('--scene', help='For --refine: the scene that a FIELD was made of.')
    ] = None,
    of: Kind = None,
    overlap: Overlap = None,
    stride: Stride = None,
    bands: Bands = None,
    value_range: ValueRange = None,
    batch: Batch = 32,
    any_gsd: AnyGsd = False,
    clip: Clip = None,
    processes: Processes = None,
    as_json: Json = False,
) -> None:
    """Map a scene by words: class map, confidence, polygons, STAC item and a page.

    Example: grafalign map scene.tif --model runs/patch --words classes.yaml --out map.tif --polygons map.parquet

    Example: grafalign map runs/field --words forest,water,town --out map.tif

    Example: grafalign map runs/field --words forest,water --out map.tif --calibration runs/calibration --leave-out 0.05
    """
    import contextlib
    import shutil

    from grafalign.calibration import open_places
    from grafalign.errors import naming_full_disk
    from grafalign.fields import open_field
    from grafalign.fields.source import scene_rows
    from grafalign.launch import launch
    from grafalign.maps import MapFiles, TunedWords, load_words, write_map
    from grafalign.maps.outlines import outlines_of
    from grafalign.maps.sam import Sam
    from grafalign.models import load_model
    from grafalign.models.thumbnails import shown_bands
    from grafalign.processes import this_team

    if out.suffix.lower() not in ('.tif', '.tiff'):
        raise InputError(f'--out {out} is no GeoTIFF; give a name that ends in .tif.')
    content = load_words(words)  # before hours of encoding
    if calibration is not None and temperature is not None:
        raise InputError('--calibration fits the temperature; leave out --temperature.')
    if refine not in ('none', 'guided', 'superpixels', 'sam'):
        raise InputError(f'There is no --refine {refine!r}; give none, guided, superpixels or sam.')
    if refine == 'none' and pixels is not None:
        raise InputError(f'--scene {pixels} is only for --refine; give --refine guided, superpixels or sam.')
    if (refine == 'sam') != (sam is not None):
        raise InputError('--refine sam and --sam FOLDER go together; give both, or none of them.')
    things = [] if isinstance(content, TunedWords) else [i for i, c in enumerate(content.classes) if c.thing]
    if sam is not None and not things:
        raise InputError('--refine sam outlines things, and no class is one; write `thing: true` into classes.yaml.')
    is_field = holds_field(scene)
    if not is_field:
        launch(processes)
    segmenter = None if sam is None else Sam.load(sam)
    places = None if calibration is None else open_places(calibration)
    for_scenes = {'--of': of, '--overlap': overlap, '--stride': stride, '--bands': bands, '--value-range': value_range}
    given = next((name for name, value in for_scenes.items() if value is not None), None)
    if is_field and given is not None:
        raise InputError(f'{given} is for scenes, and {scene} is a field already; leave it out, or give the scene.')
    if refine != 'none' and pixels is None and is_field:
        raise InputError(
            f'--refine {refine} needs the pixels of {scene}; give the scene that it was made of by --scene.'
        )
    options = field_options(of, overlap, stride, bands, value_range, 'float16', batch, any_gsd)
    folder = field_of(scene, keep_field or temporary_field(out, scene, model, options), model, clip, options)
    if not this_team().first:  # the field was for all, the map is for one
        return
    source = open_field(folder)
    loaded = load_model(model or source.marker.model, clip)
    source.check_model(loaded.digest, loaded.name)
    files = MapFiles(out, out.with_name(f'{out.stem}_confidence{out.suffix}'), scores, polygons)
    with contextlib.ExitStack() as stack:
        stack.enter_context(naming_full_disk(out))
        outlines = None
        if refine != 'none':
            rows = stack.enter_context(contextlib.closing(scene_rows(source, pixels or scene, loaded)))
            outlines = outlines_of(
                refine,  # type: ignore[arg-type]
                rows,
                source.plan.cell,
                sam=segmenter,
                things=things,
                colours=shown_bands(source.plan.bands),
            )
        summary = write_map(
            source,
            content,
            loaded,
            files,
            temperature=temperature,
            places=places,
            leave_out=leave_out,
            min_area_m2=min_area,
            outlines=outlines,
        )
    if not is_field and keep_field is None:
        shutil.rmtree(folder)
    result: dict[str, Any] = {'map': str(out), **{f'share of {n}': round(s, 4) for n, s in summary.shares.items()}}
    show({**result, 'pixels without class': summary.missing}, str(out), as_json)


@app.command()
def change(
    before: Annotated[Path, typer.Argument(help='Field of the first date.')],
    after: Annotated[Path, typer.Argument(help='Field of the second date, made with --like BEFORE.')],
    words: Annotated[list[str], typer.Option(help='Words, separated by commas, classes.yaml, or words.npz.')],
    out: Annotated[Path, typer.Option(help='Folder for the rasters, polygons, change.json and change.html.')],
    unchanged: Annotated[
        list[str] | None,
        typer.Option(help='FIELD,FIELD: two fields between which nothing changed, such as of one week; repeatable.'),
    ] = None,
    false_alarms: Annotated[
        float,
        typer.Option(help='Share of unchanged land that may be called changed, for each word.', min=1e-6, max=0.5),
    ] = 0.001,
    min_area: Annotated[float, typer.Option(help='Smallest polygon, in square metres.', min=0)] = 0.0,
    model: Annotated[str | None, typer.Option(help="Where the fields' model is now, if it moved.")] = None,
    clip: Clip = None,
    as_json: Json = False,
) -> None:
    """Show where words have come and gone between two dates: signed rasters, polygons of gain and loss, and a page.

    Example: grafalign field scene_2024.tif runs/field_2024 --model runs/patch --like runs/field

    Example: grafalign change runs/field runs/field_2024 --words forest,suburb,quarry --out runs/change
    """
    from grafalign.errors import naming_full_disk
    from grafalign.fields import open_field
    from grafalign.maps import load_words
    from grafalign.maps.change_files import write_change
    from grafalign.models import load_model

    content = load_words(words)
    first, second = open_field(before), open_field(after)
    pairs = []
    for text in unchanged or ():
        paths = text.split(',')
        if len(paths) != 2:
            raise InputError(f'--unchanged {text} names {len(paths)} fields; give two with a comma between them.')
        pairs.append((open_field(Path(paths[0])), open_field(Path(paths[1]))))
    loaded = load_model(model or first.marker.model, clip)
    first.check_model(loaded.digest, loaded.name)
    with naming_full_disk(out):
        changes = write_change(
            first, second, content, loaded, out, pairs, false_alarms=false_alarms, min_area_m2=min_area
        )
    areas = {c.word: {'gain km²': round(c.gain_km2, 4), 'loss km²': round(c.loss_km2, 4)} for c in changes}
    show(areas, str(out), as_json)


@app.command()
def calibrate(
    fields: Annotated[list[Path], typer.Argument(help='Fields of one model, over land where photos were held out.')],
    store: Annotated[Path, typer.Option(help='Pair store with those photos, and its photo bank.')],
    out: Annotated[Path, typer.Option(help='Folder to write, for `grafalign map --calibration`.')],
    bank: Annotated[Path | None, typer.Option(help="The photo bank; the store's own by default.")] = None,
    seed: Annotated[int, typer.Option(help='Of the points at which photos look.', min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Collect held-out photos on fields, so that maps say how sure they are. No label is needed.

    Example: grafalign calibrate runs/field --store runs/pairs --out runs/calibration
    """
    from grafalign.calibration import collect_places
    from grafalign.encoders import load_bank
    from grafalign.fields import open_field
    from grafalign.store import PairStore

    opened = PairStore(store)
    marker = collect_places([open_field(path) for path in fields], opened, load_bank(opened, bank), out, seed)
    show({'photos': marker.photos, 'photos beyond the fields': marker.without}, str(out), as_json)


def field_options(
    of: str | None,
    overlap: float | None,
    stride: int | None,
    bands: str | None,
    value_range: tuple[float, float] | None,
    numbers: str,
    batch: int,
    any_gsd: bool,
) -> Any:
    """What the options of a command say of fields."""
    from grafalign.fields import FieldOptions

    if of not in (None, 'patches', 'windows', 'smooth'):
        raise InputError(f'There is no --of {of!r}; give patches, windows or smooth.')
    if numbers not in ('float16', 'int8'):
        raise InputError(f'There are no --numbers {numbers!r}; give float16 or int8.')
    if overlap is not None and stride is not None:
        raise InputError('--overlap and --stride say the same; give one of them.')
    if value_range is not None and not value_range[0] < value_range[1]:
        raise InputError(f'The value range {value_range[0]:g} {value_range[1]:g} is none; give the smaller first.')
    names = None if bands is None else tuple(bands.split(','))
    return FieldOptions(of, overlap, stride, names, value_range, numbers, batch, any_gsd)  # type: ignore[arg-type]


def holds_field(scene: str) -> bool:
    """Whether it is a field already, and no scene."""
    from grafalign.fields import MARKER

    return '://' not in scene and (Path(scene) / MARKER).is_file()


def temporary_field(out: Path, scene: str, model: str | None, options: Any) -> Path:
    """Where the field of a scene is made that nobody keeps: the same for the same command, so that it goes on."""
    import hashlib

    digest = hashlib.blake2b(repr((scene, model, options)).encode(errors='replace'), digest_size=4).hexdigest()
    where = out.resolve()
    return where.with_name(f'.{where.name}.{digest}.field')


def field_of(scene: str, folder: Path, model: str | None, clip: str | None, options: Any) -> Path:
    """The folder of a field: `scene` itself where it is one, else `folder`, in which it is made now.

    Raises:
        GrafalignError: the scene cannot be used, or there is no model for it.
    """
    if holds_field(scene):
        return Path(scene)
    if model is None:
        raise InputError(f'--model is missing; {scene} is no field, so a model must encode it.')
    make_scene_field(scene, folder, model, clip, options)
    return folder


def make_scene_field(
    scene: str,
    out: Path,
    model: str,
    clip: str | None,
    options: Any,
    kind: str | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
) -> Any:
    """Make a field of a scene as the options of a command say."""
    from grafalign.engine import Engine
    from grafalign.fields import make_field
    from grafalign.fields.sharing import FieldJob, make_field_by_team, make_field_shared
    from grafalign.fields.source import field_input, window_encoder
    from grafalign.models import load_model
    from grafalign.processes import this_team

    if kind not in (None, 'threads', 'processes', 'dask'):
        raise InputError(f'There is no --engine {kind!r}; give threads, processes or dask.')
    if scheduler is not None and kind != 'dask':
        raise InputError(f'--scheduler {scheduler} needs --engine dask.')
    if workers is not None and kind is None:
        raise InputError('--workers needs --engine; give threads, processes or dask.')
    team = this_team()
    job = FieldJob(str(out), scene, model, clip, options)
    if team.count > 1:
        return make_field_by_team(job, team)
    if kind is not None:
        return make_field_shared(job, Engine(kind, workers, scheduler))  # type: ignore[arg-type]
    loaded = load_model(model, clip)
    source = field_input(scene, loaded, options)
    return make_field(out, source, window_encoder(loaded, source.plan), model)
