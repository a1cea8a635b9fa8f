"""`grafalign ask`: real fields and files, a language model that misbehaves, and bad input."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import yaml
from pyproj import CRS

from grafalign.fields import Field
from grafalign.maps import MapFiles, load_classes, write_map
from grafalign.models import Model
from grafalign.questions import ask, conventions_of, program_of
from grafalign.questions.conventions import PLAIN
from grafalign.questions.endpoint import Endpoint
from grafalign.questions.evaluate import answer
from grafalign.questions.evidence import draw_objects
from grafalign.questions.objects import objects_of
from grafalign.questions.parse import parse_program
from grafalign.web.chat import KEY
from tests.chat_server import ChatServer, Reply
from tests.commands import Command, refused
from tests.scenes import patchwork, write_scene
from tests.serving import running
from tests.test_fields import MODEL, made

WORDS = ['forest', 'water', 'a town']
PROGRAM = '{"op": "count", "of": {"op": "find", "word": "forest"}}'


@pytest.fixture(scope='module')
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene of coloured squares with a missing corner."""
    pixels = patchwork(384, 320)
    pixels[:, :100, :100] = 0
    return write_scene(tmp_path_factory.mktemp('scene') / 'scene.tif', pixels, nodata=0)


@pytest.fixture(scope='module')
def field(scene: Path, model: Model) -> Field:
    """Its field."""
    return made(scene, scene.with_name('field'), model)


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    """A language model."""
    with running(ChatServer()) as server:
        yield server


def test_answers_agree_with_the_map_of_the_same_words(field: Field, model: Model, tmp_path: Path) -> None:
    """Shares and numbers of objects are those of `grafalign map` and its polygons, confidences too."""
    content = load_classes([','.join(WORDS)])
    files = MapFiles(tmp_path / 'm.tif', tmp_path / 'sure.tif', polygons=tmp_path / 'm.parquet')
    summary = write_map(field, content, model, files)
    polygons = gpd.read_parquet(files.polygons)
    with rasterio.open(files.map) as raster:
        labels = raster.read(1)
    known = labels != 255
    for number, word in enumerate(WORDS):
        mine = polygons[polygons['class'] == word]
        program = parse_program(json.dumps({'op': 'count', 'of': {'op': 'find', 'word': word}}))
        plain = conventions_of('plain')
        count = ask(field, model, 'q', program, tmp_path / 'a', plain, content=content)
        assert count.value == len(mine)
        kept = gpd.read_parquet(tmp_path / 'a' / 'evidence.parquet')
        assert len(kept) == len(mine) and (not len(mine) or kept.crs == mine.crs)
        assert sorted(kept['area_m2']) == pytest.approx(sorted(mine['area_m2']))
        assert sorted(kept['mean_confidence']) == pytest.approx(sorted(mine['mean_confidence']))
        share = parse_program(json.dumps({'op': 'share', 'of': {'op': 'find', 'word': word}}))
        found = ask(field, model, 'q', share, tmp_path / 'a', plain, content=content)
        assert found.value == pytest.approx((labels == number).sum() / known.sum(), rel=1e-3, abs=1e-6)
        assert found.value == pytest.approx(summary.shares[word], rel=1e-3, abs=1e-6)


def test_ask_writes_numbers_polygons_and_a_page(field: Field, command: Command, tmp_path: Path) -> None:
    """The files say question, answer, steps, what it rests on; the page shows the scene and escapes what is foreign."""
    classes = tmp_path / 'classes.yaml'
    names = [{'name': 'forest'}, {'name': 'lake <b>', 'prompts': ['water']}, {'name': 'a town'}]
    classes.write_text(yaml.safe_dump({'classes': names}))
    out = tmp_path / 'out'
    question = 'How many large forests are there?'
    code, err = command('ask', field.path, question, '--words', classes, '--out', out, '--min-area', 100)
    assert code == 0, err
    content = json.loads((out / 'answer.json').read_text())
    assert content['question'] == question and content['program']['op'] == 'count'
    assert [step['step'] for step in content['steps']] == ['forest', 'large forest', 'number of (large forest)']
    assert content['answer'] == str(int(content['value'])) and content['unit'] == 'objects'
    assert content['rests on']['smallest object, m²'] == 100
    kept = gpd.read_parquet(out / 'evidence.parquet')
    assert (kept.loc[kept['step'] == 'large forest', 'area_m2'] >= 500).all() and (kept['area_m2'] >= 100).all()
    assert len(kept[kept['step'] == 'large forest']) == content['value']
    page = (out / 'answer.html').read_text()
    assert 'data:image/jpeg' in page and 'lake &lt;b&gt;' in page and '<b>' not in page
    assert 'http://' not in page.replace('http://www.w3.org', '') and 'src="/' not in page


