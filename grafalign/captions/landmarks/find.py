"""Landmarks of all images of a set: maps are read once, objects go to the images that they touch.

LANDMARKS/landmarks.parquet   a row a landmark and image, by image, the largest first; columns of `relate.Landmark`
LANDMARKS/landmarks.json      `LandmarksMarker`; written last
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from grafalign import console
from grafalign.artefacts import Marker
from grafalign.captions.caption_set import CaptionSet
from grafalign.captions.landmarks.footprints import footprints
from grafalign.captions.landmarks.kinds import TABLE
from grafalign.captions.landmarks.objects import MapObject
from grafalign.captions.landmarks.osm import read_osm
from grafalign.captions.landmarks.overture import read_overture
from grafalign.captions.landmarks.own import read_own
from grafalign.captions.landmarks.relate import Landmark, landmarks_of
from grafalign.captions.landmarks.spill import Spill
from grafalign.errors import DamagedError, InputError, naming_full_disk
from grafalign.files import file_digest, remove_parts, replacing
from grafalign.locks import exclusive, refuse_other_files

Bounds = tuple[float, float, float, float]
MARKER = 'landmarks.json'
SCHEMA = pa.schema(
    [
        ('image', pa.int64()),
        ('image_id', pa.string()),
        ('landmark_id', pa.string()),
        ('kind', pa.string()),
        ('key', pa.string()),
        ('name', pa.string()),
        ('share', pa.float64()),
        ('length_m', pa.float64()),
        ('area_m2', pa.float64()),
        ('row', pa.float64()),
        ('col', pa.float64()),
        ('position', pa.string()),
        ('relation', pa.string()),
        ('related_to', pa.string()),
        ('distance_m', pa.float64()),
        ('visible', pa.bool_()),
        ('reason', pa.string()),
        ('since', pa.date32()),
        ('licence', pa.string()),
        ('credit', pa.string()),
        ('geometry', pa.binary()),
    ]
)
_ROW_GROUP = 1 << 14


class LandmarksMarker(Marker):
    """`landmarks.json`."""

    REMEDY: ClassVar[str] = 'find them again'

    format: int
    images: str
    """Digest of the images' table that they are of."""
    settings: dict[str, Any]
    kinds: str
    """Digest of the table of kinds."""
    with_landmarks: int
    """Images that have a visible landmark."""
    landmarks: int
    """Rows."""
    visible: int
    reasons: dict[str, int]
    """Why the others are not visible."""
    unread: dict[str, int] = {}
    """Objects of the maps that could not be read, by reason."""
    licences: dict[str, int]
    credits: tuple[str, ...]
    versions: dict[str, str]
    digest: str
    """Of landmarks.parquet."""


