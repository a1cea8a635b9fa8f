"""Caption sets hold what a source has, name what they do not take, and come out as shards that others read."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grafalign.captions import CaptionSet
from grafalign.captions.import_set import ImportOptions, import_captions
from grafalign.captions.numbering import Numbering
from grafalign.captions.pack import pack
from grafalign.captions.pictures import Pictures
from grafalign.captions.usable_text import TextError, cleaned, decoded
from grafalign.errors import GrafalignError, InputError
from grafalign.photos.exif import PhotoError
from grafalign.store import PairStore
from tests.caption_world import folder, picture, shard, texts_of
from tests.killing import run_through_kills


def reasons(captions: CaptionSet) -> dict[str, str]:
    """Reason by id of what was not taken."""
    rows = captions.rejected.select(['id', 'reason']).to_pylist()
    return {row['id']: row['reason'] for row in rows}


@pytest.mark.parametrize('workers', [1, 4])
def test_a_table_becomes_a_set_whose_images_stay_where_they_are(tmp_path: Path, workers: int) -> None:
    """No picture is copied, and each is read from where it lies, by any number of threads."""
    table = folder(tmp_path / 'pictures', 8)
    done = import_captions(table, tmp_path / 'set', ImportOptions(kind='human'), workers)
    assert (done.images, done.captions, done.distinct_captions, done.rejected) == (8, 16, 12, 0)
    captions = CaptionSet(tmp_path / 'set')
    assert texts_of(captions)['007.png'] == ['a green forest', 'a green forest seen from above']
    pictures = Pictures(captions)
    assert pictures.content(3) == picture(3) and pictures.read(3).size == (40, 32)
    assert {p.name for p in (tmp_path / 'set').iterdir()} >= {'images.parquet', 'captions.parquet', 'dataset.json'}
    assert not list((tmp_path / 'set').glob('*.p*ng'))


def test_the_same_source_gives_the_same_bytes_whatever_the_number_of_threads(tmp_path: Path) -> None:
    """Rows come in the order of the source."""
    table = folder(tmp_path / 'pictures')
    one, four = (import_captions(table, tmp_path / f'set{n}', None, n) for n in (1, 4))
    assert one.files == four.files and one.digest == four.digest


def test_an_image_in_several_rows_has_the_captions_of_all(tmp_path: Path) -> None:
    """A table with one caption a row gives one image with several."""
    (tmp_path / 'a.png').write_bytes(picture(0))
    (tmp_path / 'b.png').write_bytes(picture(1))
    (tmp_path / 't.csv').write_text('file,caption\na.png,one\nb.png,two\na.png,three\n')
    import_captions(tmp_path / 't.csv', tmp_path / 'set')
    captions = CaptionSet(tmp_path / 'set')
    assert texts_of(captions) == {'a.png': ['one', 'three'], 'b.png': ['two']}
    assert captions.captions['image'].to_pylist() == [0, 0, 1]
    assert captions.image_of_caption.tolist() == [0, 1, 0]  # as the file has them


def test_shards_with_members_missing_keep_what_is_whole(tmp_path: Path) -> None:
    """Every sample that is not taken has its reason; encodings are told apart."""
    whole = shard(
        tmp_path / 'shards' / '00000.tar',
        {
            '000.jpg': picture(0, form='JPEG'),
            '000.txt': 'Straße am Hafen'.encode('cp1252'),
            '001.jpg': picture(1, form='JPEG'),
            '002.txt': b'a caption whose image is gone',
            '003.png': picture(3),
            '003.json': json.dumps({'caption': 'a quarry', 'url': 'https://x.test/3.png', 'license': 'CC0'}).encode(),
            '004.png': picture(4, (1, 1)),
            '004.txt': b'one pixel',
            '005.png': picture(5),
            '005.txt': b'IMG_0034.JPG',
            '006.png': picture(6),
            '006.txt': b'word ' * 2000,
            '007.png': picture(7),
            '007.txt': '\ufefffields'.encode('utf-16-le'),
            '008.png': b'no picture at all',
            '008.txt': b'noise',
            '009.png': picture(9),
            '009.txt': b'   ',
            '010.png': picture(10),
            '010.txt': b'the last one is cut',
        },
    )
    with whole.open('r+b') as file:  # within 010.png
        file.truncate(whole.stat().st_size - 10240 - 2048)
    pq.write_table(
        pa.table({'key': ['000', '099'], 'status': ['success', 'failed_to_download'], 'error_message': [None, '404']}),
        tmp_path / 'shards' / '00000.parquet',
    )
    import_captions(tmp_path / 'shards', tmp_path / 'set')
    captions = CaptionSet(tmp_path / 'set')
    assert texts_of(captions) == {
        '00000/000': ['Straße am Hafen'],
        '00000/003': ['a quarry'],
        '00000/007': ['fields'],
    }
    found = reasons(captions)
    assert found['00000/001'] == 'no caption'
    assert found['00000/002'] == 'no image in the shard'
    assert found['00000/004'] == 'smaller than 16 px'
    assert found['00000/005'] == found['00000/006'] == found['00000/009'] == 'no usable caption'
    assert found['00000/008'] == 'not an image'
    assert found['00000/099'] == 'img2dataset: failed_to_download'
    row = captions.images.to_pylist()[1]
    assert (row['licence'], row['url'], row['file']) == ('CC0', 'https://x.test/3.png', '00000.tar')
    assert whole.read_bytes()[row['byte_offset'] :][: row['nbytes']] == picture(3)
    assert {c['checks'][0] for c in captions.captions.to_pylist() if c['checks']} == {
        'read as windows-1252',
        'read as utf-16',
    }


def test_what_is_rejected_is_counted_in_the_marker(tmp_path: Path) -> None:
    """Missing files, rows that are none and paths that climb out are counted, and the rest is kept."""
    (tmp_path / 'a.png').write_bytes(picture(0))
    rows = [{'file': 'a.png', 'text': 'a lake'}, {'file': '../b.png', 'text': 'x y'}, {'file': 'c.png', 'text': 'gone'}]
    (tmp_path / 't.jsonl').write_text('\n'.join(map(json.dumps, rows)) + '\n{broken\n[1]\n')
    done = import_captions(tmp_path / 't.jsonl', tmp_path / 'set')
    assert (done.images, done.rejected) == (1, 4)
    assert done.reasons == {'row cannot be read': 2, 'file is missing': 1, 'uri leaves the root folder': 1}


def test_laion_tables_keep_addresses_and_their_columns(tmp_path: Path) -> None:
    """Nothing is fetched at import; addresses that may not be fetched are refused."""
    table = pa.table({'URL': ['https://x.test/1.jpg', 'ftp://x.test/2.jpg'], 'TEXT': ['a harbour', 'a town']})
    pq.write_table(table, tmp_path / 'part.parquet')
    import_captions(tmp_path / 'part.parquet', tmp_path / 'set', ImportOptions(licence='unknown'))
    captions = CaptionSet(tmp_path / 'set')
    row = captions.images.to_pylist()[0]
    assert (row['file'], row['url'], row['digest'], row['licence']) == (
        'https://x.test/1.jpg',
        'https://x.test/1.jpg',
        None,
        'unknown',
    )
    assert reasons(captions) == {'ftp://x.test/2.jpg': 'uri scheme is not allowed'}


def test_a_published_caption_file_keeps_its_splits(tmp_path: Path) -> None:
    """Karpathy's JSON names its splits, and images that are missing are named."""
    for number in range(3):
        (tmp_path / 'images').mkdir(exist_ok=True)
        (tmp_path / 'images' / f'{number}.png').write_bytes(picture(number))
    images = [
        {'filename': f'{n}.png', 'split': split, 'sentences': [{'raw': f'place {w}'}]}
        for n, (split, w) in enumerate([('train', 'one'), ('val', 'two'), ('test', 'three')])
    ]
    (tmp_path / 'dataset.json').write_text(json.dumps({'images': [*images, {**images[0], 'filename': 'gone.png'}]}))
    done = import_captions(tmp_path / 'dataset.json', tmp_path / 'set', ImportOptions(images=tmp_path / 'images'))
    assert done.splits == {'test': 1, 'train': 1, 'val': 1} and done.kinds == {'human': 3}
    assert done.reasons == {'file is missing': 1}