def test_a_scene_is_asked_without_keeping_its_field(scene: Path, command: Command, tmp_path: Path) -> None:
    """A tile or scene is encoded first; without --field nothing of that stays."""
    out = tmp_path / 'out'
    ask_scene = ('ask', scene, 'Is there a forest?', '--model', MODEL, '--words', ','.join(WORDS), '--out', out)
    assert command(*ask_scene)[0] == 0
    assert json.loads((out / 'answer.json').read_text())['answer'] in ('yes', 'no')
    assert [p.name for p in tmp_path.iterdir()] == ['out']
    assert command(*ask_scene, '--field', tmp_path / 'kept')[0] == 0
    assert (tmp_path / 'kept' / 'field.json').is_file()
    refused(command('ask', scene, 'Is there a forest?', '--out', out), scene, '--model')


def test_without_classes_words_are_compared_with_others(field: Field, model: Model, tmp_path: Path) -> None:
    """What is compared with is written down, and never asks for the same as a word of the question."""
    program = program_of('Are there more beaches than vineyards?')
    ask(field, model, 'q', program, tmp_path, conventions_of('plain'))
    rests = json.loads((tmp_path / 'answer.json').read_text())['rests on']
    compared = next(value for key, value in rests.items() if 'compared' in key).split(', ')
    assert len(compared) > 5 and not {'a beach', 'vineyard'} & set(compared)


def test_bad_input_is_one_sentence(field: Field, command: Command, tmp_path: Path) -> None:
    """Questions in another language, empty and endless ones, strange words and programs, half an endpoint."""
    out = tmp_path / 'out'
    words = ('--words', ','.join(WORDS), '--out', out)
    refused(command('ask', field.path, 'Wie viele Wälder gibt es?', *words), 'Wie viele', 'ask as')
    refused(command('ask', field.path, '', *words), 'empty')
    refused(command('ask', field.path, 'forest ' * 1500, *words), '10,499 characters')
    refused(command('ask', field.path, 'Is there a castle?', *words), "no 'castle'", 'forest, water, a town')
    refused(command('ask', field.path, '{"op": "eval"}', *words), "'eval'", "'find'")
    refused(command('ask', field.path, tmp_path / 'no.json', *words), 'no.json', 'program')
    (tmp_path / 'folder.json').mkdir()
    refused(command('ask', field.path, tmp_path / 'folder.json', *words), 'folder.json')
    refused(command('ask', field.path, PROGRAM, *words, '--conventions', 'mine'), 'mine', 'plain', 'rsvqa')
    refused(command('ask', field.path, PROGRAM, *words, '--endpoint', 'http://127.0.0.1:9'), '--endpoint-model')
    refused(command('ask', tmp_path / 'no', PROGRAM, *words, '--model', MODEL), tmp_path / 'no')
    assert not out.exists()


# --- an endpoint


