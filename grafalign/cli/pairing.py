"""Commands that make worlds, pairs and photo embeddings."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from grafalign.cli.app import Json, Pretrained, Processes, Set, Workers, app, show
from grafalign.errors import DamagedError, InputError


@app.command()
def sandbox(
    out: Annotated[Path, typer.Argument(help='Folder to write the world to.')],
    seed: Annotated[int, typer.Option(help='Seed of the world.', min=0)] = 0,
    photos: Annotated[int, typer.Option(help='Number of photos.', min=1)] = 36_000,
    rows: Annotated[int, typer.Option(help='Height in cells of 5 m, a multiple of 16.')] = 3072,
    cols: Annotated[int, typer.Option(help='Width in cells of 5 m, a multiple of 16.')] = 3840,
    tints: Annotated[int, typer.Option(help='Colours of the land, up to 9; each makes 24 more kinds of land.')] = 1,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Write a small made-up world: scenes, photos and their truth.

    Example: grafalign sandbox runs/sandbox --seed 0
    """
    from grafalign.sandbox.world import SandboxSettings, make_sandbox

    made = make_sandbox(out, SandboxSettings(seed, photos, rows, cols, tints), workers)
    show(
        {k: v for k, v in made.items() if k in ('photos', 'scenes', 'objects', 'towns', 'area_km2')}, str(out), as_json
    )


