"""When a photo was taken: odd clocks and mixed spellings."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from grafalign.photos.collect import Collected
from grafalign.photos.exif import EXIF_IFD, read_metadata
from grafalign.photos.filters import PhotoFilters
from grafalign.photos.raw import Raw


@pytest.mark.parametrize(
    ('stamp', 'known'),
    [
        ('1969:12:31 19:00:00', False),
        ('1970:01:01 00:00:00', False),
        ('1970:01:01 09:00:00', False),
        ('1969:07:20 20:17:00', True),
        ('2015:10:24 15:13:50', True),
    ],
)
def test_a_clock_at_the_epoch_was_never_set(tmp_path: Path, stamp: str, known: bool) -> None:
    """EXIF times within a day of 1970 are no time; all others are."""
    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD)[36867] = stamp
    Image.new('RGB', (8, 8)).save(tmp_path / 'photo.jpg', exif=exif)
    assert (read_metadata(tmp_path / 'photo.jpg').taken_at is not None) == known


def test_every_row_may_spell_its_time_differently() -> None:
    """A table's times are read one by one: fractions of a second and bare days do not lose the rows after the first."""
    spelled = ['2015-10-24T19:13:50Z', '2015-10-24T19:13:50.250Z', '2015-10-24', '2015-10-24 21:13:50+02:00', None]
    frame = pd.DataFrame(
        {'photo_id': list('abcde'), 'uri': 'https://a.example/a.jpg', 'lon': 10.0, 'lat': 50.0, 'taken_at': spelled}
    )
    collected = Collected('table', PhotoFilters(), ('https',), verify=False)
    collected.add(Raw({n: pa.Array.from_pandas(frame[n]) for n in frame}, len(frame), '/root'))
    taken = collected.finish(1).table['taken_at']
    assert taken.isna().tolist() == [False, False, False, False, True]
    assert taken[0] == taken[3] == pd.Timestamp('2015-10-24T19:13:50Z')
