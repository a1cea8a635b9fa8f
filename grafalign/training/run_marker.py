"""`model.json`, the marker of a finished run: what is needed to use its weights, and how they came about."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import ConfigDict

from grafalign.artefacts import Marker
from grafalign.encoders.clip import ClipSettings
from grafalign.encoders.text_decoder import DecoderSettings
from grafalign.store_marker import Sensor


class RunMarker(Marker):
    """`model.json`."""

    model_config = ConfigDict(extra='ignore', frozen=True, use_attribute_docstrings=True, protected_namespaces=())
    NEWEST: ClassVar[int] = 1
    OLDEST: ClassVar[int] = 0  # of before it said its format
    REMEDY: ClassVar[str] = 'train again'

    format: int = 0
    digest: str
    """Of all that the run follows from: settings, CLIP, and the rows of store and bank that it trains on."""
    level: Literal['image', 'patch', 'both'] = 'image'
    """Which embedding was trained."""
    tau: float
    """Temperature at the end."""
    steps: int
    clip: ClipSettings
    """The CLIP that it was trained towards, as it was named."""
    clip_digest: str
    store_digest: str
    rows_digest: str | None = None
    """Of the tiles, pairs and bank rows that were trained on; not in runs of earlier releases."""
    sensor: Sensor
    """With the bands that were used, in the order of the encoder's input."""
    text_tower: Literal['frozen', 'trained', 'decoder'] = 'frozen'
    """Whether `text.safetensors` holds a text tower of its own, started from CLIP's, or a text decoder."""
    decoder: DecoderSettings = DecoderSettings()
    """Start and sizes of the text decoder."""
    writes_captions: bool = False
    """Whether the decoder learned to write."""
    tokenizer: str | None = None
    """Digest of what the tokenizer made of a few texts, where the text tower was trained."""
    fit: Literal['resample', 'pad'] = 'resample'
    """How tiles that are smaller than CLIP's images enter the encoder."""
    seed: int = 0
    seconds: float = 0.0
    final: dict[str, int | float] = {}
    """The last line of the log."""
    command: str = ''
    versions: dict[str, str] = {}
    processes: int = 1
    device: str = ''
    micro_batch: int | None = None
    """Tiles that went through the encoder at a time."""
    precision: str = ''
    trained_parameters: int | None = None
    wire_bytes_per_step: int | None = None
    """What every process handed to collectives in a step."""
