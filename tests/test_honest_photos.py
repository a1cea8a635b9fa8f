"""Where and when a photo was taken, as cameras, programs and tables really write it."""

from __future__ import annotations

import csv
import math
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational as R

from grafalign.config import parse_settings
from grafalign.errors import GrafalignError
from grafalign.photos import PhotoSource, read_photos
from grafalign.photos.exif import EXIF_IFD, GPS_IFD, open_photo, read_metadata
from grafalign.photos.exif_values import camera_time, gps_time, heading, position, taken_time
from grafalign.photos.webdataset import _from_exif

SYDNEY = {2: (33, 51, R(144, 10)), 4: (151, 12, 30)}
UTC = timezone.utc


def photo(path: Path, gps: dict[int, Any] | None = None, detail: dict[int, str] | None = None, **tags: str) -> Path:
    """A JPEG with EXIF; `tags` are Make, Software and DateTime."""
    exif = Image.Exif()
    exif.get_ifd(GPS_IFD).update(gps or {})
    exif.get_ifd(EXIF_IFD).update(detail or {})
    for name, number in (('Make', 271), ('Software', 305), ('DateTime', 306)):
        if name in tags:
            exif[number] = tags[name]
    Image.new('RGB', (16, 16), (9, 90, 9)).save(path, 'JPEG', exif=exif)
    return path


# ---- places ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('refs', [{}, {1: 'S'}, {3: 'E'}, {1: '', 3: ''}, {1: '\x01', 3: '\x01'}, {1: 'E', 3: 'S'}])
def test_a_position_without_hemisphere_is_none_and_has_a_reason(tmp_path: Path, refs: dict[int, str]) -> None:
    """Sydney must not land in the Pacific east of Japan."""
    metadata = read_metadata(photo(tmp_path / 'p.jpg', {**SYDNEY, **refs}))
    assert (metadata.lon, metadata.lat, metadata.place_problem) == (None, None, 'position without hemisphere')
    photo(tmp_path / 'good.jpg', {**SYDNEY, 1: 'S', 3: 'E'})
    found = read_photos(PhotoSource(folder=tmp_path))
    assert found.rejected[['id', 'reason']].values.tolist() == [['p.jpg', 'position without hemisphere']]
    np.testing.assert_allclose(found.table[['lon', 'lat']].to_numpy(), [[151.208333, -33.854]], atol=1e-6)


@pytest.mark.parametrize(
    ('parts', 'degrees'),
    [
        ((48, R(5124, 100)), 48.854),
        ((48, R(5124, 100), R(0, 0)), 48.854),
        ((48, 51, R(144, 10)), 48.854),
        (R(48854, 1000), 48.854),
        ((48, R(0, 0), R(0, 0)), 48.0),
        ((R(0, 0), 51, 14), None),
        ((48, R(0, 0), 14), None),
        ((), None),
    ],
)
def test_unset_last_parts_of_an_angle_are_zero(parts: Any, degrees: float | None) -> None:
    """Cameras leave the seconds 0/0; what comes before an unset part must be there."""
    lon, lat, _ = position((17, 6), 'E', parts, 'N')
    assert (lat is None and lon is None) if degrees is None else lat == pytest.approx(degrees)


def test_shards_of_img2dataset_are_read_by_the_same_rules() -> None:
    """Exifread's texts: seconds 0/0, no hemisphere, a GPS clock of 1970."""
    cells = [
        '{"GPS GPSLatitude": "[48, 1281/25, 0/0]", "GPS GPSLatitudeRef": "N", "GPS GPSLongitude": "[17, 6]", '
        '"GPS GPSLongitudeRef": "E", "GPS GPSDate": "1970:01:18", "GPS GPSTimeStamp": "[1, 2, 3]", '
        '"EXIF DateTimeOriginal": "2018:05:06 10:11:12"}',
        '{"GPS GPSLatitude": "[48, 1281/25, 0/0]", "GPS GPSLongitude": "[17, 6]"}',
    ]
    made = _from_exif(pa.array(cells), {})
    assert made['lat'].to_pylist()[0] == pytest.approx(48.854) and math.isnan(made['lat'].to_pylist()[1])
    assert made['problem'].to_pylist() == [None, 'position without hemisphere']
    assert made['taken_at'].to_pylist()[0] == datetime(2018, 5, 6, 10, 11, 12, tzinfo=UTC)


# ---- times -----------------------------------------------------------------------------------------------------------

