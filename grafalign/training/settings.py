"""Settings of a training; defaults are the paper's where it is known, and marked as ours elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from grafalign.config import Settings, settings_digest
from grafalign.encoders import ClipSettings, TuneSettings
from grafalign.files import PlaceSetting
from grafalign.training.placement import PlacementSettings
from grafalign.training.views import AugmentSettings

MEANING = 1
"""Raised when the same settings come to train otherwise: another default, another order, another loss."""
_PAPER_LR = {'image': 1e-5, 'patch': 5e-5, 'both': 1e-5}
_FREE = dict.fromkeys(
    (
        'out',
        'store',
        'bank',
        'clip',
        'workers',
        'log_every',
        'checkpoint_every',
        'validate_every',
        'micro_batch',
        'trackers',
        'max_bad_tiles',
        'compile',
    ),
    True,
) | {'tune': {'grad_checkpointing'}}
"""Settings that do not change what is learned, beyond the last bits of a sum (and what LoRA's dropout draws, where
micro-batches change). Store, bank and CLIP count by their content, not by where they lie."""


class LoopSettings(Settings):
    """What any training loop needs, whatever its loss."""

    steps: int | None = Field(default=None, ge=1)
    """Length in steps; or give `epochs`."""
    epochs: float = Field(default=10.0, gt=0)
    """Length in passes over the tiles (10 in GRAFT)."""
    batch_tiles: int = Field(default=256, ge=1)
    """Tiles in a step, over all processes (our choice)."""
    micro_batch: int | Literal['auto'] = 'auto'
    """Tiles that go through the encoder at a time; the gradient is that of the whole batch. `auto`: what fits."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate; GRAFT's 1e-5 (image) or 5e-5 (patch) by default."""
    lr_scalars: float = Field(default=1e-3, gt=0)
    """Peak rate of temperature (`learn_tau`) and bias (`form: sigmoid`), which are single numbers (SigLIP's 1e-3)."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's decay (1e-2 in GRAFT)."""
    warmup: float = Field(default=0.05, ge=0, le=1)
    """Share of the steps in which the rate rises linearly; a cosine follows (our choice of the length)."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest gradient norm (our choice)."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of a running mean of the weights, which is then what is validated and kept; 0 for none (our choice)."""
    augment: AugmentSettings = AugmentSettings()
    """How tiles are changed from step to step (our choice)."""
    seed: int = Field(default=0, ge=0)
    """Of order, photos, views, negatives and whatever the encoder draws."""
    precision: Literal['auto', 'no', 'bf16', 'fp16'] = 'auto'
    """`auto`: bf16 on a GPU that has it, full precision elsewhere: on small CPUs bf16 brings nothing."""
    compile: bool = False
    """Compile the encoder (needs a C++ compiler or a GPU): minutes once, then faster steps."""
    workers: int = Field(default=0, ge=0)
    """Processes that read tiles; 0 reads in the training process."""
    log_every: int = Field(default=20, ge=1)
    """Steps between lines of the log; validation happens on such lines only."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between checkpoints: what a killed run loses at most."""

    @model_validator(mode='after')
    def _micro_batch_is_a_number(self) -> Self:
        if self.micro_batch != 'auto' and self.micro_batch < 1:
            raise ValueError('`micro_batch` must be `auto` or at least 1')
        return self


class BankNegatives(Settings):
    """Negatives beyond the batch."""

    bank: int | Literal['all'] = Field(union_mode='left_to_right')
    """So many photos of other training tiles, drawn anew for every step; `all` of them."""

    @model_validator(mode='after')
    def _at_least_none(self) -> Self:
        if self.bank != 'all' and self.bank < 1:
            raise ValueError('`bank` must be `all` or at least 1')
        return self


