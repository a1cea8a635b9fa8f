"""Embeddings that somebody else made: their forms, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from grafalign.benchmarks import evaluate, read_result
from grafalign.benchmarks.embeddings_file import load_embeddings
from grafalign.benchmarks.suite import Suite
from grafalign.benchmarks.tasks.image_text import caption_table, evaluate_captions
from grafalign.datasets import ImageSet
from grafalign.errors import GrafalignError
from tests.commands import Command, refused
from tests.labelled_sets import labelled, saved, values
from tests.test_ranks import unit


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
