"""Held-out kinds leave a set by one rule: captions and landmarks that name them, with all of their images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grafalign.captions import CaptionSet
from grafalign.captions.import_set import ImportOptions, import_captions
from grafalign.captions.landmarks.find import SCHEMA, LandmarksMarker
from grafalign.captions.landmarks.kinds import table
from grafalign.captions.writing.template import plural
from grafalign.curation.hold_out import HoldOutSettings, hold_out, naming
from grafalign.errors import GrafalignError
from grafalign.files import file_digest
from tests.caption_world import picture

TEXTS = {
    '0': ['a golf course beside a lake', 'green grass'],
    '1': ['green grass with trees'],
    '2': ['two Golf-Courses', 'a road'],
    '3': ['the golfer walks on the course'],
    '4': ['a park'],
    '5': ['fairways between trees'],
    '6': ['a lake'],
}


@pytest.fixture
def captions(tmp_path: Path) -> CaptionSet:
    """Seven pictures with captions."""
    (tmp_path / 'pictures').mkdir()
    lines = []
    for name, texts in TEXTS.items():
        (tmp_path / 'pictures' / f'{name}.png').write_bytes(picture(int(name)))
        lines.append(json.dumps({'image': f'{name}.png', 'captions': texts}))
    (tmp_path / 'pictures' / 'captions.jsonl').write_text('\n'.join(lines))
    import_captions(tmp_path / 'pictures' / 'captions.jsonl', tmp_path / 'set', ImportOptions(kind='human'))
    return CaptionSet(tmp_path / 'set')


def landmarks_of(captions: CaptionSet, out: Path, kinds: dict[int, list[tuple[str, bool]]]) -> Path:
    """A folder of landmarks: for the row of an image kinds, and whether they can be seen."""
    out.mkdir()
    rows = [
        {'image': row, 'image_id': str(row), 'landmark_id': f'{row}-{n}', 'kind': kind, 'visible': visible}
        for row, many in kinds.items()
        for n, (kind, visible) in enumerate(many)
    ]
    columns = {f.name: pa.array([r.get(f.name) for r in rows], f.type) for f in SCHEMA}
    pq.write_table(pa.table(columns, schema=SCHEMA), out / 'landmarks.parquet')
    LandmarksMarker(
        format=LandmarksMarker.NEWEST,
        images=captions.marker.files['images.parquet'],
        settings={},
        kinds='',
        with_landmarks=1,
        landmarks=len(rows),
        visible=1,
        reasons={},
        licences={},
        credits=(),
        versions={},
        digest=file_digest(out / 'landmarks.parquet'),
    ).write(out / 'landmarks.json')
    return out


def wanted(*words: str) -> HoldOutSettings:
    """One kind with its synonyms."""
    return HoldOutSettings.model_validate({'kinds': [{'kind': words[0], 'synonyms': words[1:]}]})


def files_of(captions: CaptionSet) -> set[str]:
    """Names of a set's images without their endings."""
    return {Path(name).stem for name in captions.images['file'].to_pylist()}


def test_an_image_leaves_with_all_its_captions(captions: CaptionSet, tmp_path: Path) -> None:
    """Where one of them names the kind or a synonym, in any form; words inside of others do not count."""
    done = hold_out(captions, tmp_path / 'out', wanted('golf course', 'fairway'))
    left = CaptionSet(tmp_path / 'out')
    assert files_of(left) == {'1', '3', '4', '6'}
    assert set(left.captions['text'].to_pylist()) == {t for n in '1346' for t in TEXTS[n]}
    assert (done.images, done.kept, done.named) == (7, 4, {'golf course': 3})
    rejected = pq.read_table(tmp_path / 'out' / 'rejected.parquet').to_pylist()
    assert {r['reason'] for r in rejected} == {'a caption names golf course'} and len(rejected) == 3


