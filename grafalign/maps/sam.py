"""Outlines of things by SAM (Kirillov et al., 2023), SAM 2 or SAM 3, as transformers has them.

Of each thing that a map shows (a blob of one class), the peaks of its heat are points, those of rivals beside it are
points that it is not at, its bounds are a box, and its heat is the mask that SAM begins with. Of the masks that SAM
offers the one counts across whose outline the heat falls most, not the one that SAM itself likes best; a blob stays as
it is where none is of it. The image is embedded once a tile, and tiles overlap by more than a thing is
wide, so that a thing over a border is whole in one of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from grafalign.errors import InputError, MachineError

MARGIN = 64
"""Pixels around the middle of a tile that only help to see its things whole."""
_LARGEST_TILE = 512
"""Things of scenes are small: real SAM, whose input has 1,024 px, sees them enlarged."""
_MOST_THINGS, _FEWEST = 200, 64
"""Of a tile, the largest first, and the pixels of the smallest; the others stay as they are."""
_AT_ONCE = 16
_PEAKS, _RIVALS = 2, 2
_BAND = 3
"""Pixels on either side of an outline that are compared."""
_AGREE = 0.3
"""Intersection over union that a mask must have with its blob: another thing that stands out beside it is not it."""
_SHARP = 8.0
"""Logits of the mask prompt where the heat is strongest."""
_KINDS = {
    'sam': 'SamModel',
    'sam2': 'Sam2Model',
    'sam2_video': 'Sam2Model',
    'sam3': 'Sam3TrackerModel',
    'sam3_video': 'Sam3TrackerModel',
    'sam3_tracker': 'Sam3TrackerModel',
}
"""Kinds of configurations, and the class that answers to points, boxes and masks."""
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, which all of them were trained with."""
Floats = npt.NDArray[np.float32]
Masks = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Sam:
    """A SAM of any generation."""

    model: Any
    size: int
    """Pixels along a side of its input."""
    prompt: int
    """Pixels along a side of its mask prompts."""

    @property
    def core(self) -> int:
        """Pixels along a side of the middle of a tile."""
        return max(4 * MARGIN, min(_LARGEST_TILE, self.size)) - 2 * MARGIN

    @classmethod
    def load(cls, name: str) -> Sam:
        """Load weights.

        Args:
            name: a local folder, or a name on the Hugging Face Hub.

        Raises:
            MachineError: transformers is lacking.
            InputError: there is nothing of that name, or it is of another kind.
        """
        try:
            import transformers
        except ImportError:
            raise MachineError("SAM needs transformers; `pip install 'grafalign[transformers]'`.") from None
        try:
            config = transformers.AutoConfig.from_pretrained(name)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f'{name} cannot be loaded as SAM ({" ".join(str(error).split())[:160]}); give a folder that '
                'transformers saved, or a name on the Hub.'
            ) from None
        kind = _KINDS.get(config.model_type)
        if kind is None:
            raise InputError(f'{name} is a model of the kind {config.model_type}; give SAM, SAM 2 or SAM 3.')
        try:
            model = getattr(transformers, kind).from_pretrained(name).eval()
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = ' '.join(str(error).split())[:160]
            raise InputError(f'{name} cannot be loaded as SAM ({reason}); save or fetch it again.') from None
        encoder = model.config.prompt_encoder_config
        return cls(model, encoder.image_size, 4 * (encoder.image_size // encoder.patch_size))

    def pixels(self, image: Floats) -> Tensor:
        """Its input for an image [3, S, S] in 0 to 1, [1, 3, size, size]."""
        pixels = torch.from_numpy(image)[None]
        if image.shape[1:] != (self.size, self.size):
            pixels = functional.interpolate(pixels, (self.size, self.size), mode='bilinear', antialias=True)
        mean, std = (torch.tensor(values)[:, None, None] for values in (_MEAN, _STD))
        return (pixels - mean) / std

    def embed(self, image: Floats) -> Any:
        """Embeddings of an image [3, S, S] in 0 to 1, as its own class makes them."""
        return self.model.get_image_embeddings(self.pixels(image))

    def masks(self, embeddings: Any, prompts: Sequence[Prompt], side: int) -> Tensor:
        """Logits of masks, [N, M, side, side].

        Args:
            embeddings: of `embed`.
            prompts: one a thing, N of them, in pixels of the image.
            side: of the image, in pixels.
        """
        scale = self.size / side
        points = torch.stack([torch.from_numpy(p.points) for p in prompts])[:, None].float() * scale
        labels = torch.stack([torch.from_numpy(p.labels) for p in prompts])[:, None]
        boxes = torch.tensor([p.box for p in prompts])[:, None].float() * scale
        heat = torch.stack([torch.from_numpy(p.heat) for p in prompts])[:, None]
        heat = functional.interpolate(heat, (self.prompt, self.prompt), mode='bilinear', antialias=True)
        found = self.model(
            image_embeddings=_repeated(embeddings, len(prompts)),
            input_points=points,
            input_labels=labels,
            input_boxes=boxes,
            input_masks=heat,
            multimask_output=True,
        ).pred_masks[:, 0]
        return functional.interpolate(found, (side, side), mode='bilinear')


@dataclass(frozen=True)
class Prompt:
    """What is known of a thing before it has an outline."""

    points: npt.NDArray[np.float32]
    """Columns and rows, [P, 2]."""
    labels: npt.NDArray[np.int64]
    """1 where the thing is, 0 where it is not, -10 for none, [P]."""
    box: tuple[float, float, float, float]
    """Left, top, right, bottom."""
    heat: Floats
    """Logits, [S, S]."""


@torch.no_grad()
def refined(
    sam: Sam, bands: Floats, planes: Floats, present: Masks, classes: npt.NDArray[np.int64], things: Collection[int]
) -> Floats:
    """Scores whose argmax has the outlines of SAM for things; a filter of `outlines.py`.

    Args:
        sam: the model.
        bands: red, green and blue in 0 to 1, [3, H, W].
        planes: scores of classes, [K, H, W].
        present: where both are known, [H, W].
        classes: numbers of the classes, [K].
        things: numbers of those that are things.
    """
    labels = np.where(present, planes.argmax(0), -1)
    blobs = [blob for k in np.flatnonzero(np.isin(classes, list(things))) for blob in blobs_of(labels == k, int(k))]
    blobs = [blob for blob in blobs if blob[1].sum() >= _FEWEST]
    blobs = sorted(blobs, key=lambda blob: -int(blob[1].sum()))[:_MOST_THINGS]
    if not blobs:
        return planes
    height, width = present.shape
    side = max(height, width)
    image = np.zeros((3, side, side), np.float32)
    image[:, :height, :width] = np.where(present, bands, bands[:, present].mean(1)[:, None, None])
    embeddings = sam.embed(image)
    out = planes.copy()
    taken: list[tuple[float, int, Masks, Masks]] = []
    for first in range(0, len(blobs), _AT_ONCE):
        part = blobs[first : first + _AT_ONCE]
        margins = [margin_of(planes, k) for k, _ in part]
        prompts = [prompt_of(blob, margin, labels, side) for (_, blob), margin in zip(part, margins, strict=True)]
        offered = (sam.masks(embeddings, prompts, side)[:, :, :height, :width] > 0).numpy()
        for (k, blob), margin, masks in zip(part, margins, offered, strict=True):
            best = _chosen(blob, margin, masks & present)
            if best is not None:
                taken.append((best[0], k, blob, best[1]))
    for _, k, blob, mask in sorted(taken, key=lambda found: found[0]):  # what stands out most is painted last
        gain = max(float(np.median(margin_of(planes, k)[blob])), 1e-4)
        out[k][blob & ~mask] = planes.min() - gain
        out[k][mask] = out[:, mask].max(0) + gain
    return out


def margin_of(planes: Floats, k: int) -> Floats:
    """By how much a class leads where it wins, and trails elsewhere, [H, W]."""
    if len(planes) == 1:
        return planes[0] - np.float32(np.median(planes[0]))
    others = np.delete(planes, k, axis=0).max(0)
    return np.asarray(planes[k] - others, dtype=np.float32)


def blobs_of(where: Masks, k: int) -> list[tuple[int, Masks]]:
    """Pixels of a class that hang together by their sides, each with the number of the class."""
    numbered, count = ndimage.label(where)
    return [(k, numbered == i) for i in range(1, count + 1)]


def prompt_of(blob: Masks, margin: Floats, labels: npt.NDArray[np.int64], side: int) -> Prompt:
    """What is known of a thing.

    Args:
        blob: its pixels on the map, [H, W].
        margin: by how much its class leads, or trails, [H, W].
        labels: classes of the pixels, -1 where nothing is known, [H, W].
        side: of the image that the prompt is for, in pixels.
    """
    rows, columns = np.nonzero(blob)
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    reach = max(2, (bottom - top + right - left) // 8)
    points = [_peak(np.where(blob, margin, -np.inf))]
    near = np.hypot(rows - points[0][0], columns - points[0][1]) < reach
    rest = np.where(blob, margin, -np.inf)
    rest[rows[near], columns[near]] = -np.inf
    points += [_peak(rest)] if np.isfinite(rest).any() else []
    labels_of = [1] * len(points) + [-10] * (_PEAKS - len(points))
    points += [points[0]] * (_PEAKS - len(points))
    around = np.zeros_like(blob)
    around[max(0, top - reach) : bottom + reach, max(0, left - reach) : right + reach] = True
    rivals = np.where(around & ~blob & (labels >= 0), -margin, -np.inf)
    for _ in range(_RIVALS):
        if not np.isfinite(rivals).any():
            points.append(points[0])
            labels_of.append(-10)
            continue
        row, column = _peak(rivals)
        points.append((row, column))
        labels_of.append(0)
        rivals[
            max(0, row - 2 * reach) : row + 2 * reach + 1, max(0, column - 2 * reach) : column + 2 * reach + 1
        ] = -np.inf
    strongest = max(float(margin[blob].max()), 1e-6)
    heat = np.full((side, side), -_SHARP, np.float32)
    heat[: blob.shape[0], : blob.shape[1]] = np.where(around, np.clip(margin / strongest, -1, 1) * _SHARP, -_SHARP)
    return Prompt(
        np.array([(column + 0.5, row + 0.5) for row, column in points], np.float32),
        np.array(labels_of, np.int64),
        (float(left), float(top), float(right), float(bottom)),
        heat,
    )


def _peak(values: Floats) -> tuple[int, int]:
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    return int(row), int(column)


def _chosen(blob: Masks, margin: Floats, masks: Masks) -> tuple[float, Masks] | None:
    """The mask across whose outline the heat falls most, and how much; None where none is of the blob."""
    found = None
    least = -np.inf
    for mask in masks:
        union = (mask | blob).sum()
        if not union or (mask & blob).sum() < _AGREE * union:
            continue
        contrast = standing_out(mask, margin)
        if contrast > least:
            found, least = mask, contrast
    return None if found is None else (least, found)


def standing_out(mask: Masks, margin: Floats) -> float:
    """How much the heat falls across an outline: its mean just inside less that just outside.

    Heat is blurred, and a blurred edge is steepest where the edge is.
    """
    inside = mask & ~ndimage.binary_erosion(mask, iterations=_BAND, border_value=1)
    outside = ndimage.binary_dilation(mask, iterations=_BAND) & ~mask
    if not inside.any() or not outside.any():
        return -np.inf
    return float(margin[inside].mean() - margin[outside].mean())


def _repeated(embeddings: Any, count: int) -> Any:
    """Embeddings of one image for so many prompts."""
    if isinstance(embeddings, Tensor):
        return embeddings.expand(count, *embeddings.shape[1:])
    return [part.expand(count, *part.shape[1:]) for part in embeddings]
