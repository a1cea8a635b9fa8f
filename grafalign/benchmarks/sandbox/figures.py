"""The pictures of the report, as matplotlib figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pyarrow.parquet
import shapely
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from grafalign.benchmarks.sandbox.evaluate import Evaluation
from grafalign.benchmarks.sandbox.sandbox_set import LabelledTiles
from grafalign.estimate import Estimate
from grafalign.labels import VOID
from grafalign.photos import open_photo
from grafalign.store import PairStore

SPLIT_COLOURS = {'train': '#2f6fb0', 'val': '#e0a030', 'test': '#c8453b'}
MODEL_COLOURS = {'frozen_clip': '#9aa3ab', 'supervised': '#5f6b73'}
_TEN = [matplotlib.colormaps['tab10'](i) for i in range(10)]
_GREEN, _RED = '#2e9e5b', '#c8453b'


def to_rgb(
    pixels: npt.NDArray[Any], scale: npt.NDArray[Any], offset: npt.NDArray[Any], store: PairStore
) -> npt.NDArray[Any]:
    """Stored pixels [C, H, W] to a picture [H, W, 3] in [0, 1] by the sensor's own fixed range, slightly brightened."""
    low, high = store.sensor.value_range
    physical = pixels.astype(float) * np.reshape(scale, (-1, 1, 1)) + np.reshape(offset, (-1, 1, 1))
    unit = np.clip((physical - low) / (high - low), 0, 1) ** 0.75
    bands = unit[:3] if len(unit) >= 3 else np.repeat(unit[:1], 3, axis=0)
    return np.moveaxis(bands, 0, -1)


def overview_map(store: PairStore) -> Figure:
    """Scenes, tiles by split, and photos."""
    figure = Figure(figsize=(10, 7.4))
    ax = figure.subplots()
    for outline in _scene_outlines(store):
        for ring in getattr(outline, 'geoms', [outline]):
            ax.plot(*ring.exterior.xy, color='#444', lw=0.9, alpha=0.8)
    for split, colour in SPLIT_COLOURS.items():
        part = store.tiles[store.tiles['split'] == split]
        for shape in part.geometry:
            ax.fill(*shape.exterior.xy, fc=colour, ec=colour, lw=0.4, alpha=0.45)
    points = store.photos.geometry
    ax.plot(points.x, points.y, '.', ms=1.2 if len(points) > 2000 else 4, color='black', alpha=0.35, mec='none')
    ax.set_aspect(1 / np.cos(np.deg2rad(float(points.y.mean()))))
    ax.set(xlabel='longitude', ylabel='latitude')
    counts = store.tiles['split'].value_counts()
    handles = [Patch(color=c, alpha=0.6, label=f'{s}: {counts.get(s, 0):,} tiles') for s, c in SPLIT_COLOURS.items()]
    handles.append(Patch(fill=False, ec='#444', label='scenes'))
    ax.legend(handles=handles, loc='upper left', frameon=True, fontsize=9)
    return figure


def _scene_outlines(store: PairStore) -> list[Any]:
    column = pyarrow.parquet.read_table(store.path / 'scenes.parquet', columns=['geometry'])['geometry']
    return list(dict.fromkeys(shapely.from_wkb(g) for g in column.to_pylist()))


def pair_gallery(store: PairStore, count: int = 6, photos: int = 4, seed: int = 0) -> Figure:
    """Tiles with the places of their photos marked, and the photos."""
    rng = np.random.default_rng(seed)
    pairs = store.pairs
    sizes = pairs.groupby('tile').size()
    rich = sizes[sizes >= min(photos, int(sizes.max()))].index.to_numpy()
    chosen = rng.permutation(rich)[:count]
    columns = 2 if len(chosen) > 1 else 1
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(6.2 * columns, 2.35 * rows))
    grid = figure.subplots(rows, columns * (photos + 1), squeeze=False, width_ratios=([1.9] + [1] * photos) * columns)
    scale, offset = store.radiometry
    marks = _TEN
    for ax in grid.flat:
        ax.axis('off')
    for number, tile in enumerate(chosen):
        row, start = divmod(number, columns)
        axes = grid[row, start * (photos + 1) : (start + 1) * (photos + 1)]
        axes[0].imshow(
            to_rgb(store.read_tile(int(tile)), scale[tile], offset[tile], store),
            interpolation='nearest',
            extent=(0, store.sensor.size_px, store.sensor.size_px, 0),
        )
        here = pairs[pairs['tile'] == tile].sample(frac=1, random_state=seed).head(photos)
        metadata = store.tiles.iloc[tile]
        axes[0].set_title(f'{metadata["datetime"]:%d %b %Y}', fontsize=8)
        for i, (ax, pair) in enumerate(zip(axes[1:], here.itertuples(), strict=False)):
            axes[0].plot(pair.col, pair.row, 'o', ms=7, mfc=marks[i], mec='white', mew=1.2)
            try:
                picture = open_photo(Path(store.photos['uri'].iloc[pair.photo]), smallest_px=256)
            except (ValueError, OSError):
                continue
            side = min(picture.size)
            ax.imshow(picture.resize((224, 224), Image.Resampling.BICUBIC, box=_middle(picture.size, side)))
            for spine in ax.spines.values():
                spine.set(color=marks[i], linewidth=3)
            ax.axis('on')
            ax.set(xticks=[], yticks=[])
            taken = store.photos['taken_at'].iloc[pair.photo]
            ax.set_title('' if taken is None or taken != taken else f'{taken:%d %b %Y}', fontsize=7)
    figure.tight_layout(pad=0.5)
    return figure


def _middle(size: tuple[int, int], side: int) -> tuple[int, int, int, int]:
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return left, top, left + side, top + side


