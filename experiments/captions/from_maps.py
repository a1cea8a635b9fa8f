"""What captions from a map are worth beside photos and true captions, and what mixing photos with them adds.

    python -m experiments.study --worlds runs/worlds --seeds 0 1 2
    python -m experiments.captions.from_maps --worlds runs/worlds
    python -m experiments.captions.from_maps --table

A world's truth is written as a real .osm.pbf: its objects, and its land as areas, with the gaps of real maps (30 % of
them missing, 5 % that are not there any more, 5 m shifts, 40 % without a name). `captions landmarks` and `captions
write` make captions of it for the tiles that have photos, and the same encoder learns by the product's own training,
with the quickstart's rate, views, batch and 500 steps, from

    photos      the quickstart's photos
    maps        the map's captions
    shuffled    the map's captions, each of another tile: what a map that lies elsewhere gives
    annotator   the captions of `annotator.py`, from the truth with the gaps of people, for the same tiles
    both        photos and the map's captions, half of every batch each
    photos, annotator    the same with the annotator's

The tiny CLIP knows its 24 classes by their own words only, so what the table of kinds calls a tag is put into those
words; templates and evidence stay as they are.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
import rasterio.features
import shapely

from experiments.captions.annotator import write_captions as annotate
from experiments.captions.places import class_shares
from experiments.study import (
    CLIP,
    Cell,
    chosen,
    load_results,
    mean_over_worlds,
    paired_difference,
    run_cells,
    study_parser,
)
from grafalign.benchmarks.sandbox.sandbox_set import SandboxTruth
from grafalign.captions import CaptionSet
from grafalign.captions.import_set import import_captions
from grafalign.captions.landmarks.find import Maps, find_landmarks
from grafalign.captions.write_set import SetWriter
from grafalign.captions.writing.write import TemplateOptions, write_captions
from grafalign.encoders import embed_texts, load_clip
from grafalign.sandbox.classes import LAND_CLASSES
from grafalign.store import PairStore
from grafalign.training import SatelliteModel, TrainSettings, load_satellite, train

HERE = Path(__file__).resolve().parent
RESULTS = HERE / 'results' / 'maps'
TAGS: dict[str, dict[str, str]] = {
    'water': {'natural': 'water'},
    'broadleaf forest': {'landuse': 'forest', 'leaf_type': 'broadleaved'},
    'conifer forest': {'landuse': 'forest', 'leaf_type': 'needleleaved'},
    'meadow': {'landuse': 'meadow'},
    'cropland': {'landuse': 'farmland'},
    'orchard': {'landuse': 'orchard'},
    'vineyard': {'landuse': 'vineyard'},
    'beach': {'natural': 'beach'},
    'bare rock': {'natural': 'bare_rock'},
    'marsh': {'natural': 'wetland', 'wetland': 'marsh'},
    'suburb': {'landuse': 'residential'},
    'old town': {'building': 'residential'},
    'tower blocks': {'building': 'apartments'},
    'warehouses': {'building': 'warehouse'},
    'oil tanks': {'man_made': 'storage_tank'},
    'stadium': {'leisure': 'stadium'},
    'solar farm': {'power': 'plant', 'plant:source': 'solar'},
    'airport runway': {'aeroway': 'runway', 'area': 'yes'},
    'marina': {'leisure': 'marina'},
    'roundabout': {'highway': 'raceway', 'area': 'yes'},
    'golf course': {'leisure': 'golf_course'},
    'quarry': {'landuse': 'quarry'},
    'greenhouses': {'landuse': 'greenhouse_horticulture'},
    'parking lot': {'amenity': 'parking'},
}
"""What a mapper would write. A roundabout has no area in OpenStreetMap; a ring road stands for it."""
MISSING, GONE, SHIFT_M, NAMELESS = 0.30, 0.05, 5.0, 0.40
ARMS = ('photos', 'maps', 'shuffled', 'annotator', 'both', 'photos, annotator')
TRAIN = {'steps': 500, 'batch_tiles': 128, 'lr': 0.002, 'log_every': 20, 'level': 'image'}
TAU = {'photos': 0.3, 'captions': 0.15}
"""That of the quickstart, and one that does as well in world 7 as the best: 0.687 beside 0.691 at 0.07. Mixtures take
that of the captions."""


def write_map(world: Path, seed: int) -> Path:
    """The world's truth as an OpenStreetMap file with gaps."""
    import osmium

    path = world / 'map.osm.pbf'
    if path.is_file():
        return path
    truth = SandboxTruth(world / 'sandbox', PairStore(world / 'pairs'))
    objects = gpd.read_file(world / 'sandbox' / 'truth' / 'objects.geojson')
    shapes = [(name, shape) for name, shape in zip(objects['class'], objects.geometry, strict=True)]
    with rasterio.open(world / 'sandbox' / 'truth' / 'classes.tif') as raster:
        labels, crs = raster.read(1), raster.crs
        of_object = {c.name for c in LAND_CLASSES if c.is_object}
        land = [
            (shapely.geometry.shape(shape), int(value))
            for shape, value in rasterio.features.shapes(labels.astype(np.int16), transform=raster.transform)
            if int(value) < len(truth.classes) and truth.classes[int(value)] not in of_object
        ]
    areas = gpd.GeoSeries([s for s, _ in land], crs=crs)
    metric = areas.to_crs(areas.estimate_utm_crs())
    keep = metric.area.to_numpy() > 400
    degrees = areas.simplify(2).to_crs(4326)
    shapes += [(truth.classes[land[i][1]], degrees.iloc[i]) for i in np.flatnonzero(keep).tolist()]
    rng = np.random.default_rng((seed, 23))
    west, south, east, north = gpd.GeoSeries([s for _, s in shapes], crs=4326).total_bounds
    part = world / 'part.osm.pbf'
    out = osmium.SimpleWriter(str(part), overwrite=True)
    mutable, always = osmium.osm.mutable, {'version': 2, 'timestamp': datetime(2015, 1, 1, tzinfo=timezone.utc)}
    ways: list[tuple[list[int], dict[str, str]]] = []
    number = 0
    for name, shape in shapes:
        if rng.random() < MISSING:
            continue
        east_m, north_m = rng.normal(0, SHIFT_M / np.sqrt(2), 2)
        move = east_m / 111_320 / np.cos(np.deg2rad(shape.centroid.y)), north_m / 111_320
        if rng.random() < GONE:  # it stands on the map at a place where it is not any more
            move = rng.uniform(west, east) - shape.centroid.x, rng.uniform(south, north) - shape.centroid.y
        tags = dict(TAGS[name]) | ({} if rng.random() < NAMELESS else {'name': f'Place {len(ways)}'})
        for polygon in getattr(shape, 'geoms', [shape]):
            nodes = []
            for lon, lat in list(polygon.exterior.coords)[:-1]:
                number += 1
                nodes.append(number)
                out.add_node(mutable.Node(id=number, location=(lon + move[0], lat + move[1]), **always))
            ways.append(([*nodes, nodes[0]], tags))
    for place, (nodes, tags) in enumerate(ways, 1):
        out.add_way(mutable.Way(id=place, nodes=nodes, tags=tags, **always))
    out.close()
    part.replace(path)
    return path


