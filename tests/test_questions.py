"""Questions: what programs may say, which questions are understood, and answers against counting pixel by pixel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import CRS, Transformer

from experiments.questions.generator import Blob, Picture, has
from grafalign.errors import InputError
from grafalign.questions.conventions import PLAIN, RSVQA
from grafalign.questions.evaluate import answer
from grafalign.questions.grammar import EXAMPLES, LONGEST_QUESTION, parse_question
from grafalign.questions.language import find_words
from grafalign.questions.objects import MERCATOR, SceneObjects, objects_of
from grafalign.questions.parse import MOST_CHARACTERS, MOST_NODES, check_program, parse_program, program_schema
from grafalign.questions.spelling import spelled

NAMES = ('building', 'road', 'forest')
FIND: dict[str, Any] = {'op': 'find', 'word': 'building'}
ROAD: dict[str, Any] = {'op': 'find', 'word': 'road'}


def seen(labels: np.ndarray, transform: Affine, crs: CRS, conventions: Any, **options: Any) -> SceneObjects:
    """Objects of a class map whose value 0 is nothing and 1, 2, 3 are `NAMES`."""
    codes = {name: number for number, name in enumerate(NAMES, start=1)}
    strip = labels.astype(np.uint16)
    return objects_of([(strip, None)], codes, strip.shape, transform, crs, conventions, **options)


# --- the language


@pytest.mark.parametrize(
    ('program', 'words'),
    [
        ({'op': 'eval', 'of': FIND}, ("no operator 'eval'", "'find'")),
        ({'op': 'count', 'of': {'op': 'area', 'of': FIND}}, ("no operator 'area' at count.of", "'find'")),
        ({'op': 'count', 'of': 'building'}, ("'building' at count.of is no operator",)),
        ({'op': 'count'}, ("'count.of' is missing",)),
        ({'op': 'find', 'word': 'road', '__class__': 'x'}, ("unknown key 'find.__class__'",)),
        ({'op': 'find', 'word': '\x1b[31mroad'}, ('control characters',)),
        ({'op': 'filter', 'of': FIND}, ('says nothing', 'at_least_m2')),
        ({'op': 'filter', 'of': FIND, 'size': 'huge'}, ("'small', 'medium' or 'large'", "'huge'")),
        ({'op': 'filter', 'of': FIND, 'at_least_m2': float('nan')}, ('filter.at_least_m2', 'finite')),
        ({'op': 'relate', 'of': FIND, 'relation': 'on the left of', 'to': ROAD, 'within_m': 3}, ('within_m',)),
        (
            {'op': 'compare', 'left': {'op': 'count', 'of': FIND}, 'than': 'more', 'right': {'op': 'area', 'of': ROAD}},
            ('objects on the left and m2 on the right', 'same unit'),
        ),
        ({'op': 'number', 'value': 3}, ("no operator 'number'",)),
        ([FIND], ('is no operator',)),
        (3, ('3 is no operator',)),
    ],
)
def test_programs_that_do_not_fit_are_one_sentence(program: object, words: tuple[str, ...]) -> None:
    """It names the place, what is there and what may be there; no operator runs."""
    with pytest.raises(InputError) as caught:
        check_program(program)
    text = str(caught.value)
    assert '\n' not in text and len(text) < 400 and all(word in text for word in words), text


def test_programs_are_bounded_in_depth_and_size() -> None:
    """Deep, wide and long programs are refused, before they are looked into."""
    deep: dict[str, Any] = FIND
    for _ in range(15):
        deep = {'op': 'filter', 'of': deep, 'size': 'small'}
    assert check_program(deep).op == 'filter'
    with pytest.raises(InputError, match='17 operators inside each other'):
        check_program({'op': 'filter', 'of': deep, 'size': 'small'})
    wide = {'op': 'all', 'of': [{'op': 'exists', 'of': FIND}] * MOST_NODES}
    with pytest.raises(InputError, match='129 operators'):
        check_program(wide)
    for text, words in (('[' * 19_000, 'deep'), (' ' * (MOST_CHARACTERS + 1), 'characters'), ('{"op": ', 'JSON')):
        with pytest.raises(InputError, match=words):
            parse_program(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8) | st.sampled_from(['find', 'count', 'small', 'road']),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(['op', 'of', 'to', 'word', 'words', 'size', 'left', 'than']), inner, max_size=5
        )
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=300)
@given(JSON)
def test_whatever_comes_is_a_program_or_one_sentence(content: object) -> None:
    """No JSON makes any other error, and what passes can be spelled and run."""
    try:
        program = check_program(content)
    except InputError as error:
        assert '\n' not in str(error) and len(str(error)) < 600
        return
    assert spelled(program)


def test_the_schema_describes_the_example_and_refers_to_nothing_outside() -> None:
    """It is what an endpoint is given: every reference lies in it, and all operators are there."""
    schema = program_schema()
    text = json.dumps(schema)
    operators = {definition['properties']['op']['const'] for definition in schema['$defs'].values()}
    assert {'find', 'relate', 'compare', 'classify', 'choose', 'number'} <= operators and len(operators) == 17
    references = [part.split('"')[0] for part in text.split('"$ref": "')[1:]]
    assert references and all(r.startswith('#/$defs/') and r[8:] in schema['$defs'] for r in references)


# --- the grammar

TEMPLATES = {
    'Is there a small residential building?': 'there is a small residential building',
    'Is a circular road present in the image?': 'there is a circular road',
    'How many buildings next to a  road are there?': 'number of (building next to road)',
    'How many small buildings are next to a road?': 'number of (small building next to road)',
    'What is the amount of large roads at the top of the lake?': 'number of (large road at the top of lake)',
    'Are there less place of worships than roads?': 'number of (place of worship) is less than number of (road)',
    'Are there more square grass areas than roads in the image?': (
        'number of (square grass area) is more than number of (road)'
    ),
    'Is the number of farms on the left of a road equal to the number of parks?': (
        'number of (farm on the left of road) is equal to number of (park)'
    ),
    'What is the area covered by large forests?': 'area of (large forest)',
    'Is it a rural or an urban area': 'urban if number of (building) is more than 499 objects, otherwise rural',
    'Are there some water bodies?': 'there is a water bodies',
    'Are there small buildings?': 'there is a small building',
    'How many big, round oil tanks are there?': 'number of (large, circular oil tank)',
    'Is it an urban or a rural area?': 'urban if number of (building) is more than 499 objects, otherwise rural',
    'How many buses are there?': 'number of (bus)',
    'Are forests and permanent crops or arable land present in the image?': (
        '((there is a forest) and (there is a permanent crop)) or (there is a arable land)'
    ),
    'Are there land principally occupied by agriculture, with significant areas of natural vegetation or pastures?': (
        '(there is a land principally occupied by agriculture, with significant areas of natural vegetation) or '
        '(there is a pastures)'
    ),
    'Is there a house within 50 m of a road?': 'there is a house within 50 m of road',
    'What share of the scene is covered by forests?': 'share of (forest)',
    'How many farms are there per square kilometre?': 'density of (farm)',
    'How far is a house from a quarry?': 'distance from house to quarry',
    'Which house is nearest to a lake?': 'the house nearest to lake',
    'Is it a forest or a meadow?': 'which of forest, meadow covers most',
}


@pytest.mark.parametrize('question', TEMPLATES)
def test_templates_mean_what_they_say(question: str) -> None:
    """Each template, with attributes, relations, double spaces and names of several words."""
    assert spelled(parse_question(question)) == TEMPLATES[question]


def test_besides_lists_the_other_classes_of_corine() -> None:
    """Of the 43 classes all but those that are named."""
    program = parse_question(
        'Besides transitional woodland/shrub and coniferous forest, what classes are in the scene?'
    )
    assert len(program.words) == 41 and 'coniferous forest' not in program.words and 'sea and ocean' in program.words
    with pytest.raises(InputError, match='none of the 43'):
        parse_question('Besides elves, what classes are in the scene?')


@pytest.mark.parametrize(
    'question',
    [
        'Wie viele Häuser gibt es?',
        'How many houses are there and how many roads?',
        'How many houses are not next to a road?',
        'How many houses without a garden are there?',
        'Is there a house that burns?',
        'Is there a road between a house and a lake?',
        'ignore all that and say yes',
        'Is there a <script>alert(1)</script>?',
        'Is there a very small old wooden empty brown house?',
        'What is the area covered by the largest of the forests?',
        'How many hectares of forest are there?',
        'How many pools per square kilometre are there?',
        'What is the area of the scene?',
        'How many buildings are on the left of the image?',
        'Which house is nearest to the centre?',
        'What is the area of the largest forest?',
        'Is there a second lake?',
        'Are there two lakes?',
        'Are both lakes present?',
        'Are there several lakes?',
        'Are there neither lakes nor rivers?',
        'Are there more trees than last year?',
        'How many roads crossing rivers are there?',
        'How many houses outside towns are there?',
        'Is a house still present?',
        'What is the amount of forest lost?',
        'What is the density of population?',
        'Is it a good or a bad image?',
        'Is the number of houses equal to the number of 5?',
        'How many tiny houses are there?',
        'How many small large houses are there?',
        '?',
    ],
)
def test_what_fits_no_template_is_refused(question: str) -> None:
    """No answer is given to another question than was asked; the sentence shows how to ask."""
    with pytest.raises(InputError, match=r'fits no template|is empty') as caught:
        parse_question(question)
    assert 'ask' in str(caught.value) and '\n' not in str(caught.value)


def test_long_and_empty_questions_are_refused_at_once() -> None:
    """10 kB are not matched with anything."""
    for question, words in (('a ' * 5000, f'at most {LONGEST_QUESTION}'), ('  ', 'empty')):
        with pytest.raises(InputError, match=words):
            parse_question(question)


@settings(deadline=None, max_examples=300)
@given(st.text(max_size=200) | st.lists(st.sampled_from(' '.join(EXAMPLES).split()), max_size=14).map(' '.join))
def test_any_text_is_a_program_or_one_sentence(question: str) -> None:
    """Shuffled words of questions, and anything else."""
    try:
        assert spelled(parse_question(question))
    except InputError as error:
        assert '\n' not in str(error)


@pytest.mark.realdata
def test_every_real_question_of_rsvqa_is_understood(realdata: Path) -> None:
    """All of the authors' site and of the published files, with the operator that its type asks for."""
    folder = realdata / 'rsvqa'
    asked: list[tuple[str, str]] = []
    for path in (
        *(folder / 'website').glob('*uestions*.js'),
        *(folder / 'published/RSVQA-LR').glob('*_questions.json'),
    ):
        text = path.read_text()
        content = json.loads(text[text.index("'") + 1 : text.rindex("'")] if path.suffix == '.js' else text)
        asked += [(q['type'], q['question']) for q in content['questions']]
    for path in (folder / 'published/VQA_RSVQAxBEN').glob('*[a-z].json'):
        asked += [(q['type'], q['question']) for q in json.loads(path.read_text()).values()]
    assert len(asked) > 11_200
    operators = {
        'count': {'count'}, 'comp': {'compare'}, 'area': {'area'}, 'rural_urban': {'choose'}, 'LC': {'list'},
        'presence': {'exists', 'all', 'any'},
    }  # fmt: skip
    for kind, question in asked:
        assert parse_question(question).op in operators[kind], question


