"""Commands that evaluate models and make tables of results."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from grafalign.cli.app import Json, Processes, Set, Workers, app, show_results
from grafalign.errors import InputError

Clip = Annotated[str | None, typer.Option('--clip', help='CLIP of a GRAFT checkpoint, or of a run whose CLIP moved.')]


@app.command()
def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            help='Runs, exports, open_clip NAME:TAG or NAME:FILE, transformers folders, GRAFT .ckpt, embeddings (.npz, '
            '.parquet); each may be named: mine=runs/image.'
        ),
    ],
    suite: Annotated[str | None, typer.Option(help='scenes, captions, graft, or a YAML file.')] = None,
    data: Annotated[list[str] | None, typer.Option(help='A set instead: NAME:PATH or NAME:PATH@SPLIT.')] = None,
    root: Annotated[Path | None, typer.Option(help='Folder below which the sets of a named suite lie.')] = None,
    out: Annotated[Path, typer.Option(help='Folder of the results and of report.html.')] = Path('runs/evaluation'),
    classes: Annotated[Path | None, typer.Option(help='Class names of the one set, one a line.')] = None,
    partial: Annotated[bool, typer.Option(help='Accept sets that are not whole; results are marked.')] = False,
    clip: Clip = None,
    device: Annotated[str | None, typer.Option(help='cpu or cuda; a GPU where there is one.')] = None,
    changes: Set = None,
    sandbox: Annotated[
        Path | None, typer.Option(help='Instead of sets: a sandbox world, whose truth to use; with --store.')
    ] = None,
    store: Annotated[Path | None, typer.Option(help='The pair store that the runs were trained on.')] = None,
    seed: Annotated[
        int | None, typer.Option(help='Seed of the bootstrap, and of labelled sandbox tiles.', min=0)
    ] = None,
    workers: Workers = None,
    processes: Processes = None,
    bands: Annotated[
        str | None, typer.Option(help='Names of the bands of your own pictures: red,green,blue,nir.')
    ] = None,
    value_range: Annotated[
        tuple[float, float] | None, typer.Option(help='Values of your own pictures that become black and white.')
    ] = None,
    as_json: Json = False,
) -> None:
    """Test models on data sets without training: classification, retrieval, segmentation. What is done is kept.

    Example: grafalign evaluate runs/image ViT-B-32:openai --suite scenes --root data

    Example: grafalign evaluate runs/image --data eurosat:data/EuroSAT_RGB --data masks:data/my_scenes --set fit=pad

    Example: grafalign evaluate runs/image runs/patch --sandbox runs/sandbox --store runs/pairs
    """
    if sandbox is not None:
        _evaluate_sandbox([Path(m) for m in models], sandbox, store, out, seed or 0, as_json)
        return
    from grafalign import console
    from grafalign.benchmarks.page import write_page
    from grafalign.benchmarks.results import read_result
    from grafalign.benchmarks.run import evaluate as run
    from grafalign.benchmarks.run import title
    from grafalign.benchmarks.suite import load_suite
    from grafalign.benchmarks.table import by_set
    from grafalign.errors import naming_full_disk
    from grafalign.launch import launch
    from grafalign.locks import exclusive
    from grafalign.models.load import is_embeddings, split_name
    from grafalign.processes import this_team

    launch(processes)
    first = this_team().first
    changed = [*(changes or ()), *([f'seed={seed}'] if seed is not None else [])]
    changed += ['partial=true'] if partial else []
    changed += [f'bands=[{bands}]'] if bands is not None else []
    changed += [f'value_range=[{value_range[0]}, {value_range[1]}]'] if value_range is not None else []
    settings, missing = load_suite(suite, data or (), root, changed)
    if classes is not None:
        folders = {Path(split_name(m)[1]).resolve().parent.name for m in models if is_embeddings(m)}
        names = [*folders, *(title(spec) for spec in settings.sets)]
        if len(names) != 1:
            raise InputError('--classes is for one set; write `classes:` into a suite file for several.')
        settings = settings.model_copy(update={'classes': {names[0]: _class_names(classes)}})
    for spec in missing:
        console.log(f'not there, left out: {spec}')
    with exclusive(out, first), naming_full_disk(out):
        done = run(
            models,
            settings,
            out,
            clip=clip,
            device=device,
            workers=workers,
            command=shlex.join(['grafalign', *sys.argv[1:]]),
        )
        page = write_page(out, done.sets) if done.paths else None
    if not first:
        return
    results = [read_result(path) for path in done.paths]
    if as_json:
        summary = {'computed': done.computed, 'skipped': done.skipped, 'missing': missing, 'problems': done.problems}
        print(json.dumps(summary | {'results': [r.model_dump() for r in results]}))
    else:
        for shown in by_set(results):
            console.table(shown.title, shown.head, shown.rows)
            for note in shown.notes:
                console.log(note)
        console.log(f'{done.computed} computed, {done.skipped} kept' + (f'; {page}' if page else ''))
    if done.problems:
        many = f' (and {len(done.problems) - 1} more, above)' if len(done.problems) > 1 else ''
        raise InputError(f'{done.problems[0]}{many}')


@app.command()
def table(
    results: Annotated[Path, typer.Argument(help='Folder of results.')],
    form: Annotated[str, typer.Option('--format', help='markdown, csv or latex.')] = 'markdown',
    against: Annotated[str | None, typer.Option(help='Show differences from this model, paired by images.')] = None,
    intervals: Annotated[bool, typer.Option(help='Show 95 % intervals.')] = True,
    out: Annotated[Path | None, typer.Option(help='Write to a file instead of standard output.')] = None,
    as_json: Json = False,
) -> None:
    """Make tables of result files.

    Example: grafalign table runs/evaluation --format latex --out table.tex

    Example: grafalign table runs/evaluation --against mine
    """
    from grafalign.benchmarks.results import read_results
    from grafalign.benchmarks.table import differences, long_csv, newest, plain_csv, tables, write_table
    from grafalign.files import write_atomically

    forms = ('markdown', 'csv', 'latex')
    if form not in forms:
        raise InputError(f'There is no table format {form!r}; give --format {", ".join(forms)}.')
    found = newest(read_results(results))
    made = tables([r for _, r in found], intervals=intervals) if against is None else [differences(found, against)]
    if as_json:
        text = json.dumps([{'title': t.title, 'head': t.head, 'rows': t.rows, 'notes': t.notes} for t in made]) + '\n'
    elif form == 'csv' and against is None:
        text = long_csv([r for _, r in found])
    elif form == 'csv':
        text = plain_csv(made[0])
    else:
        text = '\n'.join(write_table(t, form) for t in made)  # type: ignore[arg-type]
    if out is None:
        print(text, end='')
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, text.encode())


def _class_names(path: Path) -> list[str]:
    try:
        names = [line.strip() for line in path.read_text(encoding='utf-8').splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f'{path} cannot be read ({error}); give a text file with one class a line.') from None
    if len(names) < 2:
        raise InputError(f'{path} names {len(names)} class; give two or more, one a line.')
    return names


def _evaluate_sandbox(runs: list[Path], world: Path, store: Path | None, out: Path, seed: int, as_json: bool) -> None:
    """In a made-up world: against its truth, beside frozen CLIP and a supervised bound."""
    from grafalign.benchmarks.sandbox import evaluate_sandbox, write_report
    from grafalign.store import PairStore

    if store is None:
        raise InputError('--store is missing; give the pair store that the runs were trained on.')
    named = {run.name: run for run in runs}
    evaluation = evaluate_sandbox(world, store, named, seed=seed)
    content = write_report(out, 'grafalign evaluation', PairStore(store), named, None, evaluation, {'seed': seed})
    show_results(content, out, as_json)
