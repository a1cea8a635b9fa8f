"""What a field is made from: scenes by what a person gives, and what the model asks of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timezone
from pathlib import Path

import shapely
import torch
from odc.geo.geobox import GeoBox
from torch import Tensor

from grafalign import console
from grafalign.config import Settings, load_settings
from grafalign.encoders.fitting import Fitting
from grafalign.encoders.lattice import Lattice, stride_of
from grafalign.encoders.smooth import SmoothAttention
from grafalign.encoders.windows import WindowEncoder
from grafalign.errors import InputError
from grafalign.fields.build import FieldInput, geobox_of
from grafalign.fields.field import Field, open_field
from grafalign.fields.grid import field_grid
from grafalign.fields.marker import FieldPlan, FieldScene, Numbers, Of
from grafalign.fields.strips import Strips
from grafalign.models import Model
from grafalign.scenes import BandSource, RangeReader, Scene, SceneSource, band_sources, load_scenes
from grafalign.scenes.geotiffs import item_of
from grafalign.scenes.items import ItemError, public_assets_only, scene_of
from grafalign.scenes.opening import SceneReadError
from grafalign.scenes.raster import Grid, Raster
from grafalign.scenes.signing import Signer

_WORLD = (-180.0, -90.0, 180.0, 90.0)
_MOST_SCENES = 254
_CONNECTIONS = 8
_FINEST_M = 1e-6
LATTICE = ('crs', 'transform', 'height', 'width', 'pixel_m', 'cell', 'window', 'patch', 'stride', 'of')
"""What two fields must have in common for their cells to lie on each other."""
_OVERLAP: dict[Of, float] = {'patches': 4.0, 'windows': 16.0, 'smooth': 4.0}
"""Passes over an average pixel: windows that are one vector each need more of them to show anything small."""


class SceneQuery(Settings):
    """A file that says which scenes: the recipe's own `scenes:`, and where."""

    scenes: SceneSource
    bbox: tuple[float, float, float, float] = _WORLD
    """West, south, east, north in degrees."""


@dataclass(frozen=True)
class FieldOptions:
    """How a scene becomes a field; None for the model's own."""

    of: Of | None = None
    overlap: float | None = None
    stride: int | None = None
    """In pixels, in place of `overlap`."""
    bands: tuple[str, ...] | None = None
    value_range: tuple[float, float] | None = None
    numbers: Numbers = 'float16'
    batch: int = 32
    any_gsd: bool = False
    like: str | None = None
    """Folder of a field whose grid, windows and value range are taken, so that two dates can be compared."""


def field_input(scene: str, model: Model, options: FieldOptions) -> FieldInput:
    """Everything that a field of a scene is made from, before anything is encoded.

    Args:
        scene: GeoTIFF (path or URL), folder of them, STAC item file, or a YAML file with `scenes:`.
        model: the model that will encode it.
        options: how.

    Raises:
        GrafalignError: there is no such scene, it lacks a band, it cannot be opened, or it does not overlap what it is
            to be like.
    """
    like = None if options.like is None else open_field(options.like)
    if like is not None:
        like.check_model(model.digest, model.name)
    given = _scenes(scene)
    if len(given.scenes) > _MOST_SCENES:
        raise InputError(
            f'{scene} holds {len(given.scenes)} scenes, and a field at most {_MOST_SCENES}; narrow the search.'
        )
    names = list(options.bands or _names(given.scenes[0], model.preprocessing.bands))
    sources = [_bands(s, names, model) for s in given.scenes]
    grid, dtype = _opened(sources[0], given.reader)
    value_range = options.value_range or (like.plan.value_range if like else model.value_range)
    value_range = value_range or _range_of(dtype, scene)
    box, pixel_m = field_grid(grid, model.gsd_m, scene, any_gsd=options.any_gsd)
    of: Of = options.of or ('windows' if model.level == 'image' else 'patches' if model.dense else 'windows')
    patch = model.preprocessing.size_px if of == 'windows' else model.encoder().patch_px
    if of == 'smooth':
        SmoothAttention(model.encoder())  # refuses towers that cannot
    window = model.preprocessing.size_px
    stride = options.stride or _stride(window, patch, of, options.overlap or _OVERLAP[of])
    height, width = box.shape
    lattice = Lattice(height, width, window, patch, stride)
    plan = FieldPlan(
        crs=_crs_name(box),
        transform=tuple(box.affine)[:6],
        height=height,
        width=width,
        pixel_m=pixel_m,
        cell=lattice.cell,
        window=window,
        patch=patch,
        stride=stride,
        of=of,
        dimensions=model.embed_texts(['a']).shape[1],
        bands=tuple(names),
        value_range=value_range,
        scenes=tuple(_described(s, b) for s, b in zip(given.scenes, sources, strict=True)),
        batch=options.batch,
        numbers=options.numbers,
        model_digest=model.digest,
        clip_digest=model.clip_digest,
    )
    if like is not None:
        if len(given.scenes) == 1 and not box.extent.to_crs(like.geobox.crs).intersects(like.geobox.extent):
            raise InputError(f'{scene} does not overlap {like.path}; give a scene of the same land.')
        plan = plan.model_copy(update={name: getattr(like.plan, name) for name in LATTICE})
    return FieldInput(plan, sources, given.reader)