@app.command()
def pair(
    recipe: Annotated[Path, typer.Argument(help='Recipe (YAML); see data_recipes/.')],
    store: Annotated[str | None, typer.Argument(help='Folder or URL of the pair store.')] = None,
    explain: Annotated[bool, typer.Option(help='Estimate requests, bytes and time, and read no pixel.')] = False,
    map_page: Annotated[Path | None, typer.Option('--map', help='With --explain: write a map page (HTML).')] = None,
    retry_failed: Annotated[bool, typer.Option(help='Of a finished store, try only the tiles that failed.')] = False,
    update: Annotated[
        bool, typer.Option(help='Of a finished store, take in photos and scenes that came since it was made.')
    ] = False,
    changes: Set = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Match photos to scenes, cut the tiles and write a pair store.

    Example: grafalign pair data_recipes/sandbox.yaml runs/pairs

    Example: grafalign pair data_recipes/sandbox.yaml --explain --map runs/map.html
    """
    from grafalign.config import load_settings
    from grafalign.files import place
    from grafalign.pairing import Recipe
    from grafalign.pairing import pair as run

    settings = load_settings(recipe, Recipe, changes or ())
    if explain:
        from grafalign.pairing.explain import explain as estimate
        from grafalign.pairing.explain import show as show_estimate

        result = estimate(settings, None if store is None else place(store), map_page, workers)
        print(json.dumps(result)) if as_json else show_estimate(result, str(recipe))
        return
    if store is None:
        raise InputError('Give the folder or URL of the pair store, or --explain to see what pairing would take.')
    out = place(store)
    summary = run(settings, out, workers, retry_failed=retry_failed, update=update)
    show_summary(summary.model_dump(), store, as_json)


def show_summary(summary: dict[str, Any], store: str, as_json: bool) -> None:
    """Tell the counts of a store, why things were rejected, and of odd pixels."""
    show({k: v for k, v in summary.items() if as_json or k != 'reasons'}, store, as_json)
    if as_json:
        return
    from grafalign import console

    if summary['reasons']:
        console.histogram('rejected', summary['reasons'])
    show_pixels(store)


@app.command('import-pairs')
def import_pairs(
    source: Annotated[Path, typer.Argument(help='Table of pairs (CSV, JSONL, Parquet), or folder of a layout.')],
    store: Annotated[str, typer.Argument(help='Folder of the pair store.')],
    layout: Annotated[str, typer.Option(help='table, cvusa, vigor or university-1652.')] = 'table',
    column: Annotated[
        list[str] | None,
        typer.Option(help="OURS=COLUMN, or OURS='folder/{COLUMN}.jpg'; for photo, tile, lon, lat, place, split, ..."),
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the table's files; its own by default.")] = None,
    ground: Annotated[
        str, typer.Option(help='street, drone or google: the ground side of University-1652.')
    ] = 'street',
    size_px: Annotated[int | None, typer.Option(help="Side of every tile; the pictures' own by default.")] = None,
    gsd: Annotated[float | None, typer.Option(help='Metres a pixel of the pictures, if they do not say.')] = None,
    bands: Annotated[str | None, typer.Option(help='Names of the bands, as red,green,blue,nir.')] = None,
    value_range: Annotated[
        tuple[float, float] | None, typer.Option(help='Values that become black and white; 0 255 for 8 bits.')
    ] = None,
    shares: Annotated[
        tuple[float, float, float] | None, typer.Option(help='Of places in train, val and test; 0.8 0.1 0.1.')
    ] = None,
    seed: Annotated[int, typer.Option(help='Of the draw of places.')] = 0,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Make a pair store of pairs that others made: photos and pictures from above of the same places.

    Whole places go to train, val or test: by the column `split`, else by `place`, else by blocks of land, else by tile.

    Example: grafalign import-pairs pairs.csv runs/pairs --column tile=satellite --size-px 224 --gsd 0.3

    Example: grafalign import-pairs VIGOR runs/vigor --layout vigor --size-px 224
    """
    from grafalign.config import parse_settings
    from grafalign.files import place
    from grafalign.pairing.elsewhere import PairImport
    from grafalign.pairing.elsewhere import import_pairs as run

    named = dict(part.partition('=')[::2] for part in column or ())
    if '' in named.values():
        raise InputError(f'--column {next(k for k, v in named.items() if not v)} is not understood; write OURS=COLUMN.')
    given = {
        'source': source,
        'layout': layout,
        'columns': named,
        'root': root,
        'ground': ground,
        'size_px': size_px,
        'gsd_m': gsd,
        'bands': [band.strip() for band in bands.split(',')] if bands else None,
        'value_range': value_range,
        'seed': seed,
    }
    if shares is not None:
        given['shares'] = dict(zip(('train', 'val', 'test'), shares, strict=True))
    out = place(store)
    if not isinstance(out, Path):
        raise InputError(f'{store} is a URL, and pairs are imported to a local folder; give one, and copy it there.')
    summary = run(parse_settings(given, PairImport, 'import-pairs'), out, workers)
    show_summary(summary.model_dump(), store, as_json)


def show_pixels(path: Any) -> None:
    """Tell the shares of odd numbers among a store's pixels, by scene where they are remarkable."""
    from grafalign import console
    from grafalign.pairing.pixel_shares import HEADER, table_rows
    from grafalign.store import PairStore

    console.table('pixels', HEADER, table_rows(PairStore(path).tiles))


@app.command()
def check(
    store: Annotated[str, typer.Argument(help='Folder or URL of a pair store, or folder of an index or a field.')],
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Verify a pair store (digests, counts, bounds, splits, every tile), an index or a field. Exit code 4 if damaged.

    Example: grafalign check runs/pairs
    """
    from grafalign.pairing.check import check_store
    from grafalign.store import PairStore

    if (Path(store) / 'index.json').is_file():
        from grafalign.search.check import check_index

        findings, what = check_index(Path(store)), 'index'
    elif (Path(store) / 'field.json').is_file():
        from grafalign.fields.check import check_field

        findings, what = check_field(Path(store)), 'field'
    else:
        findings, what = check_store(PairStore(store), workers), 'store'
    bad = [f for f in findings if f.problems]
    if as_json:
        print(json.dumps({'ok': not bad, 'checks': [asdict(f) for f in findings]}))
    else:
        from grafalign import console

        console.table(store, ('check', 'looked at', ''), [_finding_row(f) for f in findings])
        if what == 'store':
            show_pixels(store)
        for finding in bad:
            for problem in finding.problems[:20]:
                console.log(f'{finding.check}: {problem}')
            if len(finding.problems) > 20:
                console.log(f'{finding.check}: and {len(finding.problems) - 20} more')
    if bad:
        raise DamagedError(
            f'{store} is damaged ({", ".join(f.check for f in bad)}); {_AGAIN[what]} into an empty folder, or copy the '
            'damaged files from where they are whole.'
        )


_AGAIN = {'store': 'pair again', 'index': 'index again', 'field': 'make the field again'}


def _finding_row(finding: Any) -> tuple[str, str, str]:
    many = len(finding.problems)
    return finding.check, f'{finding.looked_at:,}', f'{many} problem{"s" * (many > 1)}' if many else 'ok'


@app.command()
def embed(
    store: Annotated[str, typer.Argument(help='Pair store, or caption set.')],
    model: Annotated[str, typer.Option(help='open_clip name or folder, e.g. ViT-B-16.')],
    pretrained: Pretrained = None,
    out: Annotated[
        Path | None, typer.Option(help="The bank's folder; STORE/bank by default. A set's is always SET/bank.")
    ] = None,
    retry_failed: Annotated[bool, typer.Option(help='Try only photos that failed for now.')] = False,
    workers: Workers = None,
    processes: Processes = None,
    as_json: Json = False,
) -> None:
    """Embed all photos of a store, or all texts of a caption set, once with the frozen CLIP.

    Photos on URLs are fetched and not kept. On several machines that share the folder: accelerate launch -m
    grafalign embed STORE ...

    Example: grafalign embed runs/pairs --model ViT-B-16 --pretrained openai

    Example: grafalign embed sets/web --model ViT-B-16 --pretrained openai
    """
    from grafalign.captions.caption_set import CaptionSet, is_caption_set
    from grafalign.encoders import ClipSettings, best_device, embed_texts, load_clip
    from grafalign.encoders import embed as run
    from grafalign.launch import launch
    from grafalign.store import PairStore

    launch(processes)
    clip = load_clip(ClipSettings(model=model, pretrained=pretrained), best_device())
    if is_caption_set(store):
        texts = embed_texts(CaptionSet(store), clip)
        summary = {'captions': len(texts.numbers), 'texts': texts.marker.texts, 'cut': texts.marker.cut}
        show(summary | {'dimensions': texts.embeddings.shape[1]}, str(texts.path), as_json)
        return
    bank = run(PairStore(store), clip, out, workers, retry_failed=retry_failed)
    rows, width = bank.embeddings.shape
    failed = int(bank.photos['reason'].notna().sum())
    show({'photos': rows, 'unreadable': failed, 'dimensions': width}, str(out or f'{store}/bank'), as_json)


@app.command('import-bank')
def import_bank(
    store: Annotated[Path, typer.Argument(help='Pair store.')],
    embeddings: Annotated[Path, typer.Argument(help='Folder of clip-retrieval, .npz (embeddings, ids) or .parquet.')],
    model: Annotated[str, typer.Option(help='The CLIP that made them: open_clip name or folder.')],
    pretrained: Pretrained = None,
    id_column: Annotated[
        str | None, typer.Option(help='Column of ids in Parquet files: of photos, or their addresses or file names.')
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The bank's folder; STORE/bank by default.")] = None,
    unchecked: Annotated[
        bool, typer.Option('--unchecked', help='Take them even where no photo can be read to compare.')
    ] = False,
    as_json: Json = False,
) -> None:
    """Take photo embeddings that were made elsewhere as the bank of a store; a few photos are embedded to compare.

    Photos without a row are left to `grafalign embed STORE --retry-failed`, which embeds them alone.

    Example: grafalign import-bank runs/pairs embeddings --model ViT-B-32 --pretrained openai
    """
    from grafalign.encoders import ClipSettings, best_device, load_clip
    from grafalign.encoders import import_bank as run
    from grafalign.store import PairStore

    clip = load_clip(ClipSettings(model=model, pretrained=pretrained), best_device())
    made = run(PairStore(store), embeddings, clip, out, id_column, unchecked)
    names = {
        'photos': 'photos',
        'matched': 'matched',
        'missing': 'without a row',
        'unusable': 'rows that are no vectors',
        'others': 'rows of other photos',
        'cosine': 'cosine with embeddings made here',
    }
    summary = {key if as_json else label: getattr(made, key) for key, label in names.items()}
    show(summary, str(out or store / 'bank'), as_json)


@app.command('filter')
def filter_photos(
    store: Annotated[str, typer.Argument(help='Pair store with a photo bank.')],
    model: Annotated[str, typer.Option(help='The CLIP of the bank: open_clip name or folder.')],
    pretrained: Pretrained = None,
    filters: Annotated[
        Path | None, typer.Option(help='Settings (YAML): prompts, threshold, off; see encoders/content.py.')
    ] = None,
    bank: Annotated[Path | None, typer.Option(help="The bank's folder; STORE/bank by default.")] = None,
    changes: Set = None,
    as_json: Json = False,
) -> None:
    """Leave out photos that show no place (indoor, food, portraits, screens, night, aerial), as CLIP sees them.

    No photo is read again; run it with other prompts or thresholds as often as you like.

    Example: grafalign filter runs/pairs --model ViT-B-16 --pretrained openai --set threshold=0.7
    """
    from grafalign import console
    from grafalign.config import apply_change, load_settings, parse_settings
    from grafalign.encoders import ClipSettings, ContentFilters, filter_bank, load_clip
    from grafalign.processes import this_team
    from grafalign.store import PairStore

    if not this_team().first:
        return  # what the bank holds is compared with a few words: seconds, whoever does it
    if filters is not None:
        settings = load_settings(filters, ContentFilters, changes or ())
    else:
        content: dict[str, Any] = {}
        for change in changes or ():
            apply_change(content, change)
        settings = parse_settings(content, ContentFilters, '--set')
    pair_store = PairStore(store)
    counts = filter_bank(pair_store, load_clip(ClipSettings(model=model, pretrained=pretrained)), settings, bank)
    if as_json:
        print(json.dumps({'photos': len(pair_store.photos), 'left_out': counts}))
    elif counts:
        console.histogram(f'left out of {len(pair_store.photos):,} photos', counts)
    else:
        console.log(f'All {len(pair_store.photos):,} photos are kept.')
