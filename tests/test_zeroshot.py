"""Zero-shot: prompts, the prior, sliding windows, and the labelled sets they are measured on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from grafalign.benchmarks.sandbox.sandbox_set import SandboxTruth
from grafalign.benchmarks.sandbox.supervised import patch_shares
from grafalign.encoders import FrozenClip, SatelliteEncoder
from grafalign.errors import GrafalignError
from grafalign.labels import VOID
from grafalign.store import PairStore
from grafalign.zeroshot import class_scores, class_vectors, photo_prior, segment


def test_class_vectors_are_the_mean_of_their_prompts(clip: FrozenClip) -> None:
    """A class is the renormalised mean of the unit embeddings of its prompts."""
    templates = ('a photo of {}.', 'this is {}.')
    found = class_vectors(clip, ['water', 'stadium'], templates)
    texts = clip.encode_text(['a photo of stadium.', 'this is stadium.'])
    np.testing.assert_allclose(found[1], functional.normalize(texts.mean(0), dim=0).numpy(), atol=1e-6)


def test_prompts_without_a_place_for_the_name_are_refused(clip: FrozenClip) -> None:
    """A template without {} and an empty list of classes are one sentence each."""
    with pytest.raises(GrafalignError, match=r'must hold \{\} once'):
        class_vectors(clip, ['water'], ['a photo.'])
    with pytest.raises(GrafalignError, match='no classes'):
        class_vectors(clip, [])


def test_the_prior_undoes_the_favour_of_rare_classes() -> None:
    """With scores tau (log p(class | tile) - log p(class)), the corrected argmax is that of p(class | tile)."""
    rng = np.random.default_rng(0)
    tau, share = 0.1, np.array([0.7, 0.2, 0.1])
    posterior = rng.dirichlet([1, 1, 1], 200)
    pointwise = tau * np.log(posterior / share)
    corrected = class_scores(pointwise, np.eye(3), tau * np.log(share))
    assert (corrected.argmax(1) == posterior.argmax(1)).all()
    assert (class_scores(pointwise, np.eye(3)).argmax(1) != posterior.argmax(1)).any()


def test_the_photo_prior_counts_photos() -> None:
    """Shares follow the nearest class of each photo, no class has share zero, and tau and strength scale their log."""
    photos = np.repeat(np.eye(3), [6, 3, 0], axis=0)
    expected = np.log(np.array([7, 4, 1]) / 12)
    np.testing.assert_allclose(photo_prior(photos, np.eye(3), 1.0), expected, rtol=1e-6)
    np.testing.assert_allclose(photo_prior(photos, np.eye(3), 0.2, 0.5), 0.1 * expected, rtol=1e-6)


def test_segmentation_is_the_weighted_mean_of_its_windows(clip: FrozenClip) -> None:
    """Scores are those of a naive loop that blends windows pixel by pixel, but for what lies within a cell."""
    encoder = SatelliteEncoder(clip).eval()
    images = torch.randn(2, 3, 88, 112, generator=torch.Generator().manual_seed(0))
    classes = class_vectors(clip, ['water', 'stadium', 'beach'])
    found = segment(encoder, images, classes, stride_px=24, batch=3)
    slope = np.minimum(np.minimum(np.arange(64) + 0.5, 63.5 - np.arange(64)) / 32, 1)
    weight = np.outer(slope, slope)
    for number in range(2):
        total, mass = np.zeros((3, 88, 112)), np.zeros((88, 112))
        for r in (0, 24):
            for c in (0, 24, 48):
                with torch.no_grad():
                    patches = encoder(images[number : number + 1, :, r : r + 64, c : c + 64]).patches[0]
                scores = (patches @ torch.from_numpy(classes).T).permute(2, 0, 1)[None]
                fine = functional.interpolate(scores, (64, 64), mode='bilinear', align_corners=False)[0].numpy()
                total[:, r : r + 64, c : c + 64] += fine * weight
                mass[r : r + 64, c : c + 64] += weight
        naive = total / mass
        off = np.abs(found[number].numpy() - naive)
        assert off.mean() < 0.1 * naive.std()  # of pure noise, the worst case


def test_segmentation_does_not_depend_on_batches(clip: FrozenClip) -> None:
    """An image gets the same scores alone, among others, and with any number of windows at a time."""
    encoder = SatelliteEncoder(clip).eval()
    images = torch.randn(3, 3, 90, 70, generator=torch.Generator().manual_seed(0))
    classes = class_vectors(clip, ['water', 'stadium'])
    together = segment(encoder, images, classes)
    assert together.shape == (3, 2, 90, 70)
    torch.testing.assert_close(segment(encoder, images[1:2], classes, batch=2), together[1:2], atol=1e-5, rtol=0)


def test_images_smaller_than_a_window_are_refused(clip: FrozenClip) -> None:
    """An image that no window fits in is one sentence."""
    with pytest.raises(GrafalignError, match='smaller than'):
        segment(SatelliteEncoder(clip), torch.zeros(1, 3, 32, 64), class_vectors(clip, ['water']))


def test_labelled_tiles_lie_in_their_split_and_show_their_label(world: Path, store: PairStore) -> None:
    """Every labelled tile's blocks have its split, and its label is common in the truth around its centre."""
    truth = SandboxTruth(world, store)
    tiles = truth.tiles('train', 8)
    assert len(tiles.labels) > 40 and len(np.unique(tiles.labels)) > 8
    epsg = truth.epsg
    from grafalign.geo import project

    x, y = project(tiles.lonlat[:, 0], tiles.lonlat[:, 1], epsg)
    assert set(truth._split(x, y, truth.recipe.grid)) == {'train'}
    cols, rows = ~truth.transform @ (x, y)
    for row, col, label in zip(rows.astype(int), cols.astype(int), tiles.labels, strict=True):
        window = truth.raster[max(0, row - 32) : row + 32, max(0, col - 32) : col + 32]
        assert (window == label).mean() > 0.04
    again = truth.tiles('train', 8)
    assert (again.pixels == tiles.pixels).all()


def test_chips_do_not_overlap_and_have_a_label_for_every_pixel(world: Path, store: PairStore) -> None:
    """Chips of a split are apart, and their label maps are the truth on their grid."""
    chips = SandboxTruth(world, store).chips('train', 4, 96)
    assert chips.labels.shape[1:] == (96, 96) and chips.pixels.shape[2:] == (96, 96)
    assert ((chips.labels == VOID) | (chips.labels < 24)).all()
    apart = np.abs(chips.lonlat[:, None] - chips.lonlat[None]) * [111_320 * np.cos(np.pi / 4), 111_320]
    np.fill_diagonal(apart[..., 0], np.inf)
    assert (apart.max(-1) > 96 * 5).all()


def test_patch_shares_by_hand() -> None:
    """A patch's target is the share of each class among its labelled pixels, nothing where none is labelled."""
    labels = np.full((1, 4, 4), VOID)
    labels[0, :2, :2] = [[0, 0], [1, VOID]]
    shares = patch_shares(labels, 2, 2)
    np.testing.assert_allclose(shares[0, :, 0, 0], [2 / 3, 1 / 3])
    assert shares[0, :, 1, 1].sum() == 0
