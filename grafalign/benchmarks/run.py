"""Models times sets times tasks: what is done is not done again, and an image is embedded once."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from grafalign import console
from grafalign.benchmarks.embedding_cache import embed_set
from grafalign.benchmarks.embeddings_file import Embedded, load_embeddings
from grafalign.benchmarks.results import (
    SCHEMA_VERSION,
    Arrays,
    ModelMetadata,
    Protocol,
    Result,
    SetMetadata,
    Task,
    file_stem,
    read_result,
    result_key,
    versions,
    write_result,
)
from grafalign.benchmarks.statistics import estimates, resampling
from grafalign.benchmarks.suite import Suite
from grafalign.benchmarks.tasks.class_retrieval import retrieve_classes
from grafalign.benchmarks.tasks.classification import classify
from grafalign.benchmarks.tasks.image_image import retrieve_images
from grafalign.benchmarks.tasks.image_text import evaluate_captions, retrieve_captions
from grafalign.benchmarks.tasks.outcome import Outcome
from grafalign.benchmarks.tasks.photo_tile import open_pairs, photos_state, retrieve_photos
from grafalign.benchmarks.tasks.segmentation import segment_set
from grafalign.datasets import ImageSet, open_set
from grafalign.datasets.open import OWN, split_spec
from grafalign.errors import GrafalignError, InputError, MachineError
from grafalign.models import Model, load_model
from grafalign.models.load import is_embeddings, short_name, split_name
from grafalign.models.pixels import PIXELS_VERSION
from grafalign.processes import Team, this_team
from grafalign.zeroshot.prompts import load_templates, prompt_vectors

_PROMPTED: tuple[Task, ...] = ('classification', 'class_retrieval', 'segmentation')


@dataclass
class Done:
    """What an evaluation did."""

    paths: list[Path] = field(default_factory=list)
    """All result files of this question, new and old."""
    computed: int = 0
    skipped: int = 0
    sets: dict[str, ImageSet] = field(default_factory=dict)
    """Sets by digest, for pictures."""
    problems: list[str] = field(default_factory=list)
    """Why questions could not be answered; the others were."""


@dataclass(frozen=True)
class _Ask:
    """One model before one set."""

    model: ModelMetadata
    data: ImageSet
    pixels: dict[str, Any]
    answers: dict[Task, Callable[[], Outcome]]
    templates: Sequence[str] = ()
    extra: dict[str, str] = field(default_factory=dict)
    """What else decides the answer of a task, by task."""


def evaluate(
    models: Sequence[str],
    suite: Suite,
    out: Path,
    *,
    clip: str | None = None,
    device: str | None = None,
    cache: Path | None = None,
    workers: int | None = None,
    command: str = '',
) -> Done:
    """Evaluate models on the sets of a suite.

    Args:
        models: see models/load.py; files of embeddings bring their own set.
        suite: sets and rules; files of embeddings need no sets.
        out: folder of the results.
        clip: the CLIP of GRAFT checkpoints, or of runs whose CLIP has moved.
        device: a GPU where there is one by default.
        cache: folder of kept embeddings; `OUT/cache` by default.
        workers: threads that decode.
        command: for the record.

    Raises:
        GrafalignError: a model or a set cannot be used.
    """
    if not models:
        raise InputError('There is no model to evaluate; give at least one.')
    files = [m for m in models if is_embeddings(m)]
    others = [m for m in models if not is_embeddings(m)]
    if others and not suite.sets:
        raise InputError(f'{others[0]} needs something to be tested on; give --suite or --data NAME:PATH.')
    _distinct(models)
    titles = [(title(s), split_spec(s)[2]) for s in suite.sets]
    twice = next((t for t in titles if titles.count(t) > 1), None)
    if twice is not None:
        raise InputError(f'Two sets are called {twice[0]}; rename the folder of one, or evaluate into two folders.')
    known = {title(spec) for spec in suite.sets} | {Path(split_name(f)[1]).resolve().parent.name for f in files}
    strange = sorted(set(suite.classes) - known)
    if strange:
        raise InputError(f'classes: there is no set {strange[0]!r}; the sets are {", ".join(sorted(known))}.')
    for key in ('duplicates', 'templates') if files else ():
        if not others and key in suite.model_fields_set:
            raise InputError(f'{key} has no effect on embeddings made elsewhere ({files[0]}); leave it out.')
    done, team = Done(), this_team()
    if not team.first:
        _help(team, clip, device, {s: _open(s, suite) for s in suite.sets}, suite, cache or out / 'cache', workers)
        return done
    for spec in files:
        name, where = split_name(spec)
        names = suite.classes.get(Path(where).resolve().parent.name)
        found = load_embeddings(Path(where), name, names)
        done.sets[found.data.digest] = found.data
        _answer(_from_file(found, suite), suite, out, done, command)
    opened = {spec: _open(spec, suite) for spec in (suite.sets if others else ())}
    for spec in others:
        try:
            model = load_model(spec, clip, device)
        except GrafalignError as error:  # the others can still be asked
            done.problems.append(str(error))
            console.log(str(error))
            continue
        for where, data in opened.items():
            done.sets[data.digest] = data
            ask = _from_model(model, data, (spec, where), suite, cache or out / 'cache', workers, team)
            _answer(ask, suite, out, done, command)
        del model
    team.tell(None)
    return done


def _help(
    team: Team,
    clip: str | None,
    device: str | None,
    opened: dict[str, ImageSet],
    suite: Suite,
    cache: Path,
    workers: int | None,
) -> None:
    """Embed one's share of the images of the sets that the first process names, by the models that it names."""
    spec, model = None, None
    while (word := team.hear()) is not None:
        if model is None or word[0] != spec:
            spec, model = word[0], load_model(word[0], clip, device)
        try:
            embed_set(model, opened[word[1]], cache, suite.fit, workers, team)
        except MachineError:
            raise
        except GrafalignError:
            continue  # the first process says so, and goes on to the next question