def test_an_image_with_such_a_landmark_leaves_whatever_its_captions_say(captions: CaptionSet, tmp_path: Path) -> None:
    """Visible or not, under the kind's name or a synonym's; a park that is a golf course goes, a mere park stays."""
    kinds = {1: [('lake', True), ('golf course', False)], 4: [('fairway', True)], 6: [('golf course shop', True)]}
    landmarks = landmarks_of(captions, tmp_path / 'landmarks', kinds)
    done = hold_out(captions, tmp_path / 'out', wanted('golf course', 'fairway'), landmarks)
    assert files_of(CaptionSet(tmp_path / 'out')) == {'3', '6'}
    assert done.with_landmark == {'golf course': 2}


def test_what_stays_behind_is_counted_by_truth(captions: CaptionSet, tmp_path: Path) -> None:
    """Images that show the kind though nothing says so."""
    ids = captions.images['image_id'].to_pylist()
    lines = [
        'image_id,kind',
        f'{ids[0]},golf course',
        f'{ids[3]},golf courses',
        f'{ids[4]},lake',
        'another,golf course',
    ]
    (tmp_path / 'truth.csv').write_text('\n'.join(lines))
    done = hold_out(captions, tmp_path / 'out', wanted('golf course'), truth=tmp_path / 'truth.csv')
    assert done.true == {'golf course': 2} and done.true_kept == {'golf course': 1}


@given(
    kind=st.sampled_from(sorted({k.name for values in table().values() for k in values.values()})), case=st.booleans()
)
def test_every_kind_of_the_vocabulary_is_found_in_both_numbers(kind: str, case: bool) -> None:
    """Whichever of the two was given, and not where it is part of another word."""
    both = (kind,) if kind.endswith('s') else (kind, plural(kind))  # `garages` has no plural of its own
    for given_form in both:
        for said in both:
            text = f'there is {said.upper() if case else said}, seen from above'
            assert naming([given_form]).search(text)
            assert not naming([given_form]).search(f'there is x{said}x')


def test_the_command_line_tells_what_left(
    captions: CaptionSet, tmp_path: Path, command: Callable[..., tuple[int, str]]
) -> None:
    """And a kind that is nowhere, an unreadable truth or a strange file are one sentence each."""
    (tmp_path / 'kinds.yaml').write_text('kinds:\n- {kind: golf course, synonyms: [fairway]}\n')
    code, _ = command('captions', 'hold-out', captions.path, tmp_path / 'out', tmp_path / 'kinds.yaml')
    assert code == 0 and len(CaptionSet(tmp_path / 'out')) == 4
    (tmp_path / 'volcano.yaml').write_text('kinds:\n- {kind: volcano}\n')
    code, error = command('captions', 'hold-out', captions.path, tmp_path / 'none', tmp_path / 'volcano.yaml')
    assert code != 0 and 'nothing to hold out' in error and not (tmp_path / 'none' / 'dataset.json').exists()
    (tmp_path / 'empty.yaml').write_text('kinds: []\n')
    code, error = command('captions', 'hold-out', captions.path, tmp_path / 'none', tmp_path / 'empty.yaml')
    assert code != 0 and 'empty.yaml' in error and 'kinds' in error
    (tmp_path / 'truth.csv').write_text('a,b\n1,2\n')
    arguments = (captions.path, tmp_path / 'none', tmp_path / 'kinds.yaml', '--truth', tmp_path / 'truth.csv')
    code, error = command('captions', 'hold-out', *arguments)
    assert code != 0 and 'columns image_id and kind' in error


def test_landmarks_of_another_set_are_refused(captions: CaptionSet, tmp_path: Path) -> None:
    """Their rows would be those of other images."""
    landmarks = landmarks_of(captions, tmp_path / 'landmarks', {1: [('golf course', True)]})
    marker = json.loads((landmarks / 'landmarks.json').read_text())
    (landmarks / 'landmarks.json').write_text(json.dumps(marker | {'images': 'others'}))
    with pytest.raises(GrafalignError, match='landmarks of another set'):
        hold_out(captions, tmp_path / 'out', wanted('golf course'), landmarks)
