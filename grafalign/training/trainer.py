"""Train a satellite encoder on a pair store: settings in, run folder out.

RUN/config.yaml            the settings
RUN/model.safetensors      the encoder's weights
RUN/model.json             what is needed to use them: CLIP, sensor, level; written last
RUN/log.jsonl, RUN/grafalign/   loss and recall by step; TensorBoard events
RUN/checkpoints/           the newest checkpoint, for resuming
"""

from __future__ import annotations

import hashlib
import json
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
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from grafalign import console
from grafalign.config import parse_settings
from grafalign.encoders import ClipSettings, FrozenClip, GroundBank, PixelRule, SatelliteEncoder, load_bank, load_clip
from grafalign.errors import GrafalignError, naming_full_disk
from grafalign.files import write_atomically
from grafalign.retrieval.metrics import recall_at
from grafalign.store import PairStore, Sensor
from grafalign.training.checkpoint import save_tensors
from grafalign.training.data import PairSteps, Share
from grafalign.training.loop import fit, make_accelerator
from grafalign.training.settings import TrainSettings
from grafalign.training.task import AlignmentTask


@dataclass(frozen=True)
class SatelliteModel:
    """A trained encoder with all that is needed to use it."""

    encoder: SatelliteEncoder
    rule: PixelRule
    clip: FrozenClip
    sensor: Sensor
    facts: dict[str, Any]
    """Content of `model.json`."""

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        """Unit image embeddings [B, D] of normalised tiles [B, C, H, W]."""
        with torch.no_grad():
            return self.encoder(images).image

    def embed_patches(self, images: torch.Tensor) -> torch.Tensor:
        """Unit patch embeddings [B, h, w, D] of normalised tiles [B, C, H, W]."""
        with torch.no_grad():
            return self.encoder(images).patches


def train(settings: TrainSettings) -> dict[str, Any]:
    """Train, or continue what an earlier run of the same settings began.

    Works alike in one process and under `accelerate launch`.

    Returns:
        Content of `RUN/model.json`.

    Raises:
        GrafalignError: store, bank or CLIP are missing or do not belong together, the run folder is another's, or the
            disk is full.
    """
    with naming_full_disk(settings.out):
        return _train(settings)


def _train(settings: TrainSettings) -> dict[str, Any]:
    out = settings.out
    store = PairStore(settings.store)
    clip = load_clip(settings.clip)
    bank = load_bank(store, settings.bank, clip)
    digest = hashlib.blake2b(f'{settings.digest}{store.digest}{clip.digest}'.encode(), digest_size=16).hexdigest()
    if (out / 'model.json').is_file():
        done: dict[str, Any] = json.loads((out / 'model.json').read_text())
        if done['digest'] != digest:
            raise GrafalignError(f'{out} holds a run with other settings, clip or store; give another `out`.')
        console.log(f'{out} is already complete.')
        return done
    accelerator = make_accelerator(settings.precision, out)
    torch.manual_seed(settings.seed)
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / 'config.yaml', yaml.safe_dump(settings.facts(), sort_keys=False).encode())
    accelerator.wait_for_everyone()
    accelerator.init_trackers('grafalign')
    share = Share(accelerator.process_index, accelerator.num_processes)
    steps = PairSteps(
        store,
        bank,
        'train',
        settings.batch_tiles,
        settings.photos_per_tile,
        settings.seed,
        settings.augment,
        settings.gain,
        share,
    )
    total = settings.steps or max(1, round(settings.epochs * steps.steps_per_epoch))
    task = AlignmentTask.start(clip, store.sensor, settings.level, settings.tau)

    def validate(module: nn.Module) -> Mapping[str, float]:
        assert isinstance(module, AlignmentTask)
        return photo_tile_recall(module.encoder, module.rule, store, bank, settings.level)

    started = time.perf_counter()
    log = fit(
        task, steps, total, settings.peak_lr, settings, accelerator, out, digest, validate, settings.validate_every
    )
    accelerator.end_training()
    facts = {
        'digest': digest,
        'level': settings.level,
        'tau': settings.tau,
        'steps': total,
        'clip': settings.clip.model_dump(),
        'clip_digest': clip.digest,
        'store_digest': store.digest,
        'sensor': {**store.facts['sensor']},
        'seed': settings.seed,
        'seconds': round(time.perf_counter() - started, 1),
        'final': log[-1] if log else {},
        'command': ' '.join(Path(a).name if i == 0 else a for i, a in enumerate(sys.argv)),
        'versions': {n: version(n) for n in ('grafalign', 'torch', 'open_clip_torch', 'accelerate')},
        'processes': accelerator.num_processes,
        'device': str(accelerator.device),
    }
    if accelerator.is_main_process:
        part = out / 'model.safetensors.part'
        save_tensors(task.encoder.state_dict(), part)
        part.replace(out / 'model.safetensors')
        write_atomically(out / 'model.json', (json.dumps(facts, indent=2) + '\n').encode())
    accelerator.wait_for_everyone()
    return facts