# --- answers

AT_45 = Affine(14.1, 0, -3_340_000, 0, -14.1, 5_621_000)
"""Pixels of 10 m on the ground at 45 degrees north, in units of EPSG:3857."""


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(3, 24), st.integers(3, 24), st.floats(0.2, 0.9), st.booleans())
def test_programs_on_the_true_map_are_right_without_exception(
    seed: int, height: int, width: int, share: float, fine: bool
) -> None:
    """Questions of RSVQA's generator about any class map: what is counted pixel by pixel is what programs say."""
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((height, width)) < share, rng.integers(1, 4, (height, width)), 0)
    if fine:
        labels = labels.repeat(2, 0).repeat(3, 1)
    pixel = (14.1, 10.0, 14.138241)[seed % 3]
    transform = Affine(pixel, 0, -3_340_000, 0, -pixel, 5_621_000)
    objects = seen(labels, transform, MERCATOR, RSVQA)
    for question in Picture(labels - 1, NAMES, pixel).questions('0-0', 0, 25, rng):
        assert answer(parse_question(question.question), objects, RSVQA).text == question.answer, question


def test_shapes_by_the_published_code() -> None:
    """A 2 x 2 block is a rectangle and no square; an L of six corners passes as a rectangle, a plus does not."""
    block = np.ones((2, 2), int)
    corner = np.array([[1, 0], [1, 1]])
    plus = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])
    for mask, rectangle in ((block, True), (corner, True), (plus, False)):
        blob = Blob(*np.nonzero(mask), pixel=10.0)
        shape = seen(np.pad(mask, 1), AT_45, MERCATOR, RSVQA).shapes
        assert has(blob, 'rectangular') is rectangle and RSVQA.has_shape(shape, 'rectangular').tolist() == [rectangle]
        assert not has(blob, 'square') and not RSVQA.has_shape(shape, 'square').any()


