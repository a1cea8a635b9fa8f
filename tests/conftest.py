"""Shared fixtures: one small sandbox world, its pair store and photo bank, made once a session."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from grafalign.cli import main
from grafalign.config import load_settings
from grafalign.encoders import ClipSettings, FrozenClip, PhotoBank, embed, load_clip
from grafalign.models import Model, load_model
from grafalign.pairing import Recipe, pair
from grafalign.sandbox import TINY_CLIP_DIR
from grafalign.sandbox.world import SandboxSettings, make_sandbox
from grafalign.store import PairStore

settings.register_profile('busy machines', deadline=None)
settings.load_profile('busy machines')
REPOSITORY = Path(__file__).parent.parent
SMALL = SandboxSettings(seed=5, photos=480, rows=768, cols=1024)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests have more time, as they may share the machine with others."""
    for item in items:
        if item.get_closest_marker('slow'):
            item.add_marker(pytest.mark.timeout(1200))


@pytest.fixture(scope='session', autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Searches are kept in a folder of the test run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
        yield


@pytest.fixture(scope='session')
def model() -> Model:
    """The tiny CLIP as a model: windows of 64 px, patches of 16."""
    return load_model(str(TINY_CLIP_DIR))


@pytest.fixture(scope='session')
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sandbox world of 3.8 x 5.1 km with 480 photos."""
    out = tmp_path_factory.mktemp('world') / 'sandbox'
    make_sandbox(out, SMALL)
    return out


@pytest.fixture(scope='session')
def recipe(world: Path) -> Recipe:
    """The sandbox recipe, pointed at the small world."""
    return load_settings(
        REPOSITORY / 'data_recipes' / 'sandbox.yaml',
        Recipe,
        [
            f'photos.folder={world / "photos"}',
            f'scenes.catalog={world / "catalog" / "catalog.json"}',
            'split.block_km=1',
            'split.buffer_m=0',  # a world of a few kilometres has no land to leave between splits
            'shard_tiles=16',
            *(f'plan.{name}={value}' for name, value in {'core': 1, 'reach': 1, 'ahead_m': 0}.items()),  # fewer tiles
        ],
    )


@pytest.fixture(scope='session')
def store(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    """The pair store of the small world; read only."""
    out = tmp_path_factory.mktemp('store') / 'pairs'
    pair(recipe, out)
    return PairStore(out)


@pytest.fixture(scope='session')
def clip() -> FrozenClip:
    """The tiny CLIP that ships with grafalign."""
    return load_clip(ClipSettings(model=str(TINY_CLIP_DIR)))


@pytest.fixture(scope='session')
def bank(store: PairStore, clip: FrozenClip) -> PhotoBank:
    """The photo bank of the store; read only."""
    return embed(store, clip)


@pytest.fixture
def own_store(store: PairStore, bank: PhotoBank, tmp_path: Path) -> Path:
    """A copy of the store and its bank that a test may change."""
    return Path(shutil.copytree(store.path, tmp_path / 'pairs'))


@pytest.fixture(scope='session')
def realdata() -> Path:
    """The folder of real files; tests that need it are skipped where there is none."""
    for candidate in (os.environ.get('GRAFALIGN_REALDATA'), REPOSITORY.parent / 'shared' / 'realdata'):
        if candidate and Path(candidate).is_dir():
            return Path(candidate)
    pytest.skip('no real data: set GRAFALIGN_REALDATA to its folder')


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs the command line in this process; returns the exit code and what it wrote to standard error."""

    def run(*args: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, 'argv', ['grafalign', *map(str, args)])
        with pytest.raises(SystemExit) as end:  # anything else would be a traceback
            main()
        return int(end.value.code or 0), capsys.readouterr().err

    return run


@pytest.fixture
def builtin(clip: FrozenClip, tmp_path: Path) -> Iterator[FrozenClip]:
    """The tiny CLIP under a name that open_clip has built in, with the weights as a file and another normalisation."""
    config = json.loads((Path(clip.settings.model) / 'open_clip_config.json').read_text())['model_cfg']
    (tmp_path / 'ViT-tiny-16.json').write_text(json.dumps(config))
    import open_clip

    open_clip.add_model_config(tmp_path / 'ViT-tiny-16.json')
    weights = Path(clip.settings.model) / 'open_clip_model.safetensors'
    yield load_clip(ClipSettings(model='ViT-tiny-16', pretrained=str(weights)))
    from open_clip import factory

    factory._MODEL_CONFIG_PATHS.pop()
    factory._MODEL_CONFIGS.pop('ViT-tiny-16')


@pytest.fixture(scope='module')
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder a colour, six pictures each."""
    root = tmp_path_factory.mktemp('sets') / 'colours'
    rng = np.random.default_rng(0)
    for name, colour in {'dark forest': (20, 60, 20), 'blue_lake': (20, 40, 120), 'Beach': (220, 200, 150)}.items():
        for i in range(6):
            pixels = np.clip(np.array(colour) + rng.integers(-20, 20, (40, 40, 3)), 0, 255).astype(np.uint8)
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / name / f'{i}.png')
    return root
