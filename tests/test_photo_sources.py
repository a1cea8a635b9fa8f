"""Photo tables of every kind, from disk, web and stores: the same rows give the same photos, bad rows stop no run."""

from __future__ import annotations

import bz2
import functools
import gzip
import http.server
import io
import json
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from grafalign.errors import GrafalignError
from grafalign.photos import Photos, PhotoSource, read_photos
from grafalign.photos.ranks import ranks
from grafalign.photos.table import COLUMNS
from grafalign.photos.uris import resolve_uris
from grafalign.photos.values import licence_name, numbers, times

ROWS = pd.DataFrame(
    {
        'photo_id': ['007', '1', 'ø "quoted", 3', '1e5'],
        'uri': [f'https://photos.example/{i}.jpg' for i in range(4)],
        'lon': [10.5, -71.25, 0.125, 179.5],
        'lat': [50.25, 42.5, -33.5, 0.0],
        'accuracy_m': [5.0, None, 30.25, 1000.0],
        'taken_at': ['2015-10-24T19:13:50Z', None, '2015-10-24', '2015-10-24 21:13:50.25+02:00'],
        'licence': ['CC BY-SA 4.0', 'cc0', None, 'all mine'],
        'author': ['Ada', 'Bo', 'Ada', None],
    }
)


def rejected(photos: Photos) -> dict[str, str]:
    """Reasons by id."""
    return dict(photos.rejected[['id', 'reason']].itertuples(index=False))


def read(table: object, **more: object) -> Photos:
    """Photos of a table."""
    return read_photos(PhotoSource.model_validate({'table': table, **more}))


def points() -> gpd.GeoDataFrame:
    """The rows with points instead of columns."""
    return gpd.GeoDataFrame(
        ROWS.drop(columns=['lon', 'lat']), geometry=gpd.points_from_xy(ROWS['lon'], ROWS['lat']), crs=4326
    )


def jsonl(rows: pd.DataFrame) -> bytes:
    """One JSON object a line."""
    return rows.to_json(orient='records', lines=True).encode()


