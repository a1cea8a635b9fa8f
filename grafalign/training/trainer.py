"""Train a satellite encoder on pair stores and caption sets: settings in, run folder out.

RUN/config.yaml            the settings
RUN/data.json              where the tiles and photos came from, if it was trained on any
RUN/captions.json          where the captions came from, if it was trained on any
RUN/model.safetensors      the encoder's weights
RUN/text.safetensors       those of the text tower or decoder, where it was trained
RUN/model.json             what is needed to use them: CLIP, sensor, level; written last
RUN/log.jsonl, RUN/grafalign/   loss and recall by step; TensorBoard events
RUN/checkpoints/           the newest checkpoint, for resuming
RUN/bad_tiles.txt          tiles that could not be read, if any
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator, DistributedType
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from grafalign import console
from grafalign.encoders import (
    FrozenClip,
    SatelliteEncoder,
    TilePreprocessing,
    load_clip,
    merge,
    tune,
)
from grafalign.encoders.mammut import load_decoder, marked_tokenizer, with_decoder
from grafalign.encoders.marked_tokens import tokenizer_digest
from grafalign.encoders.text_decoder import TextDecoder
from grafalign.encoders.text_tower import TEXT_WEIGHTS, text_weights, with_text_weights
from grafalign.encoders.weights_file import save_tensors
from grafalign.errors import DamagedError, InputError, StaleError, naming_full_disk
from grafalign.files import replacing, write_atomically
from grafalign.locks import exclusive
from grafalign.processes import this_team
from grafalign.store_marker import Sensor
from grafalign.training.accelerator import make_accelerator
from grafalign.training.checkpoint import (
    CheckpointState,
    checkpoint_state,
    full_state,
    latest_checkpoint,
)
from grafalign.training.data import PairSteps, Share
from grafalign.training.gather_data import TrainingData, gather_data, mixture_of
from grafalign.training.loop import Run, Validation, fit
from grafalign.training.mammut import MammutTask
from grafalign.training.memory import largest_micro_batch, naming_full_memory
from grafalign.training.near import earth_centred
from grafalign.training.processes import bytes_per_step, naming_lost_processes
from grafalign.training.provenance import describe
from grafalign.training.run_marker import RunMarker
from grafalign.training.self_labels import Labels, label_images
from grafalign.training.settings import TrainSettings
from grafalign.training.task import AlignmentTask
from grafalign.training.token_steps import TokenSteps
from grafalign.training.trackers import end_trackers, start_trackers
from grafalign.training.two_towers import TwoTowerTask
from grafalign.training.validation import caption_quality, recall, sets_to_validate
from grafalign.training.word_anchors import WordAnchors, make_word_anchors
from grafalign.training.word_list import SHIPPED, read_words


@dataclass(frozen=True)
class SatelliteModel:
    """A trained encoder with all that is needed to use it."""

    encoder: SatelliteEncoder
    preprocess: TilePreprocessing
    clip: FrozenClip
    """The CLIP that it was trained towards, with the text tower of the run where that was trained, too."""
    sensor: Sensor
    marker: RunMarker
    """Content of `model.json`."""
    decoder: TextDecoder | None = None
    """What writes captions, where it was trained."""

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        """Unit image embeddings [B, D] of normalised tiles [B, C, H, W]."""
        with torch.no_grad():
            return self.encoder(images).image

    def embed_patches(self, images: torch.Tensor) -> torch.Tensor:
        """Unit patch embeddings [B, h, w, D] of normalised tiles [B, C, H, W]."""
        with torch.no_grad():
            return self.encoder(images).patches


def train(settings: TrainSettings) -> RunMarker:
    """Train a satellite encoder, or go on where an earlier run of the same settings stopped.

    Works alike in one process and under `accelerate launch`.

    Returns:
        What `RUN/model.json` says.

    Raises:
        GrafalignError: store, set, bank or CLIP are missing or do not belong together, the run folder is another's or
            another process is writing to it, or the disk or the memory is full.
    """
    lock = exclusive(settings.out, this_team().first)
    with naming_full_disk(settings.out), lock, naming_lost_processes(), naming_full_memory():
        return _train(settings)


def _train(settings: TrainSettings) -> RunMarker:
    out = settings.out
    clip = load_clip(settings.clip)
    data = gather_data(settings, clip)
    digest = _digest(settings, clip, data.rows_digest)
    if (out / 'model.json').is_file():
        done = RunMarker.read(out / 'model.json')
        if done.digest != digest:
            raise StaleError(f'{out} holds a run with other settings, clip, store or photos; give another `out`.')
        console.log(f'{out} is already complete.')
        return done
    newest = latest_checkpoint(out / 'checkpoints')
    begun = None if newest is None else checkpoint_state(newest, digest)
    kept = begun.precision if begun and settings.precision == 'auto' else None
    precision = kept or settings.precision
    accelerator = make_accelerator(precision, out, settings.trackers)
    refuse_sharding(settings, accelerator.distributed_type)
    main, share = accelerator.is_main_process, Share(accelerator.process_index, accelerator.num_processes)
    torch.manual_seed(settings.seed)
    if main:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(
            out / 'config.yaml', yaml.safe_dump(settings.model_dump(mode='json'), sort_keys=False).encode()
        )
        describe(data, out)
    accelerator.wait_for_everyone()
    start_trackers(accelerator, settings.trackers, out, settings.model_dump(mode='json'))
    sensor, places = data.sensor, None
    if settings.masks.within_m is not None and data.store is not None:
        places = earth_centred(data.store)
        if not np.isfinite(places).any():
            raise InputError(
                f'`masks.within_m` needs to know where photos are, and those of {data.store.path} have no position; '
                'leave it out.'
            )
    if main and data.store is not None and data.photo_bank is not None and data.photo_bank.left_out():
        console.log(f'{data.store.path}: {data.photo_bank.left_out()}')
    bank = data.bank(accelerator.device)
    task: AlignmentTask | TwoTowerTask
    tokenizer: Any = None
    labels = None
    if settings.text_tower == 'trained':
        task, tokenizer = TwoTowerTask.start(clip, sensor, settings), clip.tokenizer
    elif settings.text_tower == 'decoder':
        task = MammutTask.start(clip, sensor, settings)
        tokenizer = marked_tokenizer(clip, task.text)
    else:
        labels, start = _self_labels(clip, data, settings, accelerator.device)
        anchors = _word_anchors(clip, data, settings, accelerator.device)
        teacher = _teacher(clip, data, settings, accelerator.device)
        task = AlignmentTask.start(clip, sensor, settings, bank, start, anchors, teacher)
    mixture = None if settings.steps is None else mixture_of(data, settings, settings.steps)
    pairs = PairSteps(
        data.sources,
        settings,
        share,
        side=task.encoder.side,
        size_px=sensor.size_px,
        mixture=mixture,
        labels=labels,
        places=places,
    )
    writing = settings.text_tower == 'decoder' and settings.caption_weight > 0
    steps = pairs if tokenizer is None else TokenSteps(pairs, data.texts(), tokenizer, captions=writing)
    micro = _micro_batch(settings, steps, task, accelerator, begun)
    steps = steps.with_micro_batch(micro)
    if settings.photo_to_tile and settings.text_tower == 'frozen' and steps.micro_batches > 1:
        raise InputError(
            f'`photo_to_tile` needs the whole batch at once, but micro_batch is {micro}: lower batch_tiles, or raise '
            'micro_batch or the number of processes.'
        )
    if settings.compile:
        task.encoder.compile()
    total = settings.steps or max(1, round(settings.epochs * (steps.steps_per_epoch or 1)))

    val_sets = sets_to_validate(data, settings, clip)

    def validate(model: nn.Module) -> Mapping[str, float]:
        found = recall(model, data, val_sets, settings, batch=micro, tokenizer=tokenizer)
        if isinstance(task, MammutTask) and writing:
            found |= caption_quality(model, task.encoder, task.text, tokenizer, val_sets, batch=micro)
        return found

    started = time.perf_counter()
    run = Run(out, digest, micro, accelerator.mixed_precision, settings.max_bad_tiles)
    validation = Validation(validate, settings.validate_every)
    log = fit(task, steps, total, settings.peak_lr, settings, accelerator, run, validation)
    whole = full_state(task)
    marker = RunMarker(
        format=RunMarker.NEWEST,
        digest=digest,
        level=settings.level if settings.self_labels is None else 'both',
        text_tower=settings.text_tower,
        decoder=settings.decoder,
        writes_captions=writing,
        tokenizer=None if settings.text_tower == 'frozen' else tokenizer_digest(clip.tokenizer),
        tau=task.tau,
        steps=total,
        clip=settings.clip,
        clip_digest=clip.digest,
        store_digest=data.digest,
        rows_digest=data.rows_digest,
        sensor=sensor,
        fit=settings.fit,
        seed=settings.seed,
        seconds=round(time.perf_counter() - started, 1),
        final=log[-1] if log else {},
        command=' '.join(Path(a).name if i == 0 else a for i, a in enumerate(sys.argv)),
        versions={n: version(n) for n in ('grafalign', 'torch', 'open_clip_torch', 'accelerate')},
        processes=share.world,
        device=str(accelerator.device),
        micro_batch=micro,
        precision=accelerator.mixed_precision,
        trained_parameters=sum(p.numel() for p in task.parameters() if p.requires_grad),
        wire_bytes_per_step=bytes_per_step(
            task, settings.batch_tiles, share.world, data.width, settings.needs_whole_batch
        ),
    )
    if main:
        with replacing(out / 'model.safetensors') as part:
            save_tensors(_plain_weights(clip, sensor, settings, whole), part)
        if settings.text_tower != 'frozen':
            with replacing(out / TEXT_WEIGHTS) as part:
                save_tensors(text_weights(whole), part)
        marker.write(out / 'model.json')
    accelerator.wait_for_everyone()
    end_trackers(accelerator)
    return marker


def _self_labels(
    clip: FrozenClip, data: TrainingData, settings: TrainSettings, device: torch.device
) -> tuple[Labels | None, tuple[SatelliteEncoder, torch.Tensor] | None]:
    """Labels of a training with `self_labels`, and the encoder and word vectors that it starts from.

    Raises:
        GrafalignError: the run is unfinished, of another CLIP, or sees other images.
    """
    how = settings.self_labels
    if how is None:
        return None, None
    model = _of_same_images(how.run, clip, data)
    if model.marker.text_tower != 'frozen':
        raise InputError(f'{how.run} has a text tower of its own, which would be lost; give a run with frozen texts.')
    encoder, words = model.encoder.to(device), read_words(how.words)
    labelled = label_images(encoder, model.preprocess.to(device), clip, data.sources, words, how.share)
    return labelled.labels, (encoder, labelled.vectors)


def _teacher(
    clip: FrozenClip, data: TrainingData, settings: TrainSettings, device: torch.device
) -> SatelliteEncoder | None:
    """Encoder of the run that tells which patches photos show, where the settings ask for one.

    Raises:
        GrafalignError: the run is unfinished, of another CLIP, sees other images, or learned no patches.
    """
    how = settings.placement.attention
    if how is None:
        return None
    model = _of_same_images(how.run, clip, data)
    if model.marker.level == 'image' or model.marker.fit != settings.fit:
        raise InputError(
            f'{how.run} is of `level: {model.marker.level}` and `fit: {model.marker.fit}`; give a run that learned '
            f'patches, with `fit: {settings.fit}`.'
        )
    return model.encoder.to(device).eval().requires_grad_(False)


def _of_same_images(run: Path, clip: FrozenClip, data: TrainingData) -> SatelliteModel:
    """A finished run that was trained on images like these.

    Raises:
        GrafalignError: it is unfinished, of another CLIP, or sees other images.
    """
    model = load_satellite(run, clip)
    for name in ('bands', 'size_px', 'value_range'):
        theirs, ours = getattr(model.sensor, name), getattr(data.sensor, name)
        if theirs != ours:
            raise InputError(
                f'{run} was trained on images with {name} {theirs}, and these have {ours}; give a run of the same kind '
                'of images.'
            )
    return model


def _word_anchors(
    clip: FrozenClip, data: TrainingData, settings: TrainSettings, device: torch.device
) -> WordAnchors | None:
    """Word anchors, where the settings ask for them."""
    how = settings.word_anchors
    if how is None:
        return None
    photos = np.unique(np.concatenate([s.candidate for s in data.sources if s.kind == 'photos']))
    bank = data.bank(torch.device('cpu'))
    return make_word_anchors(clip, how.words, bank, photos, how.prior_strength).to(device)


def refuse_sharding(settings: TrainSettings, kind: DistributedType) -> None:
    """Check that what is trained can be sharded, if it is to be.

    Raises:
        InputError: FSDP with a text tower of its own, whose loss is made outside of any module's forward pass.
    """
    if kind is DistributedType.FSDP and settings.text_tower != 'frozen':
        raise InputError(
            f'`text_tower: {settings.text_tower}` is not sharded by FSDP; launch it with DDP (no fsdp_config), with a '
            'smaller `micro_batch` or `tune.grad_checkpointing` where memory is short.'
        )


def _digest(settings: TrainSettings, clip: FrozenClip, rows_digest: str) -> str:
    """Digest of all that a run follows from: settings, CLIP, words, rows of the store and of its bank."""
    parts = [settings.digest, clip.digest, rows_digest]
    if settings.self_labels is not None:
        parts += [_marker_of(settings.self_labels.run).digest, '\n'.join(read_words(settings.self_labels.words))]
    if settings.placement.attention is not None:
        parts.append(_marker_of(settings.placement.attention.run).digest)
    if settings.word_anchors is not None:
        parts.append('\n'.join(read_words(settings.word_anchors.words or SHIPPED)))
    return hashlib.blake2b(' '.join(parts).encode(), digest_size=16).hexdigest()


def _micro_batch(
    settings: TrainSettings,
    steps: PairSteps | TokenSteps,
    task: AlignmentTask | TwoTowerTask,
    accelerator: Accelerator,
    begun: CheckpointState | None,
) -> int:
    """Tiles in a micro-batch: as the settings say, as the checkpoint had it, or as many as fit in every process."""
    most = steps.micro_batch
    if settings.micro_batch != 'auto':
        return min(settings.micro_batch, most)
    if settings.photo_to_tile and settings.text_tower == 'frozen':
        return most
    if begun is not None and begun.micro_batch is not None:  # with another one sums would differ in their last bits
        return min(begun.micro_batch, most)
    if accelerator.distributed_type is DistributedType.FSDP:
        raise InputError('`micro_batch: auto` tries the whole model on one device; under FSDP give a number.')

    def forward(tiles: int) -> torch.Tensor:
        batch: Any = steps.with_micro_batch(tiles)[0]
        if isinstance(task, TwoTowerTask):
            batch = task.without_gradients(batch)
        on_device = {k: v.to(accelerator.device) for k, v in batch.items()}
        with accelerator.autocast():
            loss: torch.Tensor = task(on_device)
        return loss

    task.to(accelerator.device).train()
    # besides weights and gradients: two moments, the running mean and its stand-in, the buffers that DDP sends
    copies = 2 + 2 * bool(settings.ema) + (accelerator.num_processes > 1)
    found = largest_micro_batch(forward, most, task, accelerator.device, copies)
    fits = torch.tensor([found], device=accelerator.device)
    return int(accelerator.gather(fits).min())


def _plain_weights(
    clip: FrozenClip, sensor: Sensor, settings: TrainSettings, whole: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """The encoder's own weights from those of the trained task: adapters folded in, wrappers gone."""
    encoder = SatelliteEncoder(clip, sensor.bands, sensor.size_px, settings.fit)
    tune(encoder, settings.tune)
    encoder.load_state_dict({k.removeprefix('encoder.'): v for k, v in whole.items() if k.startswith('encoder.')})
    merge(encoder)
    return encoder.state_dict()


