"""Known answers on real files: embeddings, captions, 13-band images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from grafalign.benchmarks import evaluate, read_result
from grafalign.benchmarks.suite import Suite
from grafalign.benchmarks.tasks.image_text import caption_table
from grafalign.datasets import open_set
from grafalign.encoders import FrozenClip
from grafalign.models import load_model
from grafalign.retrieval import hits_at, positive_ranks
from tests.labelled_sets import naive_ap
from tests.test_ranks import usual_recall


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
