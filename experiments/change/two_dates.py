"""Change by words between two dates of sandbox worlds: what is found, and what is a false alarm.

    python -m experiments.change.two_dates --data runs/map_worlds --seeds 0 1 2   # after experiments.maps.worlds
    python -m experiments.change.two_dates --table                                # results/table.md from the records

The first date is the field of patches that `experiments.maps.worlds` made (2021-07-19). Thresholds are read off pairs
without change: a week later, or for autumn another autumn. Then the words are asked of the same land a year later, of
the same land in autumn, and of land where forests were cleared and things were built (`second_date.py`). F1 is over
pixels: `built` counts gains of the five words for what was built, `cleared` losses of the two forests. Intervals are
95 %, over blocks of land of 2 km. Settings were chosen in world 7.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from scipy.ndimage import label

from experiments.change.second_date import BUILT, FARMS, FORESTS, LATER, SAME, SEASON, second_dates
from experiments.maps.worlds import Truth, clear_item, truth_of
from experiments.world_records import measure_worlds
from grafalign.benchmarks.sandbox.sandbox_set import SandboxTruth
from grafalign.benchmarks.statistics import Resampling, Statistic, estimates
from grafalign.fields import Field, FieldOptions, field_input, make_field, open_field, window_encoder
from grafalign.labels import VOID
from grafalign.maps import embed_classes, load_classes
from grafalign.maps.change import GAIN, LOSS, change_rows, thresholds
from grafalign.maps.classes import question_of
from grafalign.models import load_model
from grafalign.sandbox.classes import CLASS_NAMES
from grafalign.store import PairStore

RESULTS = Path(__file__).parent / 'results'
WORDS = (*BUILT, *FORESTS, *FARMS, 'water', 'old town', 'bare rock')
FALSE_ALARMS = 0.001
RUN = 'grafalign_patch'


@dataclass(frozen=True)
class F1(Statistic):
    """Twice the pixels found over those called and those true together."""

    kind: ClassVar[str] = 'f1'
    counts: npt.NDArray[np.int64]
    """Found, called and true pixels of each block, [N, 3]."""

    def __call__(self, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """See `Statistic`."""
        found, called, true = (weights @ self.counts).T
        return np.asarray(2 * found / np.maximum(called + true, 1))


def measure(world: Path, seed: int) -> dict[str, Any]:
    """Everything about one world."""
    truth_source = SandboxTruth(world / 'sandbox', PairStore(world / 'pairs'))
    first = open_field(world / 'fields' / f'{RUN}_patches')
    truth = truth_of(first, truth_source)
    settings = json.loads((world / 'sandbox' / 'sandbox.json').read_text())['settings']
    dates = world / 'dates'
    classes = second_dates(dates, seed, (settings['rows'], settings['cols']))
    height, width = first.geobox.shape
    after = classes[:height, :width].astype(np.int64)

    def field(kind: str, name: str, item: Path) -> Field:
        model = load_model(str(world / RUN))
        source = field_input(str(item), model, FieldOptions(like=str(first.path)))
        out = dates / 'fields' / f'{kind}_{name}'
        make_field(out, source, window_encoder(model, source.plan), str(world / RUN))
        return open_field(out)

    def item(kind: str, name: str) -> Path:
        return next((dates / kind / 'sandbox-ms').glob(f'{name}_west/*.json'))

    week, year, autumn = (field('same', day.name, item('same', day.name)) for day in (SAME, LATER, SEASON))
    changed = field('changed', LATER.name, item('changed', LATER.name))
    former = next((world / 'sandbox' / 'catalog' / 'sandbox-ms').glob('*_20211008_west/*.json'))
    assert clear_item(world / 'sandbox', 'west').stem.startswith('ms_20210719')
    last_autumn = field('same', 'last_autumn', former)
    model = load_model(str(world / RUN))
    question = question_of(embed_classes(load_classes([','.join(WORDS)]), model.embed_texts))

    def kinds(second: Field, pair: Field) -> npt.NDArray[np.uint8]:
        limits = thresholds(first, second, question, [(first, pair)], FALSE_ALARMS)
        return np.concatenate([part.kind for part in change_rows(first, second, question, limits)], axis=1)

    out: dict[str, Any] = {'false_alarms_wanted': FALSE_ALARMS, 'words': WORDS}
    out |= {'changed_km2': float((after != truth.labels).sum() * first.plan.pixel_m**2 / 1e6)}
    cases = {
        'a year later, thresholds of a week': (year, week),
        'autumn, thresholds of a week': (autumn, week),
        'autumn, thresholds of another autumn': (autumn, last_autumn),
    }
    out['false_alarms'] = {
        name: {
            'share': float(np.isin(k, (GAIN, LOSS)).mean(axis=(1, 2)).mean()),
            'any': float(_any(k).mean()),
            'pieces_a_km2': _pieces(k) * 1e6 / (height * width * first.plan.pixel_m**2),
        }
        for name, k in ((name, kinds(*case)) for name, case in cases.items())
    }
    found = kinds(changed, week)
    out['f1'] = {
        'built': _f1(found, truth, after, BUILT, GAIN),
        'cleared': _f1(found, truth, after, FORESTS, LOSS),
        'any change': _f1_any(found, truth, after),
    }
    out['words'] = {
        **{f'gain of {name}': _f1(found, truth, after, (name,), GAIN) for name in BUILT},
        **{f'loss of {name}': _f1(found, truth, after, (name,), LOSS) for name in FORESTS},
    }
    return out


def _pieces(kinds: npt.NDArray[np.uint8]) -> int:
    """Regions of gain or loss of all words together: what would be polygons."""
    return sum(int(label(plane == kind)[1]) for plane in kinds for kind in (GAIN, LOSS))


def _any(kinds: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    return np.asarray(np.isin(kinds, (GAIN, LOSS)).any(axis=0))


def _f1(
    kinds: npt.NDArray[np.uint8], truth: Truth, after: npt.NDArray[np.int64], names: Sequence[str], kind: int
) -> dict[str, Any]:
    """F1 of gains or losses of some words, their pixels counted together."""
    pairs = []
    for name in names:
        number = CLASS_NAMES.index(name)
        was, is_now = truth.labels == number, after == number
        true = (is_now & ~was) if kind == GAIN else (was & ~is_now)
        pairs.append((kinds[WORDS.index(name)] == kind, true & (after != VOID)))
    return _estimate(truth, pairs)


def _f1_any(kinds: npt.NDArray[np.uint8], truth: Truth, after: npt.NDArray[np.int64]) -> dict[str, Any]:
    """F1 of pixels that changed, whatever they were and became."""
    return _estimate(truth, [(_any(kinds), after != truth.labels)])


def _estimate(truth: Truth, pairs: Sequence[tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]]) -> dict[str, Any]:
    blocks = int(truth.block.max()) + 1
    counts = np.zeros((blocks, 3), np.int64)
    for called, true in pairs:
        for column, mask in enumerate((called & true, called, true)):
            counts[:, column] += np.bincount(truth.block[mask], minlength=blocks)
    how = Resampling(np.arange(blocks), 'blocks of land')
    found, called, true = counts.sum(0)
    estimate = estimates({'f1': F1(counts)}, how)['f1'].model_dump()
    return estimate | {'precision': float(found / max(called, 1)), 'recall': float(found / max(true, 1))}


def table(records: list[dict[str, Any]]) -> str:
    """The page of the records."""
    lines = [
        '# Change by words in sandbox worlds',
        '',
        'Made by `python -m experiments.change.two_dates --table` from the records beside it; the head of the script',
        f'says how. Wanted: {FALSE_ALARMS:.1%} of unchanged land for each of {len(WORDS)} words.',
        '',
        '| world | land without change | mean share a word | share, any word | polygons a km², all words |',
        '|---|---|---:|---:|---:|',
    ]
    for record in records:
        for name, value in record['false_alarms'].items():
            pieces = value['pieces_a_km2']
            lines.append(f'| {record["seed"]} | {name} | {value["share"]:.4%} | {value["any"]:.3%} | {pieces:.2f} |')
    lines += ['', '| world | changed, km² | what | F1 | precision | recall |', '|---|---:|---|---|---:|---:|']
    for record in records:
        for name, value in {**record['f1'], **record['words']}.items():
            lines.append(
                f'| {record["seed"]} | {record["changed_km2"]:.2f} | {name} | {value["value"]:.3f} '
                f'({value["low"]:.3f} to {value["high"]:.3f}) | {value["precision"]:.3f} | {value["recall"]:.3f} |'
            )
    return '\n'.join(lines) + '\n'


def main() -> None:
    """Command line."""
    measure_worlds('experiments.change.two_dates', __doc__, RESULTS, measure, table, ('rasterio',))


if __name__ == '__main__':
    main()