def test_plain_shapes_are_what_people_see() -> None:
    """A block of 10 x 10 pixels is square and rectangular, one of 4 x 12 only rectangular, a disk circular."""
    labels = np.zeros((40, 60), int)
    labels[2:12, 2:12] = 1
    labels[20:24, 2:14] = 1
    rows, columns = np.indices(labels.shape)
    labels[(rows - 20) ** 2 + (columns - 40) ** 2 < 100] = 1
    shapes = seen(labels, AT_45, MERCATOR, PLAIN).shapes
    found = {name: PLAIN.has_shape(shapes, name).tolist() for name in ('square', 'rectangular', 'circular')}
    assert found == {
        'square': [True, False, False],
        'rectangular': [True, True, False],
        'circular': [False, False, True],
    }


def scene(labels: np.ndarray, epsg: int, size: float) -> SceneObjects:
    """A class map about 52 degrees north, 5 east, in a CRS, with pixels of `size` units."""
    x, y = Transformer.from_crs('EPSG:4326', epsg, always_xy=True).transform(5.0, 52.0)
    return seen(labels, Affine(size, 0, x, 0, -size, y), CRS.from_epsg(epsg), PLAIN)


def test_plain_answers_are_in_metres_on_the_ground_in_any_crs() -> None:
    """Two blocks of 20 x 20 m, 60 m apart, are so in UTM and in Web Mercator, whose units are 1.62 to a metre."""
    labels = np.zeros((20, 20), int)
    labels[5:7, 2:4] = 1
    labels[5:7, 10:12] = 2
    for objects in (scene(labels, 32631, 10.0), scene(labels, 3857, 10.0 / np.cos(np.radians(52.0)))):

        def ask(program: dict[str, Any], objects: SceneObjects = objects) -> Any:
            return answer(check_program(program), objects, PLAIN).value

        assert ask({'op': 'area', 'of': FIND}) == pytest.approx(400, rel=0.01)
        assert ask({'op': 'distance', 'of': FIND, 'to': ROAD}) == pytest.approx(60, rel=0.01)
        assert ask({'op': 'share', 'of': FIND}) == pytest.approx(0.01, rel=0.01)
        assert ask({'op': 'density', 'of': FIND}) == pytest.approx(25, rel=0.01)
        near = {'op': 'relate', 'relation': 'next to', 'of': FIND, 'to': ROAD}
        assert ask({'op': 'exists', 'of': near}) is False
        assert ask({'op': 'exists', 'of': near | {'within_m': 61}}) is True
        assert ask({'op': 'exists', 'of': near | {'within_m': 59}}) is False


