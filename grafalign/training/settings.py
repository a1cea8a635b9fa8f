"""Settings of a training; defaults are the paper's where it is known, and marked as ours elsewhere."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from grafalign.config import Settings, settings_digest
from grafalign.encoders import ClipSettings, TuneSettings
from grafalign.encoders.text_decoder import DecoderSettings
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
        'val_set',
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
) | {
    'tune': {'grad_checkpointing'},
    'self_labels': {'run', 'words'},
    'word_anchors': {'words'},
    'placement': {'attention': {'run'}},
}
"""Settings that do not change what is learned, beyond the last bits of a sum (and what LoRA's dropout draws, where
micro-batches change). Store, bank, CLIP and words count by their content, not by where they lie."""


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
    """Peak rate of temperature (`learn_tau`) and bias (the sigmoid forms), which are single numbers (SigLIP's 1e-3)."""
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
    seed: int = Field(default=0, ge=0, lt=2**63)
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
    """Photos nearer than this to any of the anchor's. The data workers look them up in a tree of the candidates."""
    closer_than: float | None = Field(default=None, gt=-1, lt=1)
    """Photos whose cosine with any of the anchor's is larger. Costs a product [positives, D] x [D, candidates]."""


class SelfLabelSettings(Settings):
    """Patches learn what a finished run says of them; see `self_labels.py` (ours, after Barzilai et al. 2025)."""

    run: Path
    """Run that was trained at image level: it gives the labels, and the weights to start from."""
    words: Path
    """File with a word or phrase a line: what patches are told apart by."""
    share: float = Field(default=0.25, gt=0, le=1)
    """Of each word's patches, the surest of which keep it."""
    weight: float = Field(default=1.0, gt=0)
    """Of the labels beside the loss of images."""
    tau: float = Field(default=0.07, gt=0)
    """Temperature of the words."""


class WordAnchorSettings(Settings):
    """Words that a tile shall be described by as its photos are; see `word_anchors.py` (ours)."""

    weight: float = Field(default=0.5, gt=0, le=1)
    """Of the words in the loss; the comparison of tiles with photos has the rest, captions have their own."""
    words: Path | None = None
    """File with a word or phrase a line, or a YAML list, best of what you look for; by default a thousand that ship, of
    what is seen in places."""
    prior_strength: float = Field(default=1.0, ge=0, le=1)
    """How much of the photos' own prior of words is divided out; with 0 words that many photos show win."""


class SourceSettings(Settings):
    """One of the sources of `data`."""

    set: Path | None = None
    """Caption set, with the text bank that `grafalign embed` makes; or"""
    store: PlaceSetting | None = None
    """Pair store, with its photo bank. One source at most is a store."""
    weight: float = Field(default=1.0, gt=0)
    """Its share of every batch, relative to the other sources of the time."""
    after: float = Field(default=0.0, ge=0, lt=1)
    """It is used from this share of the steps on."""
    until: float = Field(default=1.0, gt=0, le=1)
    """It is used to this share of the steps."""

    @model_validator(mode='after')
    def _is_one(self) -> Self:
        if (self.set is None) == (self.store is None):
            raise ValueError('a source is either a `set` or a `store`; give one of them')
        if self.after >= self.until:
            raise ValueError('`after` must be less than `until`')
        return self


class TrainSettings(LoopSettings):
    """The file of `grafalign train`."""

    store: PlaceSetting | None = None
    """Pair store, a folder or a URL; or give `data`."""
    data: tuple[SourceSettings, ...] = ()
    """A caption set; or several sources (`[{set: web, until: 0.4}, {set: landmarks}, {store: pairs, weight: 0.3}]`)."""
    val_set: Path | None = None
    """Caption set whose `val` images are validated on, besides those of the sources."""
    tested_on: tuple[str, ...] = ()
    """Names of the sets that the model will be tested on, as `grafalign captions leaks --against` was told them."""
    leaks: Literal['refuse', 'drop'] = 'refuse'
    """What to do about images of a caption set that are also in a set of `tested_on`."""
    size_px: int | None = Field(default=None, ge=8, le=1 << 14)
    """Pixels that pictures are brought to where no source has tiles; CLIP's own by default."""
    gsd_m: float | None = Field(default=None, gt=0)
    """Metres a pixel of pictures whose set knows none; needed where no source tells it."""
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
    form: Literal['softmax', 'sigmoid', 'focal'] = 'softmax'
    """GRAFT's softmax, or SigLIP's sigmoid (ours); with a text tower that is trained also MaMMUT's focal sigmoid."""
    bias: float = -10.0
    """Where the bias of the sigmoid forms starts (SigLIP's -10; MaMMUT has none: 0)."""
    gamma: float = Field(default=2.0, ge=0)
    """Exponent of `form: focal`: how little pairs that are told apart already count (2 as in RetinaNet; MaMMUT's is not
    known to us)."""
    text_tower: Literal['frozen', 'trained', 'decoder'] = 'frozen'
    """Frozen: images come to where CLIP puts their texts or photos. Trained: texts move, too; for captions only.
    Decoder: a text decoder that also learns to write captions takes its place (MaMMUT)."""
    decoder: DecoderSettings = DecoderSettings()
    """With `text_tower: decoder`: its start and sizes."""
    caption_weight: float = Field(default=1.0, ge=0)
    """With `text_tower: decoder`: weight of writing captions beside the comparison (1 in MaMMUT; 0.5 where retrieval
    comes first, by MaMMUT's own ablation; 0 writes none)."""
    tau: float = Field(default=0.07, gt=0)
    """Temperature (0.07 in GRAFT)."""
    learn_tau: bool = False
    """Whether the temperature is learned, starting at `tau` (never below 0.01, as in CLIP)."""
    negatives: Literal['batch'] | BankNegatives = 'batch'
    """The photos of the batch (GRAFT), or besides them `{bank: K}` rows of the photo bank (ours)."""
    masks: MaskSettings = MaskSettings()
    """False negatives that are left out (ours; GRAFT leaves out none)."""
    photo_to_tile: float = Field(default=0.0, ge=0)
    """Weight of the other direction, in which every photo or text must find its image (ours; CLIP's is 1). With a
    frozen text tower it needs the whole batch at once: `micro_batch` may not be smaller than a process's share."""
    self_labels: SelfLabelSettings | None = None
    """Goes on from a run at image level, and teaches patches what that run sees in them: maps without geotags."""
    word_anchors: WordAnchorSettings | None = None
    """Word anchors beside the photos (`word_anchors: {}`: the shipped list). Costs a product [photos, words] a step."""
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

    @property
    def sources(self) -> tuple[SourceSettings, ...]:
        """What is trained on, however it was given."""
        return self.data if self.store is None else (SourceSettings(store=self.store),)

    @field_validator('data', mode='before')
    @classmethod
    def _one_set_is_a_list(cls, value: Any) -> Any:
        return ({'set': value},) if isinstance(value, str | Path) else value

    @model_validator(mode='after')
    def _has_data(self) -> Self:
        if (self.store is None) == (not self.data):
            raise ValueError('give either `store` or `data`')
        if sum(s.store is not None for s in self.sources) > 1:
            raise ValueError('of the sources of `data` one at most is a `store`')
        if len(self.sources) > 1 and self.steps is None:
            raise ValueError('several sources have no common epoch; give `steps`')
        edges = sorted({0.0, 1.0, *(e for s in self.sources for e in (s.after, s.until))})
        for first, last in itertools.pairwise(edges):
            if not any(s.after <= first and last <= s.until for s in self.sources):
                raise ValueError(f'from {first:g} to {last:g} of the steps no source of `data` is used')
        if self.level != 'image' and any(s.set is not None for s in self.sources):
            raise ValueError('a caption speaks of its whole image; use `level: image` with caption sets')
        return self

    @model_validator(mode='after')
    def _fits_together(self) -> Self:
        if any(self.out in (s.store, s.set) for s in self.sources):
            raise ValueError('`out` must be another folder than those of the data')
        if self.patch_dropout and self.level != 'image':
            raise ValueError('`patch_dropout` leaves patches without an embedding; use it with `level: image` only')
        if self.photo_to_tile and self.level == 'patch':
            raise ValueError('`photo_to_tile` compares whole tiles; use it with `level: image` or `both`')
        if self.word_anchors is not None and all(s.store is None for s in self.sources):
            raise ValueError('`word_anchors` say what photos show; give a `store`')
        if self.placement.attention is not None and self.level == 'image':
            raise ValueError('`placement.attention` is of patches; use `level: patch` or `both`')
        if self.learn_tau and self.tau < 0.01:
            raise ValueError('`learn_tau` keeps `tau` at 0.01 or above; start it there or higher')
        return self

    @model_validator(mode='after')
    def _labels_what_it_can(self) -> Self:
        if self.self_labels is None:
            return self
        if self.level != 'image' or self.text_tower != 'frozen':
            raise ValueError('`self_labels` are learned beside whole images and frozen texts; use `level: image`')
        if self.augment.resamples or self.patch_dropout:
            raise ValueError('`self_labels` belong to whole patches; leave turn, zoom, shift and patch dropout out')
        if self.fit == 'pad':
            raise ValueError('`self_labels` need tiles that are not padded; use `fit: resample`')
        return self

    @model_validator(mode='after')
    def _trains_texts_on_captions(self) -> Self:
        if self.text_tower != 'decoder' and (self.decoder != DecoderSettings() or self.caption_weight != 1):
            raise ValueError('`decoder` and `caption_weight` are of a text decoder; set `text_tower: decoder`')
        if self.text_tower == 'frozen':
            if self.form == 'focal':
                raise ValueError('`form: focal` compares whole batches; use it with `text_tower: trained`')
            return self
        tower = f'`text_tower: {self.text_tower}`'
        if self.word_anchors is not None:
            raise ValueError(f'{tower} moves the words; leave `word_anchors` out')
        if any(s.store is not None for s in self.sources):
            raise ValueError(f'{tower} learns from captions; give caption sets only in `data`')
        if self.negatives != 'batch' or self.masks != MaskSettings():
            raise ValueError(f'{tower} takes the texts of the batch; leave `negatives` and `masks` out')
        return self

    @property
    def needs_whole_batch(self) -> bool:
        """Whether the loss of an image depends on the other images of its batch."""
        return self.photo_to_tile > 0 or self.text_tower != 'frozen'

    @property
    def taught_by(self) -> Path | None:
        """The finished run that this one asks, if any."""
        if self.self_labels is not None:
            return self.self_labels.run
        return None if self.placement.attention is None else self.placement.attention.run

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up."""
        return self.lr or _PAPER_LR[self.level]

    @property
    def digest(self) -> str:
        """Digest of every setting that changes the result."""
        free: dict[str, Any] = dict(_FREE)
        if self.form == 'softmax':
            free['bias'] = True
            free |= {} if self.learn_tau else {'lr_scalars': True}
        if self.data:
            free['data'] = {'__all__': {'set', 'store'}}
        return settings_digest(self, MEANING, free)