def scene_rows(field: Field, scene: str, model: Model) -> Strips:
    """The pixels of the scene that a field was made of, from the top down.

    Args:
        field: the field.
        scene: its scene, as it was given when the field was made.
        model: the field's model.

    Raises:
        GrafalignError: it is another scene, or cannot be opened.
    """
    plan = field.plan
    options = FieldOptions(bands=plan.bands, value_range=plan.value_range, any_gsd=True, like=str(field.path))
    source = field_input(scene, model, options)
    if [s.item_id for s in source.plan.scenes] != [s.item_id for s in plan.scenes]:
        raise InputError(
            f'{field.path} was made of {plan.scenes[0].item_id}, and {scene} is {source.plan.scenes[0].item_id}; give '
            'the scene that the field was made of.'
        )
    return Strips(geobox_of(plan), source.scenes, plan.value_range, source.reader, 0, plan.height)


def is_scene(name: str) -> bool:
    """Whether what a person gives is a file that a field is made of: a GeoTIFF, a STAC item or a YAML file."""
    return Path(name).suffix.lower() in ('.tif', '.tiff', '.json', '.geojson', '.yaml', '.yml')


def window_encoder(model: Model, plan: FieldPlan) -> WindowEncoder:
    """The model as a field of this plan needs it."""
    if plan.of != 'windows':
        dense = model.encoder()
        grids = SmoothAttention(dense) if plan.of == 'smooth' else dense
        encode: Callable[[Tensor], Tensor] = lambda inputs: grids(inputs).patches  # noqa: E731
    else:
        encode = lambda inputs: torch.nn.functional.normalize(model.images(inputs), dim=-1)[:, None, None]  # noqa: E731
    mean, std = (torch.tensor(v, device=model.device) for v in (model.preprocessing.mean, model.preprocessing.std))
    return WindowEncoder(Fitting(encode, 'windows'), mean, std, plan.dimensions, plan.batch, model.device)


@dataclass(frozen=True)
class _Scenes:
    """Scenes, the one that goes first in front, and what reads their files."""

    scenes: list[Scene]
    reader: RangeReader


def _scenes(scene: str) -> _Scenes:
    """The scenes that a person means."""
    path = Path(scene)
    suffix = path.suffix.lower()
    if '://' not in scene and not path.exists():
        raise InputError(f'There is no {scene}; give a GeoTIFF, a folder of them, a STAC item file, or a YAML file.')
    if suffix in ('.yaml', '.yml'):
        query = load_settings(path, SceneQuery)
    elif suffix in ('.json', '.geojson', '.ndjson', '.parquet'):
        query = SceneQuery(scenes=SceneSource(items=path))
    elif '://' not in scene and path.is_dir():
        query = SceneQuery(scenes=SceneSource(folder=path, date=_day_of(path)))
    else:
        return _Scenes([_one(scene)], RangeReader(_CONNECTIONS))
    source = query.scenes
    signer = Signer(source.sign) if source.sign else None
    reader = RangeReader(_CONNECTIONS, signer, private=not public_assets_only(source))
    return _Scenes(list(load_scenes(source, query.bbox)), reader)


