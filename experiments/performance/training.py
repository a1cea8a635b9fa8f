"""Training, measured: `python -m experiments.performance.training --data FOLDER` (or `--quick`, or `--only PART ...`).

loss      memory and time of the loss with its gradient at 4,096 tiles with ten photos each, beside dense products
data      time that the training waits for tiles, from `grafalign train`'s own log, with warm and with cold files
overhead  samples per second beside a bare loop over tensors in memory
peers     samples per second beside open_clip's trainer and beside a loop that encodes photos in every step
portions  time and memory by `micro_batch`, and the largest that `auto` finds

Why it is fair: machines are shared and their clocks wander, so nothing is compared that was not measured in turns, A B
A B, a few seconds or at most a few minutes apart; medians and ranges over the turns are kept, and the processor time
of the whole family of processes beside the wall time; what other processes took of the cores is recorded with every
measurement. Peak memory is always that of a fresh process. Times of different parts are from different hours: compare
ratios.

Weights are random and tiles, photos and JPEGs are made here: what is measured does not depend on what they show.
Results: `results/training_PART.json`, and `training.md`, which `training_table.py` makes from them and from nothing
else. `peers` needs what open_clip's trainer imports: `pip install "open_clip_torch[training]"`.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import itertools
import json
import mmap
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.nn import functional

from experiments.performance.training_table import write_page

HERE = Path(__file__).resolve().parent
MODULE = 'experiments.performance.training'
PACKAGES = ('torch', 'open_clip_torch', 'accelerate', 'numpy', 'grafalign')
THREADS = 2
SEED = 0
TAU = 0.07


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, default=Path('runs/performance'), help='where stores and models are made')
    parser.add_argument('--only', nargs='+', choices=list(PARTS), default=list(PARTS), help='parts to measure')
    parser.add_argument('--quick', action='store_true', help='tiny sizes; results stay in the data folder')
    parser.add_argument('--resume', action='store_true', help='loss: keep the cases that the result file has')
    parser.add_argument('--case', nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.data = (args.data / ('training_quick' if args.quick else 'training')).resolve()
    args.results = args.data / 'results' if args.quick else HERE / 'results'
    return args


def main() -> None:
    """Measure the wanted parts; each leaves its file as soon as it is done."""
    args = arguments()
    torch.set_num_threads(THREADS)
    if args.case:
        name, spec = args.case
        print(json.dumps(CASES[name](args.data, **json.loads(spec))))
        return
    args.results.mkdir(parents=True, exist_ok=True)
    for part in args.only:
        write_result(args, part, header(args, part) | PARTS[part](args))
    write_page(args.results, args.results / 'training.md' if args.quick else HERE / 'training.md')


def header(args: argparse.Namespace, part: str) -> dict[str, Any]:
    """What a result file says before its measurements."""
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
    quick = ' --quick' if args.quick else ''
    return {
        'command': f'python -m {MODULE} --data FOLDER --only {part}{quick}',
        'machine': {
            'cores': len(os.sched_getaffinity(0)),
            'threads': THREADS,
            'memory_gib': round(memory, 1),
            'architecture': platform.machine(),
            'system': platform.system(),
            'load_at_start': round(os.getloadavg()[0], 2),
        },
        'versions': {
            'python': platform.python_version(),
            **{p: importlib.metadata.version(p) for p in PACKAGES},
        },
        'seed': SEED,
    }


def write_result(args: argparse.Namespace, part: str, result: dict[str, Any]) -> None:
    """Leave the file of a part."""
    (args.results / f'training_{part}.json').write_text(json.dumps(result, indent=1) + '\n')


# What all parts measure with


class Spent(NamedTuple):
    """What a piece of work took."""

    wall_s: float
    cpu_s: float


def timed(work: Callable[[], Any]) -> Spent:
    """Time some work of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Spent(round(time.perf_counter() - wall, 4), round(time.process_time() - cpu, 4))


def peak_beyond(work: Callable[[], Any]) -> tuple[Spent, float]:
    """Time some work; also by how much (MB) the resident memory rose over what it was before, at its highest."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed earlier must not be taken again unseen
    Path('/proc/self/clear_refs').write_text('5')  # forgets the high-water mark
    before = _status_mb('VmRSS')
    spent = timed(work)
    return spent, round(_status_mb('VmHWM') - before, 1)


def _status_mb(key: str) -> float:
    status = Path('/proc/self/status').read_text().splitlines()
    return int(next(line for line in status if line.startswith(key)).split()[1]) * 1024 / 1e6


def busy_s() -> float:
    """Seconds that all cores together have worked since the machine started, for whomever."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path('/proc/stat').read_text().split()[1:11])
    return (user + nice + system + irq + softirq) / os.sysconf('SC_CLK_TCK')


