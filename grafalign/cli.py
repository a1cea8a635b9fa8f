"""The command line: parse, call one function, show the result.

Results for programs go to standard output with `--json`; everything for people goes to standard error. Heavy imports
wait inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from grafalign.errors import GrafalignError

app = typer.Typer(
    help='Train vision-language models for satellite imagery without a single caption.',
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Json = Annotated[bool, typer.Option('--json', help='Print the result as JSON on standard output.')]
Workers = Annotated[int | None, typer.Option(help='Threads; the number of cores by default.', min=1)]
Pretrained = Annotated[str | None, typer.Option(help='open_clip tag or checkpoint file, e.g. openai.')]
Set = Annotated[list[str] | None, typer.Option('--set', help='Override a setting of the file: key.subkey=value.')]


def main() -> None:
    """Run the command line; errors of the user become one line and exit code 1, Ctrl-C exit code 130."""
    try:
        code = app(standalone_mode=False)  # the code of an exit that typer decides: 0 after --help, 130 after Ctrl-C
    except GrafalignError as error:
        _fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except OSError as error:
        _fail(_os_sentence(error), 1)
    except Exception as error:
        if not hasattr(error, 'show'):
            raise
        error.show()  # a wrong command line; typer brings its own copy of click's errors, so their type says nothing
        sys.exit(getattr(error, 'exit_code', 2))
    if code == 130:
        _fail('Interrupted; run the same command again to go on where it stopped.', code)
    sys.exit(code)


def _fail(message: str, code: int) -> NoReturn:
    print(f'Error: {message}', file=sys.stderr, flush=True)
    if code == 130:
        os._exit(code)  # after Ctrl-C nothing waits for threads that still read
    sys.exit(code)


def _os_sentence(error: OSError) -> str:
    where = f'{error.filename}: ' if error.filename else ''
    remedy = 'check that the path exists, that you may use it and that the disk is not full, then run it again.'
    return f'{where}{error.strerror or error}; {remedy}'


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help='Folder for the world, the runs and the report.')] = Path('runs/quickstart'),
    seed: Annotated[int, typer.Option(help='Seed of the world and of all that follows.', min=0)] = 0,
    photos: Annotated[int | None, typer.Option(help='Photos in the world.', min=200)] = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Make a world, train on it without a caption, and write a report.

    Example: grafalign quickstart --out runs/quickstart
    """
    from grafalign.quickstart import quickstart as run

    content = run(out, seed, photos, workers)
    _show_results(content, out, as_json)