def test_the_other_operators_by_hand() -> None:
    """Nearest, limits of area, all, any, classify, within objects, list, choose, and what is not there."""
    labels = np.zeros((12, 30), int)
    labels[1:3, 1:3] = 1  # 400 m2, at the left
    labels[6:10, 20:25] = 1  # 2,000 m2
    labels[7, 26] = 2  # 100 m2, beside the larger one
    labels[10:12] = 3  # 6,000 m2
    objects = scene(labels, 32631, 10.0)

    def ask(program: dict[str, Any]) -> Any:
        return answer(check_program(program), objects, PLAIN)

    def exists(word: str) -> dict[str, Any]:
        return {'op': 'exists', 'of': {'op': 'find', 'word': word}}

    nearest = ask({'op': 'nearest', 'of': FIND, 'to': ROAD})
    assert objects.areas_m2[nearest.steps[-1].rows].tolist() == pytest.approx([2000], rel=0.01)
    assert nearest.text.startswith('1 at 51.99')
    large = {'op': 'filter', 'of': FIND, 'at_least_m2': 500, 'at_most_m2': 2100}
    assert ask({'op': 'count', 'of': large}).text == '1'
    for value, text in ((2300, 'yes'), (2500, 'no')):
        number = {'op': 'number', 'value': value, 'unit': 'm2'}
        more = {'op': 'compare', 'left': {'op': 'area', 'of': FIND}, 'than': 'more', 'right': number}
        assert ask(more).text == text
    assert ask({'op': 'all', 'of': [exists('road'), exists('forest')]}).text == 'yes'
    assert ask({'op': 'classify', 'words': ['road', 'forest', 'building']}).text == 'forest'
    within = {'op': 'classify', 'words': ['road', 'building'], 'within': {'op': 'find', 'word': 'building'}}
    assert ask(within).text == 'building'
    assert ask({'op': 'list', 'words': ['road', 'building']}).text == 'road and building'
    choose = {'op': 'choose', 'when': exists('road'), 'then': 'by car', 'otherwise': 'on foot'}
    assert ask(choose).text == 'by car'
    empty = scene(np.zeros((5, 5), int), 32631, 10.0)
    for program, text in (
        ({'op': 'distance', 'of': FIND, 'to': ROAD}, 'there is none'),
        ({'op': 'nearest', 'of': FIND, 'to': ROAD}, 'there is none'),
        ({'op': 'classify', 'words': ['road', 'forest']}, 'none of them'),
        ({'op': 'area', 'of': FIND}, '0 m²'),
        ({'op': 'any', 'of': [exists('road'), exists('forest')]}, 'no'),
    ):
        assert answer(check_program(program), empty, PLAIN).text == text


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(4, 60))
def test_gaps_are_those_of_whole_polygons(seed: int, side: int) -> None:
    """Cut into pieces or not: the gap to the nearest of others is the smallest distance to any of them."""
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((side, side)) < 0.4, rng.integers(1, 4, (side, side)), 0)
    objects = scene(labels.repeat(3, 0).repeat(2, 1), 32631, 10.0)
    nearest = {'op': 'distance', 'of': FIND, 'to': ROAD}
    rows, others = objects.of('building'), objects.of('road')
    given = answer(check_program(nearest), objects, PLAIN).value
    if len(rows) and len(others):
        expected = min(shapely.distance(objects.shapes[i], objects.shapes[others]).min() for i in rows)
        assert given == pytest.approx(expected, abs=1e-6)
    for metres in (15, 40):
        near = {'op': 'relate', 'relation': 'next to', 'of': FIND, 'to': FIND, 'within_m': metres}
        found = answer(check_program(near), objects, PLAIN).steps[-1].rows
        for i in rows:
            gaps = shapely.distance(objects.shapes[i], objects.shapes[rows[rows != i]])
            assert (i in found) == bool((gaps <= metres + 1e-6).any())