def test_the_tiles_of_a_store_are_images_that_wait_for_captions(store: PairStore, tmp_path: Path) -> None:
    """A set of tiles holds no pixels and no captions."""
    done = import_captions(Path(str(store.path)), tmp_path / 'set')
    assert (done.images, done.captions, done.store_digest) == (len(store.tiles), 0, store.digest)
    row = CaptionSet(tmp_path / 'set').images.to_pylist()[5]
    assert row['image_id'] == store.tiles['tile_id'].iloc[5] and row['gsd_m'] == store.sensor.gsd_m
    with pytest.raises(InputError, match='is a set of tiles'):
        Pictures(CaptionSet(tmp_path / 'set'))


def test_a_share_of_the_images_goes_to_val_whatever_else_is_in_the_set(tmp_path: Path) -> None:
    """An image stays in its split when others are added."""
    small, large = (folder(tmp_path / str(n), n) for n in (30, 60))
    found = []
    for table in (small, large):
        import_captions(table, tmp_path / f'set{table.parent.name}', ImportOptions(val=0.3))
        captions = CaptionSet(tmp_path / f'set{table.parent.name}')
        found.append({captions.images['image_id'][int(r)].as_py() for r in captions.rows_of('val')})
    assert found[0] < found[1] and 8 <= len(found[1]) <= 28


