"""What the steps around a training cost at GRAFT's size: pairing, the photo bank, and maps of its words.

Requests and bytes of pairing are those that were measured on four full Sentinel-2 scenes
(`experiments/performance/results/pairing.json`); windows and cells of a map are counted by the code that makes them.
Sizes of photos, speeds of decoding and prices are settings, and the page says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grafalign.encoders.lattice import Lattice, stride_of

MEASURED = Path(__file__).parent / 'performance' / 'results' / 'pairing.json'
PHOTOS, PHOTO_BYTES, PHOTOS_PER_READ = 10_000_000, 100_000, 40
"""Photos of a bank; how large one is; and how many come with one request where they lie in tars (4 MB a request)."""
PHOTOS_PER_CORE_S = 150
"""Photos of 500 px that a core decodes and resizes in a second."""
SCENE_PX, SCENE_KM2, LAND_KM2 = 10_980, 109.8**2, 149e6
WINDOW, PATCH, OVERLAP, WIDTH = 224, 16, 4.0, 512
PRICES = {'gpu_hour': 2.0, 'core_hour': 0.05, 'thousand_requests': 0.0004, 'gb_read': 0.0, 'gb_month': 0.02}
"""Dollars: round numbers of the large clouds. Reading is free inside a region, and some 0.09 a GB across its border."""


@dataclass(frozen=True)
class Section:
    """A part of the page: sentences, then a table."""

    title: str
    text: str
    names: list[str]
    rows: list[list[Any]]


def pairing(prices: Mapping[str, float]) -> Section:
    """Requests, bytes and core-hours of cutting a million tiles."""
    content = json.loads(MEASURED.read_text())
    scenes, rows = len(content['material']['items']), []
    for need in content['needs']:
        runs = [
            m
            for m in content['measurements']
            if (m['method'], m['latency_ms'], m['block'], m['tiles']) == ('ours', 0, need['block'], need['tiles'])
        ]
        million = 1e6 / need['tiles']
        requests = million * runs[0]['requests']
        gigabytes = million * runs[0]['bytes'] / 1e9
        core_hours = million * min(m['cpu_s'] for m in runs) / 3600
        dollars = (
            requests / 1000 * prices['thousand_requests']
            + gigabytes * prices['gb_read']
            + core_hours * prices['core_hour']
        )
        each = need['tiles'] / scenes
        first = [f'{need["block"]} px', f'{each:.0f}', f'{requests / 1e6:.2f} M', f'{gigabytes / 1000:.2f}']
        rows.append([*first, f'{core_hours:.0f}', f'{dollars:.2f}'])
    text = (
        'A million tiles of 224 px and three bands of Sentinel-2, as measured with a few hundred of four scenes: the '
        'more tiles of a scene are wanted, the less each costs, as its blocks are shared. Core-hours are those of '
        'fetching, decoding and writing.'
    )
    return Section('Pairing', text, ['blocks', 'tiles a scene', 'requests', 'read, TB', 'core-hours', 'dollars'], rows)


def bank(prices: Mapping[str, float], gpu_hours: Mapping[str, tuple[float, float]]) -> Section:
    """Requests, bytes and hours of embedding ten million photos.

    Args:
        prices: dollars.
        gpu_hours: hours of each GPU for all photos, low and high.
    """
    gigabytes, cores = PHOTOS * PHOTO_BYTES / 1e9, PHOTOS / PHOTOS_PER_CORE_S / 3600
    rows = []
    for where, requests in (('each at an address', PHOTOS), ('in tars', PHOTOS / PHOTOS_PER_READ)):
        fixed = (
            requests / 1000 * prices['thousand_requests'] + gigabytes * prices['gb_read'] + cores * prices['core_hour']
        )
        for gpu, (low, high) in gpu_hours.items():
            dollars = [fixed + hours * prices['gpu_hour'] for hours in (low, high)]
            first = [where, f'{requests / 1e6:.2f} M', f'{gigabytes / 1000:.1f}', f'{cores:.0f}', gpu]
            rows.append([*first, f'{low:.1f} to {high:.1f}', f'{dollars[0]:.1f} to {dollars[1]:.1f}'])
    text = (
        f'{PHOTOS / 1e6:.0f} M photos of {PHOTO_BYTES / 1000:.0f} kB, at {PHOTOS_PER_CORE_S} a second and core: sizes '
        'and speed are assumed. A GPU that embeds them in an hour or two wants some ten to twenty cores that decode.'
    )
    names = ['photos', 'requests', 'read, TB', 'core-hours', 'GPU', 'GPU-hours', 'dollars']
    return Section('The photo bank', text, names, rows)


def maps(prices: Mapping[str, float], forward: int, speeds: Mapping[str, tuple[float, float]]) -> Section:
    """Hours and bytes of fields of a scene, and of all land.

    Args:
        prices: dollars.
        forward: FLOPs of the encoder for one window.
        speeds: FLOP/s of each GPU, low and high.
    """
    lattice = Lattice(SCENE_PX, SCENE_PX, WINDOW, PATCH, stride_of(WINDOW, PATCH, OVERLAP))
    cells = lattice.shape[0] * lattice.shape[1]
    sizes = {name: cells * WIDTH * number for name, number in (('float16', 2), ('int8', 1))}
    scenes = LAND_KM2 / SCENE_KM2
    rows = []
    for gpu, (slow, fast) in speeds.items():
        one = [lattice.windows * forward / speed for speed in (fast, slow)]
        land = [seconds * scenes / 3600 for seconds in one]
        dollars = [hours * prices['gpu_hour'] for hours in land]
        first = [gpu, f'{one[0]:.1f} to {one[1]:.1f}', f'{land[0]:,.0f} to {land[1]:,.0f}']
        rows.append([*first, f'{dollars[0]:.1f} to {dollars[1]:.1f}'])
    kept = scenes * sizes['int8'] / 1e12
    text = (
        f'A Sentinel-2 scene of {SCENE_PX:,} px squared is {lattice.windows:,} windows (each pixel is encoded '
        f'{lattice.passes:.1f} times) and {cells:,} cells of {lattice.cell} px: {sizes["float16"] / 1e9:.2f} GB in '
        f'float16, {sizes["int8"] / 1e9:.2f} GB in int8, before compression. All land, {LAND_KM2 / 1e6:.0f} M km2, is '
        f'{scenes:,.0f} such scenes without their overlaps, and {kept:.1f} TB in int8 '
        f'({kept * 1000 * prices["gb_month"]:,.0f} dollars a month). New words over a field cost one product with its '
        'cells, and no GPU. Below, the encoder alone, as if scenes came as fast.'
    )
    return Section('Maps', text, ['GPU', 'seconds a scene', 'GPU-hours, all land', 'dollars'], rows)