def _marker_of(run: Path) -> RunMarker:
    """What a finished run says of itself."""
    if not (run / 'model.json').is_file():
        raise DamagedError(f'{run} is not a finished run (no model.json); run `grafalign train` to the end.')
    return RunMarker.read(run / 'model.json')


def load_satellite(run: Path, clip: FrozenClip | None = None) -> SatelliteModel:
    """Load a finished run, ready to embed tiles.

    Args:
        run: the run folder.
        clip: the CLIP it was trained towards, if it is loaded already.

    Raises:
        GrafalignError: the run is unfinished or damaged, or `clip` is another CLIP.
    """
    run = Path(run)
    marker = _marker_of(run)
    clip = clip or load_clip(marker.clip)
    if clip.digest != marker.clip_digest:
        raise StaleError(
            f'{run} was trained towards another CLIP than {clip.settings.model} ({clip.settings.pretrained}); '
            f'use {marker.clip.model} ({marker.clip.pretrained}).'
        )
    sensor = marker.sensor
    encoder = SatelliteEncoder(clip, sensor.bands, sensor.size_px, marker.fit)
    try:
        encoder.load_state_dict(load_file(run / 'model.safetensors'))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise DamagedError(f'{run}/model.safetensors is missing or damaged ({error}); train again.') from None
    if marker.tokenizer is not None and marker.tokenizer != tokenizer_digest(clip.tokenizer):
        raise StaleError(
            f'{run} was trained with another tokenizer than {clip.settings.model} has now, so its words would mean '
            "others; put that CLIP's own tokenizer files back."
        )
    decoder = None
    if marker.text_tower == 'trained':
        clip = with_text_weights(clip, run / TEXT_WEIGHTS)
    elif marker.text_tower == 'decoder':
        decoder = load_decoder(clip, encoder.patch_proj.in_features, marker.decoder, run / TEXT_WEIGHTS)
        clip = with_decoder(clip, decoder)
    return SatelliteModel(encoder.eval(), TilePreprocessing(sensor, clip), clip, sensor, marker, decoder)
