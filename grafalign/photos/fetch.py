"""From a photo's uri to its bytes: local files, HTTP, object stores, and members of tar archives.

    photo.jpg, /data/photo.jpg, file:///data/photo.jpg      files of this machine
    https://host/photo.jpg                                  see `web.py`
    s3://bucket/photo.jpg, gs://..., az://...               fsspec, by the packages that it names (s3fs, gcsfs, adlfs)
    tar://00012.jpg::https://host/00000.tar                 fsspec's notation for a member of an archive at any of these

Nothing is ever written to disk.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from grafalign.foreign.files import PASSING, ForeignFileError, open_plain
from grafalign.photos.exif import PhotoError
from grafalign.photos.tars import ReadPart, Tars, read_members
from grafalign.photos.uris import KNOWN
from grafalign.photos.web import RemoteSettings, Web

__all__ = ['Fetcher', 'PhotoError', 'RemoteSettings', 'is_remote']
Content = TypeVar('Content')
STORES = frozenset(KNOWN) - {'file', 'http', 'https'}
"""Schemes that are left to fsspec: stores with a name and keys of their own. Its other schemes could lead a row of an
untrusted table to hosts inside (ftp, sftp, webhdfs) or write to disk (simplecache)."""
MAX_LOCAL_BYTES = 2_000_000_000
"""A local file with more bytes is no photo."""
_AHEAD = 4_000_000
"""Bytes read at once of a remote archive."""
_STREAMED = 1_000_000
"""Bytes read at once of a local archive that is read from front to back."""


def is_remote(uri: str) -> bool:
    """Whether a uri names something that is not a plain file of this machine."""
    return '://' in uri and not uri.startswith('file://')


class Fetcher:
    """Fetches photos; used by any number of threads.

    Args:
        settings: limits and manners; they hold for remote photos only.
    """

    def __init__(self, settings: RemoteSettings | None = None) -> None:
        self.settings = settings or RemoteSettings()
        self._web = Web(self.settings)
        self._tars = Tars()

    def fetch(self, uri: str) -> bytes:
        """All bytes of a photo.

        Raises:
            PhotoError: why it cannot be had; `transient` says whether another day may help.
        """
        if uri.startswith('tar://'):
            archive, member = split_tar(uri)
            return self._member(archive, member)
        match _scheme(uri):
            case '' | 'file':
                return _local(uri, 0, None)
            case 'http' | 'https':
                return self._web.fetch(uri)
            case scheme:
                _check_store(scheme, uri)
                return self._stored(scheme, lambda: self._whole(uri))

    def close(self) -> None:
        """Close all connections."""
        self._web.close()

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def members(self, archive: str, names: Collection[str]) -> Iterator[tuple[str, bytes | PhotoError]]:
        """The content of members of an archive that is read once, front to back; see `tars.read_members`.

        Args:
            archive: path or address.
            names: of the members.
        """
        read, ahead, most = self._archive(archive, _STREAMED)
        return read_members(read, names, ahead, most)

    def _member(self, archive: str, member: str) -> bytes:
        read, ahead, most = self._archive(archive, BLOCKSIZE)
        return self._tars.member(archive, member, read, ahead, most)

    def _archive(self, archive: str, local_ahead: int) -> tuple[ReadPart, int, int]:
        """How parts of an archive are read, how many bytes at once, and how many a member may have."""
        scheme, most = _scheme(archive), self.settings.max_bytes
        if scheme in ('', 'file'):
            return lambda at, size: _local(archive, at, size), local_ahead, MAX_LOCAL_BYTES
        if scheme in ('http', 'https'):
            return lambda at, size: self._web.fetch_part(archive, at, size), _AHEAD, most
        _check_store(scheme, archive)
        return lambda at, size: self._stored(scheme, lambda: self._part(archive, at, size)), _AHEAD, most

    def _whole(self, uri: str) -> bytes:
        system, path = _system(uri)
        with system.open(path, 'rb') as file:
            content = bytes(file.read(self.settings.max_bytes + 1))
        if len(content) > self.settings.max_bytes:
            raise PhotoError(f'more than {self.settings.max_bytes / 1e6:g} MB')
        return content

    def _part(self, uri: str, offset: int, size: int) -> bytes:
        system, path = _system(uri)
        end = min(offset + size, int(system.size(path)))
        return bytes(system.cat_file(path, start=offset, end=end)) if end > offset else b''

    def _stored(self, scheme: str, read: Callable[[], Content]) -> Content:
        """Read from an object store, again if that may help, and turn what its package raises into a reason."""
        for left in range(self.settings.retries, -1, -1):
            try:
                return read()
            except PhotoError:
                raise
            except FileNotFoundError:
                raise PhotoError('file is missing') from None
            except (IsADirectoryError, NotADirectoryError):
                raise PhotoError('not a file') from None
            except PermissionError:
                raise PhotoError('may not be read') from None
            except ImportError as error:  # one such row among others must not end the run
                raise PhotoError(
                    f'{scheme}:// needs a package that is not installed ({error})'[:160], transient=True
                ) from None
            except ValueError as error:
                raise PhotoError(f'not a valid address ({error})'[:100]) from None
            except Exception as error:  # every store's package has errors of its own; most of them pass
                if not left:
                    raise PhotoError(f'{scheme}: {type(error).__name__}', transient=True) from None
                time.sleep(min(0.5 * 2 ** (self.settings.retries - left), 30))
        raise AssertionError('the loop returns or raises')


def split_tar(uri: str) -> tuple[str, str]:
    """Archive and member of the address of a photo in a tar.

    Raises:
        PhotoError: it lacks one of them.

    Example:
        >>> split_tar('tar://a/1.jpg::s3://photos/0.tar')
        ('s3://photos/0.tar', 'a/1.jpg')
    """
    member, chain, archive = uri.removeprefix('tar://').partition('::')
    if not chain or not archive or not member:
        raise PhotoError('not a valid address; a photo in a tar is tar://MEMBER::PATH')
    return archive, member


def _scheme(uri: str) -> str:
    return uri.partition('://')[0].lower() if '://' in uri else ''


def _check_store(scheme: str, uri: str) -> None:
    if '::' in uri:
        raise PhotoError('of chained addresses only tar://MEMBER::PATH is read')
    if scheme not in STORES:
        raise PhotoError(f'{scheme[:20]}:// is not read')


def _system(uri: str) -> tuple[Any, str]:
    system, path = importlib.import_module('fsspec.core').url_to_fs(uri)
    return system, str(path)


def _local(uri: str, offset: int, size: int | None) -> bytes:
    """A local file or a part of it; only plain files are read, as reading a pipe would wait forever."""
    path = Path(unquote(urlsplit(uri).path) if uri.startswith('file://') else uri)
    try:
        with open_plain(path, MAX_LOCAL_BYTES if size is None else None) as file:
            if size is None:
                return file.read(MAX_LOCAL_BYTES)
            length = os.fstat(file.fileno()).st_size
            if offset >= length:
                return b''
            file.seek(offset)
            return file.read(min(size, length - offset))
    except ForeignFileError as error:
        raise PhotoError(str(error)) from None
    except FileNotFoundError:
        raise PhotoError('file is missing') from None
    except (IsADirectoryError, NotADirectoryError):
        raise PhotoError('not a file') from None
    except OSError as error:
        passing = error.errno in PASSING  # network disks, descriptors
        raise PhotoError(f'cannot be read ({error.strerror or error})', transient=passing) from None
    except ValueError:  # a null byte in the name
        raise PhotoError('not a valid address') from None