@app.command()
def sandbox(
    out: Annotated[Path, typer.Argument(help='Folder to write the world to.')],
    seed: Annotated[int, typer.Option(help='Seed of the world.', min=0)] = 0,
    photos: Annotated[int, typer.Option(help='Number of photos.', min=1)] = 36_000,
    rows: Annotated[int, typer.Option(help='Height in cells of 5 m, a multiple of 16.')] = 3072,
    cols: Annotated[int, typer.Option(help='Width in cells of 5 m, a multiple of 16.')] = 3840,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Write a small made-up world: scenes, photos and their truth.

    Example: grafalign sandbox runs/sandbox --seed 0
    """
    from grafalign.sandbox.world import SandboxSettings, make_sandbox

    made = make_sandbox(out, SandboxSettings(seed, photos, rows, cols), workers)
    _show(
        {k: v for k, v in made.items() if k in ('photos', 'scenes', 'objects', 'towns', 'area_km2')}, str(out), as_json
    )


@app.command()
def pair(
    recipe: Annotated[Path, typer.Argument(help='Recipe (YAML); see data_recipes/.')],
    store: Annotated[str | None, typer.Argument(help='Folder or URL of the pair store.')] = None,
    explain: Annotated[bool, typer.Option(help='Say what it would take, and read no pixel.')] = False,
    map_page: Annotated[Path | None, typer.Option('--map', help='With --explain: write a map page (HTML).')] = None,
    retry_failed: Annotated[bool, typer.Option(help='Of a finished store, try only the tiles that failed.')] = False,
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
    from grafalign.locks import exclusive
    from grafalign.pairing import Recipe
    from grafalign.pairing import pair as run

    settings = load_settings(recipe, Recipe, changes or ())
    if explain:
        from grafalign.pairing.explain import explain as estimate
        from grafalign.pairing.explain import show

        told = estimate(settings, None if store is None else place(store), map_page, workers)
        print(json.dumps(told)) if as_json else show(told, str(recipe))
        return
    if store is None:
        raise GrafalignError('Give the folder or URL of the pair store, or --explain to see what pairing would take.')
    out = place(store)
    with exclusive(out):
        summary = run(settings, out, workers, retry_failed)
    _show({k: v for k, v in asdict(summary).items() if as_json or k != 'reasons'}, store, as_json)
    if summary.reasons and not as_json:
        from grafalign import console

        console.histogram('rejected', summary.reasons)


@app.command()
def check(
    store: Annotated[str, typer.Argument(help='Folder or URL of a pair store.')],
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Verify a pair store: digests, counts, bounds, splits, and every tile. Exit code 1 if something is wrong.

    Example: grafalign check runs/pairs
    """
    from grafalign.pairing.check import check_store
    from grafalign.store import PairStore

    findings = check_store(PairStore(store), workers)
    bad = [f for f in findings if f.problems]
    if as_json:
        print(json.dumps({'ok': not bad, 'checks': [asdict(f) for f in findings]}))
    else:
        from grafalign import console

        console.table(store, ('check', 'looked at', ''), [_finding_row(f) for f in findings])
        for finding in bad:
            for problem in finding.problems[:20]:
                console.log(f'{finding.check}: {problem}')
            if len(finding.problems) > 20:
                console.log(f'{finding.check}: and {len(finding.problems) - 20} more')
    if bad:
        raise GrafalignError(
            f'{store} is damaged ({", ".join(f.check for f in bad)}); pair again into an empty folder, or copy the '
            'damaged files from where they are whole.'
        )


def _finding_row(finding: Any) -> tuple[str, str, str]:
    many = len(finding.problems)
    return finding.check, f'{finding.looked_at:,}', f'{many} problem{"s" * (many > 1)}' if many else 'ok'


@app.command()
def embed(
    store: Annotated[str, typer.Argument(help='Pair store.')],
    model: Annotated[str, typer.Option(help='open_clip name or folder, e.g. ViT-B-16.')],
    pretrained: Pretrained = None,
    out: Annotated[Path | None, typer.Option(help="The bank's folder; STORE/bank by default.")] = None,
    retry_failed: Annotated[bool, typer.Option(help='Try only photos that failed for now.')] = False,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Embed all photos of a store once with the frozen CLIP; those on URLs are fetched, embedded and forgotten.

    Example: grafalign embed runs/pairs --model ViT-B-16 --pretrained openai
    """
    from grafalign.encoders import ClipSettings, best_device, load_clip
    from grafalign.encoders import embed as run
    from grafalign.store import PairStore

    clip = load_clip(ClipSettings(model=model, pretrained=pretrained), best_device())
    bank = run(PairStore(store), clip, out, workers, retry_failed=retry_failed)
    rows, width = bank.embeddings.shape
    failed = int(bank.photos['problem'].notna().sum())
    _show({'photos': rows, 'unreadable': failed, 'dimensions': width}, str(out or f'{store}/bank'), as_json)


@app.command('filter')
def filter_photos(
    store: Annotated[str, typer.Argument(help='Pair store with a ground bank.')],
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
    from grafalign.store import PairStore

    if filters is not None:
        settings = load_settings(filters, ContentFilters, changes or ())
    else:
        content: dict[str, Any] = {}
        for change in changes or ():
            apply_change(content, change)
        settings = parse_settings(content, ContentFilters, '--set')
    held = PairStore(store)
    counts = filter_bank(held, load_clip(ClipSettings(model=model, pretrained=pretrained)), settings, bank)
    if as_json:
        print(json.dumps({'photos': len(held.photos), 'left_out': counts}))
    elif counts:
        console.histogram(f'left out of {len(held.photos):,} photos', counts)
    else:
        console.log(f'All {len(held.photos):,} photos are kept.')


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help='Training settings (YAML).')],
    changes: Set = None,
    as_json: Json = False,
) -> None:
    """Train a satellite encoder; resumes by itself. Works under `accelerate launch -m grafalign train CONFIG`.

    Example: grafalign train runs/quickstart/grafalign_image.yaml --set tau=0.07 --set out=runs/image
    """
    from grafalign.config import load_settings
    from grafalign.locks import end_with_parent, exclusive
    from grafalign.training import TrainSettings
    from grafalign.training import train as run

    end_with_parent()
    settings = load_settings(config, TrainSettings, changes or ())
    if int(os.environ.get('RANK', os.environ.get('LOCAL_RANK', '0'))) > 0:  # the first process holds the lock for all
        run(settings)
        return
    with exclusive(settings.out):
        facts = run(settings)
    _show({'steps': facts['steps'], 'seconds': facts['seconds'], **facts['final']}, str(settings.out), as_json)


@app.command()
def evaluate(
    runs: Annotated[list[Path], typer.Argument(help='Finished runs; the first of each level sets the bound.')],
    sandbox: Annotated[Path, typer.Option(help='The sandbox world whose truth to use.')],
    store: Annotated[Path, typer.Option(help='The pair store the runs were trained on.')],
    out: Annotated[Path, typer.Option(help='Folder for report.html and report.json.')] = Path('runs/evaluation'),
    seed: Annotated[int, typer.Option(help='Seed of the labelled sets.', min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Zero-shot classification, segmentation and retrieval against frozen CLIP and a supervised bound.

    Example: grafalign evaluate runs/image runs/patch --sandbox runs/sandbox --store runs/pairs
    """
    from grafalign.benchmarks import evaluate_sandbox, write_report
    from grafalign.store import PairStore

    named = {run.name: run for run in runs}
    evaluation = evaluate_sandbox(sandbox, store, named, seed=seed)
    content = write_report(out, 'grafalign evaluation', PairStore(store), named, None, evaluation, {'seed': seed})
    _show_results(content, out, as_json)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Finished run, or a checkpoint of GRAFT's published layout (.ckpt).")],
    out: Annotated[Path, typer.Argument(help='Folder to write; an earlier export in it is replaced.')],
    kind: Annotated[str, typer.Option('--format', help='open_clip or transformers.')] = 'open_clip',
    results: Annotated[Path | None, typer.Option(help='report.json of an evaluation, for the model card.')] = None,
    model: Annotated[
        str | None,
        typer.Option(help='CLIP whose text tower goes with it: for checkpoints, or where it has moved.'),
    ] = None,
    pretrained: Pretrained = None,
    licence: Annotated[str | None, typer.Option(help='Licence of the weights for the card, e.g. apache-2.0.')] = None,
    hub: Annotated[str | None, typer.Option('--push-to-hub', help='NAMESPACE/NAME on the Hugging Face Hub.')] = None,
    private: Annotated[bool, typer.Option('--private', help='Make a new repository on the Hub private.')] = False,
    as_json: Json = False,
) -> None:
    """Write a model as files that open_clip or transformers load, with its patch head and a model card.

    Example: grafalign export runs/image exports/image --format transformers --results runs/evaluation/report.json
    """
    from grafalign.encoders import ClipSettings
    from grafalign.exchange import publish

    if model is None and pretrained is not None:
        raise GrafalignError(f'--pretrained {pretrained} belongs to a CLIP; give --model as well.')
    clip = None if model is None else ClipSettings(model=model, pretrained=pretrained)
    _show(publish(run, out, kind, clip, results, hub, private, licence), str(out), as_json)


@app.command()
def run(
    experiment: Annotated[Path, typer.Argument(help='Experiment (YAML); see experiments/.')],
    changes: Set = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Run a whole experiment from one file: pair, embed, train, evaluate, report.

    Example: grafalign run experiments/real_photos_naip.yaml
    """
    from grafalign.chain import Experiment, run_experiment
    from grafalign.config import load_settings

    settings = load_settings(experiment, Experiment, changes or ())
    _show_results(run_experiment(settings, workers=workers), settings.out, as_json)


def _show(facts: dict[str, Any], title: str, as_json: bool) -> None:
    """A flat dictionary as a table, or as JSON."""
    if as_json:
        print(json.dumps(facts))
        return
    from grafalign import console

    rows = []
    for key, value in facts.items():
        for name, part in value.items() if isinstance(value, dict) else [(key, value)]:
            label = key if name == key else f'{key}: {name}'
            rows.append(
                (
                    label,
                    f'{part:,}' if isinstance(part, int) else f'{part:.4g}' if isinstance(part, float) else str(part),
                )
            )
    console.table(title, ('', ''), rows)


def _show_results(content: dict[str, Any], out: Path, as_json: bool) -> None:
    """The table of results and where the report lies."""
    if as_json:
        print(json.dumps(content))
        return
    from grafalign import console
    from grafalign.benchmarks import result_rows

    head, *rows = result_rows(content)
    if rows:
        console.table('results on held-out blocks', head, rows)
    if content['seconds']:
        console.table('seconds', ('step', 's'), [(k, f'{v:.1f}') for k, v in content['seconds'].items()])
    console.log(f'{out / "report.html"}')
