"""A question to a field, from words to files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from grafalign import console
from grafalign.errors import InputError
from grafalign.fields import Field
from grafalign.foreign.files import ForeignFileError, open_plain
from grafalign.maps import ClassesFile, TunedWords
from grafalign.maps.write import own_temperature
from grafalign.models import Model
from grafalign.questions.conventions import Conventions
from grafalign.questions.evaluate import Answer, answer
from grafalign.questions.evidence import write_evidence
from grafalign.questions.grammar import LONGEST_QUESTION, parse_question
from grafalign.questions.language import Filter, walk
from grafalign.questions.look import legend_of, look
from grafalign.questions.parse import MOST_CHARACTERS, parse_program
from grafalign.questions.spelling import spelled

Translate = Callable[[str], Any]
"""A question to a `Program`, by a language model."""


def program_of(question: str, translate: Translate | None = None) -> Any:
    """The program of a question: itself, a file of it, or by the grammar, else by a language model.

    Args:
        question: in English, a program's JSON, or the path of a .json file with one.
        translate: asked where the grammar does not know the question.

    Raises:
        InputError: it is none of these.
    """
    text = question.strip()
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError('The question is no text in UTF-8; type it anew.') from None
    if text.startswith('{'):
        return parse_program(text)
    if text.lower().endswith('.json'):
        return parse_program(_read(Path(text)), text)
    try:
        return parse_question(text)
    except InputError:
        if translate is None or not text or len(text) > LONGEST_QUESTION:
            raise
    return translate(text)


def _read(path: Path) -> str:
    try:
        with open_plain(path, 4 * MOST_CHARACTERS) as file:
            return file.read().decode('utf-8')
    except FileNotFoundError:
        raise InputError(f'There is no file {path}; give the path of a program, or a question.') from None
    except (ForeignFileError, OSError, UnicodeDecodeError) as error:
        raise InputError(f'{path} cannot be read ({error}); give the path of a program in JSON.') from None


def ask(
    field: Field,
    model: Model,
    question: str,
    program: Any,
    out: Path,
    conventions: Conventions,
    *,
    content: ClassesFile | TunedWords | None = None,
    min_area_m2: float = 0.0,
) -> Answer:
    """Answer a question, and write the answer with its evidence.

    Args:
        field: what is asked.
        model: its model.
        question: as it was asked.
        program: of the question (`program_of`).
        out: folder to write.
        conventions: what sizes and nearness mean.
        content: a person's own classes, which the question's words must be among.
        min_area_m2: smallest object.

    Raises:
        GrafalignError: a word is none of the classes, there are too many objects, or a file cannot be written.
    """
    _warn_of_sizes(program, conventions, max(min_area_m2, field.plan.pixel_m**2))
    legend = legend_of(program, field, model.embed_texts, own_temperature(model), content)
    objects = look(field, legend, conventions, min_area_m2)
    given = answer(program, objects, conventions)
    write_evidence(out, question, program, given, objects, field, legend, conventions, min_area_m2)
    return given


def _warn_of_sizes(program: Any, conventions: Conventions, smallest_m2: float) -> None:
    """Say so where objects are asked for that are smaller than any that are kept."""
    for node in walk(program):
        if isinstance(node, Filter):
            most = conventions.small_below_m2 if node.size == 'small' else node.at_most_m2
            if most is not None and most <= smallest_m2:
                console.log(
                    f'{spelled(node)}: these are of at most {most:g} m², and nothing below {smallest_m2:g} m² is seen '
                    '(the size of a pixel, or --min-area)'
                )
