"""Packed shards: what other trainers read, and what comes back by import."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grafalign.captions import CaptionSet
from grafalign.captions.import_set import import_captions
from grafalign.captions.pack import pack
from grafalign.captions.write_set import SetWriter
from grafalign.errors import DamagedError
from tests.caption_world import folder, picture, shard, texts_of


def test_packed_shards_hold_the_same_bytes_and_texts(tmp_path: Path) -> None:
    """Packing and importing again gives the same images and all their captions."""
    import_captions(folder(tmp_path / 'pictures', 10), tmp_path / 'set')
    done = pack(CaptionSet(tmp_path / 'set'), tmp_path / 'shards', per_shard=4)
    assert (done.shards, done.images, done.captions, done.failed) == (3, 10, 20, 0)
    import_captions(tmp_path / 'shards', tmp_path / 'again')
    first, again = CaptionSet(tmp_path / 'set'), CaptionSet(tmp_path / 'again')
    assert again.images['digest'].to_pylist() == first.images['digest'].to_pylist()
    assert list(texts_of(again).values()) == list(texts_of(first).values())


def test_evidence_writers_and_scores_survive_packing_and_importing(tmp_path: Path) -> None:
    """All columns but those of the place of the bytes are the same again, and the images have their own ids."""
    import_captions(folder(tmp_path / 'pictures', 3), tmp_path / 'imported')
    columns = {'kind': 'model', 'writer': 'a model', 'writer_digest': 'ab12', 'evidence': ['w1', 'w2']}
    with SetWriter(tmp_path / 'set') as writer:
        for row, image in enumerate(CaptionSet(tmp_path / 'imported').images.to_pylist()):
            writer.add_image(**image | {'scores': [('aerial', 0.25)], 'lon': 7.5, 'lat': 50.5, 'author': 'A'})
            writer.add_caption(image=row, image_id=image['image_id'], text='a pier', checks=['retried'], **columns)
            writer.add_caption(image=row, image_id=image['image_id'], text='a lake', kind='alt', evidence=[], checks=[])
        writer.finish({}, CaptionSet(tmp_path / 'imported').marker.root)
    pack(CaptionSet(tmp_path / 'set'), tmp_path / 'shards')
    import_captions(tmp_path / 'shards', tmp_path / 'again')
    first, again = CaptionSet(tmp_path / 'set'), CaptionSet(tmp_path / 'again')
    assert again.captions.equals(first.captions)
    placed = ['file', 'byte_offset', 'nbytes']
    assert again.images.drop_columns(placed).equals(first.images.drop_columns(placed))


def test_a_caption_of_no_kind_is_one_sentence(tmp_path: Path) -> None:
    """Tables of other tools may say anything; a score that is no number is left out."""
    import_captions(folder(tmp_path / 'pictures', 1), tmp_path / 'imported')
    image = CaptionSet(tmp_path / 'imported').images.to_pylist()[0]
    for name, kind in (('set', 'alt'), ('odd', 'song')):
        with SetWriter(tmp_path / name) as writer:
            writer.add_image(**image | {'scores': [('aerial', float('nan')), ('overhead', 1.0)]})
            writer.add_caption(image=0, image_id=image['image_id'], text='a pier', kind=kind)
            writer.finish({}, CaptionSet(tmp_path / 'imported').marker.root)
    pack(CaptionSet(tmp_path / 'set'), tmp_path / 'shards')
    import_captions(tmp_path / 'shards', tmp_path / 'again')
    assert CaptionSet(tmp_path / 'again').images['scores'].to_pylist() == [[('overhead', 1.0)]]
    with pytest.raises(DamagedError, match=r'captions\.0\.kind of image 000\.png: .*; import it again'):
        pack(CaptionSet(tmp_path / 'odd'), tmp_path / 'none')


@pytest.mark.parametrize(
    ('value', 'detail'),
    [
        ([], 'grafalign: Input should be'),
        ({'image_id': 'x', 'captions': [{'kind': 'alt'}]}, 'speaks of 1 captions, the sample has 2'),
        ({'image_id': 'x', 'captions': [{'kind': 'alt'}, {'kind': 'x'}]}, 'grafalign.captions.1.kind: Input should be'),
    ],
)
def test_a_damaged_grafalign_key_is_a_row_and_the_sample_is_read_without_it(
    value: object, detail: str, tmp_path: Path
) -> None:
    """Shards come from strangers: the captions stand in KEY.json for everybody."""
    entry = {'captions': ['a lake', 'a pier'], 'grafalign': value}
    shard(tmp_path / 'a.tar', {'1.png': picture(1), '1.json': json.dumps(entry).encode()})
    import_captions(tmp_path / 'a.tar', tmp_path / 'set')
    captions = CaptionSet(tmp_path / 'set')
    assert texts_of(captions) == {'a/1': ['a lake', 'a pier']}
    row = captions.rejected.to_pylist()[0]
    assert (row['kind'], row['reason']) == ('value', 'grafalign key is damaged') and detail in row['detail']


def test_packed_shards_are_read_by_open_clips_own_pipeline(tmp_path: Path) -> None:
    """The webdataset package, which open_clip trains from, reads them."""
    wds = pytest.importorskip('webdataset', reason='webdataset is not installed')
    import_captions(folder(tmp_path / 'pictures', 5), tmp_path / 'set')
    pack(CaptionSet(tmp_path / 'set'), tmp_path / 'shards')
    samples = list(wds.WebDataset(str(tmp_path / 'shards' / '00000.tar'), shardshuffle=False).decode('pilrgb'))
    assert [s['txt'] for s in samples][:2] == ['a red field', 'a green forest'] and samples[0]['png'].size == (40, 32)
