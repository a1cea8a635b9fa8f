"""What a field and its maps cost: `python experiments/performance/maps.py --help`.

    python experiments/performance/maps.py memory --data runs/maps        # peak memory by size and number of classes
    python experiments/performance/maps.py overlap --data runs/maps       # wall time over time inside the encoder
    python experiments/performance/maps.py table                          # maps.md from what was measured

Scenes are made up (8-bit, red, green and blue, COGs), and so are the models: towers of CLIP's shape with windows of 224
px, patches of 16 and D = 512, with random weights and few layers, because what is measured is all but the model. Peak
memory is the operating system's (`VmHWM` of the process). Results go to `results/maps.json`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
import torch
from affine import Affine
from machine import machine_metadata
from rasterio.windows import Window

from grafalign.encoders.lattice import stride_of
from grafalign.fields import FieldOptions, field_input, make_field, open_field, window_encoder
from grafalign.models import load_model

HERE = Path(__file__).resolve().parent
RESULTS = HERE / 'results' / 'maps.json'
SIZES = (2_000, 5_000, 10_980, 36_000)
CLASSES = (2, 24, 500)
OVERLAPS = (1.0, 1.8, 4.0)
ENCODERS = ((6, 256), (12, 768))
"""Layers and width: a light one, and ViT-B."""


def make_scene(folder: Path, size: int) -> Path:
    """A COG of smooth colours with edges, read back only block by block."""
    path = folder / f'scene_{size}_2023-05-01.tif'
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(7)
    colours = random.integers(30, 226, (3, 64, 64), dtype=np.uint8).repeat(9, 1).repeat(9, 2)
    noise = random.integers(0, 20, (3, 512, 512), dtype=np.uint8)
    plain = folder / 'plain.tif'
    profile = {
        'driver': 'GTiff', 'count': 3, 'dtype': 'uint8', 'height': size, 'width': size, 'crs': 'EPSG:32633',
        'transform': Affine(10, 0, 300_000, 0, -10, 5_400_000), 'tiled': True, 'blockxsize': 512, 'blockysize': 512,
        'photometric': 'RGB', 'bigtiff': 'IF_SAFER', 'interleave': 'pixel',
    }  # fmt: skip
    with rasterio.open(plain, 'w', **profile) as dataset:
        for top in range(0, size, 512):
            for left in range(0, size, 512):
                height, width = min(512, size - top), min(512, size - left)
                rows = (np.arange(top, top + height) * 7 // 10) % colours.shape[1]
                columns = (np.arange(left, left + width) * 7 // 10 + top // 5) % colours.shape[2]
                block = colours[:, rows][:, :, columns] + noise[:, :height, :width]
                dataset.write(block, window=Window(left, top, width, height))
    rasterio.shutil.copy(plain, path, driver='COG', compress='DEFLATE', bigtiff='IF_SAFER', num_threads='2')
    plain.unlink()
    return path


def make_model(folder: Path, layers: int, width: int, text: tuple[int, int] = (1, 64)) -> Path:
    """A CLIP of random weights in a folder that open_clip loads.

    Args:
        folder: where it goes.
        layers: of the image tower.
        width: of the image tower.
        text: layers and width of the text tower.
    """
    import open_clip
    from safetensors.torch import save_file

    out = folder / ('_'.join(map(str, ('model', layers, width, *(text if text != (1, 64) else ())))))
    if out.is_dir():
        return out
    config = {
        'embed_dim': 512,
        'vision_cfg': {'image_size': 224, 'layers': layers, 'width': width, 'patch_size': 16, 'head_width': 64},
        'text_cfg': {
            'context_length': 77,
            'vocab_size': 49408,
            'width': text[1],
            'heads': text[1] // 64,
            'layers': text[0],
        },
    }
    name = f'measure-{layers}-{width}-{text[0]}-{text[1]}'
    out.mkdir(parents=True)
    (out / f'{name}.json').write_text(json.dumps(config))
    open_clip.add_model_config(out / f'{name}.json')
    torch.manual_seed(0)
    model = open_clip.create_model(name)
    (out / f'{name}.json').unlink()
    save_file(model.state_dict(), out / 'open_clip_model.safetensors')
    preprocess = {'mean': [0.48, 0.46, 0.41], 'std': [0.27, 0.26, 0.28]}
    (out / 'open_clip_config.json').write_text(json.dumps({'model_cfg': config, 'preprocess_cfg': preprocess}))
    return out


def measured(*arguments: str) -> dict[str, float]:
    """Wall seconds and peak memory of a command of grafalign in a process of its own.

    Peak memory is the system's `VmHWM`: `ru_maxrss` would begin with the peak of the process that starts it.
    """
    code = (
        'import sys, time; from grafalign.cli import main; t = time.time()\n'
        'try: main()\n'
        'except SystemExit as end: sys.exit(end.code)\n'
        'finally: print("measured", time.time() - t, *[line.split()[1] for line in open("/proc/self/status")'
        ' if line.startswith("VmHWM")])'
    )
    done = subprocess.run([sys.executable, '-c', code, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    _, seconds, kilobytes = done.stdout.strip().splitlines()[-1].split()
    return {'seconds': round(float(seconds), 1), 'peak_mb': int(kilobytes) // 1024}


def memory(data: Path, sizes: list[int], numbers: list[int]) -> list[dict[str, Any]]:
    """Peak memory of fields of several sizes, and of their maps of several numbers of classes."""
    model = str(make_model(data, 1, 64))
    rows = []
    for size in sizes:
        scene, field = make_scene(data, size), data / f'field_{size}'
        shutil.rmtree(field, ignore_errors=True)
        row: dict[str, Any] = {'px': size, 'field': measured('field', str(scene), str(field), '--model', model)}
        marker = open_field(field).marker
        row['windows'], row['cells'] = marker.windows, list(open_field(field).shape)
        row['field_bytes'] = sum((field / name).stat().st_size for name in marker.files)
        row['maps'] = {}
        for classes in numbers:
            words = ','.join(f'thing {i}' for i in range(classes))
            out = data / 'map.tif'
            row['maps'][str(classes)] = measured('map', str(field), '--words', words, '--out', str(out))
            row['maps'][str(classes)]['map_bytes'] = out.stat().st_size
        print(json.dumps(row), flush=True)
        shutil.rmtree(field)
        rows.append(row)
    return rows


def overlap(data: Path) -> list[dict[str, Any]]:
    """Wall time of a field against the time that was spent inside the encoder, of the same run."""
    torch.set_num_threads(1)
    scene = make_scene(data, 2_000)
    rows = []
    for (layers, width), share in itertools.product(ENCODERS, OVERLAPS):
        model = load_model(str(make_model(data, layers, width)))
        for _ in range(3):
            source = field_input(str(scene), model, FieldOptions(stride=stride_of(224, 16, share)))
            encoder = window_encoder(model, source.plan)
            inside = 0.0
            encode = encoder.encode

            def timed(inputs: torch.Tensor, encode: Any = encode) -> torch.Tensor:
                nonlocal inside
                begin = time.perf_counter()
                out: torch.Tensor = encode(inputs)
                inside += time.perf_counter() - begin
                return out

            out = data / 'overlap'
            shutil.rmtree(out, ignore_errors=True)
            begin = time.perf_counter()
            marker = make_field(out, source, replace(encoder, encode=timed), 'made up')
            wall = time.perf_counter() - begin
            row = {
                'layers': layers, 'width': width, 'overlap': share, 'windows': marker.windows,
                'seconds': round(wall, 2),
                'ms_a_window_of_the_encoder': round(1000 * inside / marker.windows, 2),
                'ratio': round(wall / inside, 3),
            }  # fmt: skip
            print(json.dumps(row), flush=True)
            rows.append(row)
    return rows


def write_table() -> str:
    """`maps.md` from the results."""
    content = json.loads(RESULTS.read_text())
    lines = [
        '# What fields and maps cost',
        '',
        'Made by `python experiments/performance/maps.py table` from `results/maps.json`; the head of the script says '
        'how it was measured.',
        '',
    ]
    if 'memory' in content:
        lines += [
            '## Peak memory, MB',
            '',
            '| scene, px | windows | field | map of 2 classes | of 24 | of 500 | bytes of the field | seconds of the '
            'field | of a map of 24 |',
            '|---:|---:|---:|---:|---:|---:|---:|---:|---:|',
        ]
        for row in content['memory']['rows']:
            maps = row['maps']
            peaks = ' | '.join(f'{maps[str(c)]["peak_mb"]:,}' if str(c) in maps else '' for c in CLASSES)
            lines.append(
                f'| {row["px"]:,} | {row["windows"]:,} | {row["field"]["peak_mb"]:,} | {peaks} | '
                f'{row["field_bytes"] / 1e6:,.0f} MB | {row["field"]["seconds"]} | {maps["24"]["seconds"]} |'
            )
    if 'overlap' in content:
        lines += [
            '',
            '## Wall time of a field over the time inside the encoder',
            '',
            'Median of three, on one thread; both are of the same run.',
            '',
            '| layers x width | overlap | windows | ms a window of the encoder | ratio |',
            '|---|---:|---:|---:|---:|',
        ]
        for encoder, share in itertools.product(ENCODERS, OVERLAPS):
            runs = [
                r for r in content['overlap']['rows'] if (r['layers'], r['width']) == encoder and r['overlap'] == share
            ]
            ratio = float(np.median([r['ratio'] for r in runs]))
            alone = float(np.median([r['ms_a_window_of_the_encoder'] for r in runs]))
            lines.append(
                f'| {encoder[0]} x {encoder[1]} | {share:g} | {runs[0]["windows"]:,} | {alone:.1f} | {ratio:.2f} |'
            )
    return '\n'.join(lines) + '\n'


def main() -> None:
    """Measure, and keep what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('what', choices=['memory', 'overlap', 'table'])
    parser.add_argument('--data', type=Path, default=Path('runs/maps'), help='folder for scenes, models and fields')
    parser.add_argument('--sizes', type=int, nargs='+', default=list(SIZES))
    parser.add_argument('--classes', type=int, nargs='+', default=list(CLASSES))
    arguments = parser.parse_args()
    if arguments.what != 'table':
        started = {'machine': machine_metadata(), 'command': ' '.join(['python', *sys.argv])}
        rows = (
            memory(arguments.data, arguments.sizes, arguments.classes)
            if arguments.what == 'memory'
            else overlap(arguments.data)
        )
        content = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
        if arguments.what == 'memory':  # sizes that were measured before stay
            before = {row['px']: row for row in content.get('memory', {}).get('rows', [])}
            rows = sorted((before | {row['px']: row for row in rows}).values(), key=lambda row: row['px'])
        packages = ('grafalign', 'torch', 'rasterio', 'numpy', 'open_clip_torch')
        versions = {'python': platform.python_version(), **{name: version(name) for name in packages}}
        content[arguments.what] = {**started, 'versions': versions, 'seed': 7, 'rows': rows}
        RESULTS.write_text(json.dumps(content, indent=1) + '\n')
    (HERE / 'maps.md').write_text(write_table())
    print(f'peak of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB')


if __name__ == '__main__':
    main()
