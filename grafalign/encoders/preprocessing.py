"""From numbers to a model's input: one fixed stretch for all pictures of a sensor or set, then mean and deviation."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from grafalign.encoders.bands import per_band
from grafalign.encoders.clip import FrozenClip
from grafalign.store_marker import Sensor

Numbers = TypeVar('Numbers', bound=Any)


def to_unit(values: Numbers, low: float, high: float) -> Numbers:
    """Values of a range as 0 to 1, clipped; tensors and arrays alike, in their own precision."""
    clipped: Numbers = ((values - low) / (high - low)).clip(0, 1)
    return clipped


class TilePreprocessing(nn.Module):
    """Stored tiles to the encoder's input: radiometry, one fixed stretch per sensor, CLIP's mean and deviation.

    physical = stored * scale + offset; x = (physical - low) / (high - low), clipped to [0, 1]; then CLIP's mean and
    standard deviation, by colour like the encoder's filters (their averages for bands that are no colour).

    Args:
        sensor: gives the value range and the bands.
        clip: gives mean and standard deviation.
    """

    def __init__(self, sensor: Sensor, clip: FrozenClip) -> None:
        super().__init__()
        self.low, self.high = sensor.value_range
        for name, three in (('mean', clip.mean), ('std', clip.std)):
            values = per_band(three, sensor.bands)
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)
        self.to(clip.device)

    def forward(self, pixels: Tensor, scale: Tensor | float = 1.0, offset: Tensor | float = 0.0) -> Tensor:
        """Stored pixels [B, C, H, W] with scale and offset ([B, C], or one number for all) to the normalised input."""
        mean, std = self.get_buffer('mean'), self.get_buffer('std')
        unit = self.unit(pixels, scale, offset)
        return (unit - mean) / std

    def unit(self, pixels: Tensor, scale: Tensor | float = 1.0, offset: Tensor | float = 0.0) -> Tensor:
        """The same before mean and standard deviation: [B, C, H, W] in [0, 1], fit to be looked at."""
        factor, shift = (v[:, :, None, None] if isinstance(v, Tensor) else v for v in (scale, offset))
        return to_unit(pixels.float() * factor + shift, self.low, self.high)
