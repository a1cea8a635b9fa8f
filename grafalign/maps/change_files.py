"""All files of a change: of each word a signed COG and polygons of gain and loss; numbers and a page of all."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from grafalign import __version__, console
from grafalign.calibration import Question
from grafalign.errors import InputError
from grafalign.fields import Field
from grafalign.files import write_atomically
from grafalign.maps.change import GAIN, LOSS, UNKNOWN, Thresholds, change_rows, check_pair, thresholds
from grafalign.maps.classes import ClassesFile, MapClasses, embed_classes, question_of
from grafalign.maps.cog import Copies, writing_cog, writing_rows
from grafalign.maps.make import ODDS_SCALE, SCORE_SCALE
from grafalign.maps.polygons import write_polygons
from grafalign.maps.tuned import TunedWords
from grafalign.models import Model
from grafalign.pages import exact_picture_url, picture_url, render

MOST_WORDS = 50
_NODATA = -32768
_LONGEST_PX = 900
_KINDS = {GAIN: 'gain', LOSS: 'loss'}
_COLOURS = {GAIN: (33, 102, 172), LOSS: (178, 24, 43)}


@dataclass(frozen=True)
class WordChange:
    """What became of one word."""

    word: str
    raster: str
    """File name of the signed COG."""
    polygons: str
    """File name of the polygons."""
    gain_km2: float
    loss_km2: float
    pieces: int
    """Polygons."""
    shift: float
    """What was taken off all differences."""
    least: float
    """What a difference had to reach."""


def write_change(
    before: Field,
    after: Field,
    content: ClassesFile | TunedWords,
    model: Model,
    out: Path,
    unchanged: Sequence[tuple[Field, Field]] = (),
    *,
    false_alarms: float = 0.001,
    min_area_m2: float = 0.0,
) -> list[WordChange]:
    """Write where words have come and gone.

    Args:
        before: the first date.
        after: the second, on the same grid (`grafalign field --like`).
        content: the words.
        model: the fields' model.
        out: folder to write.
        unchanged: pairs of fields between which nothing changed.
        false_alarms: share of unchanged land that may be called changed, for each word.
        min_area_m2: smallest polygon.

    Raises:
        GrafalignError: the fields do not go together, there are too many words, or the disk is full.
    """
    for pair in ((before, after), *unchanged):
        check_pair(*pair)
    count = len(content.about.classes if isinstance(content, TunedWords) else content.classes)
    if count > MOST_WORDS:
        raise InputError(f'{count:,} words are too many for one run; give at most {MOST_WORDS}.')
    if isinstance(content, TunedWords):
        content.check(before.plan, before.path)
        classes = content.classes
    else:
        classes = embed_classes(content, model.embed_texts)
    question = question_of(classes)
    limits = thresholds(before, after, question, unchanged, false_alarms)
    if not unchanged:
        console.log(
            'no --unchanged pair was given: the wanted share of false alarms holds only if unchanged land differs as a '
            'normal distribution does'
        )
    pictures, counts = _write_rasters(before, after, question, classes, limits, out)
    names = _file_names(classes.names)
    changes = []
    for number, (word, name) in enumerate(zip(classes.names, names, strict=True)):
        kinds = out / f'.{name}.kinds.tif'
        pieces = write_polygons(kinds, out / f'{name}.parquet', _KINDS, min_area_m2=min_area_m2, leave_out=(0,))
        kinds.unlink()
        gain, loss = (float(counts[number, kind] * before.plan.pixel_m**2 / 1e6) for kind in (GAIN, LOSS))
        shift, least = float(limits.shift[number]), float(limits.least[number])
        changes.append(WordChange(word, f'{name}.tif', f'{name}.parquet', gain, loss, pieces, shift, least))
    _write_summary(before, after, limits, false_alarms, changes, pictures, out)
    return changes


def _write_rasters(
    before: Field, after: Field, question: Question, classes: MapClasses, limits: Thresholds, out: Path
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Write signed COGs, and the kinds of pixels for the polygons.

    Returns:
        What the cells of each word are, [K, rows, columns], and pixels of each kind, [K, 3].
    """
    names, cell = _file_names(classes.names), before.plan.cell
    scale = SCORE_SCALE if classes.offsets is None else ODDS_SCALE
    pictures = np.zeros((len(names), *before.shape), np.uint8)
    counts = np.zeros((len(names), 3), np.int64)
    row = 0
    with Copies() as copies, contextlib.ExitStack() as files:
        grid = before.geobox
        signed = [
            files.enter_context(
                writing_cog(copies, out / f'{name}.tif', grid, 'int16', _NODATA, 'AVERAGE', names=[word], scale=scale)
            )
            for name, word in zip(names, classes.names, strict=True)
        ]
        kinds = [
            files.enter_context(writing_rows(out / f'.{name}.kinds.tif', grid, 'uint8', UNKNOWN)) for name in names
        ]
        bar = files.enter_context(console.progress('comparing rows of pixels', before.plan.height))
        for part in change_rows(before, after, question, limits):
            bar.advance(part.kind.shape[1])
            numbers = np.where(np.isnan(part.difference), _NODATA, np.rint(part.difference / scale).clip(-32767, 32767))
            high = -(-part.kind.shape[1] // cell)
            for number in range(len(names)):
                signed[number].write(numbers[number].astype(np.int16))
                kinds[number].write(part.kind[number])
                counts[number] += np.bincount(part.kind[number].ravel(), minlength=256)[:3]
                for kind in _KINDS:
                    pictures[number, row : row + high][_any_in_cells(part.kind[number] == kind, cell)] = kind
            row += high
    return pictures, counts


def _any_in_cells(pixels: npt.NDArray[np.bool_], cell: int) -> npt.NDArray[np.bool_]:
    """Whether any pixel of a cell is set."""
    down = np.logical_or.reduceat(pixels, range(0, pixels.shape[0], cell), axis=0)
    return np.asarray(np.logical_or.reduceat(down, range(0, pixels.shape[1], cell), axis=1))


def _file_names(words: Sequence[str]) -> list[str]:
    """Names of files that say which word they are of: letters and digits of any script, each name once.

    Example:
        >>> _file_names(['solar farm', 'solar-farm', '../x'])
        ['solar_farm', 'solar_farm_2', 'x']
    """
    names: list[str] = []
    for number, word in enumerate(words, start=1):
        plain = re.sub(r'\W+', '_', word).strip('_')[:40] or 'word'
        names.append(plain if plain not in names else f'{plain}_{number}')
    return names


def _write_summary(
    before: Field,
    after: Field,
    limits: Thresholds,
    false_alarms: float,
    changes: Sequence[WordChange],
    pictures: npt.NDArray[np.uint8],
    out: Path,
) -> None:
    """`change.json` and `change.html`."""
    days = [field.plan.scenes[0].datetime[:10] for field in (before, after)]
    how = f'{limits.pairs} pairs without change' if limits.pairs else 'a normal distribution'
    summary = {
        'before': str(before.path), 'after': str(after.path), 'days': days, 'model': before.marker.model,
        'false_alarms': false_alarms, 'thresholds_from': how, 'grafalign': __version__,
        'words': [asdict(change) for change in changes],
    }  # fmt: skip
    write_atomically(out / 'change.json', (json.dumps(summary, indent=2) + '\n').encode())
    views = [Image.fromarray(field.preview()) for field in (before, after)]
    shown = [
        {**asdict(change), 'picture': exact_picture_url(_picture(views[1], kinds))}
        for change, kinds in zip(changes, pictures, strict=True)
    ]
    page = render(
        'grafalign.maps',
        'change.html',
        title=f'Change from {days[0]} to {days[1]}',
        before=picture_url(views[0], _LONGEST_PX),
        after=picture_url(views[1], _LONGEST_PX),
        days=days,
        changes=shown,
        gain='#{:02x}{:02x}{:02x}'.format(*_COLOURS[GAIN]),
        loss='#{:02x}{:02x}{:02x}'.format(*_COLOURS[LOSS]),
        made=(
            f'grafalign {__version__}, model {before.marker.model}, fields {before.path} and {after.path}; thresholds '
            f'by {how}, so that {100 * false_alarms:g} % of unchanged land would be called changed for each word'
        ),
    )
    write_atomically(out / 'change.html', page.encode())


def _picture(view: Image.Image, kinds: npt.NDArray[np.uint8]) -> Image.Image:
    """The second date in grey, with what came and went in colour; a changed cell stays to be seen when it is small."""
    factor = max(1, -(-max(kinds.shape) // _LONGEST_PX))
    grey = np.asarray(view.convert('L').reduce(factor), dtype=np.float32)[..., None] * 0.5 + 110
    image = np.repeat(grey, 3, axis=2).astype(np.uint8)
    for kind, colour in _COLOURS.items():
        image[_any_in_cells(kinds == kind, factor)] = colour
    return Image.fromarray(image)