def _distinct(models: Sequence[str]) -> None:
    """Refuse two models of one name: their results could not be told apart."""
    names = [split_name(m)[0] or _plain_name(m) for m in models]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise InputError(f'Two models are called {twice}; name them, such as first={models[names.index(twice)]}.')


def _plain_name(spec: str) -> str:
    return Path(spec).stem if is_embeddings(spec) else short_name(spec)


def _copies(ask: _Ask, suite: Suite) -> str:
    """The rule for captions that occur twice; a file of embeddings names one image for each text."""
    return 'own' if ask.model.kind == 'embeddings' else suite.duplicates


def _open(spec: str, suite: Suite) -> ImageSet:
    name, path, split = split_spec(spec)
    if name == 'pairs':
        return open_pairs(path, split or 'test')
    bands = None if suite.bands is None else tuple(suite.bands)
    return open_set(
        spec, partial=suite.partial, classes=suite.classes.get(title(spec)), bands=bands, value_range=suite.value_range
    )


def title(spec: str) -> str:
    """What a set is called in `classes`: its own name, or that of one's own folder or file."""
    name, path, _ = split_spec(spec)
    if name not in (*OWN, 'pairs'):
        return name
    return Path(path).stem if Path(path).is_file() else Path(path).resolve().name


def _from_file(found: Embedded, suite: Suite) -> _Ask:
    data, prompts, captions, text_image = found.data, found.prompts, found.captions, found.text_image
    answers: dict[Task, Callable[[], Outcome]] = {}
    if prompts is not None:
        answers['classification'] = lambda: classify(found.images, prompts, data, transductive=suite.transductive)
        answers['class_retrieval'] = lambda: retrieve_classes(found.images, prompts, data)
    if len(data.classes) > 1:
        answers['image_image'] = lambda: retrieve_images(found.images, data)
    if captions is not None and text_image is not None:
        answers['image_text'] = lambda: retrieve_captions(found.images, captions, np.arange(len(captions)), text_image)
    metadata = ModelMetadata(name=found.name, kind='embeddings', digest=found.digest)
    return _Ask(metadata, data, {'embeddings': 'made elsewhere'}, answers, found.prompt_names)


