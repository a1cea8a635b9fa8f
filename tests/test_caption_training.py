"""Captions train like photos: one text is one candidate, and loss, resume and processes are exact."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from grafalign.captions import CaptionSet
from grafalign.captions.import_set import ImportOptions, import_captions
from grafalign.captions.pictures import Pictures
from grafalign.captions.sources.tiles import read_tiles
from grafalign.captions.write_set import SetWriter
from grafalign.curation.select import select
from grafalign.encoders import FrozenClip, PhotoBank, TilePreprocessing, embed_texts, load_text_bank
from grafalign.errors import GrafalignError
from grafalign.exchange import publish
from grafalign.models import load_model
from grafalign.store import PairStore
from grafalign.store_marker import Sensor
from grafalign.training import TrainSettings, train
from grafalign.training.data import Batch, PairSteps, Share
from grafalign.training.gather_data import TrainingData, gather_data, mixture_of
from grafalign.training.pixels import PicturePixels
from grafalign.training.provenance import CaptionsMarker
from grafalign.training.task import AlignmentTask, viewed
from tests.caption_world import COLOURS, captioned_set, folder, picture, settings
from tests.training_world import launch


@pytest.fixture(scope='module')
def web(tmp_path_factory: pytest.TempPathFactory, clip: FrozenClip) -> Path:
    """A set of 24 pictures with 12 distinct texts, two an image, and its bank."""
    return captioned_set(tmp_path_factory.mktemp('web'), clip)


@pytest.fixture(scope='module')
def tiles(tmp_path_factory: pytest.TempPathFactory, clip: FrozenClip, store: PairStore) -> Path:
    """The tiles of the store with captions, as a set."""
    out = tmp_path_factory.mktemp('tiles') / 'set'
    with SetWriter(out) as writer:
        for number, item in enumerate(read_tiles(store)):
            row = writer.add_image(image_id=item.image_id, **item.metadata)
            text = f'a {COLOURS[number % 6]}'
            writer.add_caption(image=row, image_id=item.image_id, text=text, kind='template')
        writer.finish({}, store=(str(store.path), store.digest))
    embed_texts(CaptionSet(out), clip)
    return out


def steps_of(
    data: TrainingData, wanted: TrainSettings, share: Share | None = None, micro_batch: int | None = None
) -> PairSteps:
    """The steps of a training."""
    mixture = mixture_of(data, wanted, wanted.steps or 1)
    return PairSteps(data.sources, wanted, share, micro_batch, 4, size_px=data.sensor.size_px, mixture=mixture)


def start(data: TrainingData, clip: FrozenClip, wanted: TrainSettings) -> AlignmentTask:
    """The task of a training before its first step."""
    torch.manual_seed(0)
    return AlignmentTask.start(clip, data.sensor, wanted, data.bank(torch.device('cpu'))).train()


def naive_loss(task: AlignmentTask, data: TrainingData, steps: PairSteps, batch: Batch, tau: float) -> Tensor:
    """The softmax loss of a whole batch from the texts and photos themselves, image by image.

    Every image is held against the photos of the batch if it has photos, and against its texts if it has texts.
    """
    bank = data.bank(torch.device('cpu'))
    images = task.encoder(viewed(task.preprocess, batch, task.settings.augment)).image
    vectors = bank[batch['candidates']].float()
    photos = int(batch['photos'])
    loss = torch.zeros(())
    for tile in range(len(images)):
        own = batch['photo'][batch['tile'] == tile]
        pool = slice(0, photos) if len(own) and int(own[0]) < photos else slice(photos, None)
        logits = images[tile] @ vectors[pool].T / tau
        for one in own.tolist():
            loss -= functional.log_softmax(logits, 0)[one - pool.start] / (len(images) * len(own))
    return loss


def test_equal_texts_are_one_candidate_with_many_images(web: Path, clip: FrozenClip) -> None:
    """The bank has a row a distinct text, and a batch holds each once."""
    wanted = settings(clip, data=web)
    data = gather_data(wanted, clip)
    steps = steps_of(data, wanted)
    batch = steps[0]
    bank = load_text_bank(CaptionSet(web), clip)
    texts = bank.texts().to_pylist()
    assert len(texts) == 12 == len(set(texts)) and len(bank.numbers) == 48
    said = {r['image_id']: r['text'] for r in CaptionSet(web).captions.to_pylist()}
    chosen = [texts[int(c)] for c in batch['candidates']]
    assert len(set(chosen)) == len(chosen) <= 12
    for tile, candidate in zip(batch['tile'].tolist(), batch['photo'].tolist(), strict=True):
        name = steps.name_tiles([int(steps._plan(0).tiles[tile])])[0]
        assert chosen[candidate] in (said[name], said[name].removesuffix(' seen from above'))
    assert np.bincount(batch['photo']).max() > 1


@pytest.mark.parametrize('micro_batch', [None, 3])
@pytest.mark.parametrize('processes', [1, 2])
def test_the_loss_of_captions_and_photos_is_that_of_each_kind_by_itself(
    micro_batch: int | None, processes: int, web: Path, tiles: Path, store: PairStore, bank: PhotoBank, clip: FrozenClip
) -> None:
    """Value and gradient are those of a loop over images, for any micro-batches and processes."""
    sources = [{'set': str(tiles)}, {'store': store.path, 'weight': 2.0}, {'set': str(web), 'weight': 0.5}]
    wanted = settings(clip, data=sources, batch_tiles=20, photos_per_tile=3, augment={'symmetry': True})
    data = gather_data(wanted, clip)
    task = start(data, clip, wanted)
    whole = steps_of(data, wanted)
    expected = naive_loss(task, data, whole, whole[2], wanted.tau)
    expected.backward()
    gradients = {n: p.grad.clone() for n, p in task.named_parameters() if p.grad is not None}
    assert 0 < int(whole[2]['photos']) < len(whole[2]['candidates'])
    task.zero_grad()
    loss = torch.zeros(())
    for rank in range(processes):
        steps = steps_of(data, wanted, Share(rank, processes), micro_batch)
        for number in range(steps.micro_batches):
            part = task(steps[2 * steps.micro_batches + number]) / processes
            part.backward()
            loss += part.detach()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    for name, parameter in task.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(parameter.grad, gradients[name], atol=2e-5), name


def test_both_directions_see_all_images_of_the_batch(web: Path, clip: FrozenClip) -> None:
    """Every text must find its images among all of the batch."""
    wanted = settings(clip, data=web, photo_to_tile=1.0, max_bad_tiles=0)
    data = gather_data(wanted, clip)
    task, steps = start(data, clip, wanted), steps_of(data, wanted)
    batch = steps[1]
    loss = task(batch)
    images = task.encoder(viewed(task.preprocess, batch, wanted.augment)).image
    texts = data.bank(torch.device('cpu'))[batch['candidates']].float()
    logits = (texts @ images.T / wanted.tau).log_softmax(1)
    expected = naive_loss(task, data, steps, batch, wanted.tau)
    for text in range(len(texts)):
        own = batch['tile'][batch['photo'] == text]
        expected = expected - logits[text, own].mean() / len(texts)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_an_unreadable_image_is_in_neither_direction(clip: FrozenClip, tmp_path: Path) -> None:
    """No text looks for it, and none can take it for its own."""
    import_captions(folder(tmp_path / 'pictures', 12), tmp_path / 'set')
    embed_texts(CaptionSet(tmp_path / 'set'), clip)
    wanted = settings(clip, data=tmp_path / 'set', photo_to_tile=1.0, batch_tiles=12)
    data = gather_data(wanted, clip)
    for broken in ('003.png', '007.png'):
        (tmp_path / 'pictures' / broken).write_bytes(picture(3)[:200])
    task, batch = start(data, clip, wanted), steps_of(data, wanted)[0]
    assert len(batch['bad']) == 2
    loss = task(batch)
    images = task.encoder(viewed(task.preprocess, batch, wanted.augment)).image
    texts = data.bank(torch.device('cpu'))[batch['candidates']].float()
    read = batch['tile'].unique()
    assert len(read) == 10
    forward = torch.zeros(())
    for image in read.tolist():
        own = batch['photo'][batch['tile'] == image]
        forward = forward - (images[image] @ texts.T / wanted.tau).log_softmax(0)[own].mean() / 12
    logits = (texts @ images[read].T / wanted.tau).log_softmax(1)
    sought = batch['photo'].unique()
    reverse = torch.zeros(())
    for text in sought.tolist():
        own = torch.searchsorted(read, batch['tile'][batch['photo'] == text])
        reverse = reverse - logits[text, own].mean() / len(sought)
    assert float(loss.detach()) == pytest.approx(float((forward + reverse).detach()), rel=1e-5)


def test_pictures_come_as_clips_own_preprocessing_gives_them(tmp_path: Path, clip: FrozenClip) -> None:
    """Decoding, size, crop and normalisation are those of the CLIP."""
    import_captions(folder(tmp_path / 'pictures', 3), tmp_path / 'set')
    sensor = Sensor('pictures', ('red', 'green', 'blue'), 1.0, clip.image_px, (0.0, 255.0))
    pixels = PicturePixels(Pictures(CaptionSet(tmp_path / 'set')), sensor)
    stored, radiometry = torch.from_numpy(pixels.read(1))[None], pixels.radiometry(np.array([1]))
    found = TilePreprocessing(sensor, clip)(stored, *(torch.from_numpy(v) for v in radiometry))
    with Image.open(tmp_path / 'pictures' / '001.png') as image:
        assert torch.allclose(found[0], clip.preprocess(image), atol=1e-5)


def test_a_killed_run_ends_as_one_that_was_not(
    web: Path, store: PairStore, bank: PhotoBank, clip: FrozenClip, tmp_path: Path
) -> None:
    """A mixture with stages resumes to the same weights, bit by bit."""
    sources = [{'set': str(web), 'until': 0.5}, {'store': str(store.path)}]
    wanted = settings(clip, data=sources, steps=12, out=tmp_path / 'whole')
    train(wanted)
    broken = wanted.model_copy(update={'out': tmp_path / 'broken'})
    process = launch(broken, tmp_path / 'broken.yaml')
    while process.poll() is None and not list((tmp_path / 'broken').glob('checkpoints/*/state.json')):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    train(broken)
    one, two = (load_file(tmp_path / name / 'model.safetensors') for name in ('whole', 'broken'))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_finished_run_is_a_model_and_says_what_it_learned_from(web: Path, clip: FrozenClip, tmp_path: Path) -> None:
    """It loads, validates on texts, and its card tells of captions."""
    done = train(settings(clip, data=web, out=tmp_path / 'run', steps=30, lr=3e-3))
    assert {'image_text@1', 'text_image@10'} <= set(done.final)
    model = load_model(str(tmp_path / 'run'))
    assert model.gsd_m == 5.0 and model.preprocessing.bands == ('red', 'green', 'blue')
    kept = CaptionsMarker.read(tmp_path / 'run' / 'captions.json').sets[0]
    assert (kept.images, kept.captions, kept.distinct_captions) == (24, 48, 12)
    assert not (tmp_path / 'run' / 'data.json').exists()
    publish(tmp_path / 'run', tmp_path / 'export')
    card = (tmp_path / 'export' / 'README.md').read_text()
    assert 'without a single caption' not in card and '| 24 | 48 | 12 |' in card


def test_a_run_is_another_one_if_its_captions_are(web: Path, clip: FrozenClip, tmp_path: Path) -> None:
    """One other word in one caption is another training."""
    wanted = settings(clip, data=web)
    before = gather_data(wanted, clip).rows_digest
    assert gather_data(wanted, clip).rows_digest == before
    table = folder(tmp_path / 'pictures')
    table.write_text(table.read_text().replace('a red field"', 'a dry field"', 1))
    import_captions(table, tmp_path / 'set', ImportOptions(val=0.2))
    embed_texts(CaptionSet(tmp_path / 'set'), clip)
    assert gather_data(settings(clip, data=tmp_path / 'set'), clip).rows_digest != before


def test_more_captions_embed_only_the_new_ones(
    tmp_path: Path, clip: FrozenClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A grown set keeps the rows of its texts."""
    table = folder(tmp_path / 'pictures', 12)
    import_captions(table, tmp_path / 'set')
    first = embed_texts(CaptionSet(tmp_path / 'set'), clip).embeddings.copy()
    with table.open('a') as file:
        file.write('{"image": "000.png", "captions": ["a quarry"]}\n')
    import_captions(table, tmp_path / 'set')
    with pytest.raises(GrafalignError, match='is of other captions'):
        load_text_bank(CaptionSet(tmp_path / 'set'), clip)
    asked: list[str] = []
    encode = FrozenClip.encode_text
    monkeypatch.setattr(FrozenClip, 'encode_text', lambda self, texts: (asked.extend(texts), encode(self, texts))[1])
    bank = embed_texts(CaptionSet(tmp_path / 'set'), clip)
    assert asked == ['a quarry'] and np.array_equal(bank.embeddings[:12], first)
    assert bank.numbers.tolist()[-1] == 12


