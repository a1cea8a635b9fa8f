"""The lattice of windows: blending embeddings, against sums by hand in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from grafalign.encoders.lattice import Lattice, stride_of
from grafalign.encoders.windows import WindowEncoder, blended_rows
from grafalign.errors import GrafalignError

WIDTH = 5


def patches_of(inputs: Tensor, patch: int) -> Tensor:
    """Stands for a model: unit vectors of each patch and of the whole window, [B, h, w, D]."""
    side = math.ceil(inputs.shape[-1] / patch)
    padded = functional.pad(inputs, (0, side * patch - inputs.shape[-1]) * 2)
    cut = padded.unfold(2, patch, patch).unfold(3, patch, patch).flatten(4)  # [B, 3, h, w, pixels]
    values = torch.cat([cut.mean(-1), cut.amax(-1)[:, :1], cut.std(-1)[:, :1]], dim=1).permute(0, 2, 3, 1)
    return functional.normalize(values + inputs.mean((1, 2, 3))[:, None, None, None], dim=-1)


def encoder(patch: int, batch: int = 4) -> WindowEncoder:
    """An encoder that needs no weights."""
    cpu = torch.device('cpu')
    return WindowEncoder(lambda x: patches_of(x, patch), torch.zeros(3), torch.ones(3), WIDTH, batch, cpu)


def blended(
    lattice: Lattice, image: Tensor, present: Tensor, batch: int = 4, first: int = 0, last: int | None = None
) -> Tensor:
    """Mean embeddings of rows of cells."""
    rows = blended_rows(lattice, encoder(lattice.patch, batch), lambda a, b: (image[:, a:b], present[a:b]), first, last)
    return torch.cat([mean for _, mean, _ in rows])


def reflected(index: int, first: int, length: int) -> int:
    """The pixel that stands at `index` when an axis from `first` to `length` is mirrored beyond its end."""
    while not first <= index < length:
        index = 2 * (length - 1) - index if index >= length else 2 * first - index
        if length - first == 1:
            return first
    return index


def by_hand(lattice: Lattice, image: Tensor, present: Tensor) -> np.ndarray:
    """The definition: for every window, every cell, the bilinear mean of the patches times the slope, in float64."""
    size, patch, cell = lattice.window, lattice.patch, lattice.cell
    rows, columns = lattice.shape
    total, mass = np.zeros((rows + size, columns + size, WIDTH)), np.zeros((rows + size, columns + size))
    rise = min(size / 2, size - lattice.stride)
    slope = [min(1.0, min(i + 0.5, size - i - 0.5) / rise) if rise else 1.0 for i in range(size)]
    side = [np.mean(slope[c * cell : (c + 1) * cell]) for c in range(size // cell)]
    for top in lattice.starts(lattice.height):
        for left in lattice.starts(lattice.width):
            r = [reflected(top + i, top, lattice.height) for i in range(size)]
            c = [reflected(left + i, left, lattice.width) for i in range(size)]
            there = present[r][:, c]
            if not there.any():
                continue
            window = image[:, r][:, :, c]
            window = torch.where(there, window, (window * there).sum((1, 2), keepdim=True) / there.sum())
            vectors = patches_of(window[None], patch)[0].double().numpy()
            share = np.array(
                [
                    [there[y : y + patch, x : x + patch].float().mean() > 0.5 for x in range(0, size, patch)]
                    for y in range(0, size, patch)
                ]
            )
            for i, wy in enumerate(side):
                for j, wx in enumerate(side):
                    y, x = ((v + 0.5) * cell / patch - 0.5 for v in (i, j))  # middle of the cell, in patches
                    for py in range(len(share)):
                        for px in range(len(share)):
                            last = len(share) - 1
                            near = max(0, 1 - abs(min(max(y, 0), last) - py)) * max(
                                0, 1 - abs(min(max(x, 0), last) - px)
                            )
                            weight = near * share[py, px] * wy * wx
                            total[top // cell + i, left // cell + j] += weight * vectors[py, px]
                            mass[top // cell + i, left // cell + j] += weight
    return (total / np.where(mass > 0, mass, 1)[..., None])[:rows, :columns]


@settings(max_examples=40)
@given(
    st.sampled_from([(8, 4, 3), (8, 4, 4), (8, 4, 8), (12, 4, 6), (8, 8, 2), (6, 3, 4), (10, 4, 4)]),
    st.integers(5, 30),
    st.integers(5, 30),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.2, 0.7]),
)
def test_blending_is_what_it_is_by_definition(
    sizes: tuple[int, int, int], height: int, width: int, seed: int, missing: float
) -> None:
    """Every cell is the weighted mean over all windows and patches, whatever the sizes and what is missing."""
    random = torch.Generator().manual_seed(seed)
    image = torch.rand(3, height, width, generator=random)
    present = torch.rand(height, width, generator=random) >= missing
    present[: height // 2, : width // 2] &= missing < 0.5
    lattice = Lattice(height, width, *sizes)
    np.testing.assert_allclose(blended(lattice, image, present), by_hand(lattice, image, present), atol=2e-6)


def test_neither_batches_nor_who_computes_which_rows_changes_a_mean() -> None:
    """Any batch size gives the same to 1e-6; rows made apart are those made together, to the bit."""
    image, present = torch.rand(3, 61, 47), torch.rand(61, 47) > 0.1
    lattice = Lattice(61, 47, 16, 4, 6)
    whole = blended(lattice, image, present)
    for batch in (1, 3, 64):
        torch.testing.assert_close(blended(lattice, image, present, batch), whole, atol=1e-6, rtol=0)
    parts = [blended(lattice, image, present, first=a, last=b) for a, b in ((0, 5), (5, 6), (6, 22), (22, 31))]
    assert torch.equal(torch.cat(parts), whole)


def test_every_cell_of_a_whole_image_has_a_mean() -> None:
    """Weights reach zero nowhere, at no edge and in no corner; a constant image gives the same vector everywhere."""
    for height, width, stride in ((37, 53, 6), (16, 16, 16), (7, 90, 4), (1, 1, 4)):
        lattice = Lattice(height, width, 16, 4, stride)
        assert float(lattice.weights(torch.device('cpu')).min()) > 0
        mean = blended(lattice, torch.full((3, height, width), 0.5), torch.ones(height, width, dtype=torch.bool))
        assert mean.shape[:2] == (-(-height // lattice.cell), -(-width // lattice.cell))
        torch.testing.assert_close(mean, mean[:1, :1].expand_as(mean))
        torch.testing.assert_close(mean.norm(dim=-1), torch.ones(mean.shape[:2]))


def test_what_is_missing_is_not_encoded_and_does_not_touch_the_rest() -> None:
    """Windows without a pixel are left out; a window half missing says of its other half what it says without it."""
    seen: list[int] = []

    def counting(inputs: Tensor) -> Tensor:
        seen.append(len(inputs))
        return patches_of(inputs - inputs.mean((1, 2, 3), keepdim=True), 4)

    image, present = torch.rand(3, 64, 64), torch.ones(64, 64, dtype=torch.bool)
    present[:, :32] = False
    model = WindowEncoder(counting, torch.zeros(3), torch.ones(3), WIDTH, 8, torch.device('cpu'))
    lattice = Lattice(64, 64, 16, 4, 16)
    mean = torch.cat([m for _, m, _ in blended_rows(lattice, model, lambda a, b: (image[:, a:b], present[a:b]))])
    assert sum(seen) == 8 and not mean[:, :8].any() and mean[:, 8:].norm(dim=-1).min() > 0


def test_memory_is_a_band_of_rows() -> None:
    """Rows come out as soon as no window reaches them any more, and pixels are asked for with rising rows."""
    asked: list[tuple[int, int]] = []

    def pixels(start: int, stop: int) -> tuple[Tensor, Tensor]:
        asked.append((start, stop))
        return torch.rand(3, stop - start, 40), torch.ones(stop - start, 40, dtype=torch.bool)

    lattice = Lattice(400, 40, 16, 4, 8)
    rows = [len(mean) for _, mean, _ in blended_rows(lattice, encoder(4), pixels)]
    assert sum(rows) == 100 and set(rows[:-1]) == {2}
    assert asked == sorted(asked) and max(b - a for a, b in asked) == 16


@pytest.mark.parametrize('overlap', [1.0, 1.8, 4.0, 9.0])
def test_an_overlap_is_how_often_a_pixel_is_encoded(overlap: float) -> None:
    """The stride of an overlap is whole patches, and of a large image every pixel is in at least so many windows."""
    stride = stride_of(224, 16, overlap)
    lattice = Lattice(20_000, 20_000, 224, 16, stride)
    assert stride % 16 == 0 and overlap * 0.99 <= lattice.passes < overlap * 1.5


def test_windows_that_leave_gaps_are_refused() -> None:
    """A stride larger than the window, and an overlap below one, are one sentence."""
    with pytest.raises(GrafalignError, match='gaps'):
        Lattice(100, 100, 16, 4, 17)
    with pytest.raises(GrafalignError, match='overlap'):
        stride_of(224, 16, 0.5)
