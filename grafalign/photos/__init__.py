"""Geotagged photos: from folders, tables and archives to a checked and filtered photo table."""

from grafalign.photos.exif import open_photo
from grafalign.photos.filters import PhotoFilters
from grafalign.photos.sources import PhotoSource, read_photos
from grafalign.photos.table import Photos

__all__ = ['PhotoFilters', 'PhotoSource', 'Photos', 'open_photo', 'read_photos']