def loss_curves(logs: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Loss by step, and photo <-> tile recall on the val blocks, of every run; without a val split the loss alone."""
    figure = Figure(figsize=(10, 3.6))
    left, right = figure.subplots(1, 2)
    colours = _TEN
    for i, (name, log) in enumerate(logs.items()):
        left.plot([e['step'] for e in log], [e['loss'] for e in log], label=name, color=colours[i])
        known = [e for e in log if 'tile_photo@10' in e]
        if known:
            right.plot(
                [e['step'] for e in known],
                [e['tile_photo@10'] for e in known],
                'o-',
                ms=3,
                color=colours[i],
                label=f'{name}, tile to photo',
            )
            right.plot(
                [e['step'] for e in known],
                [e['photo_tile@10'] for e in known],
                's--',
                ms=3,
                color=colours[i],
                label=f'{name}, photo to tile',
            )
    left.set(xlabel='step', ylabel='loss', title='training loss')
    right.set(xlabel='step', ylabel='recall@10', title='held-out photo and tile recall (no labels)', ylim=(0, None))
    left.legend(fontsize=7)
    if right.lines:
        right.legend(fontsize=6)
    else:
        right.set_visible(False)
    for ax in (left, right):
        ax.spines[['top', 'right']].set_visible(False)
        ax.grid(alpha=0.25)
    figure.tight_layout()
    return figure


def result_bars(tasks: Sequence[tuple[str, str, Mapping[str, Estimate]]]) -> Figure:
    """The three tasks (name, metric, scores by model) as bars with their 95 % intervals."""
    figure = Figure(figsize=(11, 3.4))
    for ax, (task, label, scores) in zip(figure.subplots(1, 3), tasks, strict=True):
        names, values = list(scores), list(scores.values())
        spread = [[v.value - v.low for v in values], [v.high - v.value for v in values]]
        colours = [MODEL_COLOURS.get(n, '#2e9e5b') for n in names]
        ax.barh(names, [v.value for v in values], xerr=spread, color=colours, error_kw={'lw': 1.2, 'capsize': 3})
        for i, v in enumerate(values):
            ax.text(v.high + 0.015, i, f'{v.value:.3f}', va='center', fontsize=8)
        ax.invert_yaxis()
        ax.set(title=f'{task}: {label}', xlim=(0, 1.1))
        ax.tick_params(labelsize=7)
        ax.spines[['top', 'right']].set_visible(False)
    figure.tight_layout()
    return figure


def class_colours(count: int) -> ListedColormap:
    """Distinct colours for classes."""
    pool = [matplotlib.colormaps[name](i) for name in ('tab20', 'tab20b') for i in range(20)]
    return ListedColormap(pool[:count])


def segmentation_figure(evaluation: Evaluation, store: PairStore, models: Sequence[str], count: int = 5) -> Figure:
    """Chips beside their truth and the maps of several models; roads are white."""
    variety = [-len(np.unique(m[m != VOID])) for m in evaluation.chips.labels]
    chosen = np.argsort(variety, kind='stable')[:count]
    figure = Figure(figsize=(2.1 * (2 + len(models)), 2.1 * len(chosen) + 1.0))
    axes = figure.subplots(len(chosen), 2 + len(models), squeeze=False)
    colours = class_colours(len(evaluation.classes))
    for row, chip in enumerate(chosen):
        truth = evaluation.chips.labels[chip]
        panels = [('satellite', _picture(evaluation.chips, chip, store)), ('truth', _paint(truth, truth, colours))]
        panels += [(m, _paint(evaluation.maps[m][chip], truth, colours)) for m in models]
        for ax, (name, picture) in zip(axes[row], panels, strict=True):
            ax.imshow(picture, interpolation='nearest')
            ax.axis('off')
            if row == 0:
                ax.set_title(name, fontsize=8)
    handles = [Patch(color=colours(i), label=c) for i, c in enumerate(evaluation.classes)]
    figure.legend(handles=handles, loc='lower center', ncol=6, fontsize=7, frameon=False)
    figure.tight_layout(rect=(0, 0.85 / (2.1 * len(chosen) + 1.0), 1, 1), pad=0.3)
    return figure


def _paint(labels: npt.NDArray[Any], truth: npt.NDArray[Any], colours: ListedColormap) -> npt.NDArray[Any]:
    picture = colours(np.where(labels == VOID, 0, labels).astype(int))[..., :3]
    picture[truth == VOID] = 1.0
    return np.asarray(picture)


def _picture(tiles: LabelledTiles, index: int, store: PairStore) -> npt.NDArray[Any]:
    return to_rgb(tiles.pixels[index], tiles.scale[index], tiles.offset[index], store)


def retrieval_figure(
    evaluation: Evaluation, store: PairStore, model: str, queries: Sequence[str], count: int = 8
) -> Figure:
    """The best tiles for text queries; a green frame means that the truth agrees."""
    figure = Figure(figsize=(1.25 * count + 1.6, 1.38 * len(queries)))
    axes = figure.subplots(len(queries), count, squeeze=False)
    for row, query in enumerate(queries):
        number = evaluation.classes.index(query)
        for rank, ax in enumerate(axes[row]):
            tile = int(evaluation.top[model][number, rank])
            ax.imshow(_picture(evaluation.test, tile, store), interpolation='nearest')
            ax.set(xticks=[], yticks=[])
            right = evaluation.test.labels[tile] == number
            side = store.sensor.size_px
            ax.add_patch(Rectangle((-0.5, -0.5), side, side, fill=False, ec=_GREEN if right else _RED, lw=4))
            if rank == 0:
                ax.set_ylabel(query.replace(' ', '\n'), rotation=0, ha='right', va='center', fontsize=8)
    figure.tight_layout(pad=0.4)
    return figure
