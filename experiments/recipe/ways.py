"""Other ways from an encoder to a grid of embeddings, beside which smooth attention pooling has to stand."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from grafalign.encoders import SatelliteEncoder
from grafalign.encoders.smooth import Grid


class Patches:
    """Patch embeddings, or their means over w x w neighbours."""

    def __init__(self, encoder: SatelliteEncoder, width: int = 1) -> None:
        self._encoder, self._width = encoder, width
        self.size_px, self.patch_px = encoder.size_px, encoder.patch_px

    def __call__(self, images: Tensor) -> Grid:
        """Embeddings of patches."""
        patches = self._encoder(images).patches
        return Grid(functional.normalize(mean_filter(patches, self._width), dim=-1))


class Windows:
    """The image embedding of a window, for all of it."""

    def __init__(self, encoder: SatelliteEncoder) -> None:
        self._encoder = encoder
        self.size_px, self.patch_px = encoder.size_px, encoder.size_px

    def __call__(self, images: Tensor) -> Grid:
        """One embedding a window."""
        return Grid(self._encoder(images).image[:, None, None])


def mean_filter(grid: Tensor, width: int) -> Tensor:
    """Mean over the width x width neighbours of each token that are there, [B, h, w, D]."""
    moved = grid.permute(0, 3, 1, 2)
    found = functional.avg_pool2d(moved, width, 1, width // 2, count_include_pad=False)
    return found.permute(0, 2, 3, 1)
