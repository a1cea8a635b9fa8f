"""How fast the page of `grafalign explore` answers: a million items, a field of 10,980 px, twenty people at once.

    python experiments/performance/explore.py --data runs/explore   # makes what is missing (20 minutes), and measures

The server is `grafalign explore` in a process of its own, asked over HTTP from another one on the same machine, so the
cores are shared. The index holds a million made-up vectors of 512 dimensions in clusters, with footprints all over the
land and an approximate index for a recall of 0.99. The field is of a scene of 10,980 x 10,980 px, 512 numbers a cell of
16 px. Text goes through a tower of the size of ViT-B/32's (random weights, which take as long as others).
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import requests
import shapely
from machine import machine_metadata
from maps import make_model, make_scene, measured
from retrieval.vectors import clustered

from grafalign.explore.grid import tile_box
from grafalign.fields import open_field
from grafalign.models import load_model
from grafalign.search.catalog import Catalog
from grafalign.search.marker import IndexModel

HERE = Path(__file__).resolve().parent
RESULTS = HERE / 'results' / 'explore.json'
ITEMS, WIDTH, STEP = 1_000_000, 512, 100_000
PEOPLE, ROUNDS = 20, 5
WORDS = [
    f'{a} {b}' for a in ('green', 'dry', 'old', 'wide', 'burnt', 'red') for b in ('forest', 'water', 'town', 'road')
]


def make_index(folder: Path, model_folder: Path) -> Path:
    """A million items."""
    path = folder / 'index'
    if (path / 'done').is_file():
        return path
    model = load_model(str(model_folder))
    made = IndexModel(spec=str(model_folder), name=model.name, kind=model.kind, digest=model.digest)
    catalog = Catalog.create(path, WIDTH, made, 0.99)
    vectors = clustered(ITEMS, WIDTH)
    rng = np.random.default_rng(7)
    for first in range(0, ITEMS, STEP):
        lon, lat = rng.uniform(-180, 179.9, STEP), rng.uniform(-60, 75, STEP)
        items = gpd.GeoDataFrame(
            {
                'item_id': [f'item_{first + i}' for i in range(STEP)],
                'datetime': pd.to_datetime(rng.integers(1.5e9, 1.7e9, STEP), unit='s', utc=True),
                'source': 'made up',
                'stamp': '',
            },
            geometry=shapely.box(lon, lat, lon + 0.02, lat + 0.02),
            crs='EPSG:4326',
        )
        catalog.append(items, vectors[first : first + STEP])
    catalog.optimise(clustered(1024, WIDTH, draw=1))
    (path / 'done').touch()
    return path


class Asker:
    """Asks the server, and keeps how long it took."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.seconds: list[float] = []

    def search(self, **content: Any) -> str:
        """A search; the id of its heat."""
        began = time.perf_counter()
        answer = requests.post(f'{self.url}/api/search', json={'k': 50, **content}, timeout=300)
        answer.raise_for_status()
        self.seconds.append(time.perf_counter() - began)
        return str(answer.json()['heat'])

    def tile(self, key: str, z: int, x: int, y: int) -> float:
        """Seconds of a heat tile."""
        began = time.perf_counter()
        answer = requests.get(f'{self.url}/heat/{key}/0/{z}/{x}/{y}.png', timeout=300)
        assert answer.status_code == 200
        return time.perf_counter() - began


