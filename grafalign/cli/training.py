"""Commands that train, export, and run whole chains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from grafalign.cli.app import Json, Pretrained, Set, Workers, app, show, show_results
from grafalign.errors import InputError


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
    show_results(content, out, as_json)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help='Training settings (YAML).')],
    changes: Set = None,
    processes: Annotated[
        int,
        typer.Option(help='Processes on this machine, each with a GPU or a share of the cores.', min=1),
    ] = 1,
    as_json: Json = False,
) -> None:
    """Train a satellite encoder; resumes by itself. On several machines: accelerate launch -m grafalign train CONFIG.

    Example: grafalign train runs/quickstart/grafalign_image.yaml --set tau=0.07 --set out=runs/image
    """
    from grafalign.config import load_settings
    from grafalign.launch import launch
    from grafalign.training import TrainSettings
    from grafalign.training import train as run

    launch(processes)
    settings = load_settings(config, TrainSettings, changes or ())
    done = run(settings)
    show({'steps': done.steps, 'seconds': done.seconds, **done.final}, str(settings.out), as_json)


@app.command('train-bound', hidden=True)
def train_bound(config: Annotated[Path, typer.Argument(help='What `grafalign run` wrote.')]) -> None:
    """Train the supervised bound of a sandbox: what `grafalign run` starts beside its trainings."""
    from grafalign.benchmarks.sandbox.bound import BoundSettings
    from grafalign.benchmarks.sandbox.bound import train_bound as run
    from grafalign.config import load_settings

    run(load_settings(config, BoundSettings))


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
        raise InputError(f'--pretrained {pretrained} belongs to a CLIP; give --model as well.')
    clip = None if model is None else ClipSettings(model=model, pretrained=pretrained)
    show(publish(run, out, kind, clip, results, hub, private, licence), str(out), as_json)


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
    show_results(run_experiment(settings, workers=workers), settings.out, as_json)
