"""When and where was each photo taken?"""

from grafalign.photos.exif import open_photo
from grafalign.photos.sources import PhotoSource, read_photos
from grafalign.photos.table import Photos

__all__ = ['PhotoSource', 'Photos', 'open_photo', 'read_photos']