@dataclasses.dataclass(frozen=True)
class Maps:
    """Where objects come from."""

    osm: tuple[Path, ...] = ()
    overture: tuple[Path, ...] = ()
    own: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them."""
        return (*self.osm, *self.overture, *self.own)

    def read(self, near: Callable[[Bounds], bool], box: Bounds, unread: Counter[str]) -> Iterator[MapObject]:
        """All objects near some image; those that cannot be read are counted by reason."""
        for path in self.osm:
            yield from read_osm(path, near, unread)
        for path in self.overture:
            yield from read_overture(path, near, box, unread)
        for path in self.own:
            yield from read_own(path, near, unread)


def find_landmarks(captions: CaptionSet, maps: Maps, out: Path, *, keep_younger: bool = False) -> LandmarksMarker:
    """Find what the maps know on the images of a set.

    Args:
        captions: the set; tiles of a pair store, or pictures with lon, lat and gsd_m.
        maps: where objects come from.
        out: folder to write.
        keep_younger: also count as visible what was put on the map after an image was taken.

    Raises:
        GrafalignError: no image says where it lies, or a map cannot be read.
    """
    if not maps.files:
        raise InputError('There is no map to take landmarks from; give --osm, --overture or --own.')
    missing = next((p for p in maps.files if not p.exists()), None)
    if missing is not None:
        raise InputError(f'There is no {missing}; give an existing map.')
    settings = {
        'maps': [_stamp(path) for path in maps.files],
        'keep_younger': keep_younger,
        'set': captions.digest,
    }
    with naming_full_disk(out), exclusive(out):
        refuse_other_files(out, (MARKER, 'landmarks.parquet'), 'the landmarks')
        remove_parts(out)
        table = file_digest(TABLE)
        if (out / MARKER).is_file():
            done = LandmarksMarker.read(out / MARKER)
            if (done.settings, done.kinds) == (settings, table):
                console.log(f'{out} is already complete.')
                return done
        (out / MARKER).unlink(missing_ok=True)
        places = footprints(captions)
        counts: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        licences: Counter[str] = Counter()
        thanks: dict[str, None] = {}
        with (
            Spill(out / 'objects.arrow.part') as spill,
            replacing(out / 'landmarks.parquet') as path,
            pq.ParquetWriter(path, SCHEMA) as writer,
        ):
            unread = _assign(places, maps, spill)
            rows: list[Landmark] = []
            pieces = spill.by_image(len(places))
            for place in console.track(places, 'measuring landmarks'):
                found = landmarks_of(place, next(pieces), keep_younger)
                rows += found
                counts['with'] += any(f.visible for f in found)
                for one in found:
                    counts['all'] += 1
                    counts['visible'] += one.visible
                    licences[one.licence] += 1
                    thanks[one.credit] = None
                    if one.reason is not None:
                        reasons[one.reason] += 1
                if len(rows) >= _ROW_GROUP:
                    _write(writer, rows)
                    rows = []
            _write(writer, rows)
            pieces.close()
        marker = LandmarksMarker(
            format=LandmarksMarker.NEWEST,
            images=captions.marker.files['images.parquet'],
            settings=settings,
            kinds=table,
            with_landmarks=counts['with'],
            landmarks=counts['all'],
            visible=counts['visible'],
            reasons=dict(reasons.most_common()),
            unread=dict(unread.most_common()),
            licences=dict(licences.most_common()),
            credits=tuple(t for t in thanks if t),
            versions={name: version(name) for name in ('grafalign', 'shapely')},
            digest=file_digest(out / 'landmarks.parquet'),
        )
        marker.write(out / MARKER)
        return marker


def open_landmarks(folder: Path, captions: CaptionSet) -> pq.ParquetFile:
    """The table of the landmarks of a set.

    Raises:
        GrafalignError: there are none, or they are of another set.
    """
    if not (folder / MARKER).is_file():
        raise InputError(f'{folder} holds no landmarks (no {MARKER}); find some with `grafalign captions landmarks`.')
    marker = LandmarksMarker.read(folder / MARKER)
    if marker.images != captions.marker.files['images.parquet']:
        raise InputError(f'{folder} holds the landmarks of another set than {captions.path}; find them again.')
    try:
        return pq.ParquetFile(folder / 'landmarks.parquet', pre_buffer=False)
    except (OSError, pa.ArrowException) as error:
        raise DamagedError(f'{folder}/landmarks.parquet cannot be read ({error}); {LandmarksMarker.REMEDY}.') from None


def _assign(places: Sequence[Any], maps: Maps, spill: Spill) -> Counter[str]:
    """Give every object to the images that its box touches; return how many could not be read, by reason."""
    unread: Counter[str] = Counter()
    boxes = np.array([place.bounds() for place in places])
    tree = shapely.STRtree(shapely.box(*boxes.T))
    around = (*(float(v) for v in boxes[:, :2].min(0)), *(float(v) for v in boxes[:, 2:].max(0)))

    def near(bounds: Bounds) -> bool:
        if bounds[0] > around[2] or bounds[2] < around[0] or bounds[1] > around[3] or bounds[3] < around[1]:
            return False
        return len(tree.query(shapely.box(*bounds))) > 0

    for one in maps.read(near, (around[0], around[1], around[2], around[3]), unread):
        images = tree.query(one.geometry).tolist()
        if images:
            spill.add(one, images)
    return unread


def _write(writer: pq.ParquetWriter, rows: Sequence[Landmark]) -> None:
    if rows:
        writer.write_table(pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], SCHEMA))


def _stamp(path: Path) -> dict[str, Any]:
    files = sorted(p for p in path.rglob('*.parquet')) if path.is_dir() else [path]
    state = hashlib.blake2b(digest_size=16)
    for file in files:
        status = file.stat()
        state.update(f'{file.name} {status.st_size} {status.st_mtime_ns}\n'.encode())
    return {'file': path.name, 'stamp': state.hexdigest()}
