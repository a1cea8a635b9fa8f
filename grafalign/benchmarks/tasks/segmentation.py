"""Dense zero-shot maps on images with masks: mean intersection over union."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from grafalign import console
from grafalign.benchmarks.statistics import Mean, MeanIou, confusion
from grafalign.benchmarks.tasks.outcome import Outcome, by_class
from grafalign.datasets import ImageSet
from grafalign.encoders.ensemble import ensemble
from grafalign.errors import InputError
from grafalign.labels import VOID
from grafalign.models import Model
from grafalign.models.pixels import as_unit, band_places
from grafalign.zeroshot import segment


def segment_set(
    model: Model, data: ImageSet, prompts: npt.NDArray[np.float32], stride_px: int | None = None
) -> Outcome:
    """Name every pixel by the class whose words are nearest, windows sliding over images of any size.

    An image smaller than a window is zero-padded to the right and below; only its own pixels are scored.

    Args:
        model: one with patch embeddings.
        data: images and masks.
        prompts: unit embeddings [P, K, D].
        stride_px: how far windows move; one and a half patches by default.

    Raises:
        GrafalignError: the model has no patch embeddings, or the set has no masks.
    """
    if data.mask is None:
        raise InputError(f'{data.name} has no masks; segmentation needs them, as in masks:PATH.')
    encoder = model.encoder()
    vectors = ensemble(prompts)
    places = band_places(model.preprocessing, data.bands)
    mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (model.preprocessing.mean, model.preprocessing.std))
    counts = np.zeros((len(data), len(data.classes), len(data.classes)), dtype=np.int64)
    for row in console.track(range(len(data)), f'segmenting {data.name} with {model.name}'):
        unit = as_unit(data.read(row)[places], data.value_range)  # what is missing is 0
        height, width = unit.shape[-2:]
        size = encoder.size_px
        ground = np.zeros((len(unit), max(height, size), max(width, size)), dtype=np.float32)
        ground[:, :height, :width] = unit
        inputs = torch.from_numpy((ground - mean) / std)[None].to(model.device)
        scores = segment(encoder, inputs, vectors, stride_px)[0, :, :height, :width]
        counts[row] = confusion(data.mask(row), scores.argmax(0).cpu().numpy(), len(data.classes), VOID)
    whole = counts.sum(0)
    if not whole.sum():
        raise InputError(f'{data.name}: no pixel of its masks has a value of classes.yaml; mend that file.')
    truth = whole.sum(1)
    hit = np.diag(whole)
    iou = np.where(truth > 0, hit / np.maximum(truth + whole.sum(0) - hit, 1), np.nan)
    pixels = counts.sum((1, 2)).astype(np.float64)
    right = np.einsum('nkk->n', counts).astype(np.float64)
    statistics = {'miou': MeanIou(counts), 'pixel_accuracy': Mean(right, pixels)}
    return Outcome(statistics, 'miou', {'iou': by_class(data.classes, iou)}, {}, {'confusion': whole})