def _one(scene: str) -> Scene:
    """A GeoTIFF as a scene."""
    remote = '://' in scene
    day = datetime.now(timezone.utc) if remote else _day_of(Path(scene))
    when = datetime.combine(day, time(), timezone.utc)
    try:
        return scene_of(item_of(scene if remote else Path(scene), when, whole=True))
    except ItemError as error:
        raise InputError(f'{scene} cannot be used: {error}.') from None


def _day_of(path: Path) -> date:
    """The day of a file, for scenes that do not say when they were taken: a field is the same whatever its date."""
    return datetime.fromtimestamp(path.stat().st_mtime, timezone.utc).date()


def local_sources(field: Field, model: Model) -> list[list[BandSource]]:
    """Bands of those scenes of a field that are one GeoTIFF on this machine, lying over it; the last one first.

    Args:
        field: the field.
        model: its model.

    Raises:
        GrafalignError: a file cannot be used.
    """
    found = []
    for scene in reversed(field.plan.scenes):
        href = scene.hrefs[0]
        if len(scene.hrefs) > 1 or '://' in href or not Path(href).is_file():
            continue
        opened = _one(href)
        if shapely.geometry.shape(opened.item['geometry']).intersects(field.geobox.extent.to_crs('EPSG:4326').geom):
            found.append(_bands(opened, list(field.plan.bands), model))
    return found


def _names(scene: Scene, bands: tuple[str, ...]) -> tuple[str, ...]:
    """The model's bands by the names that a scene has for them.

    Where no band of a file has a name or a colour, the first three are red, green and blue, as in any picture.
    """
    listed = scene.item['assets'].get('image', {}).get('bands') or []
    names = tuple(band.get('name') for band in listed)
    if bands != ('red', 'green', 'blue') or names != tuple(f'b{i + 1}' for i in range(len(names))) or len(names) < 3:
        return bands
    console.log(f'{scene.item_id} does not name its bands: the first three are taken for red, green and blue (--bands)')
    return names[:3]


def _bands(scene: Scene, names: list[str], model: Model) -> list[BandSource]:
    """Where a scene's bands are stored; without the model's pixel size the finest of each is taken."""
    try:
        return band_sources(scene.item, names, model.gsd_m or _FINEST_M)
    except InputError as error:  # what a recipe would set is an option here
        order = ','.join(model.preprocessing.bands)
        remedy = f'give --bands in the order {order}, with'
        raise InputError(str(error).replace('set sensor.bands to', remedy)) from None


def _opened(bands: Sequence[BandSource], reader: RangeReader) -> tuple[Grid, str]:
    """Grid and data type of a scene's first band."""
    try:
        raster = Raster(bands[0].href, reader)
    except SceneReadError as error:
        raise InputError(f'{error}; mend the file, or give another scene.') from None
    raster.close()
    return raster.grid, raster.dtypes[bands[0].index - 1]


def _range_of(dtype: str, scene: str) -> tuple[float, float]:
    if dtype == 'uint8':
        return 0.0, 255.0
    raise InputError(
        f'{scene} holds {dtype} and the model does not say which values it takes; give --value-range LOW HIGH, the '
        'physical values (after scale and offset) that become black and white.'
    )


def _stride(window: int, patch: int, of: Of, overlap: float) -> int:
    """Strides of patches go by whole patches, those of windows by eighths of a window."""
    return stride_of(window, max(1, window // 8) if of == 'windows' else patch, overlap)


def _crs_name(box: GeoBox) -> str:
    return f'EPSG:{box.crs.epsg}' if box.crs.epsg else box.crs.to_wkt()


def _described(scene: Scene, bands: Sequence[BandSource]) -> FieldScene:
    return FieldScene(
        item_id=scene.item_id,
        datetime=scene.when.isoformat(),
        hrefs=tuple(dict.fromkeys(band.href for band in bands)),
    )
