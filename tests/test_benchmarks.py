"""Tasks against naive references, known answers on real files, results that resume, tables and bad input."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from grafalign.benchmarks import evaluate, read_result, read_results
from grafalign.benchmarks.embeddings_file import load_embeddings
from grafalign.benchmarks.results import Arrays, ModelFacts, Protocol, Result, SetFacts, Value
from grafalign.benchmarks.statistics import (
    Mean,
    MeanAp,
    MeanIou,
    MeanOfClasses,
    Resampling,
    estimates,
    paired_difference,
    ranking,
    resampling,
    statistics_from,
)
from grafalign.benchmarks.suite import Suite, shipped_suites
from grafalign.benchmarks.table import by_set, differences, newest, tables, write_table
from grafalign.benchmarks.tasks.class_retrieval import retrieve_classes
from grafalign.benchmarks.tasks.classification import classify, in_top
from grafalign.benchmarks.tasks.image_image import retrieve_images
from grafalign.benchmarks.tasks.image_text import caption_table, evaluate_captions
from grafalign.benchmarks.tasks.photo_tile import open_pairs, retrieve_photos
from grafalign.datasets import ImageSet, known_sets, open_set
from grafalign.datasets.open import split_spec
from grafalign.encoders import FrozenClip
from grafalign.errors import GrafalignError
from grafalign.models import load_model
from grafalign.retrieval import hits_at, positive_ranks
from grafalign.store import PairStore
from grafalign.zeroshot.prompts import ensemble, load_templates
from tests.commands import Command, refused
from tests.test_datasets import paint
from tests.test_ranks import unit, usual_recall


def labelled(images: int, classes: int, seed: int = 0, many: bool = False) -> tuple[np.ndarray, np.ndarray, ImageSet]:
    """Unit images [N, D], prompts [3, K, D] and a set with random labels."""
    rng = np.random.default_rng(seed)
    names = tuple(f'class {i}' for i in range(classes))
    labels = rng.integers(0, classes, images)
    several = rng.random((images, classes)) < 0.3
    several[np.arange(images), labels] = True
    data = ImageSet(
        'made up',
        'all',
        [str(i) for i in range(images)],
        lambda row: np.zeros((3, 4, 4), np.uint8),
        classes=names,
        labels=None if many else labels,
        many=several if many else None,
    )
    prompts = unit(rng, 3 * classes).reshape(3, classes, 16)
    vectors = unit(rng, images) + ensemble(prompts)[labels]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), prompts, data


def values(outcome: object, count: int) -> dict[str, float]:
    """Values of an outcome's statistics."""
    return {n: float(s(np.ones((1, count)))[0]) for n, s in outcome.statistics.items()}  # type: ignore[attr-defined]


def naive_ap(scores: np.ndarray, relevant: np.ndarray, k: int | None = None) -> float:
    """Average precision of one ranking, by its definition."""
    order = np.argsort(-scores, kind='stable')[: k or len(scores)]
    hits = relevant[order]
    found = [hits[: i + 1].mean() for i in np.flatnonzero(hits)]
    return float(np.sum(found) / min(k or len(scores), relevant.sum()))


def test_classification_is_what_sklearn_like_definitions_say() -> None:
    """Top-1, top-5, balanced accuracy and the values of single prompts equal loops over images."""
    images, prompts, data = labelled(120, 8)
    outcome = classify(images, prompts, data)
    scores = images.astype(np.float64) @ ensemble(prompts).astype(np.float64).T
    order = np.argsort(-scores, axis=1)
    labels = data.labels
    found = values(outcome, 120)
    assert found['top1'] == pytest.approx((order[:, 0] == labels).mean())
    assert found['top5'] == pytest.approx(np.mean([label in row[:5] for label, row in zip(labels, order, strict=True)]))
    recall = [(order[labels == c, 0] == c).mean() for c in range(8)]
    assert found['balanced'] == pytest.approx(np.mean(recall))
    assert list(outcome.per_class['top1'].values()) == pytest.approx(recall, abs=1e-6)
    singles = [((images @ p.T).argmax(1) == labels).mean() for p in prompts]
    told = outcome.extra['single_prompts']
    assert (told['mean'], told['min'], told['max']) == pytest.approx((np.mean(singles), min(singles), max(singles)))


def test_a_collapsed_model_gains_nothing_by_the_order_of_files_or_classes() -> None:
    """With all scores equal top-5 is that of any five classes and average precision that of a random order."""
    scores = np.zeros((90, 9), dtype=np.float32)
    labels = np.repeat(np.arange(9), 10)
    assert in_top(scores, labels, 5).mean() == pytest.approx(5 / 9)
    relevant = labels[None] == np.arange(9)[:, None]
    assert MeanAp(ranking(scores), relevant, 0)(np.ones((1, 90)))[0] == pytest.approx(1 / 9, abs=0.08)


def test_only_the_transductive_flag_lets_images_change_one_another() -> None:
    """An image's guess is the same in any company, unless class means over the test images are taken off."""
    images, prompts, data = labelled(60, 5)
    half = data.subset(np.arange(30), 'all')
    for transductive in (False, True):
        whole = classify(images, prompts, data, transductive=transductive).arrays['guess'][:30]
        part = classify(images[:30], prompts, half, transductive=transductive).arrays['guess']
        assert (whole == part).all() == (not transductive)


