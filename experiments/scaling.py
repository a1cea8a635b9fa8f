"""What a training of GRAFT's size costs on one GPU and on eight: `python -m experiments.scaling` writes `scaling.md`.

Counted are floating-point operations (torch's `FlopCounterMode` on the real task, forward and backward, with random
weights), parameters, and bytes. Assumed are how many tiles there are, the peak of each GPU as its maker states it, the
share of it that a training reaches, and the speed of links. No GPU was measured, and the page says so.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from experiments.scaling_chain import PRICES, bank, maps, pairing
from grafalign.encoders import ClipSettings, FrozenClip
from grafalign.store import ShardWriter
from grafalign.store_marker import Sensor
from grafalign.training.memory import kept_bytes
from grafalign.training.objective import Candidates, Pairs, contrastive_loss
from grafalign.training.processes import bytes_per_step
from grafalign.training.settings import TrainSettings
from grafalign.training.task import AlignmentTask

HERE = Path(__file__).parent
MODEL, PX, DEPTH = 'ViT-B-16', 224, 512
PAIRS, EPOCHS, BATCH = 10_000_000, 10, 2048
KS = (0, 65_536, 1_000_000)
K = 65_536
"""Negatives from the bank where one number is wanted."""
MFU = (0.30, 0.45)
"""Share of the peak that is assumed, low and high."""
GPUS = 8


@dataclass(frozen=True)
class Gpu:
    """What its maker states; none was at hand."""

    bf16: float
    """Dense matrix products in bfloat16, FLOP/s."""
    fp32: float
    """In float32 without TF32, in which the loss is computed."""
    tf32: float
    """In TF32, in which photos are embedded."""
    link: str
    link_gb_s: float
    """Between the GPUs of one machine, each way: three quarters of what is stated."""
    memory_gb: float


DEVICES = {
    'RTX 4090': Gpu(165e12, 82.6e12, 82.6e12, 'PCIe 4.0 x16', 24, 24),
    'A100': Gpu(312e12, 19.5e12, 156e12, 'NVLink 3', 225, 80),
    'H100': Gpu(989e12, 67e12, 494e12, 'NVLink 4', 337, 80),
}
ETHERNET_GB_S = 9.4
"""100 Gbit/s, three quarters of it."""


@dataclass(frozen=True)
class Epochs:
    """What an epoch is."""

    name: str
    tiles: int
    """Tiles that the encoder sees in an epoch."""
    photos: float
    """Photos of a tile in a step."""


RUNS = (
    Epochs('every tile once, 1 M tiles with 10 photos', 1_000_000, 10),
    Epochs('every tile once, 2 M tiles with 5 photos', 2_000_000, 5),
    Epochs('every pair once, a tile with one photo at a time', PAIRS, 1),
)


@dataclass(frozen=True)
class Counted:
    """What was counted, for one tile where nothing else is said."""

    forward: int
    """FLOPs of the encoder."""
    backward: dict[str, int]
    """By level."""
    around: dict[str, int]
    """FLOPs of the whole task beyond encoder and loss (placement), by level, with five photos a tile."""
    photo: int
    """FLOPs of the frozen image tower for one photo."""
    loss: dict[tuple[str, int, int], int]
    """FLOPs of the loss with its gradient by level, photos a tile and K, in a batch of `BATCH`."""
    kept: dict[str, int]
    """Bytes that autograd keeps for the backward pass, by precision."""
    parameters: dict[str, int]
    """Trained, by level."""
    wire: int
    """Bytes of gradients that every process hands over in a step."""
    checkpoint: dict[str, int]
    """Bytes by part."""
    pixels: dict[str, int]
    """Bytes of the pixels by dtype."""
    stored: dict[str, int]
    """Bytes in the shard by dtype, headers included."""

    def encoder(self, level: str = 'image') -> int:
        """FLOPs of forward and backward pass of one tile, beyond the loss."""
        return self.forward + self.backward[level] + self.around[level]


def flops(work: Callable[[], Any]) -> int:
    """FLOPs of some work, two a multiplication with its addition; matrix products, convolutions and attention count."""

    def in_place(target: list[int], left: list[int], right: list[int], **kwargs: Any) -> int:
        """The product that is added to a matrix in place, as the loss does: the one that torch's counter lacks."""
        return 2 * left[0] * left[1] * right[1]

    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place}) as counter:
        work()
    return int(counter.get_total_flops())


