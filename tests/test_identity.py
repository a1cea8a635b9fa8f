"""What an artefact is known by: digests of settings, and of the rows that a run trains on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import yaml
from pydantic import Field

from grafalign.config import load_settings, settings_digest
from grafalign.encoders import FrozenClip, PhotoBank, embed, load_bank
from grafalign.errors import GrafalignError
from grafalign.files import write_table
from grafalign.locks import exclusive
from grafalign.pairing import Recipe, pair
from grafalign.schemas import schema_files
from grafalign.store import PairStore
from grafalign.training import TrainSettings, train
from grafalign.training.rows import training_rows_digest
from tests.commands import REPOSITORY

GOLDEN = json.loads((Path(__file__).parent / 'golden_digests.json').read_text())


def digest_of(name: str) -> str:
    """Digest of a committed file of settings."""
    return load_settings(REPOSITORY / name, TrainSettings if 'train' in name else Recipe).digest


@pytest.mark.parametrize('name', GOLDEN)
def test_digests_of_committed_settings_hold_over_releases(name: str) -> None:
    """A finished store or run of an earlier release is still its own.

    Where a change of meaning is wanted, raise `MEANING` of the settings and write the digests anew; where one fails
    otherwise, every store of every user would count as another's.
    """
    assert digest_of(name) == GOLDEN[name]


def test_a_new_setting_with_its_default_changes_no_digest() -> None:
    """The same keys give the same digest in a release that knows one more, until that one is set."""

    class Later(Recipe):
        novelty: int = Field(default=3)

    content = yaml.safe_load((REPOSITORY / 'data_recipes' / 'sandbox.yaml').read_text())
    assert settings_digest(Later.model_validate(content), 1) == settings_digest(Recipe.model_validate(content), 1)
    assert settings_digest(Later.model_validate({**content, 'novelty': 4}), 1) != settings_digest(
        Recipe.model_validate(content), 1
    )
    assert settings_digest(Recipe.model_validate(content), 2) != settings_digest(Recipe.model_validate(content), 1)


@pytest.fixture
def before(store: PairStore, bank: PhotoBank) -> str:
    """Digest of what the store's runs train on."""
    return training_rows_digest(store, bank)


def changed(store: Path, name: str, table: pd.DataFrame, bank: PhotoBank) -> str:
    """The digest with another table in the store."""
    write_table(table, store / f'{name}.parquet')
    return training_rows_digest(PairStore(store), bank)


def test_a_run_does_not_depend_on_what_it_is_not_trained_on(
    own_store: Path, store: PairStore, bank: PhotoBank, before: str
) -> None:
    """Another state of the store with the same training and validation tiles is the same to a run."""
    tiles = store.tiles
    assert training_rows_digest(PairStore(own_store), load_bank(PairStore(own_store))) == before
    test_tiles = np.flatnonzero(tiles['split'] == 'test')
    assert len(test_tiles)
    assert (
        changed(own_store, 'tiles', tiles.assign(digest=tiles['digest'].where(tiles['split'] != 'test', '')), bank)
        == before
    )
    assert changed(own_store, 'tiles', tiles.assign(shard='tiles/00077.tar', byte_offset=0), bank) == before


@pytest.mark.parametrize('column', ['digest', 'split', 'scale'])
def test_a_run_depends_on_its_tiles(
    own_store: Path, store: PairStore, bank: PhotoBank, before: str, column: str
) -> None:
    """Other pixels, another split or another meaning of the numbers of one training tile make another run."""
    tiles = store.tiles.copy()
    row = int(store.tiles_of('train')[0])
    other = {'digest': 'another', 'split': 'val', 'scale': np.full(len(store.sensor.bands), 2.0)}[column]
    tiles[column] = [other if i == row else value for i, value in enumerate(tiles[column])]
    assert changed(own_store, 'tiles', tiles, bank) != before


def test_a_run_depends_on_its_pairs_and_photos(own_store: Path, store: PairStore, bank: PhotoBank, before: str) -> None:
    """One pair less, one place moved, one photo filtered out make another run."""
    pairs = store.pairs.drop(columns=['tile', 'photo'])
    row = int(np.flatnonzero(store.tiles['split'].to_numpy()[store.pairs['tile']] == 'train')[0])
    assert changed(own_store, 'pairs', pairs.drop(index=row), bank) != before
    moved = pairs.assign(row=[v + (i == row) for i, v in enumerate(pairs['row'])])
    assert changed(own_store, 'pairs', moved, bank) != before
    assert changed(own_store, 'pairs', pairs, bank) == before
    photo = int(store.pairs['photo'].iloc[row])
    headings = store.photos.assign(
        heading_deg=[5.5 if i == photo else v for i, v in enumerate(store.photos['heading_deg'])]
    )
    assert changed(own_store, 'photos', gpd.GeoDataFrame(headings), bank) != before
    views = store.photos.assign(field_of_view_deg=[50.0 if i == photo else np.nan for i in range(len(store.photos))])
    assert changed(own_store, 'photos', gpd.GeoDataFrame(views), bank) != before
    without = store.photos.drop(columns='field_of_view_deg')  # a store of before cameras were asked
    assert changed(own_store, 'photos', gpd.GeoDataFrame(without), bank) == before
    valid = bank.valid.copy()
    valid[photo] = False
    assert training_rows_digest(store, replace(bank, valid=valid)) != before


def test_functions_lock_their_folder(recipe: Recipe, store: PairStore, clip: FrozenClip, tmp_path: Path) -> None:
    """Called from Python, too, a second writer of a folder is refused."""
    out = tmp_path / 'out'
    settings = TrainSettings(store=store.path, out=out, clip=clip.settings, steps=1, trackers=())
    shutil.copytree(store.path, tmp_path / 'pairs', ignore=shutil.ignore_patterns('bank'))
    with exclusive(out), exclusive(tmp_path / 'pairs' / 'bank'):
        for write in (
            lambda: pair(recipe, out),
            lambda: train(settings),
            lambda: embed(PairStore(tmp_path / 'pairs'), clip),
        ):
            with pytest.raises(GrafalignError, match='Another process is writing'):
                write()


def test_the_published_schemas_are_those_of_the_models() -> None:
    """`docs/schemas` says what is written; `python -m grafalign.schemas docs/schemas` brings it up to date."""
    folder = REPOSITORY / 'docs' / 'schemas'
    assert {p.name: p.read_text() for p in folder.iterdir()} == schema_files()