@pytest.mark.parametrize('many', [False, True])
def test_average_precision_of_classes_equals_its_definition_and_torchmetrics(many: bool) -> None:
    """mAP, mAP@20 and mAP@100 by class, single and multi-label, equal loops and torchmetrics."""
    images, prompts, data = labelled(150, 6, 1, many)
    scores = (images @ ensemble(prompts).T).astype(np.float64)
    relevant = data.many if data.many is not None else data.labels[:, None] == np.arange(6)
    found = values(retrieve_classes(images, prompts, data), 150)
    for name, k in (('map@20', 20), ('map@100', 100), ('map', None)):
        assert found[name] == pytest.approx(np.mean([naive_ap(scores[:, c], relevant[:, c], k) for c in range(6)]))
    if many:
        torch, metrics = pytest.importorskip('torch'), pytest.importorskip('torchmetrics.functional.classification')
        theirs = metrics.multilabel_average_precision(
            torch.from_numpy((scores + 1) / 2), torch.from_numpy(relevant).long(), num_labels=6
        )
        assert values(classify(images, prompts, data), 150)['map'] == pytest.approx(float(theirs), abs=1e-5)


def test_image_to_image_leaves_the_query_out() -> None:
    """Recall at 1 and mAP@20 over the others of the class equal a loop, also where copies of an image exist."""
    images, _, data = labelled(80, 5, 2)
    images[7] = images[3]
    data.labels[7] = data.labels[3]  # whichever of two equal ones comes first, it is as relevant
    found = values(retrieve_images(images, data), 80)
    scores = images.astype(np.float64) @ images.astype(np.float64).T
    r1, ap = [], []
    for q in range(80):
        others = np.delete(np.arange(80), q)
        relevant = data.labels[others] == data.labels[q]
        if relevant.any():
            r1.append(relevant[np.argmax(scores[q, others])])
            ap.append(naive_ap(scores[q, others], relevant, 20))
    assert found['r@1'] == pytest.approx(np.mean(r1)) and found['map@20'] == pytest.approx(np.mean(ap), abs=1e-9)


def test_copies_of_a_caption_count_by_the_rule_that_is_stated() -> None:
    """`own`: the copy of another image is wrong, and chance decides; `shared`: it is right for both."""
    captions = [['a dam', 'water'], ['a dam', 'a wall']]
    data = ImageSet('two', 'all', ['0', '1'], lambda row: np.zeros((3, 2, 2)), captions=captions)
    vectors = {'a dam': [1.0, 0, 0], 'water': [0, 1.0, 0], 'a wall': [0, 0, 1.0]}
    images = np.array([[0.9, 0.3, 0.1], [0.8, 0.1, 0.5]], dtype=np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)

    def embed(texts: object) -> np.ndarray:
        return np.array([vectors[t] for t in texts], dtype=np.float32)  # type: ignore[attr-defined]

    own, shared = (values(evaluate_captions(images, data, embed, rule), 2) for rule in ('own', 'shared'))  # type: ignore[arg-type]
    assert own['image_to_text_r@1'] == pytest.approx(0.5) and shared['image_to_text_r@1'] == 1
    # 'a dam' is nearest to image 0: right for one copy of two, and right as one text
    assert own['text_to_image_r@1'] == pytest.approx(3 / 4) and shared['text_to_image_r@1'] == 1
    six = [own[f'{way}_r@{k}'] for way in ('image_to_text', 'text_to_image') for k in (1, 5, 10)]
    assert own['mean_recall'] == pytest.approx(np.mean(six))
    assert caption_table(captions, 'own')[0] == ['a dam', 'water', 'a dam', 'a wall']
    assert caption_table(captions, 'shared')[0] == ['a dam', 'water', 'a wall']


def test_statistics_of_drawn_images_are_those_of_the_drawn_set() -> None:
    """Weights are repetitions: every statistic of weighted images equals that of a set with the images repeated."""
    rng = np.random.default_rng(0)
    count, k = 40, 5
    labels, right = rng.integers(0, 4, count), rng.random(count)
    scores = rng.random((count, 3)).astype(np.float32)
    relevant = rng.random((3, count)) < 0.3
    weight = rng.integers(0, 4, count)
    drawn = np.repeat(np.arange(count), weight)
    confusions = rng.integers(0, 9, (count, 3, 3))
    w = weight[None].astype(np.float64)
    assert Mean(right, np.ones(count))(w)[0] == pytest.approx(right[drawn].mean())
    expected = np.mean([right[drawn][labels[drawn] == c].mean() for c in np.unique(labels[drawn])])
    assert MeanOfClasses(right, labels)(w)[0] == pytest.approx(expected)
    whole = confusions[drawn].sum(0)
    iou = np.diag(whole) / (whole.sum(0) + whole.sum(1) - np.diag(whole))
    assert MeanIou(confusions)(w)[0] == pytest.approx(iou.mean())
    ap = MeanAp(ranking(scores), relevant, k)(w)[0]
    assert ap == pytest.approx(np.mean([naive_ap(scores[drawn, c], relevant[c, drawn], k) for c in range(3)]))