def start(level: str) -> AlignmentTask:
    """The task that `grafalign train` builds, with random weights."""
    torch.manual_seed(0)
    model = open_clip.create_model(MODEL).eval().requires_grad_(False)
    mean, std = model.visual.preprocess_cfg['mean'], model.visual.preprocess_cfg['std']
    clip = FrozenClip(model, None, None, ClipSettings(model=MODEL), tuple(mean), tuple(std), PX)  # type: ignore[arg-type]
    settings = TrainSettings.model_validate(
        {'store': 'store', 'out': 'run', 'clip': {'model': MODEL}, 'level': level, 'augment': {'symmetry': False}}
    )
    sensor = Sensor('counted', ('red', 'green', 'blue'), 1.0, PX, (0.0, 255.0))
    bank = torch.nn.functional.normalize(torch.randn(64, DEPTH), dim=1).half()
    return AlignmentTask.start(clip, sensor, settings, bank).train()


def batch(tiles: int, photos: int) -> dict[str, Tensor]:
    """A batch as the data give it, all photos being candidates."""
    pairs = tiles * photos
    place = torch.full((pairs,), PX / 2)
    return {
        'pixels': torch.zeros(tiles, 3, PX, PX, dtype=torch.uint8),
        'scale': torch.ones(tiles, 3),
        'offset': torch.zeros(tiles, 3),
        'gain': torch.ones(tiles, 3),
        'keep': torch.zeros(tiles, 0, dtype=torch.long),
        'candidates': torch.arange(pairs),
        'photos': torch.tensor(pairs),
        'tile': torch.arange(tiles).repeat_interleave(photos),
        'photo': torch.arange(pairs),
        'weight': torch.full((pairs,), 1 / pairs),
        'listed': torch.zeros(2, 0, dtype=torch.long),
        'row': place,
        'col': place,
        'sigma_px': torch.ones(pairs),
        'heading': torch.full((pairs,), float('nan')),
        'field_of_view': torch.full((pairs,), float('nan')),
        'zoom': torch.ones(pairs),
    }


def loss_flops(level: str, photos: int, bank: int, tiles: int = 16) -> int:
    """FLOPs of the loss and its gradient for one tile of a batch of `BATCH`; counted on a few of its rows."""
    rows = tiles * (photos if level == 'patch' else 1)
    candidates = Candidates(torch.ones(64, DEPTH).half(), torch.arange(BATCH * photos + bank) % 64)
    pairs = tiles * photos
    row = torch.arange(pairs) if level == 'patch' else torch.arange(tiles).repeat_interleave(photos)
    z = torch.zeros(rows, DEPTH, requires_grad=True)
    held = Pairs(row, torch.arange(pairs), torch.full((pairs,), 1 / pairs))
    return flops(lambda: contrastive_loss(z, candidates, held).backward()) // tiles


def stored_bytes(dtype: str) -> int:
    """What a tile takes in a shard: pixels, metadata and their headers."""
    pixels = np.zeros((3, PX, PX), dtype=dtype)
    with tempfile.TemporaryDirectory() as folder, ShardWriter(Path(folder) / 'shard.tar') as writer:
        places = [writer.add(f'tile_{n:012d}', pixels, {'metadata': 'x' * 400}) for n in range(2)]
    return places[1][0] - places[0][0]


