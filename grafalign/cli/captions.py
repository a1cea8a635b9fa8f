"""Commands for captions: import them, show and pack what is there."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from grafalign.cli.app import Json, Workers, app, show
from grafalign.errors import InputError

captions_app = typer.Typer(
    help='Caption sets: which texts go with which images.',
    no_args_is_help=True,
    context_settings={'help_option_names': ['-h', '--help']},
)
app.add_typer(captions_app, name='captions')

SetFolder = Annotated[Path, typer.Argument(help='Folder of a caption set.')]


def named_columns(given: list[str] | None) -> dict[str, str]:
    """`OURS=THEIRS` pairs of a command line.

    Raises:
        GrafalignError: one has no equals sign.
    """
    pairs = [text.partition('=') for text in given or ()]
    wrong = next((''.join(p) for p in pairs if not p[1] or not p[2]), None)
    if wrong is not None:
        raise InputError(f'--column {wrong} names no column; write OURS=THEIRS, such as text=TEXT.')
    return {ours: theirs for ours, _, theirs in pairs}


@captions_app.command('import')
def import_(
    source: Annotated[
        Path,
        typer.Argument(help='Folder of .tar shards, a table (.parquet, .jsonl, .csv), a caption JSON, a pair store.'),
    ],
    out: Annotated[Path, typer.Argument(help='Folder of the caption set.')],
    form: Annotated[str, typer.Option(help='auto, shards, table, captions or tiles.')] = 'auto',
    images: Annotated[
        Path | None, typer.Option(help="Folder of a table's images; that of the table by default.")
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(help='Name a column: text=TEXT, url=URL, file=PATH, licence=LICENSE ...')
    ] = None,
    kind: Annotated[str | None, typer.Option(help='Who wrote the captions: alt, template, model or human.')] = None,
    licence: Annotated[str | None, typer.Option(help='Licence of images whose source names none.')] = None,
    split: Annotated[str, typer.Option(help='Split of images whose source names none: train, val or test.')] = 'train',
    val: Annotated[
        float, typer.Option(help='Share of the images without a split that go to val.', min=0, max=0.5)
    ] = 0.0,
    min_px: Annotated[int, typer.Option(help='Images with a shorter side are refused.', min=1)] = 16,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Make a caption set; images stay where they are.

    Example: grafalign captions import laion/shards sets/web

    Example: grafalign captions import dataset_rsicd.json sets/rsicd --images RSICD_images
    """
    from grafalign.captions.caption_set import KINDS, SPLITS
    from grafalign.captions.import_set import ImportOptions, import_captions

    forms = ('auto', 'shards', 'table', 'captions', 'tiles')
    if form not in forms:
        raise InputError(f'--form {form} is not known; give one of {", ".join(forms)}.')
    if kind is not None and kind not in KINDS:
        raise InputError(f'--kind {kind} is not known; give one of {", ".join(KINDS)}.')
    if split not in SPLITS:
        raise InputError(f'--split {split} is not known; give one of {", ".join(SPLITS)}.')
    options = ImportOptions(form, images, named_columns(column), kind, licence, split, val, min_px)  # type: ignore[arg-type]
    done = import_captions(source, out, options, workers)
    show(
        {
            'images': done.images,
            'captions': done.captions,
            'distinct captions': done.distinct_captions,
            'rejected': done.rejected,
            'splits': done.splits,
            'reasons': done.reasons,
        },
        str(out),
        as_json,
    )


@captions_app.command('pack')
def pack_(
    captions: SetFolder,
    out: Annotated[Path, typer.Argument(help='Folder of the shards.')],
    per_shard: Annotated[int, typer.Option(help='Images in a shard.', min=1, max=99_999)] = 10_000,
    split: Annotated[str | None, typer.Option(help='Images of this split only.')] = None,
    as_json: Json = False,
) -> None:
    """Copy a caption set into WebDataset shards with a Parquet table beside each.

    Example: grafalign captions pack sets/web shards --split train
    """
    from grafalign.captions import CaptionSet
    from grafalign.captions.pack import pack

    show(asdict(pack(CaptionSet(captions), out, per_shard, split)), str(out), as_json)
