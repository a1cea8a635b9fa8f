"""Refined outlines against real buildings, the refiner alone: the heat is the truth, blurred to patches.

    python -m experiments.refine.buildings --realdata FOLDER --sam runs/sam   # after experiments.refine.train_sam

FOLDER holds `oam_buildings`, `spacenet_atlanta` and `buildings_torchsat`. Of each set the footprints are drawn on the
image's pixels, averaged over patches of 16 px, and enlarged bilinearly, as the scores of a perfect model would be;
`building` against `not` (one less the heat) is then refined by the image's own pixels. IoU of buildings, and boundary
F1 within two pixels as in `outlines.py`. Numbers of 16 bits are brought to 0 to 1 by their 2nd and 98th percentile. No
model takes part. After a first run the guided filter's radius was brought down from 3/4 to 1/2 of a cell: over
`spacenet_atlanta` the larger one left an IoU of 0.29. SAM is the small one of `train_sam.py`, which has never seen a
real picture nor a building from so near; it sees tiles of 256 px.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import rasterio
import torch
from affine import Affine
from PIL import Image
from rasterio.features import rasterize
from scipy.ndimage import binary_dilation

from experiments.refine.outlines import NEAR_PX, borders
from grafalign.encoders.lattice import to_pixels
from grafalign.maps.outlines import guided, superpixels
from grafalign.maps.sam import Sam
from grafalign.maps.sam import refined as outlined

RESULTS = Path(__file__).parent / 'results'
PATCH = 16
_EARTH_M = 20_037_508.342789244
"""Half the side of the Web Mercator square."""
Picture = tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]
"""Bands [C, H, W] in 0 to 1, buildings [H, W], and where there is an image [H, W]."""


def drawn(shapes: gpd.GeoSeries, transform: Affine, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Footprints as pixels."""
    usable = [s for s in shapes.make_valid() if s is not None and not s.is_empty]
    if not usable:
        return np.zeros(shape, bool)
    return np.asarray(rasterize(usable, out_shape=shape, transform=transform, dtype='uint8'), dtype=bool)


def torchsat(folder: Path) -> Iterator[Picture]:
    """0.3 m, red, green and blue, one image."""
    with rasterio.open(folder / 'tiff_3channel_uint8.tif') as raster:
        bands, transform, crs = raster.read().astype(np.float32) / 255, raster.transform, raster.crs
    shapes = gpd.read_file(folder / 'tiff_3channel_uint8.geojson')
    shapes = shapes if shapes.crs is None else shapes.to_crs(crs)
    yield bands, drawn(shapes.geometry, transform, bands.shape[1:]), np.ones(bands.shape[1:], bool)


def spacenet(folder: Path) -> Iterator[Picture]:
    """0.5 m, panchromatic, one image."""
    with rasterio.open(folder / 'sample_geotiff.tif') as raster:
        pixels, transform, crs = raster.read().astype(np.float32), raster.transform, raster.crs
    low, high = np.percentile(pixels, (2, 98))
    shapes = gpd.read_file(folder / 'geotiff_labels.geojson').to_crs(crs)
    bands = np.clip((pixels - low) / (high - low), 0, 1)
    yield bands, drawn(shapes.geometry, transform, bands.shape[1:]), np.ones(bands.shape[1:], bool)


def oam(folder: Path) -> Iterator[Picture]:
    """Tiles of zoom 21 (about 0.07 m), red, green and blue; their names say where they are."""
    shapes = gpd.read_file(folder / 'labels.geojson').to_crs('EPSG:3857').geometry
    for path in sorted(folder.glob('OAM-*-21.png')):
        _, x, y, zoom = path.stem.split('-')
        side = 2 * _EARTH_M / 2 ** int(zoom)
        transform = Affine(side / 256, 0, int(x) * side - _EARTH_M, 0, -side / 256, _EARTH_M - int(y) * side)
        pixels = np.asarray(Image.open(path).convert('RGBA'), dtype=np.float32).transpose(2, 0, 1)
        buildings = drawn(shapes, transform, pixels.shape[1:])
        if buildings.any() and not buildings.all():
            yield pixels[:3] / 255, buildings, pixels[3] > 0


