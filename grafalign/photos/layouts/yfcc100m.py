"""YFCC100M, the 100 million photos and videos of Flickr (Thomee et al., CACM 2016, doi:10.1145/2812802).

`yfcc100m_dataset` (.bz2) has no header, no quotes and tabs between fields: 25 columns in the later release, which
begins with a line number and has the hash of the file after the id; 24 without the hash or the line number, 23 in the
first one. Copies with a header use the names of yfcc100m_dataset.sql (photoid, uid ...). Texts are URL-encoded.
Sources: https://multimediacommons.wordpress.com/yfcc100m-core-dataset/,
https://lbsn.vgiscience.org/tutorial/yfcc-introduction/.

`marker` is 0 for a photo and 1 for a video; videos are rejected. Times are the camera's, without zone, and taken for
UTC. With `photos.root` the local copies ROOT/ID.jpg are taken instead of Flickr's addresses.
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc

from grafalign.photos.batches import Form, read_batches
from grafalign.photos.layouts.common import choose_from, column_or_none, flickr_accuracy_m, where_true
from grafalign.photos.raw import Raw, Where
from grafalign.photos.values import Column, texts, truths

NAMES = [
    *('photoid', 'uid', 'unickname', 'datetaken', 'dateuploaded', 'capturedevice', 'title', 'description', 'usertags'),
    *('machinetags', 'longitude', 'latitude', 'accuracy', 'pageurl', 'downloadurl', 'licensename', 'licenseurl'),
    *('serverid', 'farmid', 'secret', 'secretoriginal', 'ext', 'marker'),
]
_NEEDED = ('photoid', 'longitude', 'latitude', 'downloadurl')
_WANTED = ('uid', 'unickname', 'datetaken', 'accuracy', 'licensename', 'licenseurl', 'marker')


def _names(first: list[str]) -> list[str] | None:
    """The columns of a table without header, by the number of its fields."""
    if 'photoid' in first:
        return None
    hashed = [NAMES[0], 'hash', *NAMES[1:]]
    if len(first) == 24:
        return hashed if first[2].count('@') else ['line', *NAMES]
    return {23: NAMES, 25: ['line', *hashed]}.get(len(first))


def read(files: list[str], where: Where) -> Iterator[Raw]:
    """Stream the photos."""
    for path in files:
        delimiter = ',' if '.csv' in path else '\t'
        form = Form(delimiter, quoted=delimiter == ',', names=_names)
        for batch in read_batches(path, choose_from(path, 'yfcc100m', _NEEDED, _WANTED), form):
            yield Raw(_columns(batch.table, where), len(batch.table), where.root, batch.malformed)


def _columns(table: pa.Table, where: Where) -> dict[str, Column]:
    photo_id = texts(table['photoid'])
    local = pc.binary_join_element_wise(photo_id, 'jpg', '.')
    author = pc.coalesce(texts(column_or_none(table, 'unickname')), texts(column_or_none(table, 'uid')))
    licence = [texts(column_or_none(table, n)) for n in ('licenseurl', 'licensename')]
    return {
        'photo_id': photo_id,
        'uri': local if where.given else table['downloadurl'],
        'lon': table['longitude'],
        'lat': table['latitude'],
        'accuracy_m': flickr_accuracy_m(column_or_none(table, 'accuracy')),
        'taken_at': column_or_none(table, 'datetaken'),
        'licence': pc.coalesce(*licence),
        'author': _decoded(author),
        'source': pa.array(['yfcc100m'] * len(table), pa.string()),
        'problem': where_true(truths(column_or_none(table, 'marker')), 'video'),
    }


def _decoded(column: Column) -> Column:
    """URL-encoded texts as people wrote them, each spelling worked out once."""
    coded = column.dictionary_encode()
    plain = [unquote_plus(t) for t in coded.dictionary.to_pylist()]
    return pa.array(plain, pa.string()).take(coded.indices)
