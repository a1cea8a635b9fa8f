"""What captions cost: filtering, landmarks, text banks and training, with memory and the limit beside each.

    python experiments/performance/captions.py --data runs/captions            # all parts; made input is kept (6 GB)
    python experiments/performance/captions.py --data runs/captions --only landmarks

filter     `captions filter` on a made img2dataset output (JPEGs of 256 px in tars), beside the same model fed the same
           pictures by a loop that does nothing else, in turns, in fresh processes
landmarks  `captions landmarks` on a made .osm.pbf (buildings, roads, points) and 10,000 images
texts      `grafalign embed` on a made set of many captions with few distinct texts, as templates give
training   tiles a second of `fit` on JPEGs with captions beside a bare loop over tensors in memory, in turns

Peak memory is VmHWM of a fresh process. Weights are random where they do not matter.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]
from machine import machine_metadata  # noqa: E402

from grafalign.captions import CaptionSet  # noqa: E402
from grafalign.captions.write_set import SetWriter  # noqa: E402
from grafalign.sandbox import TINY_CLIP_DIR  # noqa: E402

RESULTS = HERE / 'results' / 'captions.json'
WORDS = [
    'field',
    'forest',
    'river',
    'town',
    'road',
    'harbour',
    'quarry',
    'airport',
    'lake',
    'vineyard',
    'orchard',
    'marsh',
    'beach',
    'stadium',
    'bridge',
]


def command(*args: object) -> dict[str, Any]:
    """Run a command of ours in a fresh process: seconds, peak memory, and what it says."""
    code = (
        'import sys, resource; from grafalign.cli import main\n'
        'sys.argv = ["grafalign", *sys.argv[1:]]\n'
        'try:\n    main()\n'
        'finally:\n    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)\n'
    )
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, '-c', code, *map(str, args), '--json'], capture_output=True, text=True, check=True
    )
    seconds = time.perf_counter() - started
    peak = int(done.stderr.strip().splitlines()[-1])
    return {'seconds': round(seconds, 1), 'peak_mb': round(peak / 1000), 'result': json.loads(done.stdout)}


def make_shards(folder: Path, count: int, side: int = 256) -> Path:
    """Tars of JPEGs of low-pass noise with captions, 10,000 a shard."""
    if (folder / 'done').is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    kept = []
    for _ in range(500):  # JPEGs are made once and repeated: their bytes differ by a comment
        coarse = Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(buffer, 'JPEG', quality=85)
        kept.append(buffer.getvalue())
    for first in range(0, count, 10_000):
        with tarfile.open(folder / f'{first // 10_000:05d}.tar', 'w') as tar:
            for number in range(first, min(count, first + 10_000)):
                text = ' '.join(rng.choice(WORDS, 6))
                note = b'\xff\xfe' + (10).to_bytes(2, 'big') + f'{number:08d}'.encode()
                content = kept[number % 500]
                for name, body in (
                    (f'{number:09d}.jpg', content[:2] + note + content[2:]),
                    (f'{number:09d}.txt', text.encode()),
                ):
                    info = tarfile.TarInfo(name)
                    info.size = len(body)
                    tar.addfile(info, io.BytesIO(body))
    (folder / 'done').touch()
    return folder


def measure_filter(data: Path, count: int) -> dict[str, Any]:
    """The filter beside feature extraction alone, in turns."""
    shards = make_shards(data / f'shards{count}', count)
    captions = data / f'set{count}'
    imported = command('captions', 'import', shards, captions)
    kinds = data / 'kinds'
    if not kinds.is_dir():
        rng = np.random.default_rng(1)
        for kind, cells in (('aerial', 24), ('photo', 6), ('chart', 3)):
            (kinds / kind).mkdir(parents=True)
            for number in range(60):
                coarse = Image.fromarray(rng.integers(0, 255, (cells, cells, 3), dtype=np.uint8))
                coarse.resize((256, 256), Image.Resampling.BICUBIC).save(kinds / kind / f'{number}.jpg')
        sides = {
            'positive': {'aerial': str(kinds / 'aerial')},
            'negative': {k: str(kinds / k) for k in ('photo', 'chart')},
        }
        (data / 'kinds.yaml').write_text(json.dumps({'aerial': sides}))
    shutil.rmtree(data / 'filter', ignore_errors=True)
    command('captions', 'fit-filter', data / 'kinds.yaml', data / 'filter', '--model', TINY_CLIP_DIR, '--rate', '0.2')
    turns = []
    for _ in range(2):
        for part in ('features', 'hashes'):
            shutil.rmtree(captions / part, ignore_errors=True)
        shutil.rmtree(data / 'kept', ignore_errors=True)
        ours = command(
            'captions', 'filter', captions, data / 'kept', '--filter', data / 'filter', '--model', TINY_CLIP_DIR
        )
        started = time.perf_counter()
        subprocess.run([sys.executable, __file__, '--case', 'features', str(captions)], check=True)
        turns.append({'ours': ours, 'features_alone_s': round(time.perf_counter() - started, 1)})
    return {'images': count, 'import': imported, 'turns': turns}


def features_case(captions: Path) -> None:
    """Every picture through the model, and nothing else; decoded ahead by threads, as the filter does."""
    from grafalign.captions.pictures import Pictures
    from grafalign.models import load_model
    from grafalign.models.embedding import embed_pictures

    model, pictures = load_model(str(TINY_CLIP_DIR)), Pictures(CaptionSet(captions))
    rows = range(len(CaptionSet(captions)))

    def read(row: int) -> np.ndarray:
        return np.asarray(pictures.read(row, 2 * model.preprocessing.size_px)).transpose(2, 0, 1)

    for _ in embed_pictures(model, read, rows, ('red', 'green', 'blue'), (0.0, 255.0)):
        pass


def make_extract(path: Path, nodes: int) -> Path:
    """Buildings of four nodes, roads of ten and trees, all over half a degree."""
    import osmium

    if path.is_file():
        return path
    rng = np.random.default_rng(0)
    part = path.with_name('part.osm.pbf')
    out = osmium.SimpleWriter(str(part), overwrite=True)
    mutable, when = osmium.osm.mutable, datetime(2015, 1, 1, tzinfo=timezone.utc)
    buildings, roads, trees = int(nodes * 0.7 / 4), int(nodes * 0.25 / 10), int(nodes * 0.05)
    number = 0
    corners = rng.uniform(0, 0.5, (buildings, 2))
    for lon, lat in corners.tolist():
        for across, down in ((0, 0), (1, 0), (1, 1), (0, 1)):
            number += 1
            out.add_node(
                mutable.Node(
                    id=number, location=(10 + lon + across * 2e-4, 50 + lat + down * 1e-4), version=2, timestamp=when
                )
            )
    for lon, lat in rng.uniform(0, 0.5, (roads, 2)).tolist():
        for step in range(10):
            number += 1
            out.add_node(
                mutable.Node(id=number, location=(10 + lon + step * 1e-3, 50 + lat), version=2, timestamp=when)
            )
    for lon, lat in rng.uniform(0, 0.5, (trees, 2)).tolist():
        number += 1
        out.add_node(
            mutable.Node(id=number, location=(10 + lon, 50 + lat), tags={'natural': 'tree'}, version=2, timestamp=when)
        )
    for one in range(buildings):
        first = 4 * one + 1
        out.add_way(
            mutable.Way(
                id=one + 1,
                nodes=[first, first + 1, first + 2, first + 3, first],
                tags={'building': 'house'},
                version=2,
                timestamp=when,
            )
        )
    for one in range(roads):
        first = 4 * buildings + 10 * one + 1
        out.add_way(
            mutable.Way(
                id=buildings + one + 1,
                nodes=list(range(first, first + 10)),
                tags={'highway': 'residential'},
                version=2,
                timestamp=when,
            )
        )
    out.close()
    part.replace(path)
    return path


def measure_landmarks(data: Path, nodes: int, images: int) -> dict[str, Any]:
    """Landmarks of many images from a large extract."""
    data.mkdir(parents=True, exist_ok=True)
    extract = make_extract(data / f'{nodes}.osm.pbf', nodes)
    Image.new('RGB', (224, 224), 'grey').save(data / 'grey.png')
    side = int(np.ceil(np.sqrt(images)))
    rows = [
        {
            'image': 'grey.png',
            'image_id': f'{n}',
            'lon': 10 + (n % side) * 0.5 / side,
            'lat': 50 + n // side * 0.5 / side,
            'gsd_m': 1.0,
        }
        for n in range(images)
    ]
    (data / 'places.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    command('captions', 'import', data / 'places.jsonl', data / 'places', '--uncaptioned')
    shutil.rmtree(data / 'landmarks', ignore_errors=True)
    found = command('captions', 'landmarks', data / 'places', data / 'landmarks', '--osm', extract)
    shutil.rmtree(data / 'captioned', ignore_errors=True)
    written = command('captions', 'write', data / 'places', data / 'landmarks', data / 'captioned')
    started = time.perf_counter()
    import osmium

    counted = sum(1 for _ in osmium.FileProcessor(str(extract)).with_areas())
    alone = time.perf_counter() - started
    return {
        'nodes': nodes,
        'extract_mb': round(extract.stat().st_size / 1e6),
        'images': images,
        'landmarks': found,
        'write': written,
        'osmium_alone_s': round(alone, 1),
        'osmium_objects': counted,
    }


def measure_texts(data: Path, counts: list[int], distinct: int) -> list[dict[str, Any]]:
    """Text banks of sets whose captions repeat."""
    rows = []
    for count in counts:
        folder = data / f'texts{count}'
        if not (folder / 'dataset.json').is_file():
            rng = np.random.default_rng(0)
            texts = [' '.join(rng.choice(WORDS, 5)) + f' {n}' for n in range(distinct)]
            chosen = rng.integers(0, distinct, count)
            with SetWriter(folder) as writer:
                for number, text in enumerate(chosen.tolist()):
                    writer.add_image(image_id=str(number), file='x.png', split='train')
                    writer.add_caption(image=number, image_id=str(number), text=texts[text], kind='template')
                writer.finish({}, str(data))
        shutil.rmtree(folder / 'bank', ignore_errors=True)
        rows.append({'captions': count, 'distinct': distinct, **command('embed', folder, '--model', TINY_CLIP_DIR)})
    return rows


def training_case(data: Path, workers: int) -> dict[str, Any]:
    """Blocks of steps of `fit` on JPEGs with captions and of a bare loop, in turns, in one process."""
    import psutil
    import torch

    from experiments.performance.training.measuring import TAU, Spent, cpu_of, timed
    from experiments.performance.training.workload import FULL, make_clip, sizes_of
    from grafalign.captions.import_set import ImportOptions, import_captions
    from grafalign.encoders import ClipSettings, embed_texts, load_clip
    from grafalign.training import TrainSettings
    from grafalign.training.accelerator import make_accelerator
    from grafalign.training.data import PairSteps
    from grafalign.training.gather_data import gather_data
    from grafalign.training.loop import Run, Validation, fit
    from grafalign.training.optimizer import make_optimizer
    from grafalign.training.task import AlignmentTask, viewed

    sizes = sizes_of(data)
    folder = make_clip(data, FULL.vision)
    clip = load_clip(ClipSettings(model=str(folder)))
    shards = make_shards(data / 'shards4096', 4096)
    import_captions(shards, data / 'set', ImportOptions())
    embed_texts(CaptionSet(data / 'set'), clip)
    values = {
        'data': str(data / 'set'), 'out': data / 'run', 'clip': {'model': str(folder)}, 'gsd_m': 1.0, 'steps': 1000,
        'batch_tiles': sizes.batch, 'micro_batch': sizes.batch, 'precision': 'no', 'workers': workers, 'trackers': [],
        'validate_every': 10**6, 'checkpoint_every': 10**6, 'log_every': sizes.block,
    }  # fmt: skip
    settings = TrainSettings.model_validate(values)
    shutil.rmtree(settings.out, ignore_errors=True)
    settings.out.mkdir(parents=True)
    gathered = gather_data(settings, clip)
    torch.manual_seed(0)
    bank = gathered.bank(torch.device('cpu'))
    task = AlignmentTask.start(clip, gathered.sensor, settings, bank)
    steps = PairSteps(gathered.sources, settings, size_px=gathered.sensor.size_px)
    batches = []
    for batch in (steps[n] for n in range(4)):
        texts = bank[batch['candidates'][batch['photo']]].float()
        batches.append((viewed(task.preprocess, batch, settings.augment), texts))
    encoder = copy.deepcopy(task.encoder).train()
    optimizer = make_optimizer(encoder, settings.peak_lr, settings.weight_decay, torch.device('cpu'))

    def bare(number: int) -> None:
        images, texts = batches[number % 4]
        loss = torch.nn.functional.cross_entropy(encoder(images).image @ texts.T / TAU, torch.arange(len(images)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    family = psutil.Process()
    blocks: dict[str, list[Spent]] = {'ours': [], 'bare': []}
    mark = time.perf_counter(), sum(cpu_of(family))

    def turn(_model: torch.nn.Module) -> dict[str, float]:
        nonlocal mark
        ended = time.perf_counter(), sum(cpu_of(family))
        blocks['ours'].append(Spent(ended[0] - mark[0], ended[1] - mark[1]))
        readers = family.children()
        for reader in readers:
            reader.suspend()
        with torch.enable_grad():
            blocks['bare'].append(timed(lambda: [bare(n) for n in range(sizes.block)]))
        for reader in readers:
            reader.resume()
        mark = time.perf_counter(), sum(cpu_of(family))
        return {}

    total = sizes.block * (2 * sizes.turns + 1)
    log = fit(
        task, steps, total, 1e-4, settings, make_accelerator('no'), Run(settings.out, ''), Validation(turn, sizes.block)
    )
    shutil.rmtree(settings.out)
    later = {k: [s._asdict() for s in v[1:]] for k, v in blocks.items()}
    ratios = [b['wall_s'] / o['wall_s'] for o, b in zip(later['ours'], later['bare'], strict=True)]
    return {
        'workers': workers,
        'batch': sizes.batch,
        'spent': later,
        'speed_of_the_bare_loop': [round(r, 4) for r in ratios],
        'median': round(statistics.median(ratios), 4),
        'data_share': statistics.median(e['data_ms'] / e['step_ms'] for e in log[1:]),
    }


def main() -> None:
    """Measure what is asked for and keep the rest of the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, default=Path('runs/captions'))
    parser.add_argument('--only', nargs='+', default=['filter', 'landmarks', 'texts', 'training'])
    parser.add_argument('--images', type=int, default=1_000_000, help='of the filter')
    parser.add_argument('--case', nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case is not None:
        if args.case[0] == 'features':
            features_case(Path(args.case[1]))
        else:
            print(json.dumps(training_case(args.data / 'training', int(args.case[1]))))
        return
    args.data.mkdir(parents=True, exist_ok=True)
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for part in args.only:
        shown = ' '.join(['python experiments/performance/captions.py --data FOLDER --only', part])
        versions = {n: version(n) for n in ('grafalign', 'torch', 'pyarrow', 'shapely', 'osmium')}
        found: Any
        if part == 'filter':
            found = measure_filter(args.data / 'filter', args.images)
        elif part == 'landmarks':
            found = measure_landmarks(args.data / 'landmarks', 10_000_000, 10_000)
        elif part == 'texts':
            found = measure_texts(args.data / 'texts', [1_000_000, 10_000_000], 20_000)
        else:
            cases = []
            for workers in (2, 0):
                arguments = [sys.executable, __file__, '--data', str(args.data), '--case', 'training', str(workers)]
                done = subprocess.run(arguments, capture_output=True, text=True, check=True)
                cases.append(json.loads(done.stdout.splitlines()[-1]))
            found = cases
        results[part] = {
            'command': shown,
            'machine': machine_metadata(),
            'versions': versions,
            'seed': 0,
            'measured': found,
        }
        RESULTS.write_text(json.dumps(results, indent=1) + '\n')


if __name__ == '__main__':
    os.environ.setdefault('OMP_NUM_THREADS', '2')
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    main()