CAMERA = datetime(2018, 5, 6, 10, 11, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ('day', 'expected'),
    [
        ('1970:01:18', CAMERA),  # never set
        ('1979:12:31', CAMERA),  # before there was GPS
        ('1998:09:20', CAMERA),  # rolled over: 1,024 weeks back
        ('0111:01:01', CAMERA),
        ('2018:05:07', datetime(2018, 5, 7, 1, 2, 3, tzinfo=UTC)),  # the next day elsewhere: GPS is UTC
    ],
)
def test_a_gps_clock_far_from_the_cameras_is_none(day: str, expected: datetime) -> None:
    """The GPS week number began in 1980 and has ten bits."""
    assert taken_time(gps_time(day, (1, 2, 3)), CAMERA) == expected


def test_a_camera_that_was_reset_does_not_beat_gps() -> None:
    """Clocks start on the first of January 1980 or 2000."""
    gps = datetime(2018, 5, 6, tzinfo=UTC)
    for year in (1980, 2000):
        assert taken_time(gps, datetime(year, 1, 1, 0, 5, tzinfo=UTC)) == gps


@pytest.mark.parametrize(
    'stamp',
    [
        '2018:05:06 12:11:12.25+02:00',
        '2018-05-06T12:11:12.25+0200',
        '2018/05/06 10:11:12.25Z',
        '2018.05.06 10:11:12.25',
        '2018:05:06 10:11:12.25\x00',
    ],
)
def test_every_spelling_of_a_time_that_tables_take(stamp: str) -> None:
    """Programs write fractions, dashes, a T and the offset into DateTimeOriginal."""
    assert camera_time(stamp, '') == datetime(2018, 5, 6, 10, 11, 12, 250_000, tzinfo=UTC)


def test_a_blank_time_hides_no_other(tmp_path: Path) -> None:
    """DateTimeOriginal of blanks: DateTimeDigitized is taken."""
    path = photo(tmp_path / 'p.jpg', detail={36867: '    :  :     :  :  ', 36868: '2018:05:06 10:11:12'})
    assert read_metadata(path).taken_at == CAMERA


@pytest.mark.parametrize(
    ('tags', 'known'),
    [
        ({'Make': 'Canon', 'Software': 'Firmware 1.0'}, True),
        ({'Make': 'Canon', 'Software': 'Adobe Photoshop Lightroom 6.1'}, False),
        ({'Software': 'Adobe Photoshop CS3 Windows'}, False),
        ({}, False),
    ],
)
def test_the_time_of_an_edit_is_no_time_of_exposure(tmp_path: Path, tags: dict[str, str], known: bool) -> None:
    """DateTime is the time of the last change (EXIF 2.32): a camera's may stand for the exposure."""
    path = photo(tmp_path / 'p.jpg', DateTime='2018:05:06 10:11:12', **tags)
    assert (read_metadata(path).taken_at == CAMERA) == known


# ---- headings --------------------------------------------------------------------------------------------------------


def test_magnetic_headings_become_true_ones(tmp_path: Path) -> None:
    """World Magnetic Model 2020: the declination in Seattle in mid 2022 is 15.3 degrees east (NOAA's calculator)."""
    when = datetime(2022, 7, 1, tzinfo=UTC)
    assert heading(90, 'M', -122.33, 47.61, when) == pytest.approx(90 + 15.3, abs=0.3)
    assert heading(90, 'T', -122.33, 47.61, when) == heading(90, None, -122.33, 47.61, when) == 90
    assert heading(350, 'M', -122.33, 47.61, when) == pytest.approx(5.3, abs=0.3)
    assert heading(90, 'M', None, None, when) is None and heading(90, 'M', 0.0, 0.0, None) is None
    gps = {1: 'N', 2: (47, 36, 36), 3: 'W', 4: (122, 19, 48), 16: 'M', 17: R(90, 1), 29: '2022:07:01', 7: (0, 0, 0)}
    assert read_metadata(photo(tmp_path / 'p.jpg', gps)).heading_deg == pytest.approx(105.3, abs=0.3)


# ---- tables ----------------------------------------------------------------------------------------------------------


def read(folder: Path, cells: list[Any], **settings: Any) -> list[pd.Timestamp]:
    """Times of a CSV of photos with these cells."""
    Image.new('RGB', (16, 16)).save(folder / 'a.jpg')
    with (folder / 'table.csv').open('w', newline='') as file:
        rows = csv.writer(file)
        rows.writerow(['id', 'uri', 'lon', 'lat', 'taken_at'])
        rows.writerows([f'p{i:03d}', 'a.jpg', 11.3, 44.5, cell] for i, cell in enumerate(cells))
    source = parse_settings({'table': str(folder / 'table.csv'), **settings}, PhotoSource, 'recipe')
    return read_photos(source).table['taken_at'].tolist()


def days(times: list[pd.Timestamp]) -> list[str]:
    """Times as days."""
    return [str(t)[:10] for t in times]


