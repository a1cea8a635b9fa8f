"""Whether a host lets its pictures be taken: its robots.txt (RFC 9309), and what it says beside a picture.

`X-Robots-Tag: noai` and its kin are what hosts answer who do not want pictures to train models; img2dataset, whose
users asked for it most, reads the same ones.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from urllib.parse import urlsplit
from urllib.robotparser import RobotFileParser

from grafalign.photos.exif import PhotoError

ROBOTS_PATH = '/robots.txt'
MAX_ROBOTS_BYTES = 4 << 20
"""RFC 9309 wants half a megabyte to be read."""
OPT_OUTS = frozenset({'noai', 'noimageai', 'noindex', 'noimageindex', 'none'})
AGENT = 'grafalign'


class Robots:
    """The robots.txt of every host that is asked, fetched once; used by any number of threads.

    Args:
        fetch: gives the content at a URL, and raises PhotoError where there is none.
    """

    def __init__(self, fetch: Callable[[str], bytes]) -> None:
        self._fetch = fetch
        self._hosts: dict[str, RobotFileParser] = {}
        self._asking: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def check(self, url: str) -> None:
        """Say whether a URL may be fetched.

        Raises:
            PhotoError: the host forbids it, or its robots.txt cannot be had for now.
        """
        parts = urlsplit(url)
        host = f'{parts.scheme}://{parts.netloc}'
        with self._lock:
            asking = self._asking.setdefault(host, threading.Lock())
        with asking:
            if host not in self._hosts:
                self._hosts[host] = self._read(f'{host}{ROBOTS_PATH}')
        if not self._hosts[host].can_fetch(AGENT, url):
            raise PhotoError("the host's robots.txt forbids it")

    def _read(self, url: str) -> RobotFileParser:
        rules = RobotFileParser()
        try:
            content = self._fetch(url)
        except PhotoError as error:
            # no such file, or a page that says so, forbids nothing (RFC 9309, 2.3.1.3)
            if not str(error).startswith(('HTTP 4', 'a web page')):
                raise PhotoError(f'robots.txt: {error}', transient=True) from None
            content = b''
        rules.parse(content.decode('utf-8', 'replace').splitlines())
        return rules


def opt_out(header: str | None) -> str | None:
    """The directive of an X-Robots-Tag that keeps a picture from being taken, if there is one.

    Args:
        header: `[AGENT:] directive, directive ...`; several headers joined by commas.

    Example:
        >>> opt_out('noai, noimageai'), opt_out('googlebot: noindex'), opt_out('grafalign: noai')
        ('noai', None, 'noai')
    """
    agent = '*'
    for part in (header or '').lower().split(','):
        name, colon, directive = part.strip().rpartition(':')
        if colon and name.strip() not in ('unavailable_after',):
            agent = name.strip()
        if agent in ('*', AGENT) and directive.strip() in OPT_OUTS:
            return directive.strip()
    return None
