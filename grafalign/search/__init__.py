"""Words, a picture or a place in; tiles out: an index of satellite images on disk, and how it is asked."""

from grafalign.search.build import build_index
from grafalign.search.catalog import Catalog
from grafalign.search.query import Query, search

__all__ = ['Catalog', 'Query', 'build_index', 'search']