class Others:
    """The share of the cores that processes which are not ours take from here on."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), busy_s(), self._ours()

    @staticmethod
    def _ours() -> float:
        """Processor time of this process and of its children that have ended."""
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(u.ru_utime + u.ru_stime for u in used)

    def share(self) -> float:
        """The share until now; children must have ended."""
        wall, busy, ours = (now - then for now, then in zip(self._now(), self._start, strict=True))
        return round(max(0.0, busy - ours) / wall / len(os.sched_getaffinity(0)), 3)

    def _now(self) -> tuple[float, float, float]:
        return time.perf_counter(), busy_s(), self._ours()


def fresh(args: argparse.Namespace, case: str, **spec: Any) -> dict[str, Any]:
    """One case in a process of its own: its answer, with what others took of the cores meanwhile."""
    folder = args.data.parent
    command = [sys.executable, '-m', MODULE, '--data', str(folder), '--case', case, json.dumps(spec)]
    others, started = Others(), time.perf_counter()
    environment = {**os.environ, 'OMP_NUM_THREADS': str(THREADS)}
    done = subprocess.run(
        command + ['--quick'] * args.quick, stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    found: dict[str, Any] = spec | json.loads(done.stdout.splitlines()[-1])
    found |= {'minutes': round((time.perf_counter() - started) / 60, 2), 'other_cpu_share': others.share()}
    print(json.dumps({k: v for k, v in found.items() if not isinstance(v, dict)}), file=sys.stderr, flush=True)
    return found


# loss


class Problem(NamedTuple):
    """Anchors against photos as a batch has them, and what a mask needs."""

    z: Tensor
    candidates: Any
    pairs: Any
    masks: Mapping[str, Any]
    """`Masks` by name."""


DEPTH = 512
ALIKE = 0.7
"""Photos come in a thousand kinds, with cosines of about 0.8 within a kind: one in a thousand candidates is masked."""
WITHIN_M = 500.0
"""Tiles come in a thousand towns of 4 x 4 km."""
SLAB = 4096
"""Rows of anchors for which dense logits are made at a time."""
MASKS = ('none', 'listed', 'closer_than', 'within')
LOSS_SIZES = {'tiles': 4096, 'photos': 10, 'bank': 65536}
QUICK_LOSS_SIZES = {'tiles': 64, 'photos': 10, 'bank': 1024}


def loss_problem(tiles: int, photos: int, bank: int, level: str) -> Problem:
    """A batch of `tiles` with `photos` each, held against all of these and `bank` more, out of twice as many."""
    from grafalign.training.objective import Candidates, Masks, Pairs

    make = torch.Generator().manual_seed(SEED)
    own = tiles * photos
    total = 2 * (own + bank)
    kinds = functional.normalize(torch.randn(1000, DEPTH, generator=make), dim=1)
    rows = torch.randperm(total, generator=make)[: own + bank]
    kind = torch.randint(0, 1000, (total,), generator=make)
    embeddings = torch.empty(total, DEPTH, dtype=torch.float16)
    for part in torch.arange(total).split(1 << 15):
        noise = torch.randn(len(part), DEPTH, generator=make) / DEPTH**0.5
        embeddings[part] = functional.normalize(kinds[kind[part]] + 0.5 * noise, dim=1).half()
    tile = torch.arange(tiles).repeat_interleave(photos)
    towns = 6.37e6 * functional.normalize(torch.randn(1000, 3, generator=make), dim=1)
    within_town = 4000 * torch.rand(tiles + bank, 3, generator=make)
    which = torch.cat([tile, torch.arange(tiles, tiles + bank)])  # places of a tile's photos are 200 m apart or less
    places = (towns[torch.arange(tiles + bank) % 1000] + within_town)[which] + 100 * torch.rand(len(which), 3)
    anchors = embeddings[rows[:own]].float()
    row, weight = torch.arange(own), torch.full((own,), 1 / own)
    beside = torch.stack([row.repeat_interleave(photos), (tile * photos)[:, None].add(torch.arange(photos)).flatten()])
    if level == 'image':
        anchors = anchors.view(tiles, photos, DEPTH).mean(1)
        row, beside = tile, torch.stack([tile, torch.arange(own)])
    noise = torch.randn(anchors.shape, generator=make) / DEPTH**0.5
    masks = {
        'none': Masks(),
        'listed': Masks(listed=(beside[0], beside[1])),
        'closer_than': Masks(closer_than=ALIKE),
        'within': Masks(within=WITHIN_M, places=places),
    }
    z = (functional.normalize(anchors + noise, dim=1) / TAU).requires_grad_()
    return Problem(z, Candidates(embeddings, rows), Pairs(row, torch.arange(own), weight), masks)


def loss_case(
    data: Path, level: str, form: str, mask: str, turns: int, references: int, sizes: dict[str, int], dense: bool
) -> dict[str, Any]:
    """One kind of loss: its memory, then its time in turns with one dense product and with two; then the dense loss.

    A turn is ours once and the products `references` times, on a slab of rows and scaled to all of them.
    """
    from grafalign.training.objective import contrastive_loss, sigmoid_loss

    bias = torch.tensor(-10.0, requires_grad=True)
    value = {}

    def ours(problem: Problem) -> None:
        z, candidates, pairs, masks = problem
        z.grad = None
        if form == 'sigmoid':
            loss = sigmoid_loss(z, bias, candidates, pairs, masks[mask])
        else:
            loss = contrastive_loss(z, candidates, pairs, masks[mask])
        loss.backward()
        value['loss'] = float(loss.detach())

    ours(loss_problem(64, sizes['photos'], 4096, level))  # libraries and threads are up
    problem = loss_problem(**sizes, level=level)
    rows, count = len(problem.z), len(problem.candidates)
    first, extra_mb = peak_beyond(lambda: ours(problem))
    spent, found = {'ours': [first], 'one': [], 'two': []}, {}
    gathered = problem.candidates.take(slice(None), problem.z)
    slab = problem.z.detach()[:SLAB]
    logits, gradient = torch.zeros(len(slab), count), torch.zeros_like(slab)
    for turn in range(turns):
        if turn:
            spent['ours'].append(timed(lambda: ours(problem)))
        for _ in range(references):
            spent['one'].append(timed(lambda: torch.mm(slab, gathered.T, out=logits)))
            spent['two'].append(timed(lambda: torch.mm(torch.mm(slab, gathered.T, out=logits), gathered, out=gradient)))
    alone = alone_on_one_thread(problem, ours, slab, gathered, logits, gradient) if level == 'image' else None
    slabs = rows / len(slab)
    scaled = {k: [Spent(*(round(s * slabs, 4) for s in v)) for v in spent[k]] for k in ('one', 'two')}
    if dense:
        del logits, gradient
        found['dense'] = _dense_loss(problem, gathered)
    return {
        'rows': rows,
        'candidates': count,
        'pairs': len(problem.pairs.row),
        'extra_mb': extra_mb,
        'products': _products(mask, rows, len(problem.pairs.row)),
        'spent': {'ours': spent['ours'], **scaled},
        'one_thread_cpu_s': alone,
        'loss': value['loss'],
        **found,
    }


def alone_on_one_thread(
    problem: Problem, ours: Callable[[Problem], None], z: Tensor, gathered: Tensor, logits: Tensor, gradient: Tensor
) -> dict[str, float]:
    """Processor time of one thread, once: others can slow it down but not add to it, as they do where threads wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {
        'one': timed(lambda: torch.mm(z, gathered.T, out=logits)).cpu_s,
        'ours': timed(lambda: ours(problem)).cpu_s,
        'two': timed(lambda: torch.mm(torch.mm(z, gathered.T, out=logits), gathered, out=gradient)).cpu_s,
    }
    torch.set_num_threads(threads)
    return found