def test_one_row_decides_the_order_of_day_and_month(tmp_path: Path) -> None:
    """Whichever row it is, and by either side."""
    assert days(read(tmp_path, ['10/9/2016', '30/9/2016 12:00'])) == ['2016-09-10', '2016-09-30']
    assert days(read(tmp_path, ['9/30/2016', '10/9/2016'])) == ['2016-09-30', '2016-10-09']
    assert days(read(tmp_path, ['05.06.2019 10:00', '5/5/2020'])) == ['2019-06-05', '2020-05-05']
    assert days(read(tmp_path, ['10.30.2016', '10.9.2016'])) == ['2016-10-30', '2016-10-09']
    frame = pd.DataFrame(
        {'id': ['a', 'b'], 'uri': 'a.jpg', 'lon': 1.0, 'lat': 1.0, 'taken_at': ['30/9/2016', '10/9/2016']}
    )
    frame.astype({'taken_at': 'category'}).to_parquet(tmp_path / 't.parquet')
    assert (
        days(read_photos(PhotoSource(table=str(tmp_path / 't.parquet'))).table['taken_at'].tolist())[1] == '2016-09-10'
    )


@pytest.mark.parametrize('cells', [['10/9/2016', '5/5/2016'], ['10/9/2016', '30/9/2016', '9/30/2016']])
def test_where_no_row_or_both_decide_the_user_is_asked(tmp_path: Path, cells: list[str]) -> None:
    """One sentence with a cell and the key; the key settles it."""
    with pytest.raises(GrafalignError, match=r"'10/9/2016' cannot be told apart.*photos\.taken_at\.day_first"):
        read(tmp_path, cells)
    assert days(read(tmp_path, cells, taken_at={'day_first': True}))[0] == '2016-09-10'
    assert days(read(tmp_path, cells, taken_at={'day_first': False}))[0] == '2016-10-09'


@pytest.mark.parametrize(
    'cell', ['2019', '201905', '43599', '10:15', 'today', 'now', '10:15:30 PM', '-5', '0', '99999999']
)
def test_what_can_be_no_time_is_none(tmp_path: Path, cell: str) -> None:
    """Years, months, serial numbers of spreadsheets, clocks without a day: no photo of 1970, none of today."""
    assert read(tmp_path, [cell, '2019-05-14'])[0] is pd.NaT


def test_integers_that_a_gap_made_floats_are_dates(tmp_path: Path) -> None:
    """Pandas writes 20151024 as 20151024.0 where the column has a gap; in Parquet, too."""
    assert days(read(tmp_path, ['20151024.0', '']))[0] == '2015-10-24'
    table = pa.table(
        {'id': ['a', 'b'], 'uri': ['a.jpg'] * 2, 'lon': [1.0, 2.0], 'lat': [1.0, 2.0], 'date': [20151024.0, None]}
    )
    pq.write_table(table, tmp_path / 't.parquet')
    source = PhotoSource(table=str(tmp_path / 't.parquet'), columns={'taken_at': 'date'})
    assert days(read_photos(source).table['taken_at'].tolist())[0] == '2015-10-24'


@pytest.mark.parametrize('cell', ['0001-01-01 00:00:00', '9999-12-31', '2999-01-01', '1700-01-01'])
def test_impossible_times_reject_the_row_and_not_the_run(tmp_path: Path, cell: str) -> None:
    """.NET's smallest and SQL's largest date, the future, and what is older than photography."""
    assert len(read(tmp_path, [cell, '2019-05-14'])) == 1
    source = PhotoSource(table=str(tmp_path / 'table.csv'))
    assert read_photos(source).rejected[['id', 'reason']].values.tolist() == [['p000', 'impossible time']]


def test_the_recipe_may_say_format_and_zone(tmp_path: Path) -> None:
    """A format for all rows; a zone for times that name none, summer and winter, and for no others."""
    assert days(read(tmp_path, ['24-Oct-2015', 'x'], taken_at={'format': '%d-%b-%Y'}))[0] == '2015-10-24'
    cells = ['2020-07-01 12:00', '2020-01-01 12:00', '2020-07-01T12:00:00Z', '1593597600']
    found = [str(t)[11:16] for t in read(tmp_path, cells, taken_at={'zone': 'Europe/Rome'})]
    assert found == ['10:00', '11:00', '12:00', '10:00']
    with pytest.raises(GrafalignError, match='Europe/Rome'):
        read(tmp_path, cells, taken_at={'zone': 'Rome'})