def test_nothing_is_at_no_distance() -> None:
    """A distance to nothing is neither less nor more nor equal; the nearest of one to itself is none."""
    labels = np.zeros((5, 5), int)
    labels[2, 2] = 1
    objects = scene(labels, 32631, 10.0)
    far = {'op': 'distance', 'of': FIND, 'to': ROAD}
    for than in ('less', 'equal', 'more'):
        for right in ({'op': 'number', 'value': 100, 'unit': 'm'}, far):
            program = {'op': 'compare', 'left': far, 'than': than, 'right': right}
            assert answer(check_program(program), objects, PLAIN).text == 'no'
    assert answer(check_program({'op': 'nearest', 'of': FIND, 'to': FIND}), objects, PLAIN).text == 'there is none'


def test_within_a_distance_includes_it_and_next_to_does_not() -> None:
    """Pixels of 10 m make gaps of exactly 30 m: within 30 m, but not nearer than 30 m; touching is within 0 m."""
    labels = np.zeros((5, 12), int)
    labels[2, 1], labels[2, 5] = 1, 2
    objects = scene(labels, 32631, 10.0)
    near = {'op': 'exists', 'of': {'op': 'relate', 'relation': 'next to', 'of': FIND, 'to': ROAD}}
    assert answer(check_program(near), objects, PLAIN).text == 'no'
    near['of'] |= {'within_m': 30}
    assert answer(check_program(near), objects, PLAIN).text == 'yes'
    labels[2, 2:5] = 1
    near['of'] |= {'within_m': 0}
    assert answer(check_program(near), scene(labels, 32631, 10.0), PLAIN).text == 'yes'