class MaskSettings(Settings):
    """Photos that are no negatives of an anchor. With any of them the anchor's other positives are none either."""

    same_tile: bool = False
    """Photos of the anchor's own tile. Costs nothing worth measuring."""
    within_m: float | None = Field(default=None, gt=0)
    """Photos nearer than this to any of the anchor's. Costs [positives, candidates] distances."""
    closer_than: float | None = Field(default=None, gt=-1, lt=1)
    """Photos whose cosine with any of the anchor's is larger. Costs a product [positives, D] x [D, candidates]."""


class TrainSettings(LoopSettings):
    """The file of `grafalign train`."""

    store: PlaceSetting
    """Pair store, a folder or a URL."""
    bank: Path | None = None
    """Folder of its photo bank; STORE/bank by default, needed where the store is on a URL."""
    out: Path
    """Run folder."""
    clip: ClipSettings
    bands: tuple[str, ...] | None = None
    """Bands of the store to use, in this order; all by default."""
    fit: Literal['resample', 'pad'] = 'resample'
    """Tiles that are smaller than CLIP's images: resample its position embeddings, or pad the tile (GRAFT)."""
    tune: TuneSettings = TuneSettings()
    """What of the encoder is trained; all of it by default (GRAFT)."""
    level: Literal['image', 'patch', 'both'] = 'image'
    """Which embedding is the anchor; GRAFT trains two separate models, `both` is ours."""
    patch_share: float = Field(default=0.5, gt=0, lt=1)
    """Weight of the patch loss at level `both`; the image loss has the rest."""
    form: Literal['softmax', 'sigmoid'] = 'softmax'
    """GRAFT's softmax, or SigLIP's sigmoid (ours)."""
    tau: float = Field(default=0.07, gt=0)
    """Temperature (0.07 in GRAFT)."""
    learn_tau: bool = False
    """Whether the temperature is learned, starting at `tau` (never below 0.01, as in CLIP)."""
    negatives: Literal['batch'] | BankNegatives = 'batch'
    """The photos of the batch (GRAFT), or besides them `{bank: K}` rows of the photo bank (ours)."""
    masks: MaskSettings = MaskSettings()
    """False negatives that are left out (ours; GRAFT leaves out none)."""
    photo_to_tile: float = Field(default=0.0, ge=0)
    """Weight of the other direction, in which every photo must find its tile (ours). It needs the whole batch at once:
    `micro_batch` may not be smaller than a process's share, and no tile may be unreadable."""
    photos_per_tile: int = Field(default=25, ge=1)
    """At most this many photos of a tile in one step."""
    placement: PlacementSettings = PlacementSettings()
    """Which patches a photo speaks of, at patch level."""
    patch_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the patches that the encoder does not see in a step (FLIP; ours), at image level only."""
    max_bad_tiles: int = Field(default=10, ge=0)
    """So many tiles may be unreadable; they are left out and listed."""
    trackers: tuple[str, ...] = ('tensorboard',)
    """Where the log goes besides `log.jsonl`: any name that Accelerate knows (wandb, mlflow, ...)."""
    validate_every: int = Field(default=200, ge=1)
    """Steps between measurements on the val split."""

    @model_validator(mode='after')
    def _fits_together(self) -> Self:
        if self.store == self.out:
            raise ValueError('`store` and `out` must be different folders')
        if self.patch_dropout and self.level != 'image':
            raise ValueError('`patch_dropout` leaves patches without an embedding; use it with `level: image` only')
        if self.photo_to_tile and self.level == 'patch':
            raise ValueError('`photo_to_tile` compares whole tiles; use it with `level: image` or `both`')
        if self.learn_tau and self.tau < 0.01:
            raise ValueError('`learn_tau` keeps `tau` at 0.01 or above; start it there or higher')
        if self.photo_to_tile and self.max_bad_tiles:
            raise ValueError('`photo_to_tile` needs every tile of a batch; set `max_bad_tiles: 0` with it')
        return self

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up."""
        return self.lr or _PAPER_LR[self.level]

    @property
    def digest(self) -> str:
        """Digest of every setting that changes the result."""
        free = _FREE if self.learn_tau or self.form == 'sigmoid' else {**_FREE, 'lr_scalars': True}
        return settings_digest(self, MEANING, free)