@pytest.mark.parametrize(
    ('row', 'lost'),
    [
        ('p2,"a.jpg,11.3,44.5,2019-01-01', 'p2'),
        ('p2,a.jpg,11.3,44.5,"2019-01-01', 'p2'),
        ('"p2,a.jpg,11.3,44.5,2019-01-01', 'p2'),
    ],
)
@pytest.mark.parametrize('closed', [False, True])
def test_an_open_quotation_mark_costs_its_own_row(tmp_path: Path, row: str, lost: str, closed: bool) -> None:
    """Not the thousand rows behind it, whether or not another one follows; quoted line breaks are still one row."""
    Image.new('RGB', (16, 16)).save(tmp_path / 'a.jpg')
    rows = [f'p{i},a.jpg,11.3,44.5,2019-01-01' for i in range(10, 1010)]
    rows[5] = '"p15\nsecond line",a.jpg,11.3,44.5,2019-01-01'
    if closed:
        rows[700] = 'p710,"a.jpg,11.3,44.5,2019-01-01'
    (tmp_path / 't.csv').write_text(
        '\n'.join(['photo_id,uri,lon,lat,taken_at', 'p1,a.jpg,11.3,44.5,2019-01-01', row, *rows]) + '\n'
    )
    found = read_photos(PhotoSource(table=str(tmp_path / 't.csv')))
    malformed = found.rejected[found.rejected['reason'] == 'malformed row']
    assert len(found.table) == 1001 - closed and len(malformed) == 1 + closed
    assert 'row 3' in malformed['id'].iloc[0] and lost in malformed['detail'].iloc[0]
    assert 'p15\nsecond line' in set(found.table['photo_id'])


@pytest.mark.parametrize(
    'text',
    [
        'a,a.jpg,1,2,22" wheel\nb,b.jpg,1,2,x\nc,c.jpg,1,2,12" vinyl\nd,d.jpg,1,2,x\n',
        'a5",a.jpg,1,2,"oops\nb,b.jpg,1,2,plain\nc,c.jpg,1,2,x\nz,z.jpg,1,2,x"y"\nq,q.jpg,1,2,t\n',
        'a,a.jpg,1,2,"he said ""no"""\nb,b.jpg,1,2,"two\nlines"\nc,c.jpg,1,2,""\n',
    ],
)
def test_no_row_of_a_table_with_marks_is_lost_in_silence(tmp_path: Path, text: str) -> None:
    """Every row is a photo or a rejected row; a mark inside a value is text (Python's csv is the reference)."""
    (tmp_path / 't.csv').write_text(f'photo_id,uri,lon,lat,title"\n{text}')
    for name in 'abcdqz':
        Image.new('RGB', (16, 16)).save(tmp_path / f'{name}.jpg')
    found = read_photos(PhotoSource(table=str(tmp_path / 't.csv')))
    malformed = found.rejected['reason'].eq('malformed row').sum()
    logical = [row for row in csv.reader(text.splitlines(keepends=True)) if len(row) == 5]
    if '"oops' in text:
        assert sorted(found.table['photo_id']) == ['b', 'c', 'q', 'z'] and malformed == 1
    else:
        assert sorted(found.table['photo_id']) == sorted(row[0] for row in logical) and malformed == 0


# ---- files -----------------------------------------------------------------------------------------------------------


def test_photos_are_known_by_their_content(tmp_path: Path) -> None:
    """Odd suffixes and none at all: every image is used or rejected with a reason; a text is no photo."""
    names = ['a.jpg', 'b.JPEG', 'c.jfif', 'd.jpe', 'DJI_0001', 'e.mpo', 'f.HEIC', 'g.dat']
    for name in names:
        photo(tmp_path / name, {**SYDNEY, 1: 'S', 3: 'E'})
    (tmp_path / 'notes.txt').write_text('no photo')
    (tmp_path / 'broken').write_bytes((tmp_path / 'a.jpg').read_bytes()[:300])
    found = read_photos(PhotoSource(folder=tmp_path))
    assert sorted(found.table['photo_id']) == sorted(names)
    assert found.rejected['id'].tolist() == ['broken']


def test_heic_is_read_by_default(tmp_path: Path) -> None:
    """What telephones write."""
    import pillow_heif

    pillow_heif.register_heif_opener()
    Image.new('RGB', (64, 48), (200, 30, 30)).save(tmp_path / 'a.heic')
    image = open_photo(tmp_path / 'a.heic')
    assert image.size == (64, 48) and abs(np.asarray(image)[20, 20].astype(int) - [200, 30, 30]).max() < 8


@pytest.mark.parametrize(
    ('values', 'mode'), [((0.0, 1.0), 'float32'), ((0, 255), 'uint16'), ((0, 4095), 'uint16'), ((0, 65535), 'uint16')]
)
def test_deep_greys_keep_their_contrast(tmp_path: Path, values: tuple[float, float], mode: str) -> None:
    """Fractions, 8, 12 or 16 bits in 16: half of the range comes out as half of 255, not as black or white."""
    ramp = np.linspace(*values, 256).astype(mode)[None].repeat(16, axis=0)
    Image.fromarray(ramp).save(tmp_path / 'a.tif')
    seen = np.asarray(open_photo(tmp_path / 'a.tif'))[0, :, 0].astype(int)
    assert abs(seen - np.arange(256)).max() <= 2