def test_intervals_hold_the_true_value_nineteen_times_in_twenty() -> None:
    """Of means, and of average precision of a weak model, over many worlds."""
    rng = np.random.default_rng(0)
    held = {'mean': 0, 'ap': 0}
    truth = {'mean': 0.3, 'ap': 0.0}
    worlds = []
    for _ in range(60):
        labels = rng.integers(0, 2, 120)
        scores = (0.5 * labels + rng.normal(size=120)).astype(np.float32)[:, None]
        worlds.append((rng.random(120) < 0.3, MeanAp(ranking(scores), (labels == 1)[None], 0)))
    truth['ap'] = float(np.mean([s(np.ones((1, 120)))[0] for _, s in worlds]))
    for hit, ap in worlds:
        found = estimates(
            {'mean': Mean(hit.astype(float), np.ones(120)), 'ap': ap}, Resampling(np.arange(120), 'images', 200)
        )
        for name in held:
            held[name] += found[name]['low'] <= truth[name] <= found[name]['high']
    assert held['mean'] >= 53 and held['ap'] >= 53, held


def test_blocks_of_land_are_drawn_where_places_are_known() -> None:
    """Images of one place are no independent witnesses: intervals over blocks are wider, and results say which."""
    rng = np.random.default_rng(0)
    block = np.repeat(np.arange(40), 25)
    right = np.repeat(rng.random(40) < 0.5, 25).astype(float)
    lonlat = np.stack([block * 0.5, np.zeros(1000)], axis=1)
    statistic = {'x': Mean(right, np.ones(1000))}
    over = {}
    for name, places in (('blocks', lonlat), ('images', None)):
        how = resampling(1000, places, 300)
        assert name in how.unit
        found = estimates(statistic, how)['x']
        over[name] = found['high'] - found['low']
    assert over['blocks'] > 3 * over['images']


def test_a_paired_test_sees_what_two_intervals_cannot() -> None:
    """On the same images a small steady difference is certain, and none is none."""
    rng = np.random.default_rng(0)
    first = rng.random(400)
    better = Mean(first, np.ones(400)), Mean(first - 0.02 + 0.02 * rng.random(400), np.ones(400))
    how = Resampling(np.arange(400), 'images', 500)
    found = paired_difference(*better, how)
    assert found.low > 0 and found.p < 0.01 and found.value == pytest.approx(0.01, abs=0.002)
    assert paired_difference(better[0], better[0], how).p == 1
    alone = [estimates({'x': s}, how)['x'] for s in better]
    assert alone[0]['low'] < alone[1]['high']


def test_statistics_survive_a_file() -> None:
    """What is saved as arrays gives the same values again."""
    statistic = MeanAp(ranking(np.random.default_rng(0).random((9, 2))), np.ones((2, 9), bool), 3)
    (found,) = statistics_from(statistic.arrays('x')).values()
    assert found(np.ones((1, 9)))[0] == statistic(np.ones((1, 9)))[0]


def test_shipped_prompts_and_suites_are_whole(tmp_path: Path) -> None:
    """106 prompts of the remote-sensing ensemble, each with one place for the class; suites name known sets."""
    prompts = load_templates('rs_ensemble')
    assert len(set(prompts)) == 106 and all(p.count('{}') == 1 for p in prompts)
    assert 'an aerial image of the hard to see {}.' in prompts and 'a bad satellite image of a {}.' in prompts
    assert load_templates('a map of {}') == ('a map of {}',)
    assert load_templates('clip_rsicd') == ('An aerial photograph of {}',) and len(load_templates('skyscript')) == 2
    (tmp_path / 'mine.txt').write_text('a view of {}\n\nthe {} from above\n')
    assert load_templates(str(tmp_path / 'mine.txt')) == ('a view of {}', 'the {} from above')
    for name, suite in shipped_suites().items():
        named = [split_spec(spec) for spec in Suite.model_validate(suite).sets]
        assert all(n in known_sets() and path.startswith('{root}') for n, path, _ in named), name


# --- the command, on small folders


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


def test_a_second_run_computes_nothing_and_a_change_computes_just_what_it_changes(
    folders: Path, clip: FrozenClip, tmp_path: Path
) -> None:
    """Done results are kept by their content; other prompts, words, files or masks of the same name are asked anew."""
    model, out = f'tiny={clip.settings.model}', tmp_path / 'out'
    suite = Suite(sets=[f'folder:{folders}'], draws=100)
    first = evaluate([model], suite, out)
    assert (first.computed, first.skipped) == (2, 0)
    again = evaluate([model], suite, out)
    assert (again.computed, again.skipped) == (0, 2) and again.paths == first.paths
    words = evaluate([model], suite.model_copy(update={'templates': 'photo'}), out)
    assert words.computed == 2 and len(list((out / 'cache').glob('*.f32'))) == 1  # images are embedded once
    named = evaluate([model], suite.model_copy(update={'classes': {'colours': ['sand', 'sea', 'wood']}}), out)
    assert named.computed == 2
    paint(folders / 'Beach' / '0.png', (1, 2, 3), 40)
    assert evaluate([model], suite, out).computed == 2 and len(list((out / 'cache').glob('*.f32'))) == 2


