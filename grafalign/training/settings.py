"""Settings of a training; the defaults are the paper's where it is known (papers differ from ours where marked)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from grafalign.config import Settings
from grafalign.encoders import ClipSettings
from grafalign.files import PlaceSetting

_PAPER_LR = {'image': 1e-5, 'patch': 5e-5}


class LoopSettings(Settings):
    """What any training loop needs, whatever its loss."""

    steps: int | None = Field(default=None, ge=1)
    """Length in steps; or give `epochs`."""
    epochs: float = Field(default=10.0, gt=0)
    """Length in passes over the tiles (10 in GRAFT)."""
    batch_tiles: int = Field(default=256, ge=1)
    """Tiles in a step, over all processes (our choice)."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate; GRAFT's 1e-5 (image) or 5e-5 (patch) by default."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's decay (1e-2 in GRAFT)."""
    warmup: float = Field(default=0.05, ge=0, le=1)
    """Share of the steps in which the rate rises linearly; a cosine follows (our choice of the length)."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest gradient norm (our choice)."""
    gain: float = Field(default=0.1, ge=0)
    """Standard deviation of the brightness jitter; half as much again per band (our choice)."""
    augment: bool = True
    """Flips and quarter turns, and the jitter (our choice)."""
    seed: int = 0
    precision: Literal['auto', 'no', 'bf16', 'fp16'] = 'auto'
    """`auto`: bf16 on a GPU that has it, full precision elsewhere: on small CPUs bf16 brings nothing."""
    workers: int = Field(default=0, ge=0)
    """Processes that read tiles; 0 reads in the training process."""
    log_every: int = Field(default=20, ge=1)
    checkpoint_every: int = Field(default=500, ge=1)


class TrainSettings(LoopSettings):
    """The file of `grafalign train`."""

    store: PlaceSetting
    """Pair store, a folder or a URL."""
    bank: Path | None = None
    """Folder of its ground bank; STORE/bank by default, needed where the store is on a URL."""
    out: Path
    """Run folder."""
    clip: ClipSettings
    level: Literal['image', 'patch'] = 'image'
    """Which embedding is the anchor; GRAFT trains two separate models."""
    tau: float = Field(default=0.07, gt=0)
    """Temperature (0.07 in GRAFT)."""
    photos_per_tile: int = Field(default=25, ge=1)
    """At most this many photos of a tile in one step."""
    validate_every: int = Field(default=200, ge=1)
    """Steps between measurements on the val split."""

    @model_validator(mode='after')
    def _store_is_not_run(self) -> Self:
        if self.store == self.out:
            raise ValueError('`store` and `out` must be different folders')
        return self

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up."""
        return self.lr or _PAPER_LR[self.level]

    @property
    def digest(self) -> str:
        """Digest of everything that changes the result."""
        free = {'out', 'workers', 'log_every', 'checkpoint_every', 'validate_every'}
        return hashlib.blake2b(self.model_dump_json(exclude=free).encode(), digest_size=16).hexdigest()

    def facts(self) -> dict[str, Any]:
        """All settings as plain values."""
        return self.model_dump(mode='json')
