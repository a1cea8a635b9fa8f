"""What of a text is a caption: decoded, cleaned, and refused where it says nothing of an image.

Alt text of the web is bytes of any encoding, with entities, line breaks and file names; nothing here judges what a
caption is about.
"""

from __future__ import annotations

import codecs
import html
import re
import unicodedata

LONGEST = 2000
"""Characters; what is longer is a page, not a caption. CLIP reads some 300."""
_MARKS = ((codecs.BOM_UTF8, 'utf-8-sig'), (codecs.BOM_UTF16_LE, 'utf-16'), (codecs.BOM_UTF16_BE, 'utf-16'))
_FILE_NAME = re.compile(
    r'(?:img|dsc[fn]?|dscn?|pict?|photo|image|screenshot|scan|untitled|thumb(?:nail)?|wp|pxl|gopr|mvi)?'
    r'[\s_\-.()]*[\d\s_\-.:()x]*(?:\.(?:jpe?g|png|gif|webp|tiff?|bmp|svg|heic))?',
    re.IGNORECASE,
)
"""A camera's or program's word with digits: `IMG_0034`, `DSC00012.JPG`, `image (3).png`, `20190611_143205`."""
_NAMED_FILE = re.compile(r'\S+\.(?:jpe?g|png|gif|webp|tiff?|bmp|svg|heic)', re.IGNORECASE)
_ADDRESS = re.compile(r'(?:https?://|www\.)\S+', re.IGNORECASE)
_TAG = re.compile(r'<[a-zA-Z/!][^<>]{0,500}>')


class TextError(ValueError):
    """A text is no caption; the text of the error is the reason, short enough for a column."""


def decoded(content: bytes) -> tuple[str, tuple[str, ...]]:
    """A text of any encoding, and what was assumed for it.

    UTF-8, UTF-16 where its mark says so, else Windows-1252, which is what the web means by Latin-1 (WHATWG Encoding,
    section 4.2).

    Raises:
        TextError: it is none of them.

    Example:
        >>> decoded('Straße'.encode('cp1252'))
        ('Straße', ('read as windows-1252',))
    """
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    try:
        return content.decode(encoding or 'utf-8'), () if encoding in (None, 'utf-8-sig') else ('read as utf-16',)
    except UnicodeDecodeError:
        pass
    try:
        return content.decode('cp1252'), ('read as windows-1252',)
    except UnicodeDecodeError:
        raise TextError('caption in an unknown encoding') from None


def cleaned(text: str) -> str:
    r"""A caption as it is kept.

    Entities and tags of HTML become text, Unicode is brought to NFC, control characters and white space to single
    blanks.

    Raises:
        TextError: it is empty, too long, or a file's name or address.

    Example:
        >>> cleaned(' A&amp;B <b>harbour</b> from\nabove ')
        'A&B harbour from above'
    """
    if len(text) > 8 * LONGEST:
        raise TextError(f'caption of more than {LONGEST:,} characters')
    text = html.unescape(_TAG.sub(' ', text))
    text = ''.join(c if unicodedata.category(c)[0] != 'C' else ' ' for c in unicodedata.normalize('NFC', text))
    text = ' '.join(text.split())
    if not text:
        raise TextError('empty caption')
    if len(text) > LONGEST:
        raise TextError(f'caption of more than {LONGEST:,} characters')
    if not any(c.isalpha() for c in text):
        raise TextError('caption without a word')
    if _FILE_NAME.fullmatch(text) or _NAMED_FILE.fullmatch(text) or _ADDRESS.fullmatch(text):
        raise TextError('a file name or an address, no caption')
    return text