def caption_sets(world: Path, seed: int) -> dict[str, Path]:
    """The captioned sets of a world, with their text banks: maps, shuffled, annotator."""
    found = {name: world / f'captions_{name}' for name in ('maps', 'shuffled', 'annotator')}
    if all((p / 'bank' / 'bank.json').is_file() for p in found.values()):
        return found
    clip = load_clip(CLIP)
    import_captions(world / 'pairs', world / 'captions_tiles')
    tiles = CaptionSet(world / 'captions_tiles')
    find_landmarks(tiles, Maps(osm=(write_map(world, seed),)), world / 'landmarks')
    _in_class_words(world / 'landmarks', seed)
    write_captions(tiles, world / 'landmarks', found['maps'], TemplateOptions(per_image=3))
    written = CaptionSet(found['maps'])
    _shuffled(written, found['shuffled'], seed)
    _annotated(tiles, world, found['annotator'], seed)
    for path in found.values():
        embed_texts(CaptionSet(path), clip)
    return found


def _in_class_words(folder: Path, seed: int) -> None:
    """Put kinds into the words that the tiny CLIP knows: a class's name in 55 %, else a synonym."""
    table = pq.read_table(folder / 'landmarks.parquet')
    of_key = {'='.join(next(iter(tags.items()))): name for name, tags in TAGS.items()}
    forests = {'broadleaf forest', 'conifer forest'}
    known = {c.name: c for c in LAND_CLASSES}
    rng = np.random.default_rng((seed, 29))
    words = []
    for key, kind in zip(table['key'].to_pylist(), table['kind'].to_pylist(), strict=True):
        one = known[kind if kind in forests else of_key[key]]
        words.append(
            one.name if rng.random() < 0.55 else str(rng.choice(one.synonyms)).removeprefix('a ').removeprefix('the ')
        )
    table = table.set_column(table.column_names.index('kind'), 'kind', pa.array(words))
    pq.write_table(table, folder / 'landmarks.parquet')


