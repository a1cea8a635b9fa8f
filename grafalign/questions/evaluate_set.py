"""A model on a set of questions: programs on fields of its pictures, beside blind and shuffled answers."""

from __future__ import annotations

import csv
import functools
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from grafalign import console
from grafalign.errors import InputError
from grafalign.escapes import csv_cell
from grafalign.fields import Field, FieldOptions, make_field, open_field
from grafalign.fields.source import field_input, window_encoder
from grafalign.files import make_folder, write_atomically
from grafalign.maps import ClassesFile, TunedWords
from grafalign.maps.write import own_temperature
from grafalign.models import Model
from grafalign.questions.conventions import RSVQA
from grafalign.questions.evaluate import answer
from grafalign.questions.grammar import parse_question
from grafalign.questions.language import find_words
from grafalign.questions.look import legend_of, look
from grafalign.questions.objects import SceneObjects
from grafalign.questions.protocol import Accuracy, accuracy, blind_answers, other_pictures
from grafalign.questions.rsvqa import QuestionAnswer, QuestionSet

NOT_UNDERSTOOD = 'not understood'
"""The answer to a question that fits no template; it is wrong."""


@dataclass(frozen=True)
class Evaluation:
    """What came out; no accuracy stands without the two beside it."""

    questions: dict[str, int]
    """Of each type."""
    programs: Accuracy
    shuffled: Accuracy
    blind: Accuracy
    blind_from: str
    """Split that the commonest answers are of."""
    not_understood: int


class _Pictures:
    """Answers about pictures; a picture is encoded once and kept, and looked at once for the same words."""

    def __init__(
        self,
        questions: QuestionSet,
        model: Model,
        spec: str,
        out: Path,
        options: FieldOptions,
        content: ClassesFile | TunedWords | None,
        min_area_m2: float,
    ) -> None:
        self._questions, self._model, self._spec = questions, model, spec
        self._out, self._options, self._content, self._min_area_m2 = out, options, content, min_area_m2
        self._vectors = functools.cache(lambda text: model.embed_texts([text])[0])

    def _encode(self, texts: Sequence[str]) -> Any:
        return np.stack([self._vectors(text) for text in texts])

    def field(self, image: str) -> Field:
        """The field of a picture."""
        folder = self._out / 'fields' / image
        source = field_input(str(self._questions.picture(image)), self._model, self._options)
        make_field(folder, source, window_encoder(self._model, source.plan), self._spec)
        return open_field(folder)

    def answers(self, image: str, asked: Sequence[QuestionAnswer]) -> list[str]:
        """Answers to questions, as if they were about this picture."""
        field = self.field(image)
        objects_of: dict[tuple[str, ...], SceneObjects] = {}
        given = []
        for question in asked:
            try:
                program = parse_question(question.question)
            except InputError:
                given.append(NOT_UNDERSTOOD)
                continue
            words = tuple(sorted(find_words(program)))
            if words not in objects_of:
                legend = legend_of(program, field, self._encode, own_temperature(self._model), self._content)
                objects_of[words] = look(field, legend, RSVQA, self._min_area_m2)
            given.append(answer(program, objects_of[words], RSVQA).text)
        return given


def evaluate_questions(
    questions: QuestionSet,
    train: QuestionSet,
    model: Model,
    spec: str,
    out: Path,
    *,
    options: FieldOptions,
    content: ClassesFile | TunedWords | None = None,
    min_area_m2: float = 0.0,
    sample: int | None = None,
    seed: int = 0,
    command: str = '',
) -> Evaluation:
    """Answer a set's questions by programs, and count.

    Args:
        questions: what is asked.
        train: questions of which the commonest answers are taken; the same set where there are no others.
        model: a model.
        spec: how it is loaded again.
        out: folder for `results.json`, `answers.csv` and the fields of the pictures, which are kept.
        options: how pictures become fields.
        content: a person's own classes, which all words must be among.
        min_area_m2: smallest object.
        sample: so many questions, drawn by chance; all by default.
        seed: of the sample and of which picture stands for which.
        command: for the record.

    Raises:
        GrafalignError: a picture is missing or cannot be read.
    """
    asked = list(questions.questions)
    if sample is not None and sample < len(asked):
        chosen = np.sort(np.random.default_rng(seed).choice(len(asked), sample, replace=False))
        asked = [asked[i] for i in chosen]
    of_image: dict[str, list[int]] = defaultdict(list)
    for number, question in enumerate(asked):
        of_image[question.image].append(number)
    images = sorted(of_image)
    if len(images) < 2:
        of = f'--sample {sample}' if sample is not None else str(questions.folder)
        raise InputError(f'{of} asks about one picture only, and shuffled answers need two; ask more questions.')
    make_folder(out)
    pictures = _Pictures(questions, model, spec, out, options, content, min_area_m2)
    others = other_pictures(images, seed)
    own, shuffled = [''] * len(asked), [''] * len(asked)
    with console.progress('answering questions', 2 * len(asked)) as bar:
        for image in images:
            numbers = [*of_image[image], *of_image[others[image]]]
            texts = pictures.answers(image, [asked[i] for i in numbers])
            for place, (number, text) in enumerate(zip(numbers, texts, strict=True)):
                (own if place < len(of_image[image]) else shuffled)[number] = text
            bar.advance(len(numbers))
    common = blind_answers(train.questions, questions.kind)
    types = sorted({q.type for q in asked})
    kind = questions.kind
    evaluation = Evaluation(
        {name: sum(q.type == name for q in asked) for name in types},
        accuracy(asked, own, kind),
        accuracy(asked, shuffled, kind),
        accuracy(asked, [common.get(q.type, '') for q in asked], kind),
        train.split,
        own.count(NOT_UNDERSTOOD),
    )
    record = {
        'command': command,
        'set': questions.kind,
        'split': questions.split,
        'whole': questions.whole if sample is None else False,
        'model': spec,
        'model_digest': model.digest,
        'conventions': RSVQA.name,
        'min_area_m2': min_area_m2,
        'sample': sample,
        'seed': seed,
        'bands': options.bands,
        'value_range': options.value_range,
        'any_gsd': options.any_gsd,
        'words': None if content is None else content.names,
        'versions': {name: version(name) for name in ('grafalign', 'torch', 'numpy', 'shapely')},
        **asdict(evaluation),
    }
    write_atomically(out / 'results.json', (json.dumps(record, indent=2, allow_nan=False) + '\n').encode())
    write_atomically(out / 'answers.csv', _table(asked, own, shuffled).encode())
    return evaluation


def _table(asked: Sequence[QuestionAnswer], own: Sequence[str], shuffled: Sequence[str]) -> str:
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator='\n')
    table.writerow(['id', 'image', 'type', 'question', 'answer', 'programs', 'shuffled'])
    for question, one, other in zip(asked, own, shuffled, strict=True):
        row = (question.id, question.image, question.type, question.question, question.answer, one, other)
        table.writerow([csv_cell(cell) for cell in row])
    return buffer.getvalue()
