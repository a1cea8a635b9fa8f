"""Pictures for pages."""

from __future__ import annotations

import base64
import io

from PIL import Image


def jpeg(image: Image.Image, longest_px: int) -> bytes:
    """A picture as JPEG, its longer side resampled to `longest_px`."""
    scale = longest_px / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(buffer, 'JPEG', quality=85)
    return buffer.getvalue()


def picture_url(image: Image.Image, longest_px: int) -> str:
    """A picture as a JPEG data URL, its longer side resampled to `longest_px`."""
    return 'data:image/jpeg;base64,' + base64.b64encode(jpeg(image, longest_px)).decode()


def exact_picture_url(image: Image.Image) -> str:
    """A picture as a PNG data URL, pixel for pixel: for colours that mean something."""
    buffer = io.BytesIO()
    image.save(buffer, 'PNG')  # `optimize` takes six times as long for a twentieth of the bytes
    return 'data:image/png;base64,' + base64.b64encode(buffer.getvalue()).decode()
