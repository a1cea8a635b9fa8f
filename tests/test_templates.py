"""Captions by templates say what their evidence says, and nothing else."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from grafalign.captions import CaptionSet
from grafalign.captions.landmarks.find import Maps, find_landmarks
from grafalign.captions.landmarks.kinds import table
from grafalign.captions.writing.template import VisibleLandmark, plural, write_template
from grafalign.captions.writing.write import TemplateOptions, write_captions
from tests.landmark_world import extract, found_in, place_set

LANDMARK_KINDS = st.sampled_from(sorted({k.name for values in table().values() for k in values.values()}))


@given(st.lists(st.tuples(LANDMARK_KINDS, st.floats(0.001, 0.5)), min_size=1, max_size=6), st.integers(0, 50))
def test_a_template_names_only_what_its_evidence_is(kinds: list[tuple[str, float]], number: int) -> None:
    """Words of the caption are those of the kinds of its evidence, and of the phrasing."""
    visible = [
        VisibleLandmark(str(i), kind, 'Palace', share, 'north', None, None) for i, (kind, share) in enumerate(kinds)
    ]
    written = write_template('image', visible, number)
    assert written is not None and written.evidence
    told = {visible[int(i)].kind for i in written.evidence}
    left = written.text
    for kind in sorted(told, key=len, reverse=True):
        assert kind in left or plural(kind) in left
        left = left.replace(plural(kind), '').replace(kind, '')
    phrasing = 'an a aerial image of satellite seen from above photo showing view several mostly and'
    assert set(re.findall(r'[a-z]+', left)) <= set(phrasing.split())


def test_nothing_is_counted_named_or_placed_unless_asked() -> None:
    """Maps are never complete, names cannot be seen, and trainings turn their images."""
    visible = [VisibleLandmark(str(i), 'stadium', f'Arena {i}', 0.1, 'north', 'north', None) for i in range(3)]
    for number in range(20):
        text = write_template('t', visible, number).text  # type: ignore[union-attr]
        assert 'several stadiums' in text and 'Arena' not in text and 'north' not in text and '3' not in text
    one = write_template('t', visible[:1], 0, names=True, positions=True)
    assert one is not None and 'the stadium Arena 0 in the north' in one.text


def test_captions_are_written_with_their_evidence(tmp_path: Path) -> None:
    """A set over the same images; images without landmarks are rows; a hostile name is text and nothing else."""
    captions = place_set(tmp_path, 3)
    find_landmarks(captions, Maps(osm=(extract(tmp_path / 'x.osm.pbf'),)), tmp_path / 'landmarks')
    done = write_captions(captions, tmp_path / 'landmarks', tmp_path / 'out', TemplateOptions(per_image=8, names=True))
    written = CaptionSet(tmp_path / 'out')
    marker = done.marker
    assert marker.images == 3 and marker.kinds == {'template': marker.captions}
    ids = {row['landmark_id'] for row in found_in(tmp_path / 'landmarks') if row['visible']}
    rows = written.captions.to_pylist()
    assert all(set(row['evidence']) <= ids and row['evidence'] and row['writer'] == 'template' for row in rows)
    assert len({(row['image'], row['text']) for row in rows}) == len(rows)
    named = [row['text'] for row in rows if 'palace' in row['text']]
    assert named and not any('<b>' in text for text in named)
    again = write_captions(
        captions, tmp_path / 'landmarks', tmp_path / 'again', TemplateOptions(per_image=8, names=True)
    )
    assert again.marker.files == marker.files


def test_killed_landmarks_and_captions_are_made_anew(tmp_path: Path) -> None:
    """What a kill leaves does not count, and the next run gives the same bytes."""
    captions = place_set(tmp_path, 60)
    extract(tmp_path / 'x.osm.pbf')
    whole = find_landmarks(captions, Maps(osm=(tmp_path / 'x.osm.pbf',)), tmp_path / 'whole')
    write_captions(captions, tmp_path / 'whole', tmp_path / 'whole_set')
    base = [sys.executable, '-m', 'grafalign', 'captions']
    steps = {
        'killed': [
            *base,
            'landmarks',
            str(tmp_path / 'set'),
            str(tmp_path / 'killed'),
            '--osm',
            str(tmp_path / 'x.osm.pbf'),
        ],
        'killed_set': [*base, 'write', str(tmp_path / 'set'), str(tmp_path / 'killed'), str(tmp_path / 'killed_set')],
    }
    for name, step in steps.items():
        for wait in (0.0, 0.1, 0.2):
            process = subprocess.Popen(step, stderr=subprocess.DEVNULL)
            while process.poll() is None and not (tmp_path / name).exists():
                time.sleep(0.005)
            time.sleep(wait)
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
            process.wait()
        subprocess.run(step, check=True, capture_output=True)
    killed = find_landmarks(captions, Maps(osm=(tmp_path / 'x.osm.pbf',)), tmp_path / 'killed')
    assert killed.digest == whole.digest
    texts = [CaptionSet(tmp_path / n).marker.files['captions.parquet'] for n in ('whole_set', 'killed_set')]
    assert texts[0] == texts[1]