def _from_model(
    model: Model,
    data: ImageSet,
    called: tuple[str, str],
    suite: Suite,
    cache: Path,
    workers: int | None,
    team: Team,
) -> _Ask:
    embedded: dict[str, Any] = {}
    name, path, _ = split_spec(called[1])
    templates = load_templates(suite.templates)

    def images() -> np.ndarray:
        if 'images' not in embedded:
            team.tell(called)
            embedded['images'] = embed_set(model, data, cache, suite.fit, workers, team)
        return embedded['images']

    def prompts() -> np.ndarray:
        if 'prompts' not in embedded:
            embedded['prompts'] = prompt_vectors(model.embed_texts, data.classes, templates)
        return embedded['prompts']

    def vectors() -> tuple[np.ndarray, np.ndarray]:
        words = prompts()  # first, as they are quick and may be wrong
        return images(), words

    answers: dict[Task, Callable[[], Outcome]] = {}
    if len(data.classes) > 1 and (data.labels is not None or data.many is not None):
        answers['classification'] = lambda: classify(*vectors(), data, transductive=suite.transductive)
        answers['class_retrieval'] = lambda: retrieve_classes(*vectors(), data)
        answers['image_image'] = lambda: retrieve_images(images(), data)
    if data.captions is not None:
        answers['image_text'] = lambda: evaluate_captions(
            images(), data, model.embed_texts, suite.duplicates, model.count_cut
        )
    if data.mask is not None:
        answers['segmentation'] = lambda: segment_set(model, data, prompts(), suite.stride_px)
    extra = {}
    if name == 'pairs':
        answers['photo_tile'] = lambda: retrieve_photos(images(), data, path, model)
        extra['photo_tile'] = photos_state(path)
    metadata = ModelMetadata(name=model.name, kind=model.kind, digest=model.digest, metadata=model.metadata)
    return _Ask(metadata, data, model.preprocessing.metadata(suite.fit, data.value_range), answers, templates, extra)


def _answer(ask: _Ask, suite: Suite, out: Path, done: Done, command: str) -> None:
    """All tasks of one model on one set."""
    tasks = [t for t in ask.answers if (t in suite.tasks if suite.tasks is not None else t != 'image_image')]
    if not tasks:
        done.problems.append(
            f'{ask.data.name} has nothing for {", ".join(suite.tasks or ["any task"])}; it can answer '
            f'{", ".join(ask.answers) or "nothing"}.'
        )
        return
    metadata = SetMetadata(
        name=ask.data.name,
        split=ask.data.split,
        images=len(ask.data),
        classes=list(ask.data.classes),
        digest=ask.data.digest,
        state=ask.data.state(),
        partial=ask.data.partial,
        notes=list(ask.data.notes),
    )
    how = None
    for task in tasks:
        protocol = Protocol(
            templates=list(ask.templates) if task in _PROMPTED else [],
            pixels=ask.pixels if task != 'segmentation' else {k: v for k, v in ask.pixels.items() if k != 'fit'},
            transductive=suite.transductive and task == 'classification',
            duplicates=_copies(ask, suite) if task == 'image_text' else None,
            stride_px=suite.stride_px if task == 'segmentation' else None,
        )
        question = [PIXELS_VERSION, protocol.model_dump(), suite.draws, suite.seed, ask.extra.get(task, '')]
        key = result_key(ask.model.digest, f'{metadata.digest} {metadata.state}', task, {'question': question})
        existing = _existing(out, key, ask.model.name)
        if existing is not None:
            done.paths.append(existing)
            done.skipped += 1
            continue
        try:
            outcome = ask.answers[task]()
        except GrafalignError as error:  # the other questions can still be answered
            done.problems.append(f'{ask.model.name} on {metadata.name}, {task}: {error}')
            console.log(done.problems[-1])
            continue
        how = how or resampling(len(ask.data), ask.data.lonlat(), suite.draws, suite.seed)
        values = estimates(outcome.statistics, how)
        result = Result(
            schema_version=SCHEMA_VERSION,
            key=key,
            model=ask.model,
            data=metadata,
            task=task,
            protocol=protocol,
            metrics=values,
            main=outcome.main,
            per_class={k: dict(v) for k, v in outcome.per_class.items()},
            extra=dict(outcome.extra),
            unit=how.unit,
            draws=suite.draws,
            seed=suite.seed,
            versions=versions(),
            machine=f'{platform.machine()}, {platform.system()}',
            command=command,
        )
        done.paths.append(write_result(result, out, outcome.statistics, outcome.arrays, how.groups))
        done.computed += 1
        main = values[outcome.main]
        console.log(
            f'{ask.model.name} on {metadata.name} {metadata.split}: {task} {outcome.main} {main.value:.4f} '
            f'({main.low:.4f} to {main.high:.4f})'
        )


def _existing(out: Path, key: str, model: str) -> Path | None:
    """The result of this model that answers a question already, if it is whole."""
    for path in out.glob(f'*__{key}.json'):
        try:
            result = read_result(path)
            Arrays(path)
        except GrafalignError:
            continue
        if result.key == key and result.model.name == model and file_stem(result) == path.stem:
            return path
    return None