def _products(mask: str, rows: int, pairs: int) -> float:
    """Dense products [rows, D] x [D, candidates] that it takes: logits, gradient, and photos on photos."""
    return 2 + (pairs / rows if mask == 'closer_than' else 0)


def _dense_loss(problem: Problem, gathered: Tensor) -> dict[str, Any]:
    """The softmax loss as autograd does it, every logit held at once; or why not."""
    z, pairs = problem.z.detach().clone().requires_grad_(), problem.pairs
    wanted, free = 4 * 3 * len(z) * len(gathered), psutil.virtual_memory().available
    if wanted > 0.7 * free:
        return {'skipped': f'needs {wanted / 1e9:.0f} GB, {free / 1e9:.0f} GB are free'}
    value = {}

    def work() -> None:
        logits = z @ gathered.T
        logs = logits.logsumexp(1)[pairs.row] - logits[pairs.row, pairs.candidate]
        loss = (pairs.weight * logs).sum()
        loss.backward()
        value['loss'] = float(loss.detach())

    spent, extra_mb = peak_beyond(work)
    return {'spent': spent, 'extra_mb': extra_mb, 'loss': value['loss']}


def measure_loss(args: argparse.Namespace) -> dict[str, Any]:
    """Both levels, both forms, each mask; the file is written after every case."""
    sizes = QUICK_LOSS_SIZES if args.quick else LOSS_SIZES
    turns = {'image': 2 if args.quick else 3, 'patch': 1}
    references = {'image': 1, 'patch': 2}  # a turn of patches takes minutes, their slab seconds
    settings = {
        **sizes,
        'depth': DEPTH,
        'tau': TAU,
        'bank_dtype': 'float16',
        'closer_than': ALIKE,
        'within_m': WITHIN_M,
        'slab_rows': SLAB,
        'turns': turns,
        'references': references,
    }
    kept, file = [], args.results / 'training_loss.json'
    if args.resume and file.is_file():
        kept = json.loads(file.read_text())['cases']
    result = {'settings': settings, 'cases': kept}
    facts, done = header(args, 'loss'), {(c['level'], c['form'], c['mask']) for c in kept}
    for level, form, mask in itertools.product(('image', 'patch'), ('softmax', 'sigmoid'), MASKS):
        if (level, form, mask) in done:
            continue
        how = {'turns': turns[level], 'references': references[level], 'dense': (form, mask) == ('softmax', 'none')}
        result['cases'].append(fresh(args, 'loss', level=level, form=form, mask=mask, sizes=sizes, **how))
        write_result(args, 'loss', facts | result)
    return result


# What the other parts train on


class Sizes(NamedTuple):
    """How much is measured."""

    vision: Mapping[str, int]
    """Image tower of the CLIP; the text tower is as wide and as deep."""
    tiles: int
    batch: int
    steps: int
    turns: int
    warm_up: int
    """Steps that are not counted: processes start, caches fill."""
    block: int
    """Steps of one loop before the other has its turn."""
    big_batch: int
    portions: tuple[int, ...]
    bank: int