@pytest.mark.slow
def test_a_killed_embedding_goes_on(tmp_path: Path, clip: FrozenClip) -> None:
    """The bank is that of a run without kills."""
    rows = [{'image': '0.png', 'captions': [f'text {a} {b}' for b in range(40)]} for a in range(400)]
    (tmp_path / '0.png').write_bytes(picture(0))
    (tmp_path / 't.jsonl').write_text('\n'.join(json.dumps(r) for r in rows))
    for name in ('whole', 'broken'):
        import_captions(tmp_path / 't.jsonl', tmp_path / name)
    whole = embed_texts(CaptionSet(tmp_path / 'whole'), clip)
    command = [sys.executable, '-m', 'grafalign', 'embed', str(tmp_path / 'broken'), '--model', clip.settings.model]
    for wait in (0.0, 0.5, 1.5):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (tmp_path / 'broken' / 'bank' / 'next-texts.parquet').exists():
            time.sleep(0.01)
        time.sleep(wait)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
    bank = embed_texts(CaptionSet(tmp_path / 'broken'), clip)
    assert np.abs(bank.embeddings.astype(np.float32) - whole.embeddings.astype(np.float32)).max() < 1e-3
    assert np.array_equal(bank.numbers, whole.numbers)


def test_unreadable_pictures_are_left_out_and_named(web: Path, clip: FrozenClip, tmp_path: Path) -> None:
    """A cut file costs one image, which the run lists."""
    import_captions(folder(tmp_path / 'pictures'), tmp_path / 'set')
    embed_texts(CaptionSet(tmp_path / 'set'), clip)
    (tmp_path / 'pictures' / '004.png').write_bytes(picture(4)[:200])
    done = train(settings(clip, data=tmp_path / 'set', out=tmp_path / 'run'))
    assert done.final['bad_tiles'] == 1 and (tmp_path / 'run' / 'bad_tiles.txt').read_text() == '004.png\n'


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        ({'data': 'WEB', 'store': 'STORE'}, 'give either `store` or `data`'),
        ({}, 'give either `store` or `data`'),
        ({'data': []}, 'give either `store` or `data`'),
        ({'data': [{'set': 'WEB'}, {'store': 'STORE'}], 'steps': None}, 'give `steps`'),
        ({'data': [{'set': 'WEB', 'until': 0.5}]}, 'from 0.5 to 1 of the steps no source'),
        ({'data': [{'set': 'WEB', 'after': 0.5, 'until': 0.2}]}, '`after` must be less than `until`'),
        ({'data': [{'weight': 1}]}, 'either a `set` or a `store`'),
        ({'data': 'WEB', 'level': 'patch'}, 'use `level: image` with caption sets'),
        ({'data': 'WEB', 'gsd_m': None}, 'give `gsd_m`'),
        ({'data': 'WEB', 'bands': ['nir']}, 'a picture has no band nir'),
        ({'data': 'NONE'}, 'is no finished caption set'),
        ({'data': 'BARE'}, 'has no text bank; run `grafalign embed'),
        ({'data': 'WEB', 'val_set': 'BARE'}, 'import it with --split val'),
    ],
)
def test_settings_that_cannot_be_met_are_one_sentence(
    changes: dict[str, object],
    sentence: str,
    web: Path,
    store: PairStore,
    clip: FrozenClip,
    tmp_path: Path,
    command: Callable[..., tuple[int, str]],
) -> None:
    """It names the setting or the command that helps."""
    import_captions(folder(tmp_path / 'pictures', 2), tmp_path / 'bare')
    places = {'WEB': str(web), 'STORE': str(store.path), 'NONE': str(tmp_path), 'BARE': str(tmp_path / 'bare')}
    text = json.dumps(changes)
    for name, path in places.items():
        text = text.replace(f'"{name}"', json.dumps(path))
    values = {'out': str(tmp_path / 'run'), 'clip': clip.settings.model_dump(), 'steps': 2, 'gsd_m': 5.0}
    (tmp_path / 'run.yaml').write_text(yaml.safe_dump(values | json.loads(text)))
    code, said = command('train', tmp_path / 'run.yaml')
    assert code in (1, 3, 4) and sentence in said and 'Traceback' not in said, said


def test_a_set_that_lost_tiles_still_trains_on_its_own(
    tiles: Path, store: PairStore, clip: FrozenClip, tmp_path: Path
) -> None:
    """Rows of a set are not those of its store: pixels and radiometry go by the tile's id."""
    captions = CaptionSet(tiles)
    reasons = np.full(len(captions), None, dtype=object)
    reasons[[0, 3]] = 'gone'
    select(captions, tmp_path / 'fewer', reasons, {})
    embed_texts(CaptionSet(tmp_path / 'fewer'), clip)
    data = gather_data(settings(clip, data=tmp_path / 'fewer'), clip)
    source = data.sources[0]
    for number in range(0, len(source.rows), 7):
        row = int(np.flatnonzero(store.tiles['tile_id'] == source.image_id(number))[0])
        assert np.array_equal(source.pixels.read(int(source.rows[number])), store.read_tile(row))
        scale, offset = source.pixels.radiometry(source.rows[[number]])
        assert np.array_equal(scale[0], store.radiometry[0][row]) and np.array_equal(
            offset[0], store.radiometry[1][row]
        )
