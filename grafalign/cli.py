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
    store: Annotated[Path, typer.Argument(help='Folder of the pair store.')],
    changes: Set = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Match photos to scenes, cut the tiles and write a pair store.

    Example: grafalign pair data_recipes/sandbox.yaml runs/pairs
    """
    from grafalign.config import load_settings
    from grafalign.locks import exclusive
    from grafalign.pairing import Recipe
    from grafalign.pairing import pair as run

    settings = load_settings(recipe, Recipe, changes or ())
    with exclusive(store):
        summary = run(settings, store, workers)
    _show(asdict(summary), str(store), as_json)


@app.command()
def embed(
    store: Annotated[Path, typer.Argument(help='Pair store.')],
    model: Annotated[str, typer.Option(help='open_clip name or folder, e.g. ViT-B-16.')],
    pretrained: Annotated[str | None, typer.Option(help='open_clip tag or checkpoint file, e.g. openai.')] = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Embed all photos of a store once with the frozen CLIP.

    Example: grafalign embed runs/pairs --model ViT-B-16 --pretrained openai
    """
    from grafalign.encoders import ClipSettings, load_clip
    from grafalign.encoders import embed as run
    from grafalign.store import PairStore

    bank = run(PairStore(store), load_clip(ClipSettings(model=model, pretrained=pretrained)), workers=workers)
    rows, width = bank.embeddings.shape
    _show({'photos': rows, 'unreadable': int((~bank.valid).sum()), 'dimensions': width}, str(store / 'bank'), as_json)


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
    if int(os.environ.get('LOCAL_RANK', '0')) > 0:
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