def test_places_that_cannot_be_are_rows_and_their_images_stay(tmp_path: Path) -> None:
    """Longitude to 180, latitude to 90, metres a pixel above nought; a blank field is none."""
    (tmp_path / 'a.png').write_bytes(picture(1))
    values = {'lon': 200.5, 'lat': 'north', 'gsd_m': 0, 'author': 'A'}
    rows = [{'image': 'a.png', 'image_id': f'{n}', 'text': 'a lake'} for n in range(2)]
    lines = [rows[0] | values, rows[1] | {'lon': '', 'lat': float('nan'), 'gsd_m': '0.5'}]
    (tmp_path / 't.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    done = import_captions(tmp_path / 't.jsonl', tmp_path / 'set')
    captions = CaptionSet(tmp_path / 'set')
    assert done.images == 2 and captions.images['gsd_m'].to_pylist() == [None, 0.5]
    found = [(r['kind'], r['id'], r['reason'], r['detail']) for r in captions.rejected.to_pylist()]
    assert found == [
        ('value', '0', 'lon is not between -180 and 180', '200.5'),
        ('value', '0', 'lat is not between -90 and 90', 'north'),
        ('value', '0', 'gsd_m is not between 0.001 and 100,000', '0'),
    ]


@pytest.mark.parametrize(
    ('name', 'content', 'sentence'),
    [
        ('t.jsonl', b'{"x": 1}\n', 'has no column for file or url'),
        ('t.csv', b'file,other\na.png,b\n', 'has no column for text'),
        ('t.jsonl', b'', 'has no image that can be used: it is empty'),
        ('t.json', b'[1, 2]', 'is no caption file of a known form'),
        ('t.parquet', b'PAR1 not really', 'cannot be read'),
        ('t.tar', b'not a tar' * 100, 'has no image that can be used: shard cannot be read'),
        ('t.pdf', b'', 'is of no known form'),
    ],
)
def test_a_source_that_is_none_is_one_sentence(
    name: str, content: bytes, sentence: str, tmp_path: Path, command: Callable[..., tuple[int, str]]
) -> None:
    """It names the file and what to do."""
    (tmp_path / name).write_bytes(content)
    code, said = command('captions', 'import', tmp_path / name, tmp_path / 'set')
    assert code in (1, 4) and sentence in said and name in said and 'Traceback' not in said
    assert not (tmp_path / 'set' / 'dataset.json').exists() and not list(tmp_path.glob('set/*.part'))


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    """A set is never written among other files."""
    (tmp_path / 'set').mkdir()
    (tmp_path / 'set' / 'thesis.tex').write_text('x')
    with pytest.raises(InputError, match=r'holds thesis\.tex'):
        import_captions(folder(tmp_path / 'pictures', 2), tmp_path / 'set')


def test_a_changed_source_is_read_again_and_an_unchanged_one_is_not(tmp_path: Path) -> None:
    """The same command twice does nothing the second time."""
    table = folder(tmp_path / 'pictures', 6)
    first = import_captions(table, tmp_path / 'set')
    before = (tmp_path / 'set' / 'images.parquet').stat().st_mtime_ns
    assert import_captions(table, tmp_path / 'set') == first
    assert (tmp_path / 'set' / 'images.parquet').stat().st_mtime_ns == before
    with table.open('a') as file:
        file.write('{"image": "000.png", "captions": ["a third caption"]}\n')
    assert import_captions(table, tmp_path / 'set').captions == 13


def test_one_id_is_one_image_and_a_split_is_one_of_three(tmp_path: Path) -> None:
    """Another file of the same id, and a split nobody knows, are rows of what was rejected."""
    for number in range(3):
        (tmp_path / f'{number}.png').write_bytes(picture(number))
    (tmp_path / 't.csv').write_text(
        'image_id,file,caption,split\nx,0.png,one,training\nx,1.png,two,\nx,0.png,three,\ny,2.png,four,holdout\n'
    )
    import_captions(tmp_path / 't.csv', tmp_path / 'set')
    captions = CaptionSet(tmp_path / 'set')
    assert texts_of(captions) == {'x': ['one', 'three']} and captions.images['split'].to_pylist() == ['train']
    assert sorted((r['id'], r['reason'], r['detail']) for r in captions.rejected.to_pylist()) == [
        ('x', 'another file has this id', '1.png'),
        ('y', 'unknown split', 'holdout'),
    ]


def test_what_json_can_say_and_utf_8_cannot_is_written_all_the_same(tmp_path: Path) -> None:
    """Half a surrogate pair in an id, a caption or a label costs that character."""
    (tmp_path / 'a.png').write_bytes(picture(0))
    (tmp_path / 't.jsonl').write_bytes(
        b'{"image_id": "x\\ud800", "file": "a.png", "text": "a lake \\ud83d here", "label": "\\udfff"}\n'
    )
    import_captions(tmp_path / 't.jsonl', tmp_path / 'set')
    ((text,),) = texts_of(CaptionSet(tmp_path / 'set')).values()
    assert text.startswith('a lake') and text.endswith('here')


def test_a_set_is_not_written_over_one_of_another_source(tmp_path: Path) -> None:
    """Nobody loses a set to a slip of the folder."""
    import_captions(folder(tmp_path / 'one', 3), tmp_path / 'set')
    with pytest.raises(InputError, match=r'one/captions\.jsonl; give another folder, or delete that one'):
        import_captions(folder(tmp_path / 'two', 3), tmp_path / 'set')


@pytest.mark.parametrize('change', ['another', 'new'])
def test_other_image_files_are_looked_at_again(change: str, tmp_path: Path) -> None:
    """The table is the same, and a file is another one, or is there now."""
    table = folder(tmp_path / 'pictures', 3)
    changed = tmp_path / 'pictures' / '001.png'
    if change == 'new':
        changed.unlink()
    before = import_captions(table, tmp_path / 'set')
    time.sleep(0.05)
    changed.write_bytes(picture(77))
    after = import_captions(table, tmp_path / 'set')
    assert after.images == 3 and after.digest != before.digest
    digests = CaptionSet(tmp_path / 'set').images['digest'].to_pylist()
    assert digests[1] == hashlib.blake2b(picture(77), digest_size=16).hexdigest()


def test_a_killed_import_or_pack_leaves_nothing_that_counts(tmp_path: Path) -> None:
    """Whatever the moment of the kill, the next run gives the same bytes."""
    table = folder(tmp_path / 'pictures', 400)
    import_captions(table, tmp_path / 'whole')
    pack(CaptionSet(tmp_path / 'whole'), tmp_path / 'shards', per_shard=50)
    commands = {
        'again': ['captions', 'import', str(table), str(tmp_path / 'again')],
        'packed': ['captions', 'pack', str(tmp_path / 'whole'), str(tmp_path / 'packed'), '--per-shard', '50'],
    }
    for name, args in commands.items():
        assert run_through_kills(args, tmp_path / name, (1, 3, 6)) >= 2
    assert CaptionSet(tmp_path / 'again').digest == CaptionSet(tmp_path / 'whole').digest
    for file in (tmp_path / 'shards').glob('*.tar'):
        assert (tmp_path / 'packed' / file.name).read_bytes() == file.read_bytes()
    assert not list(tmp_path.glob('*/*.part'))


def test_damage_is_one_sentence(tmp_path: Path) -> None:
    """A damaged table and a folder of images that is gone name the remedy."""
    import_captions(folder(tmp_path / 'pictures', 4), tmp_path / 'set')
    captions = CaptionSet(tmp_path / 'set')
    assert captions.problems() == ()
    (tmp_path / 'set' / 'captions.parquet').write_bytes(b'PAR1')
    with pytest.raises(GrafalignError, match='import it again'):
        _ = CaptionSet(tmp_path / 'set').captions
    assert len(captions.problems()) == 1
    shutil.rmtree(tmp_path / 'pictures')
    with pytest.raises(InputError, match='put them back'):
        Pictures(CaptionSet(tmp_path / 'set'))


def test_a_picture_that_is_gone_is_a_reason(tmp_path: Path) -> None:
    """One missing file is an error of its own kind that callers can pass over."""
    import_captions(folder(tmp_path / 'pictures', 4), tmp_path / 'set')
    (tmp_path / 'pictures' / '002.png').unlink()
    with pytest.raises(PhotoError, match='file is missing'):
        Pictures(CaptionSet(tmp_path / 'set')).content(2)


@pytest.mark.parametrize(
    'text',
    [
        'IMG_0034',
        'DSC00012.JPG',
        'image (3).png',
        '20190611_143205',
        'screenshot 2',
        'untitled',
        'a_b_c.tiff',
        '1024x768',
        'https://x.test/a',
        '',
        ' \n\t',
        '1 .',
        '☃☃',
        '<img src="x">',
        '\x00\x01',
    ],
)
def test_what_says_nothing_is_no_caption(text: str) -> None:
    """File names, addresses, marks and nothing are refused."""
    with pytest.raises(TextError):
        cleaned(text)


@pytest.mark.parametrize(
    'text', ['Image of a lake', 'airport', '飛行場', 'B-52 bomber', 'photo 3 of the harbour', '9 boats']
)
def test_short_captions_are_captions(text: str) -> None:
    """Digits and words of file names do not make a caption one."""
    assert cleaned(text) == text


@given(st.text(max_size=300))
def test_a_cleaned_text_is_one_line(text: str) -> None:
    """No line breaks and no double blanks are left."""
    try:
        once = cleaned(text)
    except TextError:
        return
    assert once == ' '.join(once.split()) and len(once) <= 2000


@given(st.text(alphabet=st.characters(codec='utf-8')))
def test_utf_8_is_read_as_it_is(text: str) -> None:
    """Nothing is assumed for text in UTF-8."""
    if not text.startswith('\ufeff') and not text.encode().startswith((b'\xff\xfe', b'\xfe\xff')):
        assert decoded(text.encode()) == (text, ())


@given(st.lists(st.integers(0, 50), max_size=300), st.integers(1, 20))
def test_numbers_of_texts_are_those_of_their_first_coming(values: list[int], most_new: int) -> None:
    """As a list of all texts would number them, however often runs are merged."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('grafalign.captions.numbering._MOST_NEW', most_new)
        numbering = Numbering()
        order = list(dict.fromkeys(values))
        assert [numbering.number(str(v)) for v in values] == [order.index(v) for v in values]
        assert len(numbering) == len(order) and numbering.get('none') == -1
        many = Numbering()
        parts = [values[i : i + 7] for i in range(0, len(values), 7)]
        found = []
        for number, part in enumerate(parts):  # one by one and many at a time, in turns
            texts = [str(v) for v in part]
            found += [many.number(t) for t in texts] if number % 2 else many.numbers(texts).tolist()
        assert found == [order.index(v) for v in values]
