"""Which texts go with an image: caption sets from the web, from published files, and from pair stores."""

from grafalign.captions.caption_set import CaptionSet, CaptionSetMarker

__all__ = ['CaptionSet', 'CaptionSetMarker']