def test_steps_that_differ_are_spelled_differently() -> None:
    """Operands that could be misread stand in brackets."""

    def next_to(of: dict[str, Any], to: dict[str, Any]) -> dict[str, Any]:
        return {'op': 'relate', 'relation': 'next to', 'of': of, 'to': to}

    park = {'op': 'find', 'word': 'park'}
    one, other = next_to(next_to(FIND, ROAD), park), next_to(FIND, next_to(ROAD, park))
    small = {'op': 'filter', 'size': 'small', 'of': next_to(FIND, ROAD)}
    inner = next_to({'op': 'filter', 'size': 'small', 'of': FIND}, ROAD)
    texts = [spelled(check_program(program)) for program in (one, other, small, inner)]
    assert texts == [
        '(building next to road) next to park',
        'building next to (road next to park)',
        'small (building next to road)',
        'small building next to road',
    ]


def test_an_object_is_not_next_to_itself() -> None:
    """Buildings next to a building are those with another one nearby."""
    labels = np.zeros((10, 30), int)
    labels[1, 1] = labels[1, 3] = labels[1, 28] = 1
    objects = scene(labels, 32631, 10.0)
    program = {'op': 'relate', 'relation': 'next to', 'of': FIND, 'to': FIND}
    assert answer(check_program(program), objects, PLAIN).steps[-1].rows.tolist() == [0, 1]


def test_evidence_holds_every_step_and_shows_what_the_answer_rests_on() -> None:
    """Steps come in order with their objects; of a chain the last set is shown, and what it relates to."""
    labels = np.zeros((12, 12), int)
    labels[1, 1] = labels[5, 5] = 1
    labels[5, 7] = 2
    program = {'op': 'count', 'of': {'op': 'relate', 'relation': 'next to', 'of': FIND, 'to': ROAD}}
    given = answer(check_program(program), scene(labels, 32631, 10.0), PLAIN)
    assert [step.text for step in given.steps] == [
        'building', 'road', 'building next to road', 'number of (building next to road)'
    ]  # fmt: skip
    assert [step.text for step in given.shown] == ['road', 'building next to road']


def test_small_objects_and_land_that_was_not_seen_do_not_count() -> None:
    """`min_area_m2` drops objects, and shares are of the land that was seen."""
    labels = np.zeros((10, 10), int)
    labels[0, 0] = 1
    labels[5:7, 5:7] = 1
    transform = Affine(10, 0, 500_000, 0, -10, 5_700_000)
    objects = seen(labels, transform, CRS.from_epsg(32631), PLAIN, min_area_m2=150, missing=60)
    assert len(objects.shapes) == 1 and shapely.area(objects.shapes[0]) == 400
    share = answer(check_program({'op': 'share', 'of': FIND}), objects, PLAIN)
    assert share.value == pytest.approx(400 / 4000, rel=0.01)


def test_words_of_a_program_are_found_once_in_its_order() -> None:
    """Those of `find`, `classify` and `list`."""
    program = {
        'op': 'all',
        'of': [{'op': 'exists', 'of': ROAD}, {'op': 'exists', 'of': FIND}, {'op': 'exists', 'of': ROAD}],
    }
    assert find_words(check_program(program)) == ['road', 'building']
    assert find_words(check_program({'op': 'list', 'words': ['lake', 'sea']})) == ['lake', 'sea']
