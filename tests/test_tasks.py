"""Tasks against naive references: classification, retrieval of classes, images and captions."""

from __future__ import annotations

import numpy as np
import pytest

from grafalign.benchmarks.statistics import (
    MeanAp,
    ranking,
)
from grafalign.benchmarks.tasks.class_retrieval import retrieve_classes
from grafalign.benchmarks.tasks.classification import classify, in_top
from grafalign.benchmarks.tasks.image_image import retrieve_images
from grafalign.benchmarks.tasks.image_text import caption_table, evaluate_captions
from grafalign.datasets import ImageSet
from grafalign.encoders.ensemble import ensemble
from tests.labelled_sets import labelled, naive_ap, values


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