def _shuffled(captions: CaptionSet, out: Path, seed: int) -> None:
    """The captions of another image of the same split."""
    images = captions.images.to_pylist()
    texts: dict[int, list[dict[str, Any]]] = {}
    for row in captions.captions.to_pylist():
        texts.setdefault(row['image'], []).append(row)
    rng = np.random.default_rng((seed, 31))
    other = np.arange(len(images))
    for split in ('train', 'val', 'test'):
        rows = rng.permutation(captions.rows_of(split))
        other[rows] = np.roll(rows, 1)
    with SetWriter(out) as writer:
        for row, columns in enumerate(images):
            new = writer.add_image(**columns)
            for said in texts[int(other[row])]:
                writer.add_caption(**{**said, 'image': new, 'image_id': columns['image_id']})
        writer.finish({}, None, (str(captions.marker.store), str(captions.marker.store_digest)))


def _annotated(tiles: CaptionSet, world: Path, out: Path, seed: int) -> None:
    """What people would have written of the same tiles."""
    store = PairStore(world / 'pairs')
    truth = SandboxTruth(world / 'sandbox', store)
    grid = truth.recipe.grid
    rows = store.tiles
    boxes = [grid.geobox(int(e), t[2], t[5]) for e, t in zip(rows['epsg'], rows['transform'], strict=True)]
    said = annotate(class_shares(truth.label_maps(boxes), len(truth.classes)), seed)
    with SetWriter(out) as writer:
        for columns, caption in zip(tiles.images.to_pylist(), said, strict=True):
            new = writer.add_image(**columns)
            writer.add_caption(image=new, image_id=columns['image_id'], text=caption.text, kind='human')
        writer.finish({}, None, (str(tiles.marker.store), str(tiles.marker.store_digest)))


def trainer(cell: Cell, world: Path, settings: TrainSettings) -> SatelliteModel:
    """Train on what the cell says, by `grafalign train`'s own way."""
    sets = caption_sets(world, cell.world)
    arm = cell.values['arm']
    store = {'store': str(world / cell.store)}
    data: list[dict[str, Any]] = {
        'photos': [store],
        'both': [store, {'set': str(sets['maps'])}],
        'photos, annotator': [store, {'set': str(sets['annotator'])}],
    }.get(arm) or [{'set': str(sets[arm])}]
    values = settings.model_dump(mode='json') | {'store': None, 'data': data}
    wanted = TrainSettings.model_validate(values)
    train(wanted)
    return load_satellite(wanted.out)


def table() -> str:
    """Means over worlds, and paired differences to the photos."""
    outcomes = load_results(RESULTS)
    photos = chosen(outcomes, arm='photos')
    lines = [
        '# What captions from a map are worth',
        '',
        '| learned from | accuracy (95 %) | each world | to photos, paired |',
        '|---|---|---|---|',
    ]
    for arm in ARMS:
        mine = chosen(outcomes, arm=arm)
        if not mine:
            continue
        mean, low, high = mean_over_worlds(mine, 'accuracy')
        each = ', '.join(f'{o["accuracy"]["value"]:.3f}' for o in mine)
        beside = ''
        if arm != 'photos' and len(mine) == len(photos):
            gain, below, above = paired_difference(mine, photos, 'accuracy')
            beside = f'{gain:+.3f} ({below:+.3f} to {above:+.3f})'
        lines.append(f'| {arm} | {mean:.3f} ({low:.3f} to {high:.3f}) | {each} | {beside} |')
    return '\n'.join(lines) + '\n'


def main() -> None:
    """Run all cells, or make the table."""
    parser = study_parser(__doc__, 'captions_maps')
    args = parser.parse_args()
    if not args.table:
        cells = []
        for seed in args.seeds:
            world = args.worlds / str(seed)
            sets = caption_sets(world, seed)
            told = {
                name: json.loads((path / 'dataset.json').read_text())['distinct_captions']
                for name, path in sets.items()
            }
            for arm in ARMS:
                tau = TAU['photos'] if arm == 'photos' else TAU['captions']
                cells.append(Cell(seed, {'arm': arm}, {**TRAIN, 'tau': tau}, options=told))
        run_cells(cells, args.worlds, RESULTS, args.runs, trainer, args.abreast)
    (RESULTS / 'table.md').write_text(table())


if __name__ == '__main__':
    main()