def test_a_run_that_was_killed_goes_on_with_the_images_that_are_left(
    folders: Path, clip: FrozenClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embeddings that were written are read again, not made again, and the figures are the same."""
    suite = Suite(sets=[f'folder:{folders}'], draws=100)
    monkeypatch.setattr('grafalign.models.embedding.BATCH', 4)
    whole = evaluate([clip.settings.model], suite, tmp_path / 'whole')
    (kept,) = (tmp_path / 'whole' / 'cache').glob('*.f32')
    cache = tmp_path / 'cut' / 'cache'
    cache.mkdir(parents=True)
    (cache / kept.name).write_bytes(kept.read_bytes()[: 4 * 96 * 7 + 50])  # seven rows, and half of one
    seen: list[int] = []
    monkeypatch.setattr('grafalign.datasets.class_folders.read_picture', _counting(seen))
    cut = evaluate([clip.settings.model], suite, tmp_path / 'cut')
    assert len(seen) == 18 - 7
    assert [read_result(a).metrics for a in whole.paths] == [read_result(b).metrics for b in cut.paths]


def _counting(seen: list[int]) -> object:
    from grafalign.datasets.pictures import read_picture

    def read(source: object, name: str) -> np.ndarray:
        seen.append(1)
        return read_picture(source, name)  # type: ignore[arg-type]

    return read


def test_the_command_writes_results_tables_and_a_page(
    folders: Path, clip: FrozenClip, tmp_path: Path, command: Command
) -> None:
    """Two models side by side: result files of the documented form, tables, differences, a page without network."""
    out, data = tmp_path / 'out', f'folder:{folders}'
    models = [f'one={clip.settings.model}', clip.settings.model]
    code, err = command('evaluate', *models, '--data', data, '--out', out, '--set', 'draws=100', '--seed', 3)
    assert code == 0 and 'one' in err and 'tiny_clip' in err, err
    found = read_results(out)
    assert len(found) == 4 and {r.seed for _, r in found} == {3}
    for path, result in found:
        assert set(Arrays(path).statistics) == set(result.metrics)
        assert result.versions['torch'] and result.unit == 'images' and result.protocol.pixels['size_px'] == 64
    page = (out / 'report.html').read_text()
    assert 'worst cases' in page and 'data:image/jpeg' in page
    assert 'http' not in page.replace('http://www.w3.org', '') and 'data:image/png' in page and 'Differences' in page
    for form, said in (('markdown', '| one |'), ('latex', r'\begin{tabular}')):
        assert command('table', out, '--format', form, '--out', tmp_path / form)[0] == 0
        assert said in (tmp_path / form).read_text()
    text = write_table(tables([r for _, r in found])[0], 'latex')
    assert r'\{\}' in text and '&' in text
    assert command('table', out, '--format', 'csv', '--out', tmp_path / 't.csv')[0] == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / 't.csv').read_text())))
    assert {r['metric'] for r in rows} >= {'top1', 'map@20'} and all(0 <= float(r['value']) <= 1 for r in rows)
    told = differences(found, 'one')
    assert {row[3] for row in told.rows} == {'+0.00'} and {row[5] for row in told.rows} == {'1.000'}
    refused(command('table', out, '--against', 'nobody'), 'nobody', 'one')


def test_results_of_changed_weights_take_the_place_of_old_ones(tmp_path: Path) -> None:
    """A table shows what was asked last of a name; two models of one name at once are refused."""
    images, prompts, data = labelled(40, 4)
    path = tmp_path / 'here' / 'mine.npz'
    path.parent.mkdir()
    for noise in (0.0, 3.0):
        moved = images + noise * np.random.default_rng(9).normal(size=images.shape)
        moved /= np.linalg.norm(moved, axis=1, keepdims=True)
        np.savez(path, images=moved, labels=data.labels, texts=prompts)
        evaluate([str(path)], Suite(draws=100), tmp_path / 'out')
    found = read_results(tmp_path / 'out')
    assert len(found) == 4 and len(newest(found)) == 2
    last = next(r for _, r in newest(found) if r.task == 'classification')
    first = next(r for _, r in found if r.task == 'classification' and r.key != last.key)
    assert last.metrics['top1'].value < first.metrics['top1'].value
    with pytest.raises(GrafalignError, match='Two models are called mine'):
        evaluate([str(path), f'mine={path}'], Suite(), tmp_path / 'out')


def test_what_cannot_be_answered_does_not_stop_the_rest(
    folders: Path, clip: FrozenClip, tmp_path: Path, command: Command
) -> None:
    """A picture that is damaged fails its set and is named at the end; the other set has its results."""
    bad = tmp_path / 'bad'
    for name in 'ab':
        paint(bad / name / '1.png')
    (bad / 'b' / '1.png').write_bytes((bad / 'b' / '1.png').read_bytes()[:40])
    args = ('--data', f'folder:{bad}', '--data', f'folder:{folders}', '--out', tmp_path / 'out', '--set', 'draws=100')
    code, err = command('evaluate', clip.settings.model, *args)
    assert code == 1 and 'b/1.png' in err.splitlines()[-1] and 'Traceback' not in err
    assert {r.data.name for _, r in read_results(tmp_path / 'out')} == {'colours'}


def test_segmentation_scores_the_pixels_of_images_of_any_size(clip: FrozenClip, tmp_path: Path) -> None:
    """Images smaller and larger than a window count pixel by pixel, but for those of no class."""
    rng = np.random.default_rng(0)
    for name, size in (('small', 40), ('large', 100)):
        for part, pixels in (
            ('images', rng.integers(0, 255, (size, size + 7, 3), dtype=np.uint8)),
            ('masks', rng.choice([1, 2, 9], (size, size + 7)).astype(np.uint8)),
        ):
            (tmp_path / part).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / part / f'{name}.png')
    (tmp_path / 'classes.yaml').write_text('1: forest\n2: beach\n')
    done = evaluate([clip.settings.model], Suite(sets=[f'masks:{tmp_path}'], draws=100), tmp_path / 'out')
    (path,) = done.paths
    result, arrays = read_result(path), Arrays(path)
    counted = sum(int((np.asarray(Image.open(p)) != 9).sum()) for p in (tmp_path / 'masks').iterdir())
    assert arrays.arrays['confusion'].sum() == counted
    whole = arrays.arrays['confusion']
    iou = np.diag(whole) / (whole.sum(0) + whole.sum(1) - np.diag(whole))
    assert result.metrics['miou'].value == pytest.approx(iou.mean())
    (tmp_path / 'classes.yaml').write_text('2: forest\n1: beach\n')
    assert evaluate([clip.settings.model], Suite(sets=[f'masks:{tmp_path}'], draws=100), tmp_path / 'out').computed == 1


def test_photos_and_tiles_of_a_store_find_each_other(
    store: PairStore, bank: object, clip: FrozenClip, tmp_path: Path
) -> None:
    """Recall both ways over a split equals a loop over the score matrix; another CLIP's bank is refused."""
    done = evaluate(
        [clip.settings.model], Suite(sets=[f'pairs:{store.path}@train'], draws=100), tmp_path, cache=tmp_path / 'c'
    )
    result = read_result(done.paths[0])
    assert (result.task == 'photo_tile' and 'blocks' in result.unit) or result.unit == 'images'
    rows = store.tiles_of('train')
    (kept,) = (tmp_path / 'c').glob('*.f32')
    tiles = np.fromfile(kept, dtype=np.float32).reshape(len(rows), -1)
    pairs = store.pairs[np.isin(store.pairs['tile'], rows) & bank.valid[store.pairs['photo']]]  # type: ignore[attr-defined]
    photos = np.unique(pairs['photo'])
    vectors = np.asarray(bank.embeddings[photos], dtype=np.float32)  # type: ignore[attr-defined]
    import torch

    scores = torch.from_numpy(vectors.astype(np.float64) @ tiles.astype(np.float64).T)
    positive = torch.zeros(scores.shape, dtype=torch.bool)
    positive[np.searchsorted(photos, pairs['photo']), np.searchsorted(rows, pairs['tile'])] = True
    assert result.metrics['photo_to_tile_r@10'].value == pytest.approx(usual_recall(scores, positive, 10), abs=1e-6)
    asked = positive.any(0)  # tiles with a photo
    back = usual_recall(scores.T[asked], positive.T[asked], 5)
    assert result.metrics['tile_to_photo_r@5'].value == pytest.approx(back, abs=1e-6)
    with pytest.raises(GrafalignError, match='another CLIP'):
        other = replace(load_model(clip.settings.model), clip_digest='another')
        retrieve_photos(tiles, open_pairs(str(store.path), 'train'), str(store.path), other)
    with pytest.raises(GrafalignError, match='not its export'):
        retrieve_photos(tiles, open_pairs(str(store.path), 'train'), str(store.path), replace(other, clip_digest=None))


# --- known answers on real files


@pytest.mark.realdata
def test_whurs19_embeddings_give_the_known_figures(realdata: Path, tmp_path: Path) -> None:
    """Mean, least and best of 107 prompts, and their ensemble, to three decimals."""
    where = realdata / 'whurs19_embeddings'
    classes = (where / 'class_changes.txt').read_text().split('\n')[:19]
    suite = Suite(classes={'whurs19_embeddings': classes}, draws=200)
    done = evaluate([str(where / 'CLIP_ViT-B-32.npz')], suite, tmp_path)
    result = next(r for r in map(read_result, done.paths) if r.task == 'classification')
    told = result.extra['single_prompts']
    assert told['count'] == 107 and result.data.images == 1005
    assert [round(told[k], 3) for k in ('mean', 'min', 'max')] == [0.776, 0.713, 0.813]
    assert round(result.metrics['top1'].value, 3) == 0.813
    assert result.metrics['top1'].low < 0.813 < result.metrics['top1'].high


@pytest.mark.realdata
def test_retrieval_on_real_captions_equals_a_float64_reference(
    realdata: Path, clip: FrozenClip, tmp_path: Path
) -> None:
    """R@1, 5, 10 both ways on 1,027 images with five captions each equal the whole float64 matrix, ties by chance."""
    import torch

    data = open_set(f'captions:{realdata / "aid_rsicd_val"}')
    suite = Suite(sets=[f'captions:{realdata / "aid_rsicd_val"}'], tasks=['image_text'], draws=100)
    done = evaluate([clip.settings.model], suite, tmp_path)
    result = read_result(done.paths[0])
    (kept,) = (tmp_path / 'cache').glob('*.f32')
    images = np.fromfile(kept, dtype=np.float32).reshape(1027, -1)
    texts, text, image = caption_table(data.captions or (), 'own')
    unique = list(dict.fromkeys(texts))
    embedded = load_model(clip.settings.model).embed_texts(unique)
    vectors = embedded[[unique.index(t) for t in texts]]
    exact = np.einsum('id,td->it', images.astype(np.float64), embedded.astype(np.float64))
    scores = exact[:, [unique.index(t) for t in texts]]
    positive = np.zeros(scores.shape, dtype=bool)
    positive[image, text] = True
    for name, s, p in (('image_to_text', scores, positive), ('text_to_image', scores.T, positive.T)):
        best = np.where(p, s, -np.inf).max(1, keepdims=True)
        above, tied = (s > best).sum(1), ((s == best) & ~p).sum(1)
        mine = ((s == best) & p).sum(1)
        for k in (1, 5, 10):
            chance = []
            for a, t, m in zip(above, tied, mine, strict=True):
                miss = 1.0
                for i in range(int(np.clip(k - a, 0, t + m))):
                    miss *= max(t - i, 0) / (t + m - i)
                chance.append(1 - miss)
            assert result.metrics[f'{name}_r@{k}'].value == pytest.approx(np.mean(chance), abs=1e-9), (name, k)
    # the usual code, and torchmetrics', take whichever tied text comes first: they agree on queries without ties
    hit_rate = pytest.importorskip('torchmetrics.functional.retrieval').retrieval_hit_rate
    ranks = positive_ranks(images, vectors, image, text, best_only=True)
    clear = ranks.query[ranks.first][ranks.tied[ranks.first] == 0][:200]
    ours = {int(q): [hits_at(ranks, k)[i] for k in (1, 5, 10)] for i, q in enumerate(ranks.query[ranks.first])}
    assert len(clear) > 100
    for q in clear.tolist():
        row, truth = torch.from_numpy(scores[q]), torch.from_numpy(positive[q])
        for place, k in enumerate((1, 5, 10)):
            assert ours[q][place] == float(hit_rate(row.float(), truth, top_k=k))
            assert ours[q][place] == usual_recall(row[None], truth[None], k)
    assert vectors.shape[0] == 5135 and result.extra['captions'] == 5135


# --- bad input


def saved(path: Path, **arrays: object) -> Path:
    """An embeddings file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def bad_embeddings() -> dict[str, tuple[dict[str, object], str]]:
    """What is wrong, the arrays, and what the sentence must say."""
    images, prompts, data = labelled(30, 4)
    good = {'images': images, 'labels': data.labels, 'texts': prompts}
    nan = images.copy()
    nan[4, 2] = np.nan
    return {
        'nan': (good | {'images': nan}, 'not finite in row 4'),
        'long': (good | {'images': 3 * images}, 'not normalised (row 0'),
        'width': (
            good | {'texts': prompts[..., :8] / np.linalg.norm(prompts[..., :8], axis=-1, keepdims=True)},
            '16 dim',
        ),
        'labels missing': ({k: v for k, v in good.items() if k != 'labels'}, 'no `labels`'),
        'labels short': (good | {'labels': data.labels[:9]}, '30 images and labels [9]'),
        'labels high': (good | {'labels': data.labels + 1}, 'count classes from 0'),
        'labels text': (good | {'labels': np.array(['a'] * 30)}, 'class numbers from 0'),
        'labels nan': (good | {'labels': np.full(30, np.nan)}, 'class numbers from 0'),
        'labels wide': (good | {'labels': np.zeros((30, 7), int)}, '7 classes and texts of 4'),
        'texts missing': ({'images': images, 'labels': data.labels}, 'must hold `images` and `texts`'),
        'places': (good | {'lonlat': np.zeros((3, 2))}, 'lonlat must be'),
        'names': (good | {'classes': np.array(['a', 'b'])}, '4 classes and 2 names'),
        'captions': (
            {'images': images, 'texts': prompts[0], 'text_image': np.array([0, 1, 2, 30])},
            'must name an image',
        ),
        'caption numbers': ({'images': images, 'texts': prompts[0], 'text_image': np.ones(4)}, 'whole numbers'),
        'one image': (good | {'images': images[0]}, 'must be a table'),
    }


@pytest.mark.parametrize('what', bad_embeddings())
def test_embeddings_that_cannot_be_used_are_one_sentence(what: str, tmp_path: Path, command: Command) -> None:
    """Each names the file, what is wrong with it, and what to do."""
    arrays, said = bad_embeddings()[what]
    path = saved(tmp_path / 'some' / 'model.npz', **arrays)
    refused(command('evaluate', path, '--out', tmp_path / 'out'), path, said)


def test_a_damaged_file_of_embeddings_is_one_sentence(tmp_path: Path, command: Command) -> None:
    """A file cut short, one that is no archive, and none at all."""
    images, prompts, data = labelled(30, 4)
    path = saved(tmp_path / 'some' / 'model.npz', images=images, labels=data.labels, texts=prompts)
    path.write_bytes(path.read_bytes()[:500])
    refused(command('evaluate', path, '--out', tmp_path / 'out'), path, 'cannot be read as embeddings')
    refused(command('evaluate', tmp_path / 'no.npz', '--out', tmp_path / 'out'), 'no.npz', 'There is no file')
    (tmp_path / 'no.parquet').write_bytes(b'nothing')
    refused(command('evaluate', tmp_path / 'no.parquet', '--out', tmp_path / 'out'), 'cannot be read as embeddings')


def test_embeddings_in_parquet_are_those_in_npz(tmp_path: Path) -> None:
    """One table of images and texts gives the figures of the arrays; a text that is missing is named."""
    import pandas as pd

    images, prompts, data = labelled(30, 4)
    rows = [
        {'kind': 'image', 'embedding': v, 'label': data.classes[i]} for v, i in zip(images, data.labels, strict=True)
    ]
    for p, block in enumerate(prompts):
        rows += [
            {'kind': 'text', 'embedding': v, 'label': c, 'prompt': f'p{p}'}
            for v, c in zip(block, data.classes, strict=True)
        ]
    path = tmp_path / 'x' / 'm.parquet'
    path.parent.mkdir()
    pd.DataFrame(rows).to_parquet(path)
    found = load_embeddings(path)
    np.testing.assert_allclose(found.prompts, prompts, atol=1e-6)
    assert found.data.labels.tolist() == data.labels.tolist() and found.data.classes == data.classes
    pd.DataFrame(rows[:-1]).to_parquet(path)
    with pytest.raises(GrafalignError, match="'p2' lacks the class 'class 3'"):
        load_embeddings(path)


@pytest.mark.parametrize(
    ('args', 'said'),
    [
        ((), 'needs something to be tested on'),
        (('--suite', 'nothing'), "no suite 'nothing'"),
        (('--suite', 'scenes'), 'needs --root'),
        (('--suite', 'scenes', '--root', '{}'), 'None of the sets of scenes'),
        (('--data', 'folder'), 'NAME:PATH'),
        (('--data', 'folder:{}/none'), 'no folder'),
        (('--data', 'folder:{}', '--set', 'templates=nothing'), "no prompts 'nothing'"),
        (('--data', 'folder:{}', '--set', 'templates="a map"'), 'no prompts'),
        (('--data', 'folder:{}', '--set', 'fit=stretch'), 'fit'),
        (('--data', 'folder:{}', '--set', 'draws=3'), 'draws'),
        (('--data', 'folder:{}', '--set', 'classes.colours=["a", " ", "b"]'), 'Class 1 has no name'),
        (('--data', 'folder:{}', '--set', 'classes.colours=["a", "a", "b"]'), "two classes called 'a'"),
        (('--data', 'folder:{}', '--set', 'classes.other=["a", "b"]'), "no set 'other'"),
        (('--data', 'folder:{}', '--set', 'tasks=[segmentation]'), 'nothing for segmentation'),
    ],
)
def test_a_question_that_makes_no_sense_is_one_sentence(
    args: tuple[str, ...], said: str, folders: Path, clip: FrozenClip, tmp_path: Path, command: Command
) -> None:
    """Suites, sets, prompts and settings that do not exist or do not fit say so before anything is embedded."""
    given = [a.format(folders) for a in args]
    code, err = command('evaluate', clip.settings.model, *given, '--out', tmp_path / 'out')
    assert code == 1 and 'Traceback' not in err and said in err.splitlines()[-1], err
    assert not list((tmp_path / 'out').rglob('*.f32'))  # nothing was embedded for it


def test_damaged_results_are_named(
    folders: Path, clip: FrozenClip, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """A result of another form, cut short, or without its arrays is named with its key; evaluating again mends it."""
    suite = Suite(sets=[f'folder:{folders}'], draws=100)
    done = evaluate([clip.settings.model], suite, tmp_path)
    path = done.paths[0]
    whole = path.read_text()
    for broken, said in (
        (json.dumps(json.loads(whole) | {'nonsense': 1}), 'nonsense'),
        (
            json.dumps(json.loads(whole) | {'metrics': {'top1': {'value': 7, 'low': 0, 'high': 1}}}),
            'metrics.top1.value',
        ),
        (whole[:100], 'no result file'),
    ):
        path.write_text(broken)
        capsys.readouterr()
        refused(command('table', tmp_path), path, said)
    assert evaluate([clip.settings.model], suite, tmp_path).computed == 1
    beside = path.with_suffix('.npz')
    beside.write_bytes(beside.read_bytes()[:200])
    assert evaluate([clip.settings.model], suite, tmp_path).computed == 1
    capsys.readouterr()
    refused(command('table', tmp_path / 'none'), 'no folder')
    (tmp_path / 'empty').mkdir()
    refused(command('table', tmp_path / 'empty'), 'holds no results')


def test_the_documented_schema_is_the_one_that_is_checked() -> None:
    """Docs of the result file name every key of the model, and no other."""
    page = (Path(__file__).parent.parent / 'docs' / 'benchmarks.md').read_text()
    table = page[page.index('## The result file') :]
    told = [
        key
        for line in table.splitlines()
        if line.startswith('| `')
        for key in re.findall('`(\\w+)`', line.split('|')[1])
    ]
    assert sorted(told) == sorted(Result.model_fields)
    nested = [f for model in (ModelFacts, SetFacts, Protocol, Value) for f in model.model_fields]
    assert all(f'`{field}`' in table for field in nested)


def test_by_set_keeps_protocols_and_sets_apart(folders: Path, clip: FrozenClip, tmp_path: Path) -> None:
    """Two prompts of one model are two columns, and sets of one name but other images are two tables."""
    model = [clip.settings.model]
    for templates in ('photo', 'graft'):
        evaluate(model, Suite(sets=[f'folder:{folders}'], draws=100, templates=templates), tmp_path / 'out')
    other = tmp_path / 'colours'
    for name in ('a', 'b'):
        paint(other / name / '0.png')
    evaluate(model, Suite(sets=[f'folder:{other}'], draws=100), tmp_path / 'out')
    shown = by_set([r for _, r in read_results(tmp_path / 'out')])
    assert len(shown) == 2 and {len(t.head) for t in shown} == {2, 3}
    with pytest.raises(GrafalignError, match='Two sets are called colours'):
        evaluate(model, Suite(sets=[f'folder:{folders}', f'folder:{other}']), tmp_path / 'out')


def test_marked_values_are_never_the_best(folders: Path, clip: FrozenClip, tmp_path: Path) -> None:
    """A transductive figure and one of part of a set carry their marks, and no star, in every table."""
    suite = Suite(sets=[f'folder:{folders}'], tasks=['classification'], draws=100)
    for transductive in (False, True):
        evaluate([clip.settings.model], suite.model_copy(update={'transductive': transductive}), tmp_path / 'out')
    found = [r for _, r in read_results(tmp_path / 'out')]
    assert sorted(r.protocol.transductive for r in found) == [False, True]
    (table,) = tables(found)
    cells = {row[1]: row[2] for row in table.rows}
    marked = next(v for rule, v in cells.items() if 'transductive' in rule)
    plain = next(v for rule, v in cells.items() if 'transductive' not in rule)
    assert '†' in marked and '*' not in marked and '*' in plain and any('†' in note for note in table.notes)
    part = [r.model_copy(update={'data': r.data.model_copy(update={'partial': True})}) for r in found]
    assert all('‡' in row[2] and '*' not in row[2] for row in tables(part)[0].rows)


def test_captions_by_number_are_those_by_text(tmp_path: Path) -> None:
    """Embeddings with `text_image`, as arrays and as a table, give the recall of the captions themselves."""
    import pandas as pd

    rng = np.random.default_rng(0)
    images, texts = unit(rng, 20), unit(rng, 60)
    owner = np.repeat(np.arange(20), 3)
    data = ImageSet('c', 'all', [str(i) for i in range(20)], lambda row: np.zeros((3, 2, 2)), captions=[
        [f'{i} {j}' for j in range(3)] for i in range(20)
    ])  # fmt: skip
    number = {t: i for i, t in enumerate(caption_table(data.captions or (), 'own')[0])}
    expected = values(evaluate_captions(images, data, lambda ts: texts[[number[t] for t in ts]], 'own'), 20)
    rows = [{'kind': 'image', 'embedding': v, 'lon': 1.0, 'lat': 2.0} for v in images]
    rows += [{'kind': 'text', 'embedding': v, 'image': i} for v, i in zip(texts, owner, strict=True)]
    (tmp_path / 'c').mkdir()
    saved(tmp_path / 'c' / 'a.npz', images=images, texts=texts, text_image=owner)
    pd.DataFrame(rows).to_parquet(tmp_path / 'c' / 'b.parquet')
    done = evaluate([str(tmp_path / 'c' / n) for n in ('a.npz', 'b.parquet')], Suite(draws=100), tmp_path / 'out')
    for result in map(read_result, done.paths):
        assert result.protocol.duplicates == 'own'
        assert {k: v.value for k, v in result.metrics.items()} == pytest.approx(expected)
    assert (load_embeddings(tmp_path / 'c' / 'b.parquet').data.lonlat() == [1, 2]).all()


@pytest.mark.realdata
def test_real_eurosat_figures_equal_naive_ones(realdata: Path, clip: FrozenClip, tmp_path: Path) -> None:
    """Accuracy and mAP of the tiny CLIP on 100 real 13-band images equal argmax and average precision by definition."""
    suite = Suite(sets=[f'eurosat13:{realdata / "eurosat" / "data"}'], partial=True, draws=100)
    done = evaluate([clip.settings.model], suite, tmp_path)
    found = {r.task: r for r in map(read_result, done.paths)}
    (kept,) = (tmp_path / 'cache').glob('*.f32')
    images = np.fromfile(kept, dtype=np.float32).reshape(100, -1).astype(np.float64)
    result = found['classification']
    labels = np.repeat(np.arange(10), 10)
    words = load_model(clip.settings.model).embed_texts([f'A satellite image of {c}' for c in result.data.classes])
    scores = images @ words.astype(np.float64).T
    assert result.metrics['top1'].value == pytest.approx((scores.argmax(1) == labels).mean())
    expected = np.mean([naive_ap(scores[:, c], labels == c, 20) for c in range(10)])
    assert found['class_retrieval'].metrics['map@20'].value == pytest.approx(expected)
    assert result.data.partial and result.unit.startswith('blocks')