PHOTOS = 10
PX = 224
VIT_S_32 = {'image_size': PX, 'layers': 12, 'width': 384, 'patch_size': 32}
TINY = {'image_size': PX, 'layers': 2, 'width': 64, 'patch_size': 32}
FULL = Sizes(VIT_S_32, 7168, 64, 24, 3, 8, 10, 256, (8, 32, 64, 256), 65536)
QUICK = Sizes(TINY, 256, 8, 8, 2, 4, 2, 16, (4, 16), 1024)
SHARD_TILES = 256
BANDS = ('red', 'green', 'blue')
RANGES = {'uint8': (0.0, 255.0), 'uint16': (0.0, 3000.0)}


def sizes_of(data: Path) -> Sizes:
    """The sizes of this run, which its data folder tells."""
    return QUICK if data.name.endswith('quick') else FULL


def make_clip(data: Path, vision: Mapping[str, int]) -> Path:
    """A CLIP with random weights, saved as open_clip saves it."""
    import open_clip
    from safetensors.torch import save_file

    folder = data / 'clip'
    if (folder / 'open_clip_model.safetensors').is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    width = vision['width']
    text = {'context_length': 77, 'vocab_size': 49408, 'width': width, 'heads': width // 64, 'layers': vision['layers']}
    model = {'embed_dim': width, 'vision_cfg': dict(vision), 'text_cfg': text}
    (folder / 'open_clip_config.json').write_text(json.dumps({'model_cfg': model, 'preprocess_cfg': {}}))
    torch.manual_seed(SEED)
    made = open_clip.create_model(f'local-dir:{folder}', load_weights=False)
    save_file(made.state_dict(), str(folder / 'open_clip_model.safetensors'))
    return folder


def make_store(data: Path, dtype: str) -> Path:
    """A pair store of noise with ten photos a tile and a bank of random unit vectors, written without pairing."""
    import geopandas as gpd
    import pandas as pd
    import shapely

    from grafalign.encoders import ClipSettings, load_clip
    from grafalign.files import write_table
    from grafalign.store import MARKER, SCHEMA_VERSION, ShardWriter, shard_name

    sizes, out = sizes_of(data), data / f'store_{dtype}'
    clip = load_clip(ClipSettings(model=str(make_clip(data, sizes.vision))))
    if (out / 'bank' / 'bank.json').is_file():
        return out
    rng = np.random.default_rng(SEED)
    names, rows = [f'tile_{n:07d}' for n in range(sizes.tiles)], []
    for shard in range(-(-sizes.tiles // SHARD_TILES)):
        with ShardWriter(out / shard_name(shard)) as writer:
            for name in names[shard * SHARD_TILES : (shard + 1) * SHARD_TILES]:
                pixels = rng.integers(0, int(RANGES[dtype][1]), (len(BANDS), PX, PX)).astype(dtype)
                rows.append((shard_name(shard), *writer.add(name, pixels, {'tile_id': name})))
    lon, lat = rng.uniform(-100, -90, sizes.tiles), rng.uniform(30, 40, sizes.tiles)
    tiles = pd.DataFrame(rows, columns=['shard', 'byte_offset', 'nbytes']).assign(
        tile_id=names, split='train', scale=[[1.0] * 3] * sizes.tiles, offset=[[0.0] * 3] * sizes.tiles
    )
    outlines = shapely.box(lon, lat, lon + 0.002, lat + 0.002)
    write_table(gpd.GeoDataFrame(tiles, geometry=outlines, crs='EPSG:4326'), out / 'tiles.parquet')
    count = sizes.tiles * PHOTOS
    photos = pd.DataFrame({'photo_id': [f'photo_{n:09d}' for n in range(count)], 'uri': '', 'accuracy_m': 10.0})
    points = gpd.points_from_xy(np.repeat(lon, PHOTOS) + 0.001, np.repeat(lat, PHOTOS) + 0.001)
    write_table(gpd.GeoDataFrame(photos, geometry=points, crs='EPSG:4326'), out / 'photos.parquet')
    row, col = rng.uniform(0, PX, (2, count))
    pairs = {'tile_id': np.repeat(names, PHOTOS), 'photo_id': photos['photo_id'], 'row': row, 'col': col}
    write_table(pd.DataFrame(pairs).assign(days_apart=0.0), out / 'pairs.parquet')
    sensor = {'name': 'noise', 'bands': BANDS, 'gsd_m': 1.0, 'size_px': PX, 'value_range': RANGES[dtype]}
    facts = {'schema_version': SCHEMA_VERSION, 'sensor': sensor, 'digest': f'noise {dtype} {sizes.tiles}'}
    (out / MARKER).write_text(json.dumps(facts))
    bank = out / 'bank'
    bank.mkdir(exist_ok=True)
    vectors = rng.normal(size=(count, sizes.vision['width'])).astype(np.float32)
    np.save(bank / 'embeddings.npy', (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16))
    known = {'width': 640, 'height': 480, 'digest': '', 'dhash': '', 'transient': False}
    problem = pd.Series(pd.NA, index=photos.index, dtype='string')
    write_table(photos[['photo_id']].assign(**known, problem=problem), bank / 'photos.parquet')
    owner = {'format': 2, 'store': facts['digest'], 'clip': clip.digest, 'photos': count}
    (bank / 'bank.json').write_text(json.dumps(owner | {'clip_settings': clip.settings.model_dump()}))
    return out


def train_settings(data: Path, dtype: str = 'uint8', **changes: Any) -> Any:
    """A training on the store: ViT-S/32, image level, the paper's loss, full precision."""
    from grafalign.training import TrainSettings

    sizes = sizes_of(data)
    values = {
        'store': data / f'store_{dtype}',
        'out': data / 'run',
        'clip': {'model': str(data / 'clip')},
        'steps': sizes.steps,
        'batch_tiles': sizes.batch,
        'micro_batch': changes.get('batch_tiles', sizes.batch),
        'precision': 'no',
        'workers': THREADS,
        'trackers': [],
        'validate_every': 10**6,
        'checkpoint_every': 10**6,
        'log_every': 2,
    }
    return TrainSettings.model_validate(values | changes)


class Line(NamedTuple):
    """A line of a log, when it came, and what the processes had used by then."""

    samples: int
    text: str
    wall_s: float
    cpu_s: float
    workers_cpu_s: float
    """Of this, what children of the first process used."""


def watch(command: list[str], pattern: str, data: Path, per_match: int = 1) -> list[Line]:
    """Run a training and note every line of its log that says how far it is, by a clock of our own.

    Args:
        command: what to run.
        pattern: with one group, the number of samples (or of steps of `per_match` samples).
        data: where it runs.
        per_match: samples that one of what the group counts stands for.
    """
    environment = {**os.environ, 'OMP_NUM_THREADS': str(THREADS), 'COLUMNS': '300', 'PYTHONUNBUFFERED': '1'}
    environment |= {'ACCELERATE_USE_CPU': 'true', 'PYTHONPATH': os.pathsep.join([str(Path.cwd()), *_python_path()])}
    lines, said = [], []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=data
    ) as process:
        family = psutil.Process(process.pid)
        for text in process.stdout or ():
            said.append(text)
            if found := re.search(pattern, text):
                own, workers = _cpu_of(family)
                samples = int(found[1].replace(',', '')) * per_match
                lines.append(Line(samples, text.strip(), time.perf_counter(), own + workers, workers))
    if process.returncode or not lines:
        raise SystemExit(''.join(said[-30:]))
    return lines


def _python_path() -> list[str]:
    return [p for p in os.environ.get('PYTHONPATH', '').split(os.pathsep) if p]


def _cpu_of(family: psutil.Process) -> tuple[float, float]:
    """Processor time of a process, and of its children."""
    used = family.cpu_times()
    workers = used.children_user + used.children_system
    for child in family.children(recursive=True):
        try:
            workers += sum(child.cpu_times()[:2])
        except psutil.NoSuchProcess:
            continue
    return used.user + used.system, workers


def per_sample(lines: list[Line], first: int) -> dict[str, float]:
    """What a sample took, from the first line that tells of `first` samples or more to the last line."""
    counted = [line for line in lines if line.samples >= first] if lines[-1].samples > first else lines
    start, end = counted[0], counted[-1]
    samples = max(1, end.samples - start.samples)
    wall_s = end.wall_s - start.wall_s
    return {
        'samples': samples,
        'samples_per_s': round(samples / wall_s, 3) if wall_s else 0.0,
        'cpu_ms_per_sample': round(1000 * (end.cpu_s - start.cpu_s) / samples, 3),
        'workers_cpu_ms_per_sample': round(1000 * (end.workers_cpu_s - start.workers_cpu_s) / samples, 3),
    }


def run_training(data: Path, settings: Any) -> tuple[list[Line], list[dict[str, float]]]:
    """`grafalign train` in a fresh folder: the lines it showed and its log."""
    import shutil

    import yaml

    shutil.rmtree(settings.out, ignore_errors=True)
    config = data / 'train.yaml'
    config.write_text(yaml.safe_dump(settings.facts()))
    command = [sys.executable, '-m', 'grafalign', 'train', str(config)]
    lines = watch(command, r'step +(\d+)/', data, settings.batch_tiles)
    log = [json.loads(entry) for entry in (settings.out / 'log.jsonl').read_text().splitlines()]
    shutil.rmtree(settings.out)
    return lines, log


# data


def measure_data(args: argparse.Namespace) -> dict[str, Any]:
    """`grafalign train` with warm and with cold files, and without workers, so that all reading shows."""
    sizes = sizes_of(args.data)
    for dtype in RANGES:
        make_store(args.data, dtype)
    cases = [(d, c, THREADS) for d in RANGES for c in ('warm', 'cold')] + [('uint8', 'warm', 0)]
    found = []
    for turn in range(sizes.turns - 1):
        for dtype, cache, workers in cases:
            settings = train_settings(args.data, dtype, workers=workers)
            (warm_files if cache == 'warm' else cool_files)(settings.store)
            resident, others = resident_share(settings.store), Others()
            lines, log = run_training(args.data, settings)
            later = [e for e in log if e['step'] > sizes.warm_up] or log
            waited, spent = (sum(e[k] for e in later) for k in ('data_ms', 'step_ms'))
            found.append(
                {
                    'dtype': dtype,
                    'cache': cache,
                    'workers': workers,
                    'turn': turn,
                    'resident_share': resident,
                    'share': waited / spent,
                    'data_ms': waited / len(later),
                    'step_ms': spent / len(later),
                    'worst_window': max(e['data_ms'] / e['step_ms'] for e in later),
                    'first_window_data_ms': log[0]['data_ms'],
                    **per_sample(lines, sizes.warm_up * sizes.batch),
                    'line': lines[-1].text,
                    'other_cpu_share': others.share(),
                }
            )
            _tell(found[-1])
    settings = {'batch': sizes.batch, 'steps': sizes.steps, 'warm_up': sizes.warm_up, 'vision': sizes.vision}
    bytes_per_step = {d: sizes.batch * 3 * PX * PX * np.dtype(d).itemsize for d in RANGES}
    return {'settings': {**settings, 'photos_per_tile': PHOTOS, 'bytes_per_step': bytes_per_step}, 'cases': found}


def _tell(found: Mapping[str, Any]) -> None:
    print(json.dumps(found), file=sys.stderr, flush=True)


def warm_files(store: Path) -> None:
    """Read all shards once."""
    for path in sorted(store.glob('tiles/*.tar')):
        with path.open('rb') as file:
            while file.read(1 << 24):
                pass


def cool_files(store: Path) -> None:
    """Ask the system to forget all shards; it does so for pages that are on the disk and in nobody's use."""
    for path in sorted(store.glob('tiles/*.tar')):
        with path.open('rb') as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident_share(store: Path) -> float:
    """Share of the shards' pages that are in memory now (mincore)."""
    pages = there = 0
    for path in sorted(store.glob('tiles/*.tar')):
        with path.open('r+b') as file, mmap.mmap(file.fileno(), 0) as mapped:
            count = -(-len(mapped) // mmap.PAGESIZE)
            flags = (ctypes.c_ubyte * count)()
            start = ctypes.c_char.from_buffer(mapped)
            failed = ctypes.CDLL(None).mincore(ctypes.byref(start), ctypes.c_size_t(len(mapped)), flags)
            del start  # or the mapping could not be closed
            if failed:
                raise SystemExit('mincore failed')
            pages += count
            there += int(np.count_nonzero(np.frombuffer(flags, dtype=np.uint8) & 1))
    return round(there / pages, 4)


# overhead


class BareLoop:
    """The yardstick: batches that are tensors in memory already, a dense loss, AdamW, and nothing else."""

    def __init__(self, encoder: torch.nn.Module, batches: list[tuple[Tensor, Tensor]], optimizer: Any) -> None:
        self.encoder, self.batches, self.optimizer, self.steps = encoder.train(), batches, optimizer, 0

    def step(self) -> None:
        """Photos `PHOTOS * i` to `PHOTOS * (i + 1) - 1` are those of tile i."""
        images, photos = self.batches[self.steps % len(self.batches)]
        logs = (self.encoder(images).image @ photos.T / TAU).log_softmax(1)
        tile = torch.arange(len(images)).repeat_interleave(PHOTOS)
        loss = -logs[tile, torch.arange(len(photos))].mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1


def overhead_case(data: Path, workers: int) -> dict[str, Any]:
    """Blocks of steps of `fit` and of the bare loop in turns, in one process.

    `fit` calls its validation after every block, outside its own clock: there the other loop has its turn, while the
    processes that read tiles are held still, so that neither loop gets the other's processor time.
    """
    import copy
    import shutil

    from grafalign.encoders import load_bank, load_clip
    from grafalign.store import PairStore
    from grafalign.training.data import PairSteps
    from grafalign.training.loop import Run, fit, make_accelerator, make_optimizer
    from grafalign.training.task import AlignmentTask, viewed
    from grafalign.training.trainer import bank_rows

    sizes = sizes_of(data)
    settings = train_settings(data, workers=workers, log_every=sizes.block)
    shutil.rmtree(settings.out, ignore_errors=True)
    settings.out.mkdir(parents=True)
    store, clip = PairStore(settings.store), load_clip(settings.clip)
    bank, device = load_bank(store, None, clip), torch.device('cpu')
    warm_files(settings.store)
    torch.manual_seed(SEED)
    task = AlignmentTask.start(clip, store.sensor, settings, bank_rows(bank, device))
    steps = PairSteps(store, bank, settings, side=task.encoder.side)
    batches = []
    for batch in (steps[n] for n in range(4)):
        photos = torch.from_numpy(bank.embeddings[batch['candidates'][batch['photo']].numpy()]).float()
        batches.append((viewed(task.rule, batch, settings.augment), photos))
    encoder = copy.deepcopy(task.encoder)
    bare = BareLoop(encoder, batches, make_optimizer(encoder, settings.peak_lr, settings.weight_decay, device))
    family = psutil.Process()
    blocks: dict[str, list[Spent]] = {'ours': [], 'bare': []}
    mark = time.perf_counter(), sum(_cpu_of(family))

    def turn(model: torch.nn.Module) -> dict[str, float]:
        nonlocal mark
        ended = time.perf_counter(), sum(_cpu_of(family))
        blocks['ours'].append(Spent(ended[0] - mark[0], ended[1] - mark[1]))
        readers = family.children()
        for reader in readers:
            reader.suspend()
        with torch.enable_grad():
            blocks['bare'].append(timed(lambda: [bare.step() for _ in range(sizes.block)]))
        for reader in readers:
            reader.resume()
        mark = time.perf_counter(), sum(_cpu_of(family))
        return {}

    total = sizes.block * (2 * sizes.turns + 1)
    accelerator = make_accelerator('no')
    log = fit(task, steps, total, settings.peak_lr, settings, accelerator, Run(settings.out, ''), turn, sizes.block)
    shutil.rmtree(settings.out)
    later = {k: v[1:] for k, v in blocks.items()}  # in the first block processes start
    return {
        'steps_per_block': sizes.block,
        'batch': sizes.batch,
        'spent': later,
        'data_share': statistics.median(e['data_ms'] / e['step_ms'] for e in log[1:]),
    }


def measure_overhead(args: argparse.Namespace) -> dict[str, Any]:
    """With two processes that read tiles, and with none."""
    make_store(args.data, 'uint8')
    sizes = sizes_of(args.data)
    cases = [fresh(args, 'overhead', workers=workers) for workers in (THREADS, 0)]
    return {'settings': {'vision': sizes.vision, 'photos_per_tile': PHOTOS}, 'cases': cases}


# peers

JPEGS, JPEG_SIZE = 256, (640, 480)


def make_jpegs(folder: Path) -> list[Path]:
    """Pictures of the size and the weight of photos on the web: smooth shapes with some texture."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    rng, paths = np.random.default_rng(SEED), [folder / f'{n:04d}.jpg' for n in range(JPEGS)]
    for path in paths:
        if path.is_file():
            continue
        shapes = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize(JPEG_SIZE, Image.BICUBIC)
        texture = rng.normal(0, 12, (*JPEG_SIZE[::-1], 1))
        Image.fromarray((np.asarray(shapes) + texture).clip(0, 255).astype(np.uint8)).save(path, quality=85)
    return paths


class PhotoTiles(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Tile and photo, both read for every sample, as in Sat2Cap's loader."""

    def __init__(self, store: Any, photos: list[Path], preprocess: Callable[[Any], Tensor]) -> None:
        self.store, self.photos, self.preprocess = store, photos, preprocess

    def __len__(self) -> int:
        return len(self.store.tiles)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        from PIL import Image

        with Image.open(self.photos[item % len(self.photos)]) as photo:
            return torch.from_numpy(self.store.read_tile(item)), self.preprocess(photo.convert('RGB'))


def photo_loop(data: Path) -> dict[str, Any]:
    """The loop that encodes photos in every step: one JPEG a tile is decoded and goes through the frozen CLIP.

    As in Sat2Cap, but without its queue and its time and place codes, which only add to it.
    """
    from grafalign.encoders import PixelRule, SatelliteEncoder, load_clip
    from grafalign.store import PairStore
    from grafalign.training.loop import make_optimizer

    sizes, settings = sizes_of(data), train_settings(data)
    store, clip = PairStore(settings.store), load_clip(settings.clip)
    encoder, rule = SatelliteEncoder(clip, store.sensor.bands).train(), PixelRule(store.sensor, clip)
    optimizer = make_optimizer(encoder, settings.peak_lr, settings.weight_decay, torch.device('cpu'))
    loader = torch.utils.data.DataLoader(
        PhotoTiles(store, make_jpegs(data / 'jpegs'), clip.preprocess),
        batch_size=sizes.batch,
        shuffle=True,
        num_workers=THREADS,
        drop_last=True,
    )
    scale, offset = torch.ones(sizes.batch, 3), torch.zeros(sizes.batch, 3)
    for step, (tiles, photos) in enumerate(loader, 1):
        with torch.no_grad():
            targets = clip.encode_images(photos)
        logits = encoder(rule(tiles, scale, offset)).image @ targets.T / TAU
        loss = functional.cross_entropy(logits, torch.arange(sizes.batch))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f'step {step}/', flush=True)
        if step == sizes.steps:
            break
    return {}


def open_clip_command(data: Path, *more: str) -> list[str]:
    """open_clip's own trainer on its synthetic pictures and captions, with the same CLIP."""
    sizes = sizes_of(data)
    options = {
        'model': f'local-dir:{data / "clip"}',
        'dataset-type': 'synthetic',
        'train-num-samples': sizes.steps * sizes.batch,
        'batch-size': sizes.batch,
        'workers': THREADS,
        'device': 'cpu',
        'precision': 'fp32',
        'epochs': 1,
        'lr': 1e-5,
        'warmup': 2,
        'log-every-n-steps': 2,
        'logs': 'none',
        'name': f'open_clip_{time.time_ns()}',
    }
    flags = [part for name, value in options.items() for part in (f'--{name}', str(value))]
    return [sys.executable, '-m', 'open_clip_train.main', *flags, *more]


def measure_peers(args: argparse.Namespace) -> dict[str, Any]:
    """All of them in turns, each run a fresh process, timed by one clock from outside."""
    data, sizes = args.data, sizes_of(args.data)
    make_store(data, 'uint8')
    files = make_jpegs(data / 'jpegs')
    warm_files(data / 'store_uint8')
    locked = ('--lock-text', '--lock-text-freeze-layer-norm')  # it refuses the first without the second
    counts = r'Train Epoch: 0 \[ *([\d,]+)/'
    photos = [sys.executable, '-m', MODULE, '--data', str(data.parent), '--case', 'photo_loop', '{}']
    photos += ['--quick'] * args.quick
    runs: dict[str, Callable[[], list[Line]]] = {
        'ours': lambda: run_training(data, train_settings(data))[0],
        'ours, bank': lambda: run_training(data, train_settings(data, negatives={'bank': sizes.bank}))[0],
        'open_clip': lambda: watch(open_clip_command(data), counts, data),
        'open_clip, text tower locked': lambda: watch(open_clip_command(data, *locked), counts, data),
        'photo loop': lambda: watch(photos, r'step (\d+)/', data, sizes.batch),
    }
    found = []
    for turn in range(sizes.turns):
        for name, run in runs.items():
            others = Others()
            measured = per_sample(run(), sizes.warm_up * sizes.batch)
            found.append({'method': name, 'turn': turn, **measured, 'other_cpu_share': others.share()})
            _tell(found[-1])
    weights = statistics.median(f.stat().st_size for f in files)
    settings = {'vision': sizes.vision, 'batch': sizes.batch, 'steps': sizes.steps, 'photos_per_tile': PHOTOS}
    versions = {p: importlib.metadata.version(p) for p in ('webdataset',)}
    more = {'bank': sizes.bank, 'jpeg_px': JPEG_SIZE, 'jpeg_bytes': weights, 'versions_of_peers': versions}
    return {'settings': settings | more, 'cases': found}


# portions


def portion_case(data: Path, micro_batch: int, bank: int) -> dict[str, Any]:
    """Three steps in portions of this size: the last two are timed; memory is the rise since before the first."""
    from grafalign.training.loop import fit, make_accelerator

    sizes = sizes_of(data)
    settings, task, steps_of = _portion_task(data, micro_batch, bank)
    steps = steps_of(micro_batch)
    accelerator, log = make_accelerator('no'), []
    cpu: list[float] = []

    def note(model: torch.nn.Module) -> dict[str, float]:
        cpu.append(time.process_time())
        return {}

    def work() -> None:
        log.extend(fit(task, steps, 3, settings.peak_lr, settings, accelerator, validate=note, validate_every=1))

    _, extra_mb = peak_beyond(work)
    batch = sizes.big_batch
    return {
        'ms_per_tile': [round(e['step_ms'] / batch, 3) for e in log[1:]],
        'cpu_ms_per_tile': [round(1000 * (b - a) / batch, 3) for a, b in itertools.pairwise(cpu)],
        'extra_mb': extra_mb,
        'state_mb': round(16 * sum(p.numel() for p in task.parameters() if p.requires_grad) / 1e6, 1),
    }


def auto_case(data: Path, bank: int) -> dict[str, Any]:
    """What `micro_batch: auto` finds where the batch has no end, and what it goes by."""
    from grafalign.training.memory import kept_bytes, largest_micro_batch

    _, task, steps_of = _portion_task(data, sizes_of(data).big_batch, bank)

    def forward(tiles: int) -> Tensor:
        loss: Tensor = task(steps_of(tiles)[0])
        return loss

    free = psutil.virtual_memory().available
    found = largest_micro_batch(forward, 10**9, task.train(), torch.device('cpu'))
    each = kept_bytes(forward, 2) - kept_bytes(forward, 1)
    return {'found': found, 'kept_mb_per_tile': round(each / 1e6, 3), 'free_gb': round(free / 1e9, 2)}


def _portion_task(data: Path, micro_batch: int, bank: int) -> tuple[Any, Any, Callable[[int], Any]]:
    """Settings, task, and the steps in portions of a given size."""
    from grafalign.encoders import load_bank, load_clip
    from grafalign.store import PairStore
    from grafalign.training.data import PairSteps
    from grafalign.training.task import AlignmentTask
    from grafalign.training.trainer import bank_rows

    changes = {'negatives': {'bank': bank}} if bank else {}
    batch = sizes_of(data).big_batch
    settings = train_settings(data, batch_tiles=batch, micro_batch=micro_batch, workers=0, log_every=1, **changes)
    store, clip = PairStore(settings.store), load_clip(settings.clip)
    known = load_bank(store, None, clip)
    task = AlignmentTask.start(clip, store.sensor, settings, bank_rows(known, torch.device('cpu')))
    return settings, task, lambda tiles: PairSteps(store, known, settings, None, tiles, side=task.encoder.side)


def measure_portions(args: argparse.Namespace) -> dict[str, Any]:
    """Every size of a portion with and without negatives from the bank, in turns; then what `auto` finds."""
    sizes = sizes_of(args.data)
    make_store(args.data, 'uint8')
    warm_files(args.data / 'store_uint8')
    cases = [
        fresh(args, 'portion', micro_batch=size, bank=bank) | {'turn': turn}
        for turn in range(sizes.turns - 1)
        for bank in (0, sizes.bank)
        for size in sizes.portions
    ]
    auto = [fresh(args, 'auto', bank=bank) for bank in (0, sizes.bank)]
    return {'settings': {'vision': sizes.vision, 'batch': sizes.big_batch}, 'cases': cases, 'auto': auto}


CASES: dict[str, Callable[..., dict[str, Any]]] = {
    'loss': loss_case,
    'overhead': overhead_case,
    'photo_loop': photo_loop,
    'portion': portion_case,
    'auto': auto_case,
}
PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    'loss': measure_loss,
    'data': measure_data,
    'overhead': measure_overhead,
    'peers': measure_peers,
    'portions': measure_portions,
}

if __name__ == '__main__':
    main()
