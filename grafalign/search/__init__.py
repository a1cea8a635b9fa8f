"""Words, a picture or a place in; tiles out: an index of satellite images on disk, and queries to it."""

from grafalign.search.build import build_index
from grafalign.search.catalog import Catalog
from grafalign.search.query import Query, search

__all__ = ['Catalog', 'Query', 'build_index', 'search']
