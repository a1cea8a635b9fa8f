"""Questions with RSVQA's templates about sandbox worlds: by the truth, by three models, and without looking.

    python -m experiments.questions.sandbox --data runs/map_worlds --seeds 7 0 1 2   # after experiments.maps.worlds
    python -m experiments.questions.sandbox --table                                  # results/table.md from the records

Of each world pictures of 128 x 128 px of 10 m on the ground are cut out of the blocks of land that no training saw, in
EPSG:3857, as RSVQA's are. `generator.py` asks 40 questions about each and counts the answers in the pixels of the true
class map. The same questions are parsed and run as programs

- on the true class map, which must be right without exception: else grafalign's conventions are not RSVQA's;
- on the class maps of the patch-level run, of the frozen CLIP that it started from, and of a supervised bound (the same
  encoder, length and tiles, but true labels of pixels): the 24 classes, the highest score.

Beside them stand the commonest answer of each type in world 7 (blind), and the run's programs on other pictures of the
same world (shuffled). The smallest object of predicted maps was chosen in world 7, out of 0, 1,000, 2,500, 5,000 and
10,000 m². Counts and areas count by RSVQA's buckets. Intervals are 95 %, over pictures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from affine import Affine
from pyproj import Transformer
from rasterio.warp import Resampling as Warping
from rasterio.warp import calculate_default_transform, reproject

from experiments.maps.worlds import clear_item, truth_of
from experiments.questions.generator import Picture
from experiments.world_records import measure_worlds
from grafalign.benchmarks.sandbox.bound import store_tiles
from grafalign.benchmarks.sandbox.sandbox_set import SandboxTruth
from grafalign.benchmarks.sandbox.supervised import train_supervised
from grafalign.benchmarks.statistics import Mean, Resampling, estimates
from grafalign.calibration import Question
from grafalign.config import load_settings
from grafalign.console import log, progress
from grafalign.encoders import SatelliteEncoder, load_clip
from grafalign.fields import Field, FieldOptions, field_input, make_field, open_field, window_encoder
from grafalign.labels import VOID
from grafalign.maps import embed_classes, load_classes
from grafalign.maps.classes import question_of
from grafalign.maps.make import map_rows
from grafalign.maps.write import uncalibrated
from grafalign.models import Model, load_model
from grafalign.questions.conventions import RSVQA
from grafalign.questions.evaluate import answer
from grafalign.questions.grammar import parse_question, singular
from grafalign.questions.objects import MERCATOR, SceneObjects, objects_of
from grafalign.questions.protocol import blind_answers, counted_as, other_pictures
from grafalign.questions.rsvqa import QuestionAnswer
from grafalign.sandbox.classes import CLASS_NAMES
from grafalign.store import PairStore
from grafalign.training import TrainSettings
from grafalign.zeroshot import class_vectors

RESULTS = Path(__file__).parent / 'results'
RUN = 'grafalign_patch'
SIDE, STEP, GROUND_M = 128, 64, 10.0
QUESTIONS = 40
MIN_AREAS = (0.0, 1000.0, 2500.0, 5000.0, 10_000.0)
MIN_AREA = 2500.0
"""Of objects of predicted maps; chosen in world 7."""
Labels = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Mercator:
    """A grid in EPSG:3857 over a field, and what brings class maps onto it."""

    source: tuple[Any, Affine]
    transform: Affine
    shape: tuple[int, int]

    def moved(self, labels: npt.NDArray[Any]) -> Labels:
        """A class map on this grid; -1 beyond the field."""
        out = np.full(self.shape, -1, np.int16)
        reproject(
            labels.astype(np.int16),
            out,
            src_crs=self.source[0],
            src_transform=self.source[1],
            src_nodata=-1,
            dst_crs='EPSG:3857',
            dst_transform=self.transform,
            dst_nodata=-1,
            resampling=Warping.nearest,
        )
        return out.astype(np.int64)


def mercator_of(field: Field) -> Mercator:
    """Pixels of 10 m on the ground."""
    grid = field.geobox
    crs = str(grid.crs)
    middle = grid.affine * (grid.shape[1] / 2, grid.shape[0] / 2)
    lat = Transformer.from_crs(crs, 'EPSG:4326', always_xy=True).transform(*middle)[1]
    pixel = GROUND_M / np.cos(np.radians(lat))
    bounds = grid.boundingbox
    transform, width, height = calculate_default_transform(
        crs, 'EPSG:3857', grid.shape[1], grid.shape[0], *bounds.bbox, resolution=pixel
    )
    return Mercator((crs, grid.affine), transform, (height, width))


def predicted(field: Field, question: Question) -> Labels:
    """The class map of a field."""
    calibration = uncalibrated(0.01, question.classes)
    with torch.inference_mode():
        return np.concatenate([rows.labels for rows in map_rows(field, question, calibration)]).astype(np.int64)


def objects_in(labels: Labels, transform: Affine, min_area: float) -> SceneObjects:
    """Objects of all classes in a picture."""
    codes = {form: i for i, name in enumerate(CLASS_NAMES, start=1) for form in (name, singular(name))}
    strip = np.where((labels >= 0) & (labels < len(CLASS_NAMES)), labels + 1, 0).astype(np.uint16)
    return objects_of([(strip, None)], codes, strip.shape, transform, MERCATOR, RSVQA, min_area_m2=min_area)


def right(asked: list[QuestionAnswer], answers: list[str]) -> npt.NDArray[np.bool_]:
    """Which answers count as right: counts in LR's buckets, areas in HR's."""

    def counted(text: str, kind: str) -> str:
        return counted_as(text, kind, 'hr' if kind == 'area' else 'lr')

    return np.array([counted(a, q.type) == counted(q.answer, q.type) for q, a in zip(asked, answers, strict=True)])


def models_of(world: Path) -> dict[str, tuple[Field, Question]]:
    """Fields of one scene with what they are asked: the run, frozen CLIP, and the supervised bound."""
    folder = world / 'fields'
    run = open_field(folder / f'{RUN}_patches')
    model = load_model(str(world / RUN))
    words = question_of(embed_classes(load_classes([','.join(CLASS_NAMES)]), model.embed_texts))
    settings = load_settings(world / RUN / 'config.yaml', TrainSettings)
    clip = load_clip(settings.clip)
    store = PairStore(world / 'pairs')
    sensor = store.sensor

    def field_by(name: str, make: Callable[[], SatelliteEncoder]) -> Field:
        """A field of the same scene and grid by another encoder of the same kind."""
        out = folder / f'questions_{name}'
        if not (out / 'field.json').is_file():
            encoder = make()
            other: Model = dataclasses.replace(model, dense=lambda: encoder, digest=f'{model.digest}-{name}')
            scene = str(clear_item(world / 'sandbox', 'west'))
            source = field_input(scene, other, FieldOptions(of='patches'))
            make_field(out, source, window_encoder(other, source.plan), str(world / RUN))
        return open_field(out)

    text = class_vectors(clip, list(CLASS_NAMES))
    vectors_file = folder / 'questions_supervised.npy'

    def supervised() -> SatelliteEncoder:
        steps = load_model(str(world / RUN)).metadata['steps']
        tiles = store_tiles(store, SandboxTruth(world / 'sandbox', store))
        torch.manual_seed(0)
        encoder, vectors = train_supervised(
            clip, sensor, tiles, text, steps, settings.peak_lr, settings.model_copy(update={'seed': 0})
        )
        np.save(vectors_file, vectors)
        return encoder

    frozen = field_by('frozen_clip', lambda: SatelliteEncoder(clip, sensor.bands, sensor.size_px).eval())
    bound = field_by('supervised', supervised)
    learned = Question(np.load(vectors_file), np.arange(len(CLASS_NAMES)))
    return {'grafalign_patch': (run, words), 'frozen_clip': (frozen, words), 'supervised': (bound, learned)}


def measure(world: Path, seed: int) -> dict[str, Any]:
    """All answers of one world."""
    models = models_of(world)
    field = models['grafalign_patch'][0]
    truth = truth_of(field, SandboxTruth(world / 'sandbox', PairStore(world / 'pairs')))
    grid = mercator_of(field)
    pixel = grid.transform.a
    maps = {name: grid.moved(predicted(*asked)) for name, asked in models.items()}
    maps['truth'] = grid.moved(np.where(truth.labels == VOID, len(CLASS_NAMES), truth.labels))
    held_out = grid.moved(truth.held_out.astype(np.int64)) == 1
    rng = np.random.default_rng(seed)
    corners = [
        (top, left)
        for top in range(0, grid.shape[0] - SIDE, STEP)
        for left in range(0, grid.shape[1] - SIDE, STEP)
        if held_out[top : top + SIDE, left : left + SIDE].mean() > 0.9
    ]
    windows = {f'{top}-{left}': (slice(top, top + SIDE), slice(left, left + SIDE)) for top, left in corners}
    asked: list[QuestionAnswer] = []
    with progress('asking', len(windows)) as bar:
        for name, window in windows.items():
            picture = Picture(maps['truth'][window], CLASS_NAMES, pixel)
            asked += picture.questions(name, len(asked), QUESTIONS, rng)
            bar.advance(1)
    images = list(windows)
    others = other_pictures(images, seed)

    def answers(kind: str, min_area: float, other: bool = False) -> list[str]:
        seen = {
            name: objects_in(maps[kind][w], grid.transform * Affine.translation(w[1].start, w[0].start), min_area)
            for name, w in windows.items()
        }
        return [
            answer(parse_question(q.question), seen[others[q.image] if other else q.image], RSVQA).text for q in asked
        ]

    exact = answers('truth', 0.0)
    wrong = [(q.question, q.answer, a) for q, a in zip(asked, exact, strict=True) if q.answer != a]
    rows = {'programs on the truth': right(asked, exact)}
    rows |= {name: right(asked, answers(name, MIN_AREA)) for name in models}
    rows['shuffled'] = right(asked, answers('grafalign_patch', MIN_AREA, other=True))
    common = _common(world, seed, asked)
    rows['blind'] = right(asked, [common[q.type] for q in asked])
    out: dict[str, Any] = {
        'pictures': len(images),
        'questions': {name: sum(q.type == name for q in asked) for name in sorted({q.type for q in asked})},
        'wrong_on_truth': wrong[:20],
        'min_area': MIN_AREA,
        'blind': common,
        'rows': {name: _scores(asked, hits, images) for name, hits in rows.items()},
    }
    if seed == 7:
        out['by_min_area'] = {f'{a:g}': float(right(asked, answers('grafalign_patch', a)).mean()) for a in MIN_AREAS}
    log(f'{world.name}: {len(asked):,} questions, {len(wrong)} wrong on the truth')
    return out


def _common(world: Path, seed: int, asked: list[QuestionAnswer]) -> dict[str, str]:
    """The commonest answers of world 7, which is measured first."""
    import json

    kept = RESULTS / 'commonest.json'
    if seed == 7:
        areas = [q for q in asked if q.type == 'area']
        common = blind_answers([q for q in asked if q.type != 'area'], 'lr') | blind_answers(areas, 'hr')
        kept.write_text(json.dumps(common) + '\n')
    found: dict[str, str] = json.loads(kept.read_text())
    return found


def _scores(asked: list[QuestionAnswer], hits: npt.NDArray[np.bool_], images: list[str]) -> dict[str, Any]:
    """Accuracy by type and of all, with intervals over pictures."""
    number = np.array([images.index(q.image) for q in asked])
    types = np.array([q.type for q in asked])
    how = Resampling(np.arange(len(images)), 'pictures')
    statistics = {}
    for name in (*sorted(set(types.tolist())), 'OA'):
        used = np.ones(len(asked), bool) if name == 'OA' else types == name
        values, counts = (np.bincount(number[used], w, len(images)) for w in (hits[used].astype(float), None))
        statistics[name] = Mean(values.astype(float), counts.astype(float))
    scores = {name: value.model_dump() for name, value in estimates(statistics, how).items()}
    return {**scores, 'AA': float(np.mean([scores[name]['value'] for name in sorted(set(types.tolist()))]))}


def table(records: list[dict[str, Any]]) -> str:
    """The page of the records."""
    lines = [
        '# Questions about sandbox worlds',
        '',
        'Made by `python -m experiments.questions.sandbox --table` from the records beside it; the head of the script',
        'says how. Settings were chosen in world 7, which is not shown.',
        '',
        '| world | answers | presence | count | comp | area | AA | OA |',
        '|---|---|---|---|---|---|---:|---|',
    ]
    for record in records:
        if record['seed'] == 7:
            continue
        for name, scores in record['rows'].items():
            cells = [
                f'{scores[t]["value"]:.3f}' for t in ('presence', 'count', 'comp', 'area')
            ]  # fmt: skip
            whole = scores['OA']
            lines.append(
                f'| {record["seed"]} | {name} | {" | ".join(cells)} | {scores["AA"]:.3f} | '
                f'{whole["value"]:.3f} ({whole["low"]:.3f} to {whole["high"]:.3f}) |'
            )
    lines.append('')
    for record in records:
        if record['seed'] != 7:
            count = sum(record['questions'].values())
            lines.append(f'World {record["seed"]}: {count:,} questions about {record["pictures"]} pictures.')
    return '\n'.join(lines) + '\n'


def main() -> None:
    """Command line."""
    measure_worlds('experiments.questions.sandbox', __doc__, RESULTS, measure, table, ('scipy', 'rasterio'))


if __name__ == '__main__':
    main()
