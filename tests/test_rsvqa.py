"""RSVQA's files and protocol, against values counted by hand and the published files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from grafalign.errors import InputError
from grafalign.questions.protocol import accuracy, blind_answers, counted_as, other_pictures
from grafalign.questions.rsvqa import QuestionAnswer, load_questions

LR = {
    '0': '0', '1': 'between 0 and 10', '10': 'between 0 and 10', '11': 'between 10 and 100',
    '100': 'between 10 and 100', '101': 'between 100 and 1000', '1000': 'between 100 and 1000',
    '1001': 'more than 1000', 'between 1 and 10': 'between 0 and 10', 'between 0 and 10': 'between 0 and 10',
    'between 11 and 100': 'between 10 and 100', 'Between 101 and 1000': 'between 100 and 1000',
    'more than 1000': 'more than 1000', 'not understood': 'not understood',
}  # fmt: skip
HR = {
    '0m2': '0m2', '2m2': 'between 0m2 and 10m2', '12m2': 'between 10m2 and 100m2', '10m2': 'between 0m2 and 10m2',
    '122m2': 'between 100m2 and 1000m2', '1002m2': 'more than 1000m2', 'more than 1000m2': 'more than 1000m2',
    'between 0m2 and 10m2': 'between 0m2 and 10m2', 'between 100m2 and 1000m2': 'between 100m2 and 1000m2',
}  # fmt: skip


def asked(kind: str, answer: str, number: int = 0, image: str = '1') -> QuestionAnswer:
    """A question of a type."""
    return QuestionAnswer(number, image, kind, '', answer)


def test_counts_and_areas_fall_into_the_published_buckets_in_either_spelling() -> None:
    """LR's counts and HR's areas; HR's counts and words stay as they are, lists in any order."""
    assert {answer: counted_as(answer, 'count', 'lr') for answer in LR} == LR
    assert {answer: counted_as(answer, 'area', 'hr') for answer in HR} == HR
    assert counted_as('11', 'count', 'hr') == '11' and counted_as(' Yes', 'presence', 'lr') == 'yes'
    assert counted_as('water bodies and mixed forest', 'LC', 'xben') == 'mixed forest and water bodies'


def test_accuracies_by_hand() -> None:
    """By type, their mean, of all, and of all but counts."""
    questions = [asked('count', '3'), asked('count', '0'), asked('presence', 'yes'), asked('comp', 'no')]
    found = accuracy(questions, ['9', '5', 'yes', 'yes'], 'lr')
    assert found.by_type == {'comp': 0.0, 'count': 0.5, 'presence': 1.0}
    assert (found.aa, found.oa, found.non_numeric) == (0.5, 0.5, 0.5)
    assert accuracy(questions, ['9', '5', 'yes', 'yes'], 'hr').by_type['count'] == 0.0


def test_blind_answers_are_the_commonest_of_each_type_as_they_count() -> None:
    """3 and 7 are one bucket of LR, and so outnumber the zeros."""
    train = [asked('count', a) for a in ('0', '0', '3', '7', '9')] + [asked('comp', a) for a in ('no', 'no', 'yes')]
    assert blind_answers(train, 'lr') == {'count': 'between 0 and 10', 'comp': 'no'}
    assert blind_answers(train, 'hr')['count'] == '0'


def test_other_pictures_are_others_and_each_is_taken_once() -> None:
    """Whatever the seed."""
    images = [str(i) for i in range(17)]
    for seed in range(20):
        others = other_pictures(images, seed)
        assert sorted(others.values()) == sorted(images) and all(a != b for a, b in others.items())


@pytest.mark.realdata
def test_published_files_are_read_by_their_ids(realdata: Path) -> None:
    """LR: lists are cut and out of place, yet every question has the answer whose id it names."""
    folder = realdata / 'rsvqa' / 'published' / 'RSVQA-LR'
    for split, count in (('train', 300), ('val', 500), ('test', 400)):
        found = load_questions(folder, split)
        assert len(found.questions) == count and found.kind == 'lr' and found.whole is False
        raw = json.loads((folder / f'LR_split_{split}_answers.json').read_text())['answers']
        by_question = {a['question_id']: a['answer'] for a in raw if a['active']}
        assert all(q.answer == by_question[q.id] for q in found.questions)
        assert {found.picture(q.image).suffix for q in found.questions} == {'.tif'}
    assert Counter(q.type for q in load_questions(folder, 'test').questions) == {
        'comp': 151, 'count': 124, 'presence': 121, 'rural_urban': 4
    }  # fmt: skip
    with pytest.raises(InputError, match="split 'test_phili'"):
        load_questions(folder, 'test_phili')


@pytest.mark.realdata
def test_published_files_of_xben_are_read(realdata: Path) -> None:
    """Questions by id, pictures by their Sentinel-2 name."""
    found = load_questions(realdata / 'rsvqa' / 'published' / 'VQA_RSVQAxBEN', 'test')
    first = next(q for q in found.questions if q.id == 587723)
    assert found.kind == 'xben' and len(found.questions) == 10 and first.type == 'LC'
    assert first.image == 'S2A_MSIL2A_20170701T093031_63_35' and first.answer == 'mixed forest and water bodies'
    with pytest.raises(InputError, match='unpack the pictures'):
        found.picture(first.image)


def test_files_of_hr_and_of_xben_on_zenodo_are_known_by_their_names(tmp_path: Path) -> None:
    """USGS_split_... has four splits and pictures in Data, RSVQAxBEN_split_... pictures in Images."""
    question = {'id': 8, 'img_id': 5, 'type': 'area', 'question': 'q', 'answers_ids': [9], 'active': True}
    answer = {'id': 9, 'question_id': 8, 'answer': '17m2', 'active': True}
    for prefix, folder in (('USGS_split_test_phili', 'Data'), ('RSVQAxBEN_split_val', 'Images')):
        (tmp_path / f'{prefix}_questions.json').write_text(json.dumps({'questions': [question]}))
        (tmp_path / f'{prefix}_answers.json').write_text(json.dumps({'answers': [answer]}))
        (tmp_path / folder).mkdir()
        (tmp_path / folder / '5.tif').touch()
    for split, kind in (('test_phili', 'hr'), ('val', 'xben')):
        found = load_questions(tmp_path, split)
        assert found.kind == kind and found.questions == (QuestionAnswer(8, '5', 'area', 'q', '17m2'),)
        assert found.picture('5').is_file()