def zstd(content: bytes) -> bytes:
    """Zstandard by Arrow."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, 'zstd') as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def parquet(rows: pd.DataFrame) -> bytes:
    """Parquet."""
    buffer = io.BytesIO()
    rows.to_parquet(buffer)
    return buffer.getvalue()


WRITERS: dict[str, Callable[[Path], object]] = {
    'a.csv': lambda p: ROWS.to_csv(p, index=False),
    'a.tsv': lambda p: ROWS.to_csv(p, index=False, sep='\t'),
    'a.CSV.GZ': lambda p: p.write_bytes(gzip.compress(ROWS.to_csv(index=False).encode())),
    'a.csv.bz2': lambda p: p.write_bytes(bz2.compress(ROWS.to_csv(index=False).encode())),
    'a.csv.zst': lambda p: p.write_bytes(zstd(ROWS.to_csv(index=False).encode())),
    'a.jsonl': lambda p: p.write_bytes(jsonl(ROWS)),
    'a.ndjson.gz': lambda p: p.write_bytes(gzip.compress(jsonl(ROWS))),
    'a.json': lambda p: p.write_text(ROWS.to_json(orient='records')),
    'a.parquet': lambda p: p.write_bytes(parquet(ROWS)),
    'b.geoparquet': lambda p: points().to_parquet(p),
    'c.geoparquet': lambda p: points().to_parquet(p, geometry_encoding='geoarrow', schema_version='1.1.0'),
    'd.geoparquet': lambda p: points().to_crs(3857).to_parquet(p),
    'a.geojson': lambda p: points().to_file(p, driver='GeoJSON'),
    'a.geojson.gz': lambda p: p.write_bytes(gzip.compress(points().to_json().encode())),
    'b.json': lambda p: p.write_text(points().to_json()),
    'a.geojsonl': lambda p: p.write_text('\n'.join(json.dumps(f) for f in json.loads(points().to_json())['features'])),
}


@pytest.fixture(scope='module')
def expected(tmp_path_factory: pytest.TempPathFactory) -> Photos:
    """The photos of the rows as a CSV."""
    path = tmp_path_factory.mktemp('plain') / 'a.csv'
    ROWS.to_csv(path, index=False)
    return read(path)


def test_the_table_has_its_columns_and_types(expected: Photos) -> None:
    """Every column of the contract is there in its order, sorted by id, with strings in Arrow."""
    table = expected.table
    assert tuple(table.columns) == COLUMNS
    assert table['photo_id'].tolist() == sorted(ROWS['photo_id'])
    kinds = {'lon': 'float64', 'accuracy_m': 'float64', 'taken_at': 'datetime64[us, UTC]', 'width': 'Int32'}
    kinds |= {'dhash': 'UInt64', 'uri': 'string', 'digest': 'string'}
    assert {n: str(table[n].dtype) for n in kinds} == kinds
    assert all(table[n].dtype.storage == 'pyarrow' for n in ('photo_id', 'uri', 'licence', 'author'))
    assert table['licence'].fillna('-').tolist() == ['CC-BY-SA-4.0', 'CC0-1.0', 'all mine', '-']
    stamps = ['2015-10-24 19:13:50', None, '2015-10-24 19:13:50.25', '2015-10-24']
    assert table['taken_at'].astype(object).where(table['taken_at'].notna(), None).tolist() == [
        None if t is None else pd.Timestamp(t, tz='UTC') for t in stamps
    ]


@pytest.mark.parametrize('name', WRITERS)
def test_every_kind_of_table_gives_the_same_photos(name: str, expected: Photos, tmp_path: Path) -> None:
    """CSV, TSV, JSON lines, Parquet, GeoParquet and GeoJSON, compressed or not, tell the same; ids stay text."""
    WRITERS[name](tmp_path / name)
    photos = read(tmp_path / name)
    close = {'rtol': 1e-12, 'atol': 1e-9}
    pd.testing.assert_frame_equal(photos.table, expected.table, **close)
    assert photos.rejected.empty


def test_globs_lists_and_folders_are_many_tables(expected: Photos, tmp_path: Path) -> None:
    """A glob, a list and a folder read every table once, each with its own columns."""
    ROWS.head(1).to_csv(tmp_path / 'a.csv', index=False)
    ROWS.iloc[1:2].rename(columns={'lon': 'longitude'}).to_parquet(tmp_path / 'b.parquet')
    (tmp_path / 'c.jsonl').write_bytes(jsonl(ROWS.iloc[2:]))
    for table in (tmp_path, str(tmp_path / '*'), [tmp_path / 'a.csv', str(tmp_path / '[bc].*')]):
        pd.testing.assert_frame_equal(read(table).table, expected.table)
    with pytest.raises(GrafalignError, match=r'no file .*none\*\.csv'):
        read(str(tmp_path / 'none*.csv'))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """Address of a web server of a folder."""
    (tmp_path / 'web').mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path / 'web'))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


@pytest.mark.parametrize('name', ['a.csv', 'a.csv.bz2', 'a.jsonl', 'a.parquet', 'd.geoparquet', 'a.geojson'])
def test_tables_on_the_web(name: str, served: str, expected: Photos, tmp_path: Path) -> None:
    """A table that a web server serves gives the same photos, and one that it does not have is named."""
    WRITERS[name](tmp_path / 'web' / name)
    pd.testing.assert_frame_equal(read(f'{served}/{name}').table, expected.table, rtol=1e-12)
    with pytest.raises(GrafalignError, match=f'{served}/none.csv cannot be read .HTTP 404.'):
        read(f'{served}/none.csv')


@pytest.mark.parametrize('name', ['a.csv.gz', 'a.parquet'])
def test_tables_in_stores(name: str, expected: Photos) -> None:
    """A table in any store that fsspec knows, and a glob of them, give the same photos."""
    content = parquet(ROWS) if name == 'a.parquet' else gzip.compress(ROWS.to_csv(index=False).encode())
    with fsspec.open(f'memory://tables_{name}/{name}', 'wb') as file:
        file.write(content)
    for table in (f'memory://tables_{name}/{name}', f'memory://tables_{name}/*'):
        pd.testing.assert_frame_equal(read(table).table, expected.table)
    with pytest.raises(GrafalignError, match='no file memory://'):
        read('memory://nowhere/a.csv')
    with pytest.raises(GrafalignError, match='install that package'):
        read('dropbox://a/b.csv')


def test_malformed_rows_of_a_csv_are_rejected_with_their_number(tmp_path: Path) -> None:
    """Rows with too few or too many fields are rejected with file and row number, and the others go on."""
    lines = ROWS.to_csv(index=False).splitlines()
    lines[2:2] = ['only,three,fields', ','.join('abcdefghij')]
    (tmp_path / 'a.csv').write_text('\n'.join(lines))
    photos = read(tmp_path / 'a.csv')
    assert len(photos.table) == 4
    assert rejected(photos) == {'a.csv row 3': 'malformed row', 'a.csv row 4': 'malformed row'}
    assert photos.rejected['detail'][0] == f"{tmp_path / 'a.csv'}, row 3: 3 fields instead of 8: 'only,three,fields'"


def test_malformed_rows_of_json_lines_are_rejected_with_their_number(tmp_path: Path) -> None:
    """Lines that are no JSON, no object or nested without end are rejected, and the others go on."""
    lines = jsonl(ROWS).splitlines()
    lines[1:1] = [b'{"photo_id": ', b'[1, 2]', b'[' * 100_000, b'', b'"text"', b'\xff\xfe']
    (tmp_path / 'a.jsonl').write_bytes(b'\n'.join(lines))
    photos = read(tmp_path / 'a.jsonl')
    assert len(photos.table) == 4
    assert rejected(photos) == dict.fromkeys([f'a.jsonl row {n}' for n in (2, 3, 4, 6, 7)], 'malformed row')


def test_a_table_may_be_in_latin_1(tmp_path: Path) -> None:
    """Cells that are not UTF-8 are read as Latin-1 and the others stay."""
    lines = [
        b'photo_id,uri,lon,lat,author',
        b'a,https://a.example/a.jpg,1,2,J\xe9r\xf4me',
        'b,https://a.example/b.jpg,1,2,ø'.encode(),
    ]
    (tmp_path / 'a.csv').write_bytes(b'\xef\xbb\xbf' + b'\r\n'.join(lines))
    photos = read(tmp_path / 'a.csv')
    assert photos.table['author'].tolist() == ['Jérôme', 'ø']


def hostile(path: Path, name: str) -> Path:
    """A file that is no table."""
    path = path / name.split(':')[-1]
    header = b'photo_id,uri,lon,lat\n'
    match name.split(':')[0]:
        case 'million columns':
            path.write_bytes(','.join(f'c{i}' for i in range(1_000_000)).encode() + b'\n')
        case 'long line':
            with path.open('wb') as file:
                file.write(b'photo_id,uri,lon,lat\n' if path.suffix == '.csv' else b'')
                file.seek(2 << 30)  # a hole: zeros that take no room
                file.write(b'\n')
        case 'long header':
            path.write_bytes(b'x' * 3_000_000)
        case 'open quote':
            path.write_bytes(header + b'a,"https://a.example/a.jpg,1,2\n' + b'b,c,1,2\n' * 3_000)
        case 'picture':
            Image.new('RGB', (64, 64)).save(path, format='JPEG')
        case 'damaged':
            path.write_bytes(gzip.compress(header * 10_000)[:-200])
        case 'cut parquet':
            path.write_bytes(parquet(ROWS)[:-100])
        case 'empty':
            path.write_bytes(b'')
        case 'header only':
            path.write_bytes(header)
        case 'unknown':
            path.write_bytes(header)
    return path


@pytest.mark.parametrize(
    'name',
    [
        'million columns:a.csv',
        'long line:a.csv',
        'long line:a.jsonl',
        'long header:a.csv',
        'open quote:a.csv',
        'picture:a.csv',
        'picture:a.jsonl',
        'picture:a.parquet',
        'picture:a.geojson',
        'picture:a.json',
        'damaged:a.csv.gz',
        'cut parquet:a.parquet',
        'empty:a.csv',
        'empty:a.jsonl',
        'empty:a.parquet',
        'header only:a.csv',
        'unknown:a.xlsx',
        'unknown:a',
    ],
)
def test_what_is_no_table_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    """Whatever a file holds, the error is one sentence of bounded length with its name."""
    path = hostile(tmp_path, name)
    with pytest.raises(GrafalignError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert '\n' not in str(caught.value)
    assert len(str(caught.value)) < 1000


# --- uris -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('uri', 'resolved', 'problem'),
    [
        ('a.jpg', '/base/a.jpg', None),
        ('b/../a.jpg', '/base/a.jpg', None),
        ('../a.jpg', None, 'uri leaves the root folder'),
        ('b/../../base2/a.jpg', None, 'uri leaves the root folder'),
        ('..', None, 'uri leaves the root folder'),
        ('a..b/..c.jpg', '/base/a..b/..c.jpg', None),
        ('2018-10-13 12:30, 5.jpg', '/base/2018-10-13 12:30, 5.jpg', None),
        ('/data/a.jpg', '/data/a.jpg', None),
        ('file:///data/a%20b.jpg', '/data/a b.jpg', None),
        ('file:/data/a.jpg', '/data/a.jpg', None),
        ('file://server/a.jpg', None, 'unusable uri'),
        ('HTTPS://a.example/b.jpg', 'HTTPS://a.example/b.jpg', None),
        ('s3://bucket/a.jpg', 's3://bucket/a.jpg', None),
        ('https:///a.jpg', None, 'unusable uri'),
        ('a\0.jpg', None, 'unusable uri'),
        ('ftp://a.example/b.jpg', None, 'uri scheme is not allowed'),
        ('data:image/png;base64,AAAA', None, 'uri scheme is not allowed'),
        ('JavaScript:alert(1)', None, 'uri scheme is not allowed'),
        ('tar://a.jpg::/data/a.tar', None, 'uri scheme is not allowed'),
        ('simplecache::https://a.example/b.jpg', None, 'uri scheme is not allowed'),
        (None, None, None),
    ],
)
def test_what_a_table_may_name(uri: str | None, resolved: str | None, problem: str | None) -> None:
    """Paths below the root, absolute paths and addresses of the allowed schemes pass; all else has its reason."""
    schemes = ('file', 'http', 'https', 's3', 'gs')
    found, wrong = resolve_uris(pa.array([uri], pa.string()), '/base', schemes)
    assert wrong.to_pylist() == [problem]
    if problem is None:
        assert found.to_pylist() == [resolved]


def test_only_allowed_schemes_pass(tmp_path: Path) -> None:
    """Where a recipe allows https alone, paths, file: addresses and http are rejected with their reason."""
    uris = ['https://a.example/a.jpg', 'http://a.example/a.jpg', '/data/a.jpg', 'file:///data/a.jpg', 'a.jpg']
    rows = pd.DataFrame({'photo_id': list('abcde'), 'uri': uris, 'lon': 1, 'lat': 2})
    rows.to_csv(tmp_path / 'a.csv', index=False)
    photos = read(tmp_path / 'a.csv', schemes=['https'])
    assert photos.table['photo_id'].tolist() == ['a']
    assert rejected(photos) == dict.fromkeys('bcde', 'uri scheme is not allowed')
    with pytest.raises(ValidationError, match='schemes'):
        read(tmp_path / 'a.csv', schemes=['gopher'])


def test_uris_of_a_table_on_the_web_are_relative_to_it(served: str, tmp_path: Path) -> None:
    """Relative uris of a remote table lie beside it, and cannot climb out; a root moves them."""
    rows = pd.DataFrame({'photo_id': list('ab'), 'uri': ['x/a.jpg', '../b.jpg'], 'lon': 1, 'lat': 2})
    rows.to_csv(tmp_path / 'web' / 'a.csv', index=False)
    photos = read(f'{served}/a.csv')
    assert photos.table['uri'].tolist() == [f'{served}/x/a.jpg']
    assert rejected(photos) == {'b': 'uri leaves the root folder'}
    assert read(f'{served}/a.csv', root='s3://bucket/photos').table['uri'].tolist() == ['s3://bucket/photos/x/a.jpg']


# --- values -----------------------------------------------------------------------------------------------------------

SPELLINGS = {
    '2015-10-24T19:13:50Z': 1445714030,
    '2015-10-24T19:13:50.250Z': 1445714030.25,
    '2015-10-24': 1445644800,
    '2015-10-24 21:13:50+02:00': 1445714030,
    '2015:10:24 19:13:50': 1445714030,
    '20151024': 1445644800,
    '20151024191350': 1445714030,
    '1445714030': 1445714030,
    '1445714030250': 1445714030.25,
    '1445714030.5': 1445714030.5,
    '24 Oct 2015 19:13:50': 1445714030,
    '2012-02-16 09:56:37.0': 1329386197,
    '2015-02-30': None,
    '0000-00-00 00:00:00': None,
    'yesterday': None,
    '1e300': None,
    '': None,
}


@given(st.lists(st.sampled_from(sorted(SPELLINGS)), max_size=12))
@settings(max_examples=150, deadline=None)
def test_a_time_does_not_depend_on_the_rows_around_it(cells: list[str]) -> None:
    """Every cell gives its own time, whatever the spellings of the others."""
    found = times(pa.array(cells, pa.string()))
    seconds = [None if t is None else t.timestamp() for t in found.to_pylist()]
    assert seconds == [SPELLINGS[c] for c in cells]


@given(st.lists(st.one_of(st.floats(allow_nan=False, allow_infinity=False).map(repr), st.text(max_size=6)), max_size=8))
@settings(max_examples=150, deadline=None)
def test_numbers_are_those_that_python_reads(cells: list[str]) -> None:
    """Cells that are decimal numbers come out exactly, all others as NaN."""
    found = numbers(pa.array([c.encode('utf-8', 'replace').decode() for c in cells], pa.string()))
    for cell, value in zip(cells, found, strict=True):
        try:
            wanted = float(cell) if cell.strip().isascii() and '_' not in cell else np.nan
        except ValueError:
            wanted = np.nan
        assert value == wanted or (np.isnan(value) and not np.isfinite(wanted))


def test_ids_are_never_numbers(tmp_path: Path) -> None:
    """Leading zeros stay in text tables, and whole numbers of Parquet are written without a fraction."""
    rows = pd.DataFrame({'photo_id': [7, 12345678901], 'uri': 'https://a.example/a.jpg', 'lon': 1, 'lat': 2})
    for column in (rows['photo_id'], rows['photo_id'].astype(float)):
        rows.assign(photo_id=column).to_parquet(tmp_path / 'a.parquet')
        assert read(tmp_path / 'a.parquet').table['photo_id'].tolist() == ['12345678901', '7']


@pytest.mark.parametrize(
    ('text', 'name'),
    [
        ('https://creativecommons.org/licenses/by-nc-sa/2.0/', 'CC-BY-NC-SA-2.0'),
        ('CC BY-SA 4.0', 'CC-BY-SA-4.0'),
        ('cc-by-nc', 'CC-BY-NC'),
        ('CC BY-SA 4.0 International', 'CC-BY-SA-4.0'),
        ('CC0', 'CC0-1.0'),
        ('http://creativecommons.org/publicdomain/zero/1.0/', 'CC0-1.0'),
        ('all rights reserved', 'all rights reserved'),
        ('CC-BY-2.5', 'CC-BY-2.5'),
    ],
)
def test_licences_have_one_name(text: str, name: str) -> None:
    """Address, abbreviation and SPDX name of a Creative Commons licence are one."""
    assert licence_name(text) == name
    assert licence_name(name) == name


def test_ranks_are_those_of_a_keyed_hash() -> None:
    """The order is that of the eight bytes of a keyed BLAKE2b of the id, whatever the type of the column."""
    import hashlib

    ids = [f'photo {i}' for i in range(300)]
    digests = [
        hashlib.blake2b(i.encode(), digest_size=8, key=(-5).to_bytes(8, 'little', signed=True)).digest() for i in ids
    ]
    expected = np.argsort(np.argsort(np.array(digests, dtype=object)))
    for column in (ids, pd.Series(ids, dtype='string'), pa.array(ids), pa.chunked_array([ids[:100], ids[100:]])):
        np.testing.assert_array_equal(ranks(column, -5), expected)


# --- local files ------------------------------------------------------------------------------------------------------


def test_files_fill_in_what_the_table_does_not_speak_of(world: Path, tmp_path: Path) -> None:
    """Time and heading come from EXIF where the table has no such column; size, digest and hash always."""
    paths = sorted((world / 'photos').rglob('*.jpg'))[:70]
    rows = pd.DataFrame({'uri': [str(p) for p in paths], 'lon': 1.0, 'lat': 2.0})
    rows.to_csv(tmp_path / 'a.csv', index=False)
    rows.assign(taken_at=None, heading_deg=7).to_csv(tmp_path / 'b.csv', index=False)
    whole = read_photos(PhotoSource(folder=world / 'photos')).table.set_index('uri').loc[[str(p) for p in paths]]
    silent, told = (read(tmp_path / n).table.set_index('uri').loc[whole.index] for n in ('a.csv', 'b.csv'))
    assert silent['taken_at'].equals(whole['taken_at'])
    assert silent['taken_at'].notna().any()
    assert told['taken_at'].isna().all()
    assert (told['heading_deg'] == 7).all()
    for column in ('width', 'height', 'digest', 'dhash'):
        assert told[column].equals(whole[column])
    sizes = [Image.open(p).size for p in paths]
    assert list(zip(told['width'], told['height'], strict=True)) == sizes


def test_a_folder_lists_every_kind_of_image(tmp_path: Path) -> None:
    """JPEG, PNG, WebP and TIFF in any case and folder are listed; other files are not photos."""
    exif = Image.Exif()
    exif[0x8825] = {1: 'N', 2: (50.0, 0.0, 0.0), 3: 'E', 4: (10.0, 0.0, 0.0)}
    names = ['a.jpg', 'B.JPEG', 'c/d.png', 'c/e/f.webp', 'g.tif']
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (32, 16)).save(tmp_path / name, exif=exif.tobytes())
    (tmp_path / 'notes.txt').write_text('no photo')
    photos = read_photos(PhotoSource(folder=tmp_path))
    assert photos.table['photo_id'].tolist() == sorted(names)
    assert set(photos.table['source']) == {tmp_path.name}
    assert (photos.table['lon'] == 10).all()


# --- WebDataset -------------------------------------------------------------------------------------------------------


def write_shard(folder: Path, number: int, rows: list[dict[str, object]], suffix: str = 'jpg') -> None:
    """A shard as img2dataset writes it."""
    with tarfile.open(folder / f'{number:05d}.tar', 'w') as tar:
        for row in rows:
            if row['status'] == 'success':
                for end, content in (('json', b'{}'), (suffix, b'image'), ('txt', b'caption')):
                    info = tarfile.TarInfo(f'{row["key"]}.{end}')
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    pq.write_table(pa.Table.from_pylist(rows), folder / f'{number:05d}.parquet')
    (folder / f'{number:05d}_stats.json').write_text('{}')


def sample(key: str, **more: object) -> dict[str, object]:
    """A row of img2dataset."""
    exif = {
        'GPS GPSLatitude': '[42, 36, 1234/100]',
        'GPS GPSLatitudeRef': 'N',
        'GPS GPSLongitude': '[71, 34, 0]',
        'GPS GPSLongitudeRef': 'W',
        'GPS GPSImgDirection': '181/2',
        'EXIF DateTimeOriginal': '2015:10:24 15:13:50',
        'EXIF OffsetTimeOriginal': '-04:00',
    }
    base = {'url': 'https://a.example/x.jpg', 'key': key, 'status': 'success', 'error_message': None}
    return {**base, 'width': 256, 'height': 192, 'exif': json.dumps(exif), 'sha256': 'ab' * 32, **more}


@pytest.mark.parametrize('suffix', ['jpg', 'webp'])
def test_webdataset(suffix: str, tmp_path: Path) -> None:
    """Samples of all shards have place, time and heading of their EXIF and the address of their member in the tar."""
    failed = sample('000000001', status='failed_to_download', error_message='HTTP Error 404: Not Found')
    write_shard(tmp_path, 0, [sample('000000000'), failed], suffix)
    write_shard(tmp_path, 1, [sample('000010000', exif='{}'), sample('000010001', exif='no json')], suffix)
    photos = read_photos(PhotoSource(webdataset=tmp_path))
    (row,) = photos.table.to_dict('records')
    assert row['uri'] == f'tar://000000000.{suffix}::{tmp_path}/00000.tar'
    assert (row['lon'], row['lat'], row['heading_deg']) == pytest.approx((-71.566667, 42.603428, 90.5), abs=1e-6)
    assert row['taken_at'] == pd.Timestamp('2015-10-24T19:13:50Z')
    assert (row['width'], row['height']) == (256, 192)
    with fsspec.open(row['uri']) as file:
        assert file.read() == b'image'
    assert rejected(photos) == {
        '000000001': 'failed_to_download',
        '000010000': 'no position',
        '000010001': 'no position',
    }
    assert photos.rejected['detail'][0] == 'HTTP Error 404: Not Found'


def test_webdataset_with_positions_beside_the_images(tmp_path: Path) -> None:
    """Columns that were saved with the images come before EXIF; a digest is taken where the recipe names it."""
    rows = [
        sample('000000000', latitude=1.5, longitude=2.5, author='Ada'),
        sample('000000001', latitude=None, longitude=None),
    ]
    write_shard(tmp_path, 0, rows)
    photos = read_photos(PhotoSource(webdataset=str(tmp_path), columns={'digest': 'sha256'}))
    assert photos.table['lon'].tolist() == pytest.approx([2.5, -71.566667])
    assert photos.table['digest'].tolist() == ['ab' * 32] * 2
    assert photos.table['author'][0] == 'Ada'


def test_webdataset_in_a_store(tmp_path: Path) -> None:
    """Shards in a store are listed and addressed there."""
    write_shard(tmp_path, 0, [sample('000000000')])
    store = fsspec.filesystem('memory')
    store.put(str(tmp_path), '/shards', recursive=True)
    folder = next(p for p in store.find('/shards') if p.endswith('.tar')).rpartition('/')[0]
    photos = read_photos(PhotoSource(webdataset=f'memory:/{folder}'))
    (uri,) = photos.table['uri']
    assert uri.startswith('tar://000000000.jpg::memory://')
    with fsspec.open(uri) as file:
        assert file.read() == b'image'


def test_webdataset_that_is_none_is_refused(tmp_path: Path) -> None:
    """A folder without shards and a table without its tar are named."""
    with pytest.raises(GrafalignError, match='img2dataset'):
        read_photos(PhotoSource(webdataset=tmp_path / 'none'))
    write_shard(tmp_path, 0, [sample('000000000')])
    (tmp_path / '00000.tar').unlink()
    with pytest.raises(GrafalignError, match=r'has no 00000\.tar beside it'):
        read_photos(PhotoSource(webdataset=tmp_path))


def test_one_source_is_named() -> None:
    """A recipe names one source; a layout needs a table and no names of columns."""
    for wrong in ({}, {'folder': 'a', 'table': 'b'}, {'webdataset': 'a', 'layout': 'flickr'}):
        with pytest.raises(ValidationError):
            PhotoSource.model_validate(wrong)
    with pytest.raises(ValidationError, match='without `columns`'):
        PhotoSource(table='a.csv', layout='lucas', columns={'lon': 'x'})