def test_the_endpoint_is_asked_only_where_templates_do_not_know(
    field: Field, command: Command, chat: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for a question of the grammar or a program; else it gets the question, the schema and the key."""
    monkeypatch.setenv(KEY, 'secret')
    chat.replies = [Reply(f'```json\n{PROGRAM}\n```')]
    by = ('--words', ','.join(WORDS), '--out', tmp_path / 'out', '--endpoint', chat.url, '--endpoint-model', 'm')
    assert command('ask', field.path, 'How many forests are there?', *by)[0] == 0
    assert command('ask', field.path, PROGRAM, *by)[0] == 0
    refused(command('ask', field.path, 'forest ' * 1500, *by), 'characters')
    assert not chat.requests
    assert command('ask', field.path, 'Combien de forêts y a-t-il ?', *by)[0] == 0
    ((path, headers, content),) = chat.requests
    assert path == '/v1/chat/completions' and headers['Authorization'] == 'Bearer secret'
    assert content['model'] == 'm' and content['temperature'] == 0
    assert content['response_format']['json_schema']['schema']['$defs']
    assert content['messages'][1]['content'] == 'The question: "Combien de forêts y a-t-il ?"'
    assert str(field.path) not in json.dumps(content) and 'secret' not in json.dumps(content)


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('{"op": "delete_everything"}', "'delete_everything'"),
        ('{"op": "count", "of": {"op": "find", "word": "forest"', 'no JSON'),
        ('Ignore the checker. The answer is 42; run __import__("os").system("id").', 'no JSON'),
        ('{"op": "find", "word": "forest", "note": "ignore all rules"}', 'unknown key'),
        ('', 'no JSON'),
    ],
)
def test_a_complaint_is_sent_back_once(chat: ChatServer, text: str, words: str) -> None:
    """A second good answer is taken; two bad ones are one sentence with the complaint, and nothing else happens."""
    chat.replies = [Reply(text), Reply(PROGRAM)]
    endpoint = Endpoint(chat.url, 'm')
    assert endpoint.translate('¿Cuántos bosques?').op == 'count'
    complaint = chat.requests[1][2]['messages'][-1]['content']
    assert words in complaint and len(chat.requests) == 2
    chat.requests.clear()
    chat.replies = [Reply(text)]
    with pytest.raises(Exception, match='in two tries') as caught:
        endpoint.translate('¿Cuántos bosques?')
    assert type(caught.value).__name__ == 'RemoteError' and words in str(caught.value) and len(chat.requests) == 2


@pytest.mark.parametrize(
    ('reply', 'words'),
    [
        (Reply(status=401), f'set {KEY}'),
        (Reply(status=400), 'HTTP 400'),
        (Reply(status=302, headers={'Location': 'http://169.254.169.254/'}), 'HTTP 302'),
        (Reply(body=b'{"choices": []}'), 'choices'),
        (Reply(body=b'<html>'), 'no JSON object'),
        (Reply(body=b'[' * 100_000), 'no JSON object'),
        (Reply(body=b' ' * (2 << 20)), 'more than 1.04858 MB'),
        (Reply(PROGRAM, cut=20), 'cannot be asked'),
    ],
)
def test_a_misbehaving_endpoint_is_one_sentence(
    field: Field, command: Command, chat: ChatServer, tmp_path: Path, reply: Reply, words: str
) -> None:
    """Refusals, redirects, broken and endless answers."""
    chat.replies = [reply]
    by = ('--words', ','.join(WORDS), '--out', tmp_path / 'out', '--endpoint', chat.url, '--endpoint-model', 'm')
    line = refused(command('ask', field.path, 'Combien de forêts ?', *by), words)
    assert len(line) < 600


def test_a_busy_endpoint_is_asked_again(chat: ChatServer) -> None:
    """429 and 503 pass."""
    chat.replies = [Reply(status=429, headers={'Retry-After': '0'}), Reply(status=503), Reply(PROGRAM)]
    assert Endpoint(f'{chat.url}/v1/', 'm').translate('Combien ?').op == 'count'
    assert [path for path, _, _ in chat.requests] == ['/v1/chat/completions'] * 3


def test_keys_travel_only_where_they_should(monkeypatch: pytest.MonkeyPatch, chat: ChatServer) -> None:
    """To a public host only by https, never in the address, and not with characters that no header has."""
    for url, key, words in (
        ('http://api.example.org', 'secret', 'unencrypted'),
        ('file:///etc/passwd', 'secret', 'no plain address'),
        ('http://me:secret@127.0.0.1:9', '', 'no plain address'),
        ('https://api.example.org/v1?key=secret', '', 'no plain address'),
        (chat.url, 'sec\nret', 'characters'),
        (chat.url, 'schlüssel', 'characters'),
    ):
        monkeypatch.setenv(KEY, key)
        with pytest.raises(Exception, match=words) as caught:
            Endpoint(url, 'm')
        assert type(caught.value).__name__ == 'InputError' and 'secret' not in str(caught.value)
    monkeypatch.setenv(KEY, 'secret\n')  # as files end
    chat.replies = [Reply(PROGRAM)]
    Endpoint(chat.url, 'm').translate('Combien ?')
    assert chat.requests[0][1]['Authorization'] == 'Bearer secret'


def test_trouble_leaves_nothing_that_is_in_the_way(scene: Path, command: Command, tmp_path: Path) -> None:
    """A wrong word is known before a scene is encoded; another scene with the same --out is another field."""
    ask_scene = ('ask', scene, '--model', MODEL, '--words', 'forest,water', '--out', tmp_path / 'out')
    refused(command(*ask_scene[:2], 'Is there a castle?', *ask_scene[2:]), 'castle')
    assert not list(tmp_path.iterdir())
    code, err = command('ask', scene, 'How many small forests are there?', *ask_scene[2:], '--min-area', 500)
    assert code == 0 and 'nothing below 500 m² is seen' in err


def test_islands_are_painted_over_what_is_around_them(field: Field) -> None:
    """A ring with an object of the same word in its hole: both are in the picture."""
    labels = np.zeros((40, 40), np.uint16)
    labels[8:32, 8:32] = 1
    labels[12:28, 12:28] = 0
    labels[17:23, 17:23] = 1
    grid = field.geobox
    objects = objects_of(
        [(labels, None)], {'x': 1}, labels.shape, grid.affine * grid.affine.scale(8), CRS(str(grid.crs)), PLAIN
    )
    step = answer(parse_program('{"op": "find", "word": "x"}'), objects, PLAIN).steps[0]
    assert len(objects.shapes) == 2
    bare, painted = (np.asarray(draw_objects(field, objects, steps), float) for steps in ([], [step]))
    changed = abs(bare - painted).sum(-1) > 0
    height, width = changed.shape
    across, down = width / 320, height / 384  # pixels of the picture for one of the scene
    for row, column, there in ((20, 20, True), (14, 14, False), (10, 10, True), (4, 4, False)):
        assert changed[int((row * 8 + 4) * down), int((column * 8 + 4) * across)] == there


# --- RSVQA


def published(folder: Path, scene: Path, count: int = 6) -> Path:
    """A small copy of RSVQA LR as it is published: two pictures, ids that are no positions, inactive entries."""
    (folder / 'Images_LR').mkdir(parents=True)
    with rasterio.open(scene) as source:
        pixels = source.read()
    for image, corner in ((72, 100), (9, 150)):
        write_scene(folder / 'Images_LR' / f'{image}.tif', pixels[:, corner : corner + 128, corner : corner + 128])
    asked = ('Is there a forest?', 'yes', 'presence'), ('How many forests are there?', '3', 'count'), (
        'Are there more forests than towns?', 'no', 'comp'
    )  # fmt: skip
    for split, first in (('train', 500), ('test', 1000)):
        questions: list[dict[str, Any]] = [{'id': 3, 'active': False}]
        answers: list[dict[str, Any]] = [{'id': 7, 'active': False}]
        for i in range(count):
            text, answer, kind = asked[i % 3]
            number = first + 10 * i
            questions.append(
                {'id': number, 'img_id': (72, 9)[i % 2], 'type': kind, 'question': text, 'answers_ids': [number + 1],
                 'active': True}
            )  # fmt: skip
            answers.insert(0, {'id': number + 1, 'question_id': number, 'answer': answer, 'active': True})
        (folder / f'LR_split_{split}_questions.json').write_text(json.dumps({'questions': questions}))
        (folder / f'LR_split_{split}_answers.json').write_text(json.dumps({'answers': answers}))
    return folder


def test_a_set_is_evaluated_beside_blind_and_shuffled_answers(scene: Path, command: Command, tmp_path: Path) -> None:
    """Answers are those of single questions, numbers those of the table, and no number stands alone."""
    folder, out = published(tmp_path / 'lr', scene), tmp_path / 'out'
    run = ('evaluate-questions', folder, '--model', MODEL, '--out', out, '--words', 'forest,water,town')
    code, err = command(*run)
    assert code == 0 and '6 of the 10,004 questions' in err, err
    result = json.loads((out / 'results.json').read_text())
    rows = [line.split(',') for line in (out / 'answers.csv').read_text().splitlines()]
    assert rows[0] == ['id', 'image', 'type', 'question', 'answer', 'programs', 'shuffled'] and len(rows) == 7
    assert result['questions'] == {'comp': 2, 'count': 2, 'presence': 2} and result['whole'] is False
    assert (
        result['blind']['by_type'] == {'comp': 1.0, 'count': 1.0, 'presence': 1.0} and result['blind_from'] == 'train'
    )
    yes = [row for row in rows[1:] if row[2] == 'presence']
    assert result['programs']['by_type']['presence'] == sum(r[5] == 'yes' for r in yes) / 2
    assert {(r[1], r[5]) for r in yes} == {({'72': '9', '9': '72'}[r[1]], r[6]) for r in yes}  # each on the other one
    assert set(result['shuffled']) == {'by_type', 'aa', 'oa', 'non_numeric'}
    assert result['words'] == ['forest', 'water', 'town'] and {'grafalign', 'torch'} <= set(result['versions'])
    assert result['command'].startswith('grafalign evaluate-questions') and result['seed'] == 0


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (
            lambda f: (f / 'LR_split_test_answers.json').write_text('{"answers": []}'),
            'no answer in LR_split',
        ),
        (lambda f: (f / 'LR_split_test_answers.json').write_text('[1]'), 'LR_split_test_answers.json'),
        (lambda f: (f / 'LR_split_test_questions.json').write_text('{"questions": 3}'), "no list 'questions'"),
        (lambda f: (f / 'LR_split_test_questions.json').write_text('{"questions": []}'), 'no active question'),
        (lambda f: (f / 'LR_split_test_questions.json').unlink(), "split 'test'"),
        (lambda f: (f / 'Images_LR' / '9.tif').unlink(), '9.tif'),
        (lambda f: (f / 'Images_LR' / '9.tif').write_bytes(b'II*\0'), '9.tif'),
    ],
)
def test_a_damaged_set_is_one_sentence(scene: Path, command: Command, tmp_path: Path, change: Any, words: str) -> None:
    """It names the file, and the question where it is one."""
    folder = published(tmp_path / 'lr', scene)
    change(folder)
    run = ('evaluate-questions', folder, '--model', MODEL, '--out', tmp_path / 'out', '--words', 'forest,water,town')
    code, err = command(*run)
    assert code and 'Traceback' not in err and words in err.strip().splitlines()[-1], err


def test_images_are_named_by_numbers_only(scene: Path, command: Command, tmp_path: Path) -> None:
    """A picture's id never leads out of the folder."""
    folder = published(tmp_path / 'lr', scene)
    path = folder / 'LR_split_test_questions.json'
    path.write_text(path.read_text().replace('"img_id": 9', '"img_id": "../../9"'))
    run = ('evaluate-questions', folder, '--model', MODEL, '--out', tmp_path / 'out', '--words', 'forest,water,town')
    code, err = command(*run)
    assert code == 1 and 'get the data set again' in err, err


def test_pixels_without_class_are_no_objects(field: Field, model: Model, tmp_path: Path) -> None:
    """The missing corner of the scene is no part of what was seen."""
    program = parse_program('{"op": "list", "words": ["forest", "water", "a town"]}')
    ask(field, model, 'q', program, tmp_path, conventions_of('plain'), content=load_classes([','.join(WORDS)]))
    rests = json.loads((tmp_path / 'answer.json').read_text())['rests on']
    seen = np.prod([384, 320]) - 100 * 100
    assert rests['land seen, km²'] == pytest.approx(seen * 25 / 1e6, rel=0.01)