def tiles_in(field_path: Path, z: int) -> list[tuple[int, int]]:
    """Tiles of a zoom level whose middle lies on the field."""
    grid = open_field(field_path).geobox.extent.to_crs('EPSG:3857')
    left, bottom, right, top = grid.boundingbox.bbox
    side = 2 * np.pi * 6_378_137 / 2**z
    half = np.pi * 6_378_137
    found = []
    for x in range(int((left + half) // side), int((right + half) // side) + 1):
        for y in range(int((half - top) // side), int((half - bottom) // side) + 1):
            box = tile_box(z, x, y)
            if grid.geom.contains(shapely.Point(*(box.affine * (128, 128)))):
                found.append((x, y))
    return found


def measure(url: str, field: Path) -> dict[str, Any]:
    """All that a running server is asked."""
    asker = Asker(url)
    asker.search(text='a first word')
    out: dict[str, Any] = {'first_answer_s': asker.seconds[0]}
    asker.seconds = []
    for word in WORDS[:12]:
        asker.search(text=word)
    out['answer_s'] = statistics.median(asker.seconds)
    asker.seconds = []
    region = json.loads(shapely.to_geojson(shapely.box(-10, 35, 30, 60)))
    for word in WORDS[:6]:
        asker.search(text=word, region=region, begin='2019-01-01T00:00:00Z')
    out['answer_in_a_region_s'] = statistics.median(asker.seconds)
    levels: dict[str, Any] = {}
    for z in range(9, 16):
        places = tiles_in(field, z)
        if not places:
            continue
        rng = np.random.default_rng(z)
        times = []
        for word in WORDS[:4]:
            key = asker.search(text=f'{word} {z}')
            chosen = [places[i] for i in rng.integers(0, len(places), 5)]
            times += [asker.tile(key, z, *place) for place in chosen]
        levels[str(z)] = {'median_s': statistics.median(times), 'longest_s': max(times)}
    out['heat_tile'] = levels
    news = []
    view = tiles_in(field, 9) or tiles_in(field, 10)
    for word in WORDS[12:18]:
        began = time.perf_counter()
        key = asker.search(text=f'{word} anew')
        for place in view:
            asker.tile(key, 9 if tiles_in(field, 9) else 10, *place)
        news.append(time.perf_counter() - began)
    out['new_word_with_heat_s'] = {'median': statistics.median(news), 'longest': max(news), 'tiles': len(view)}
    out['people'] = together(url, field)
    return out


def together(url: str, field: Path) -> dict[str, Any]:
    """Many people who search new words at once, and look at the heat of each."""
    places = tiles_in(field, 11)
    searches: list[float] = []
    tiles: list[float] = []

    def person(number: int) -> None:
        rng = np.random.default_rng(number)
        asker = Asker(url)
        for turn in range(ROUNDS):
            key = asker.search(text=f'{WORDS[number % len(WORDS)]} {number} {turn}')
            tiles.extend(asker.tile(key, 11, *places[i]) for i in rng.integers(0, len(places), 4))
        searches.extend(asker.seconds)

    threads = [threading.Thread(target=person, args=(number,)) for number in range(PEOPLE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {
        'people': PEOPLE,
        'searches': len(searches),
        'search_median_s': statistics.median(searches),
        'search_p95_s': float(np.quantile(searches, 0.95)),
        'tile_median_s': statistics.median(tiles),
    }


def write_table(content: dict[str, Any]) -> str:
    """The page of the record."""
    people, news = content['people'], content['new_word_with_heat_s']
    rows = [
        ('first answer of a server that has just started', content['first_answer_s'], '1'),
        ('answer to a new word, 50 items', content['answer_s'], '1'),
        ('the same within a region and from a day on', content['answer_in_a_region_s'], ''),
        (f'a new word until its heat lies over the whole field ({news["tiles"]} tiles)', news['median'], '2'),
        (f'median search of {people["people"]} people at once', people['search_median_s'], '2'),
        ('their 95th percentile', people['search_p95_s'], ''),
        ('median heat tile of theirs', people['tile_median_s'], ''),
    ]
    machine = content['machine']
    lines = [
        '# How fast the page answers',
        '',
        f'Made by `{content["command"]}` on {machine["cores"]} cores, which the asking process shares. The head of the',
        'script says what is asked. Seconds; the last column is the wish.',
        '',
        '| what | s | wish |',
        '|---|---:|---:|',
        *(f'| {what} | {seconds:.2f} | {wish} |' for what, seconds, wish in rows),
        '',
        '| zoom | heat tile of a new word, median s | longest s |',
        '|---:|---:|---:|',
        *(f'| {z} | {v["median_s"]:.3f} | {v["longest_s"]:.3f} |' for z, v in content['heat_tile'].items()),
        '',
        f'The server starts in {content["start_s"]:.0f} s and takes {content["peak_mb"]:,} MB at most. The index has',
        f'{content["index_bytes"] / 1e9:.1f} GB on disk, the field {content["field_bytes"] / 1e9:.2f} GB.',
    ]
    return '\n'.join(lines) + '\n'


def main() -> None:
    """Measure, and keep what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', type=Path, default=Path('runs/explore'))
    parser.add_argument('--table', action='store_true', help='only write the table')
    arguments = parser.parse_args()
    if not arguments.table:
        data = arguments.data
        model = make_model(data, 1, 64, (12, 512))
        field = data / 'field'
        if not (field / 'field.json').is_file():
            measured('field', str(make_scene(data, 10_980)), str(field), '--model', str(model))
        index = make_index(data, model)
        command = [sys.executable, '-m', 'grafalign', 'explore', str(index), '--field', str(field), '--port', '0']
        began = time.perf_counter()
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
            assert server.stderr is not None
            url = ''
            while not url:
                line = server.stderr.readline()
                if not line:
                    raise SystemExit('the server ended')
                url = ''.join(re.findall(r'http://127\.0\.0\.1:\d+', line))
            requests.get(f'{url}/api/about', timeout=300)
            started = time.perf_counter() - began
            found = {'start_s': started, **measure(url, field)}
            status = Path(f'/proc/{server.pid}/status').read_text()
            found['peak_mb'] = int(re.findall(r'VmHWM:\s+(\d+)', status)[0]) // 1024
            server.terminate()
        packages = ('grafalign', 'torch', 'faiss-cpu', 'fastapi', 'uvicorn', 'numpy')
        content = {
            'machine': machine_metadata(),
            'command': 'python experiments/performance/explore.py --data FOLDER',
            'versions': {name: version(name) for name in packages},
            'items': ITEMS,
            'seed': 7,
            'index_bytes': sum(p.stat().st_size for p in index.iterdir()),
            'field_bytes': sum(p.stat().st_size for p in field.rglob('*') if p.is_file()),
            **found,
        }
        RESULTS.write_text(json.dumps(content, indent=1) + '\n')
    (HERE / 'explore.md').write_text(write_table(json.loads(RESULTS.read_text())))


if __name__ == '__main__':
    main()
