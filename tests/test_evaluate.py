"""The evaluation of models on sets: what is kept, what is asked anew, what cannot be asked."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from grafalign.benchmarks import evaluate, read_result, read_results
from grafalign.benchmarks.results import Arrays
from grafalign.benchmarks.suite import Suite, shipped_suites
from grafalign.benchmarks.table import differences, tables, write_table
from grafalign.benchmarks.tasks.photo_tile import open_pairs, retrieve_photos
from grafalign.datasets import known_sets
from grafalign.datasets.open import split_spec
from grafalign.encoders import FrozenClip
from grafalign.errors import GrafalignError
from grafalign.models import load_model
from grafalign.store import PairStore
from grafalign.zeroshot.prompts import load_templates
from tests.commands import Command, finish, refused, start, wait_for
from tests.test_datasets import paint
from tests.test_ranks import usual_recall


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
    """Parts that were written are read again, not made again, and the figures are the same."""
    for number in range(200):
        paint(folders / 'Beach' / f'more{number}.png', (number, 2, 3), 40)
    suite = Suite(sets=[f'folder:{folders}'], draws=100)
    whole = evaluate([clip.settings.model], suite, tmp_path / 'whole')
    asked = ('evaluate', clip.settings.model, '--data', f'folder:{folders}', '--out', tmp_path / 'cut')
    process = start(*asked, '--set', 'draws=100')
    wait_for(process, tmp_path / 'cut', 'cache/*.parts/00000.parquet')
    process.kill()
    finish(process)
    kept = len(list((tmp_path / 'cut').glob('cache/*.parts/*.parquet')))
    seen: list[int] = []
    monkeypatch.setattr('grafalign.datasets.class_folders.read_picture', _counting(seen))
    cut = evaluate([clip.settings.model], suite, tmp_path / 'cut')
    assert len(seen) == max(218 - 64 * kept, 0) < 218
    assert [read_result(a).metrics for a in whole.paths] == [read_result(b).metrics for b in cut.paths]
    (ours,), (theirs,) = ((tmp_path / name / 'cache').glob('*.f32') for name in ('whole', 'cut'))
    assert ours.read_bytes() == theirs.read_bytes()


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