def load_satellite(run: Path, clip: FrozenClip | None = None) -> SatelliteModel:
    """Load a finished run.

    Args:
        run: the run folder.
        clip: the CLIP it was trained towards, if it is loaded already.

    Raises:
        GrafalignError: the run is unfinished or damaged, or `clip` is another CLIP.
    """
    run = Path(run)
    if not (run / 'model.json').is_file():
        raise GrafalignError(f'{run} is not a finished run (no model.json); run `grafalign train` to the end.')
    facts: dict[str, Any] = json.loads((run / 'model.json').read_text())
    clip = clip or load_clip(parse_settings(facts['clip'], ClipSettings, str(run / 'model.json')))
    if clip.digest != facts['clip_digest']:
        raise GrafalignError(
            f'{run} was trained towards another CLIP than {clip.settings.model} ({clip.settings.pretrained}); '
            f'use {facts["clip"]["model"]} ({facts["clip"]["pretrained"]}).'
        )
    known = facts['sensor']
    sensor = Sensor(known['name'], tuple(known['bands']), known['gsd_m'], known['size_px'], tuple(known['value_range']))
    encoder = SatelliteEncoder(clip, len(sensor.bands), sensor.size_px)
    try:
        encoder.load_state_dict(load_file(run / 'model.safetensors'))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise GrafalignError(f'{run}/model.safetensors is missing or damaged ({error}); train again.') from None
    return SatelliteModel(encoder.eval(), PixelRule(sensor, clip), clip, sensor, facts)


def photo_tile_recall(
    encoder: SatelliteEncoder, rule: PixelRule, store: PairStore, bank: GroundBank, level: str, split: str = 'val'
) -> dict[str, float]:
    """Recall at 1, 5, 10 between tiles and photos of a held-out split: validation without a label.

    At patch level a tile counts by the mean of its patch embeddings.

    Returns:
        `tile_photo@k` and `photo_tile@k`; nothing where the split is empty.
    """
    tiles = store.tiles_of(split)
    pairs = store.pairs
    mine = np.isin(pairs['tile'].to_numpy(), tiles) & bank.valid[pairs['photo'].to_numpy()]
    if not mine.any():
        return {}
    tile, photo = pairs['tile'].to_numpy()[mine], pairs['photo'].to_numpy()[mine]
    tiles, t = np.unique(tile, return_inverse=True)
    photos, p = np.unique(photo, return_inverse=True)
    vectors = embed_store_tiles(encoder, rule, store, tiles, level)
    bank_rows = bank.embeddings[photos].astype(np.float32)
    forth, back = recall_at(vectors, bank_rows, t, p), recall_at(bank_rows, vectors, p, t)
    return {f'tile_photo@{k}': v for k, v in forth.items()} | {f'photo_tile@{k}': v for k, v in back.items()}


def embed_store_tiles(
    encoder: SatelliteEncoder,
    rule: PixelRule,
    store: PairStore,
    tiles: np.ndarray,
    level: str = 'image',
    batch: int = 256,
) -> np.ndarray:
    """Unit embeddings [len(tiles), D] of stored tiles, by row number; at patch level the mean of the patches."""
    device = next(encoder.parameters()).device
    scale, offset = store.radiometry
    out = []
    with torch.no_grad():
        for part in np.array_split(tiles, max(1, -(-len(tiles) // batch))):
            pixels = np.stack([store.read_tile(int(i)) for i in part]).astype(np.float32)
            inputs = [torch.from_numpy(v).to(device) for v in (pixels, scale[part], offset[part])]
            found = encoder(rule(*inputs))
            vectors = found.image if level == 'image' else found.patches.mean((1, 2))
            out.append(nn.functional.normalize(vectors, dim=-1).cpu().numpy())
    return np.concatenate(out)
