"""RSVQA LR, HR and xBEN as they are published: questions with their answers, and which picture each is about.

FOLDER/LR_split_{train,val,test}_{questions,answers,images}.json       Images_LR/72.tif     (Zenodo 6344334)
FOLDER/USGS_split_{train,val,test,test_phili}_{...}.json               Data/753.tif         (Zenodo 6344367)
FOLDER/RSVQAxBEN_split_{train,val,test}_{...}.json                     Images/7.tif         (Zenodo 5084904)
FOLDER/RSVQAxBEN_QA_{train,val,test}.json                              Images/S2A_....tif   (as ConfigILM has it)

Each split's lists hold the ids of all splits, those of others as `{"id": 5, "active": false}`, and cut copies lack
some: entries are known by their id, and never by their place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from grafalign import console
from grafalign.errors import InputError
from grafalign.foreign.files import ForeignFileError, below, open_plain, parse_object

Kind = Literal['lr', 'hr', 'xben']
_PREFIX: dict[Kind, tuple[str, str]] = {
    'lr': ('LR', 'Images_LR'),
    'hr': ('USGS', 'Data'),
    'xben': ('RSVQAxBEN', 'Images'),
}
_COUNTS = {
    ('lr', 'train'): 57_223, ('lr', 'val'): 10_005, ('lr', 'test'): 10_004,
    ('hr', 'train'): 625_340, ('hr', 'val'): 102_843, ('hr', 'test'): 222_684, ('hr', 'test_phili'): 105_647,
}  # fmt: skip
"""Questions of the published splits."""
_MOST_BYTES = 4 << 30


@dataclass(frozen=True)
class QuestionAnswer:
    """One question of a data set."""

    id: int
    image: str
    """Of the picture: its number, or its name."""
    type: str
    question: str
    answer: str


@dataclass(frozen=True)
class QuestionSet:
    """The questions of one split."""

    folder: Path
    kind: Kind
    split: str
    questions: tuple[QuestionAnswer, ...]

    @property
    def whole(self) -> bool | None:
        """Whether it has as many questions as the published split; None where that is not known."""
        published = _COUNTS.get((self.kind, self.split))
        return None if published is None else published == len(self.questions)

    def picture(self, image: str) -> Path:
        """Where a picture is.

        Raises:
            InputError: it is not there.
        """
        path = below(self.folder / _PREFIX[self.kind][1], f'{image}.tif')
        if not path.is_file():
            raise InputError(f'There is no {path}; unpack the pictures of the data set there.')
        return path


def load_questions(folder: Path, split: str) -> QuestionSet:
    """Read the questions of a split.

    Args:
        folder: of the data set.
        split: train, val or test; of HR test_phili, too.

    Raises:
        InputError: a file is not there or not as published.
    """
    kind = next((k for k, (p, _) in _PREFIX.items() if (folder / f'{p}_split_{split}_questions.json').is_file()), None)
    as_configilm = folder / f'RSVQAxBEN_QA_{split}.json'
    if kind is not None:
        questions = tuple(_from_lists(folder, f'{_PREFIX[kind][0]}_split_{split}'))
    elif as_configilm.is_file():
        kind, questions = 'xben', tuple(_from_object(as_configilm))
    else:
        raise InputError(
            f'{folder} has no questions of the split {split!r} of RSVQA; give the folder that has '
            f'LR_split_{split}_questions.json, USGS_split_{split}_questions.json or RSVQAxBEN_QA_{split}.json.'
        )
    if not questions:
        raise InputError(f'{folder} has no active question of the split {split!r}; get the data set again.')
    made = QuestionSet(folder, kind, split, questions)
    if made.whole is False:
        console.log(
            f'{folder}: {len(questions):,} of the {_COUNTS[kind, split]:,} questions of the published split are here'
        )
    return made


def _from_lists(folder: Path, stem: str) -> Iterator[QuestionAnswer]:
    answers_path = folder / f'{stem}_answers.json'
    answers = {a['id']: a for a in _active(answers_path, 'answers')}
    questions_path = folder / f'{stem}_questions.json'
    for entry in _active(questions_path, 'questions'):
        try:
            answer = answers[entry['answers_ids'][0]]['answer']
            yield QuestionAnswer(
                int(entry['id']),
                str(int(entry['img_id'])),
                str(entry['type']),
                str(entry['question']),
                str(answer).strip().lower(),
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise InputError(
                f'{questions_path}: the question {entry.get("id")!r} has no answer in {answers_path.name}, or lacks '
                f'a key ({error!r}); get the data set again.'
            ) from None


def _active(path: Path, name: str) -> list[dict[str, Any]]:
    """Entries of this split."""
    entries = _read(path).get(name)
    if not isinstance(entries, list) or not all(isinstance(e, dict) and 'id' in e for e in entries):
        raise InputError(f'{path} has no list {name!r} of entries with an id; get the data set again.')
    kept = [e for e in entries if e.get('active')]
    twice = [i for i, count in Counter(e['id'] for e in kept).items() if count > 1]
    if twice:
        raise InputError(f'{path} has the id {twice[0]} twice; get the data set again.')
    return kept


def _from_object(path: Path) -> Iterator[QuestionAnswer]:
    for key, entry in _read(path).items():
        try:
            name, answer = str(entry['S2_name']), str(entry['answer']).strip().lower()
            yield QuestionAnswer(int(key), name, str(entry['type']), str(entry['question']), answer)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f'{path}: the question {key!r} lacks a key ({error!r}); get the data set again.') from None


def _read(path: Path) -> dict[str, Any]:
    try:
        with open_plain(path, _MOST_BYTES) as file:
            return parse_object(file.read())
    except (ForeignFileError, OSError, ValueError) as error:
        raise InputError(f'{path} cannot be read ({error}); get the data set again.') from None