def count() -> Counted:
    """Count everything; a minute or two."""
    tasks = {level: start(level) for level in ('image', 'patch')}
    task = tasks['image']
    forward = flops(lambda: encode('image', task)) // 2
    both = {level: flops(lambda t=t, n=level: encode(n, t).sum().backward()) // 2 for level, t in tasks.items()}
    whole = {level: flops(lambda t=t: t(batch(2, 5)).backward()) // 2 for level, t in tasks.items()}
    own = {'image': 4 * 10 * DEPTH, 'patch': 5 * 4 * 10 * DEPTH}  # of the loss: two products with ten photos
    weights = [p for p in task.parameters() if p.requires_grad]
    task.zero_grad()

    def in_float32(tiles: int) -> Tensor:
        loss: Tensor = task(batch(tiles, 5))
        return loss

    def in_bfloat16(tiles: int) -> Tensor:
        with torch.autocast('cpu', torch.bfloat16):
            return in_float32(tiles)

    kept = {'float32': in_float32, 'bfloat16': in_bfloat16}
    return Counted(
        forward=forward,
        backward={level: both[level] - forward for level in tasks},
        around={level: whole[level] - both[level] - own[level] for level in tasks},
        photo=flops(lambda: task.encoder.visual(torch.zeros(2, 3, PX, PX))) // 2,
        loss={(n, int(r.photos), k): loss_flops(n, int(r.photos), k) for n in tasks for r in RUNS for k in KS},
        kept={name: kept_bytes(f, 2) - kept_bytes(f, 1) for name, f in kept.items()},
        parameters={n: sum(p.numel() for p in t.parameters() if p.requires_grad) for n, t in tasks.items()},
        wire=bytes_per_step(task, BATCH, GPUS, DEPTH, False),
        checkpoint={
            'weights': sum(v.nbytes for v in task.state_dict().values()),
            'moments': 2 * sum(p.nbytes for p in weights),
            'mean': sum(p.nbytes for p in weights),
        },
        pixels={d: 3 * PX * PX * np.dtype(d).itemsize for d in ('uint8', 'uint16')},
        stored={d: stored_bytes(d) for d in ('uint8', 'uint16')},
    )


def encode(level: str, task: AlignmentTask) -> Tensor:
    """The embeddings of two tiles that this level trains."""
    found = task((torch.zeros(2, 3, PX, PX, dtype=torch.uint8), torch.ones(2, 3), torch.zeros(2, 3)))
    embeddings: Tensor = found.patches if level == 'patch' else found.image
    return embeddings


# From what was counted to what it costs


def tile_seconds(counted: Counted, gpu: Gpu, run: Epochs, share: float, bank: int = K, level: str = 'image') -> float:
    """Seconds of one GPU for one tile: the encoder in bfloat16, the loss in float32."""
    loss = counted.loss[level, int(run.photos), bank]
    return counted.encoder(level) / (gpu.bf16 * share) + loss / (gpu.fp32 * share)


def ring_bytes(counted: Counted, gpus: int = GPUS) -> float:
    """Bytes that every GPU sends in a step, and receives: 2 (n - 1) / n of its gradients."""
    return 2 * (gpus - 1) / gpus * counted.wire


def hours(counted: Counted, gpu: Gpu, run: Epochs, gpus: int, share: float, level: str = 'image') -> float:
    """Hours of a run; on several GPUs nothing of the exchange is hidden behind the backward pass."""
    tiles = EPOCHS * run.tiles
    seconds = tiles / gpus * tile_seconds(counted, gpu, run, share, level=level)
    if gpus > 1:
        seconds += tiles / BATCH * ring_bytes(counted, gpus) / (1e9 * gpu.link_gb_s)
    return seconds / 3600


def page(counted: Counted, minutes: float, prices: Mapping[str, float]) -> Iterable[str]:
    """`scaling.md`."""
    versions = ', '.join(f'{p} {importlib.metadata.version(p)}' for p in ('grafalign', 'torch', 'open_clip_torch'))
    yield "# What a training of GRAFT's size costs"
    yield ''
    yield f'`python -m experiments.scaling` ({minutes:.0f} min on CPU), {versions}.'
    yield ''
    yield (
        '**No GPU was measured for this page.** Operations and bytes are counted on the real task; hours follow from '
        'them at assumed speeds, and are a sum, not a promise. GRAFT states 10.2 M pairs (NAIP) and 8.7 M '
        '(Sentinel-2), ten epochs, ViT-B/16; how many tiles these are, its batch and its hardware are not known to us.'
    )
    yield ''
    yield from assumptions()
    yield from operations(counted)
    yield from durations(counted)
    yield from reading(counted)
    yield from network(counted)
    yield from storage(counted)
    yield from photo_side(counted)
    yield from before_and_after(counted, prices)
    yield from left_out()


def assumptions() -> Iterable[str]:
    """What the page takes for granted."""
    yield '## Assumed'
    yield ''
    yield (
        f'- {PAIRS / 1e6:.0f} M pairs on 1 to 2 M tiles (at most 25 photos a tile), {EPOCHS} epochs, a batch of '
        f'{BATCH:,} tiles over all GPUs, K = {K:,} negatives from the bank besides the photos of the batch, image '
        'level unless said otherwise. One GPU takes the same batch in micro-batches, with the same gradient.'
    )
    yield (
        f'- The encoder runs at {MFU[0]:.0%} to {MFU[1]:.0%} of the peak in bfloat16, the loss at the same share of '
        'the peak in float32 (in which it is computed). Every span below is these two ends.'
    )
    yield '- Peaks, links and memory as stated by the makers; of links three quarters.'
    yield ''
    rows = [
        [
            n,
            *(f'{v / 1e12:.1f}' for v in (g.bf16, g.tf32, g.fp32)),
            f'{g.link}, {g.link_gb_s:.0f}',
            f'{g.memory_gb:.0f}',
        ]
        for n, g in DEVICES.items()
    ]
    names = ['GPU', 'bfloat16, TFLOP/s', 'TF32, TFLOP/s', 'float32, TFLOP/s', 'link, GB/s each way', 'memory, GB']
    yield from table(names, rows)
    yield ''


def operations(c: Counted) -> Iterable[str]:
    """FLOPs, parameters and memory."""
    yield '## Counted: operations'
    yield ''
    yield (
        f'{MODEL} at {PX} px, for one tile: forward {c.forward / 1e9:.1f} GFLOP, backward '
        + ', '.join(f'{v / 1e9:.1f} at {k} level' for k, v in c.backward.items())
        + ' (2 FLOP a multiply-add; matrix products, convolutions, attention). Beyond encoder and loss the task adds '
        + ', '.join(f'{v / 1e9:.3f} at {k} level' for k, v in c.around.items())
        + '. Trained parameters: '
        + ', '.join(f'{v / 1e6:.1f} M at {k} level' for k, v in c.parameters.items())
        + '. Autograd keeps '
        + ', '.join(f'{v / 1e6:.0f} MB a tile in {k}' for k, v in c.kept.items())
        + ' for the backward pass'
        + f'; beside {16 * c.parameters["image"] / 1e9:.2f} GB of weights, gradients and moments, 90 % of the memory '
        'holds ' + ', '.join(f'{portion(c, g):,} tiles at a time ({n})' for n, g in DEVICES.items()) + ' in bfloat16.'
    )
    yield ''
    yield f'The loss with its gradient, for one tile of a batch of {BATCH:,}, beside the operations of all the rest:'
    yield ''
    rows = []
    for level in ('image', 'patch'):
        for run in RUNS:
            cells = [c.loss[level, int(run.photos), k] for k in KS]
            rows.append([level, f'{run.photos:.0f}', *(f'{v / 1e9:.2f} ({v / c.encoder(level):.1%})' for v in cells)])
    yield from table(['level', 'photos a tile', *(f'K = {k:,}, GFLOP' for k in KS)], rows)
    yield ''
    slowest = 'A100'
    gpu = DEVICES[slowest]
    times = [c.loss[n, 10, KS[-1]] / gpu.fp32 * gpu.bf16 / c.encoder(n) for n in ('image', 'patch')]
    yield (
        f'Operations are not time: the loss is computed in float32, whose peak on an {slowest} is a '
        f'{gpu.bf16 / gpu.fp32:.0f}th of that in bfloat16. At equal shares of the two peaks, ten photos a tile and '
        f'K = {KS[-1]:,}, the loss takes {times[0]:.1f} times the time of the encoder at image level there, and '
        f'{times[1]:.1f} times at patch level.'
    )
    yield ''


def durations(c: Counted) -> Iterable[str]:
    """Hours and GPU-hours."""
    yield f'## {EPOCHS} epochs'
    yield ''
    yield (
        f'Hours from {MFU[1]:.0%} to {MFU[0]:.0%} of the peak; K = {K:,}, image level. On {GPUS} GPUs the exchange of '
        'gradients over the link of the table above is added in full, as if nothing of it were hidden.'
    )
    yield ''
    rows = []
    for run in RUNS:
        for name, gpu in DEVICES.items():
            one, many = ([hours(c, gpu, run, n, s) for s in reversed(MFU)] for n in (1, GPUS))
            rows.append([run.name, name, span(one), span(many), span([GPUS * h for h in many])])
    yield from table(['an epoch is', 'GPU', 'hours on one', f'hours on {GPUS}', f'GPU-hours on {GPUS}'], rows)
    yield ''
    low = MFU[0]
    longer = {n: hours(c, g, RUNS[0], 1, low, 'patch') / hours(c, g, RUNS[0], 1, low) for n, g in DEVICES.items()}
    yield (
        'At patch level a row of the loss is a photo rather than a tile; with ten photos a tile that makes a run '
        'longer by the factor ' + ', '.join(f'{v:.2f} ({n})' for n, v in longer.items()) + '.'
    )
    yield ''


def reading(c: Counted) -> Iterable[str]:
    """Bandwidth of the store and of the bank."""
    yield '## Reading'
    yield ''
    yield f'What a GPU takes in while it computes, at {MFU[0]:.0%} to {MFU[1]:.0%}; {GPUS} GPUs take {GPUS} times that.'
    yield ''
    rows = []
    run = RUNS[0]
    rows_bytes = (BATCH * int(run.photos) + K) * DEPTH * 2
    for name, gpu in DEVICES.items():
        rates = [1 / tile_seconds(c, gpu, run, s) for s in MFU]
        needs = [span([r * c.pixels[d] / 1e6 for r in rates]) for d in c.pixels]
        whole = [span([GPUS * r * c.pixels[d] / 1e9 for r in rates]) for d in c.pixels]
        steps = [rows_bytes * r / (BATCH / GPUS) / 1e9 for r in rates]
        rows.append([name, span(rates), *needs, *whole, span(steps)])
    head = ['GPU', 'tiles/s', 'uint8, MB/s', 'uint16, MB/s', f'{GPUS} GPUs uint8, GB/s', f'{GPUS} GPUs uint16, GB/s']
    yield from table([*head, 'rows of the bank, GB/s a GPU'], rows)
    yield ''
    bank = PAIRS * DEPTH * 2 / 1e9
    kept = ', '.join(n for n, g in DEVICES.items() if bank < g.memory_gb / 4) or 'none of these'
    yield (
        f'The last column is what the rows of the bank that a step looks up ({rows_bytes / 1e6:.0f} MB) come to, with '
        f"{GPUS} GPUs: read from the GPU's memory where the bank ({bank:.1f} GB) takes less than a quarter of what is "
        f'free ({kept}), else from the mapped file over PCIe. One {MODEL} tile is one `pread` of '
        f'{c.pixels["uint8"]:,} bytes (uint8); nothing is decoded.'
    )
    yield ''


def network(c: Counted) -> Iterable[str]:
    """Gradients on the wire."""
    yield '## Network'
    yield ''
    sent = ring_bytes(c)
    yield (
        f'Nothing but gradients travels: {c.wire / 1e6:.0f} MB a step (float32). In a ring of {GPUS} every GPU sends '
        f'2 x {GPUS - 1}/{GPUS} of that, {sent / 1e6:.0f} MB, and receives as much, whatever the batch. Photos, '
        'negatives and tiles do not travel: the number of the step tells every process which they are. Below, how long '
        f'the exchange takes as a share of the work of a step at {MFU[1]:.0%} of the peak: over the link between the '
        'GPUs of one machine, and over Ethernet between machines of one GPU each. What is above 100 % cannot be '
        'hidden behind the backward pass.'
    )
    yield ''
    rows = []
    for name, gpu in DEVICES.items():
        for each in (32, 256, 1024):
            step = each * tile_seconds(c, gpu, RUNS[0], MFU[1])
            links = [sent / 1e9 / g for g in (gpu.link_gb_s, ETHERNET_GB_S)]
            rows.append(
                [name, each, f'{1000 * step:.0f}', f'{sent / 1e9 / step:.1f}', *(f'{v / step:.0%}' for v in links)]
            )
    names = ['GPU', 'tiles a GPU and step', 'step, ms', 'GB/s to hide all', 'its own link', '100 Gbit/s Ethernet']
    yield from table(names, rows)
    yield ''


def storage(c: Counted) -> Iterable[str]:
    """What lies on disks."""
    yield '## Storage'
    yield ''
    rows = []
    for dtype in c.pixels:
        for tiles in (1_000_000, 2_000_000):
            rows.append([f'tiles, {dtype}, {tiles / 1e6:.0f} M', f'{tiles * c.stored[dtype] / 1e9:.0f} GB'])
    rows.append([f'bank, {PAIRS / 1e6:.0f} M photos x {DEPTH} x 2 bytes', f'{PAIRS * DEPTH * 2 / 1e9:.1f} GB'])
    parts = c.checkpoint
    rows += [[f'checkpoint: {name}', f'{size / 1e6:.0f} MB'] for name, size in parts.items()]
    rows.append(['checkpoint in all, with a running mean; the newest is kept', f'{sum(parts.values()) / 1e9:.2f} GB'])
    yield from table(['what', 'size'], rows)
    yield ''
    extra = c.stored['uint8'] - c.pixels['uint8']
    yield (
        f'A tile is {c.pixels["uint8"]:,} bytes of pixels (uint8) and {extra:,} of headers, metadata and padding. '
        'Tables are not counted here.'
    )
    yield ''


def photo_side(c: Counted) -> Iterable[str]:
    """What the bank saves."""
    yield '## The photo side'
    yield ''
    once, again = PAIRS * c.photo, EPOCHS * PAIRS * c.photo
    step = c.encoder()
    yield (
        f'One photo costs {c.photo / 1e9:.1f} GFLOP in the frozen {MODEL}. Embedded once: {once / 1e15:,.0f} PFLOP, '
        f'and every photo is fetched and decoded once. Encoded anew in every one of {EPOCHS} epochs, as loops without '
        f'a bank do: {again / 1e15:,.0f} PFLOP, **{again / once:.0f} times as much**, and {EPOCHS} decodings a photo. '
        'Beside the satellite encoder, forward and backward:'
    )
    yield ''
    rows = []
    for run in RUNS:
        sat = EPOCHS * run.tiles * step
        sums = [f'{v / 1e15:,.0f}' for v in (sat, sat + once, sat + again)]
        rows.append([run.name, *sums, f'{(sat + again) / (sat + once):.1f}'])
    names = ['an epoch is', 'satellite side, PFLOP', 'with photos once', 'with photos in every epoch', 'ratio']
    yield from table(names, rows)
    yield ''
    spans = {n: span([once / (g.tf32 * s) / 3600 for s in reversed(MFU)]) for n, g in DEVICES.items()}
    yield (
        'Embedding all photos once takes '
        + ', '.join(f'{v} h ({n})' for n, v in spans.items())
        + ' of one GPU in TF32, as `grafalign embed` does, if photos are decoded as fast; decoding is not counted.'
    )
    yield ''


def before_and_after(c: Counted, prices: Mapping[str, float]) -> Iterable[str]:
    """What comes before the training and after it."""
    yield '## From pairs to maps'
    yield ''
    yield (
        f'Prices are a setting (`--prices`); here {prices["gpu_hour"]:g} dollars an hour of a GPU, '
        f'{prices["core_hour"]:g} an hour of a core, {prices["thousand_requests"]:g} a thousand requests, '
        f'{prices["gb_read"]:g} a GB read (inside a region) and {prices["gb_month"]:g} a GB kept for a month.'
    )
    yield ''
    once = PAIRS * c.photo
    hours_of = {n: (once / (g.tf32 * MFU[1]) / 3600, once / (g.tf32 * MFU[0]) / 3600) for n, g in DEVICES.items()}
    speeds = {n: (g.bf16 * MFU[0], g.bf16 * MFU[1]) for n, g in DEVICES.items()}
    for section in (pairing(prices), bank(prices, hours_of), maps(prices, c.forward, speeds)):
        yield f'### {section.title}'
        yield ''
        yield section.text
        yield ''
        yield from table(section.names, section.rows)
        yield ''


def left_out() -> Iterable[str]:
    """What these numbers do not hold."""
    yield '## Not in these numbers'
    yield ''
    yield (
        '- What is no matrix product: norms, activations, the exponentials of the loss, AdamW, and the time between '
        'kernels. The share of the peak stands for them in the encoder; in the loss, which goes through its candidates '
        'in many small blocks, that share may be lower than assumed.'
    )
    yield '- Stragglers, start-up, validation and checkpoints; the time that fetching waits for scenes and photos.'
    yield '- Memory and time of tables of ten million photos in every process.'


def portion(c: Counted, gpu: Gpu) -> int:
    """Tiles whose activations fit beside weights, gradients and moments, in tens."""
    room = 0.9e9 * gpu.memory_gb - 16 * c.parameters['image']
    return int(room / c.kept['bfloat16'] / 10) * 10


def span(values: list[float]) -> str:
    """Both ends, with as many digits as an estimate deserves."""
    low, high = sorted(values)
    digits = 2 if high < 1 else 1 if high < 10 else 0
    return f'{low:,.{digits}f} to {high:,.{digits}f}'


def table(names: list[str], rows: Iterable[list[Any]]) -> Iterable[str]:
    """A table in Markdown."""
    yield f'| {" | ".join(names)} |'
    yield f'|{"---|" * len(names)}'
    for row in rows:
        yield f'| {" | ".join(map(str, row))} |'


def main() -> None:
    """Count and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=HERE / 'scaling.md')
    parser.add_argument('--prices', nargs='+', default=[], metavar='KEY=DOLLARS', help=', '.join(PRICES))
    args = parser.parse_args()
    prices = PRICES | {key: float(value) for key, _, value in (given.partition('=') for given in args.prices)}
    if prices.keys() != PRICES.keys():
        parser.error(f'--prices knows {", ".join(PRICES)}')
    started = time.perf_counter()
    counted = count()
    text = io.StringIO()
    for line in page(counted, (time.perf_counter() - started) / 60, prices):
        text.write(line + '\n')
    args.out.write_text(text.getvalue())


if __name__ == '__main__':
    main()
