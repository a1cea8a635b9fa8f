"""`grafalign quickstart`: a made-up world, a satellite model trained on it without a caption, and a page to look at."""

from __future__ import annotations

from pathlib import Path

from grafalign.chain import Clock, Experiment, run_experiment
from grafalign.config import load_settings
from grafalign.errors import MachineError
from grafalign.pairing import Recipe
from grafalign.report import Report
from grafalign.sandbox import TINY_CLIP_DIR
from grafalign.sandbox.world import SandboxSettings, make_sandbox

_PACKAGE = Path(__file__).parent


def shipped(name: str) -> Path:
    """A file of `data_recipes/` or `experiments/`: beside the package in a checkout, inside it when installed.

    Raises:
        GrafalignError: the installation lacks it.
    """
    for root in (_PACKAGE.parent, _PACKAGE / 'shipped'):
        if (root / name).is_file():
            return root / name
    raise MachineError(f'{name} is missing from this installation; install grafalign again.')


def quickstart_experiment(out: Path, seed: int = 0, photos: int | None = None) -> tuple[SandboxSettings, Experiment]:
    """The world and the experiment of a quickstart.

    Args:
        out: folder for everything.
        seed: seed of the world and of everything after it.
        photos: photos in the world; its own default otherwise.
    """
    world = out / 'sandbox'
    recipe = load_settings(
        shipped('data_recipes/sandbox.yaml'),
        Recipe,
        [f'photos.folder={world / "photos"}', f'scenes.catalog={world / "catalog" / "catalog.json"}'],
    )
    changes = [f'out={out}', f'seed={seed}', f'sandbox={world}', f'clip.model={TINY_CLIP_DIR}']
    experiment = load_settings(shipped('experiments/sandbox/quickstart.yaml'), Experiment, changes)
    settings = SandboxSettings(seed=seed) if photos is None else SandboxSettings(seed=seed, photos=photos)
    return settings, experiment.model_copy(update={'pair': recipe})


def quickstart(out: Path, seed: int = 0, photos: int | None = None, workers: int | None = None) -> Report:
    """Make a world, pair, embed, train, evaluate, and write `report.html` and `report.json`.

    Returns:
        What report.json says.
    """
    settings, experiment = quickstart_experiment(out, seed, photos)
    out.mkdir(parents=True, exist_ok=True)
    clock = Clock(out / 'seconds.json')
    clock.time('sandbox', lambda: make_sandbox(out / 'sandbox', settings, workers))
    return run_experiment(experiment, clock, workers)