SETS = {'buildings_torchsat': torchsat, 'spacenet_atlanta': spacenet, 'oam_buildings': oam}


def by_sam(
    sam: Sam, bands: npt.NDArray[np.float32], scores: npt.NDArray[np.float32], present: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """Scores by SAM, tile by tile."""
    out = scores.copy()
    colours = bands[:3] if len(bands) >= 3 else np.repeat(bands[:1], 3, axis=0)
    for top in range(0, present.shape[0], sam.size):
        for left in range(0, present.shape[1], sam.size):
            tile = np.s_[..., top : top + sam.size, left : left + sam.size]
            if present[tile].any():
                out[tile] = outlined(sam, colours[tile], scores[tile], present[tile], np.arange(2), {0})
    return out


def refined(picture: Picture, sam: Sam) -> dict[str, npt.NDArray[np.bool_]]:
    """Buildings by the blurred truth, and by each way of refining it."""
    bands, buildings, present = picture
    height, width = buildings.shape
    rows, columns = -(-height // PATCH), -(-width // PATCH)
    whole = np.zeros((rows * PATCH, columns * PATCH), np.float32)
    whole[:height, :width] = buildings
    heat = torch.from_numpy(whole.reshape(rows, PATCH, columns, PATCH).mean((1, 3)))
    planes = torch.stack([heat, 1 - heat])
    scores = to_pixels(planes, torch.ones(rows, columns, dtype=torch.bool), PATCH)[:, :height, :width].numpy()
    ways = {
        'none': scores,
        'guided': guided(bands, scores, present, PATCH // 2),
        'superpixels': superpixels(bands, scores, present, PATCH**2 // 8),
        'sam': by_sam(sam, bands, scores, present),
    }
    return {name: (s.argmax(0) == 0) & present for name, s in ways.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--realdata', type=Path, required=True, help='folder of the sets')
    parser.add_argument('--sam', required=True, help='folder of the small SAM')
    arguments = parser.parse_args()
    sam = Sam.load(arguments.sam)
    disk = np.hypot(*np.ogrid[-NEAR_PX : NEAR_PX + 1, -NEAR_PX : NEAR_PX + 1]) <= NEAR_PX
    results: dict[str, dict[str, dict[str, float]]] = {}
    for name, pictures in SETS.items():
        counts: dict[str, npt.NDArray[np.int64]] = {}
        for picture in pictures(arguments.realdata / name):
            _, buildings, present = picture
            for way, guess in refined(picture, sam).items():
                true = buildings & present
                mine, edges = borders(guess.astype(np.int64)), borders(true.astype(np.int64))
                masks = (guess & true, guess | true, mine, mine & binary_dilation(edges, disk), edges,
                         edges & binary_dilation(mine, disk))  # fmt: skip
                counts[way] = counts.get(way, 0) + np.array([int(m.sum()) for m in masks])
        results[name] = {}
        for way, (hit, union, called, right, true_edges, found) in counts.items():
            precision, recall = right / max(called, 1), found / max(true_edges, 1)
            f1 = 2 * precision * recall / max(precision + recall, 1e-9)
            results[name][way] = {'iou': round(hit / max(union, 1), 4), 'boundary_f1': round(f1, 4)}
    record = {
        'command': 'python -m experiments.refine.buildings --realdata FOLDER --sam FOLDER',
        'patch': PATCH,
        'near_px': NEAR_PX,
        'versions': {n: version(n) for n in ('grafalign', 'numpy', 'scipy', 'scikit-image', 'transformers')},
        'sets': results,
    }
    (RESULTS / 'buildings.json').write_text(json.dumps(record, indent=1) + '\n')
    lines = [
        '# Refined outlines against real buildings', '',
        'Made by `python -m experiments.refine.buildings`; the head of the script says how.', '',
        '| set | outlines | IoU | boundary F1 |', '|---|---|---:|---:|',
    ]  # fmt: skip
    for name, ways in results.items():
        lines += [f'| {name} | {way} | {v["iou"]:.3f} | {v["boundary_f1"]:.3f} |' for way, v in ways.items()]
    (RESULTS / 'buildings.md').write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
    main()
