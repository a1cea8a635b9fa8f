"""Which images of a caption set are worth training on: remote sensing, no copies, nothing that tests are made on."""

from grafalign.curation.apply import FilterSummary, filter_set
from grafalign.curation.copies import Copies, find_copies
from grafalign.curation.fit import fit_filter
from grafalign.curation.labels import FilterLabels
from grafalign.curation.stored import WebFilter, load_filter

__all__ = [
    'Copies',
    'FilterLabels',
    'FilterSummary',
    'WebFilter',
    'filter_set',
    'find_copies',
    'fit_filter',
    'load_filter',
]
