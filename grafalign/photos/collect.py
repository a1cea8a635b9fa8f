"""Gather the batches of a source: check and filter each as it comes, so that only what is wanted is held."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from grafalign.photos.filters import PhotoFilters, RowFilter, mark_groups
from grafalign.photos.local_images import with_metadata
from grafalign.photos.raw import Raw
from grafalign.photos.spelled_times import DayOrder, TimeSettings
from grafalign.photos.table import (
    Marks,
    Photos,
    SwapWatch,
    canonical,
    finished,
    mark_impossible_times,
    mark_same_ids,
    mark_unusable,
    rejects,
    with_order,
)
from grafalign.photos.uris import is_local, resolve_uris
from grafalign.photos.values import whole

FROM_FILES = ('taken_at', 'heading_deg', 'field_of_view_deg', 'accuracy_m')
"""What images tell where their table does not speak of it at all."""


class Collected:
    """The rows of a source so far."""

    def __init__(
        self,
        name: str,
        filters: PhotoFilters,
        schemes: tuple[str, ...],
        verify: bool,
        taken_at: TimeSettings | None = None,
    ) -> None:
        self._name, self._filters, self._schemes, self._verify = name, filters, schemes, verify
        self._taken_at = taken_at or TimeSettings()
        self._order = DayOrder(name)
        self._row_filter = RowFilter(filters)
        self._swap = SwapWatch(name)
        self._kept = [canonical({}, 0)]
        self._rejected = [rejects(pa.array([], pa.string()), '', pa.array([], pa.string()))]
        self._silent = set(FROM_FILES)
        self._places_in_files = False

    def add(self, raw: Raw) -> None:
        """Check some rows."""
        if raw.malformed:
            ids, details = (pa.array(part, pa.string()) for part in zip(*raw.malformed, strict=True))
            self._rejected.append(rejects(ids, 'malformed row', details))
        if not raw.rows:
            return
        self._silent -= set(raw.columns)
        table = canonical(raw.columns, raw.rows, self._taken_at)
        if 'taken_at' in raw.columns:
            self._order.see(whole(raw.columns['taken_at']))
        if raw.root is not None:
            uris, problem = resolve_uris(table['uri'].combine_chunks(), raw.root, self._schemes)
            detail = pc.if_else(pc.is_valid(problem), table['uri'], table['detail'])
            table = table.set_column(table.schema.get_field_index('detail'), 'detail', detail)
            problem = pc.coalesce(table['problem'].combine_chunks(), problem)
            table = table.set_column(table.schema.get_field_index('problem'), 'problem', problem)
            table = table.set_column(table.schema.get_field_index('uri'), 'uri', uris)
        self._swap.see(table['lon'].to_numpy(), table['lat'].to_numpy())
        if raw.places_in_files:
            self._places_in_files = True
            self._kept.append(table)
            return
        marks = Marks(table)
        mark_unusable(marks)
        unsure = {'taken_at'} if table['unsure'].null_count < len(table) else set()
        self._row_filter.mark(marks, self._silent | unsure | {'width'})  # an image that is not wanted need not be read
        self._split(marks)

    def _split(self, marks: Marks) -> None:
        kept, rejected = marks.split()
        self._kept.append(kept)
        self._rejected.append(rejected)

    def finish(self, workers: int | None) -> Photos:
        """Read the local images, check rows against each other, and sort.

        Raises:
            GrafalignError: there is no usable photo, or latitude and longitude are exchanged.
        """
        self._swap.check()
        table = pa.concat_tables(self._kept)
        self._kept = []
        table = with_order(table, self._order, self._taken_at)
        local = is_local(table['uri'])
        if local.any():
            ours = {*FROM_FILES, 'lon', 'lat'} if self._places_in_files else self._silent
            table = with_metadata(table.combine_chunks(), np.flatnonzero(local), ours, self._verify, workers)
        marks = Marks(table)
        mark_unusable(marks)
        mark_impossible_times(marks)
        self._row_filter.mark(marks)
        mark_same_ids(marks)
        mark_groups(marks, self._filters)
        self._split(marks)
        return finished(pa.concat_tables(self._kept), pa.concat_tables(self._rejected), self._name)
