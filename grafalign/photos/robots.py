"""Whether a host lets its pictures be taken: its robots.txt (RFC 9309), and what it says beside a picture.

`X-Robots-Tag: noai` and its kin are what hosts answer who do not want pictures to train models; img2dataset, whose
users asked for it most, reads the same ones.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from urllib.parse import urlsplit

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
        self._hosts: dict[str, _Rules] = {}
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
        path = parts.path or '/'
        if not self._hosts[host].allow(f'{path}?{parts.query}' if parts.query else path):
            raise PhotoError("the host's robots.txt forbids it")

    def _read(self, url: str) -> _Rules:
        try:
            content = self._fetch(url)
        except PhotoError as error:
            if not error.absent:  # what is not there forbids nothing (RFC 9309, 2.3.1.3)
                raise PhotoError(f'robots.txt: {error}', transient=True) from None
            content = b''
        return _Rules(content.decode('utf-8-sig', 'replace'))


_DIRECTIVES = ('unavailable_after', 'max-snippet', 'max-image-preview', 'max-video-preview')
"""Directives that have a colon themselves."""


def opt_out(header: str | None) -> str | None:
    """The directive of an X-Robots-Tag that keeps a picture from being taken, if there is one.

    Args:
        header: `[AGENT:] directive, directive ...`; several headers joined by commas.

    Example:
        >>> opt_out('noai, noimageai'), opt_out('googlebot: noindex'), opt_out('grafalign: noai')
        ('noai', None, 'noai')
        >>> opt_out('max-snippet:-1, noai'), opt_out('unavailable_after: 25 Jun 2030 15:00:00 PST, noai')
        ('noai', 'noai')
    """
    agent = '*'
    for part in (header or '').lower().split(','):
        name, colon, directive = part.strip().partition(':')
        if colon and name.strip() not in _DIRECTIVES:
            agent, part = name.strip(), directive
        if agent in ('*', AGENT) and part.strip() in OPT_OUTS:
            return part.strip()
    return None


class _Rules:
    """A robots.txt for this agent: the longest match decides, and allowing wins a tie (RFC 9309, 2.2.2)."""

    def __init__(self, text: str) -> None:
        groups: dict[str, list[tuple[bool, str]]] = {}
        agents: list[str] = []
        rules = False
        for line in text.splitlines():
            key, colon, value = line.partition('#')[0].partition(':')
            key, value = key.strip().lower(), value.strip()
            if not colon:
                continue
            if key == 'user-agent':
                if rules:
                    agents, rules = [], False
                agents.append(value.lower())
                groups.setdefault(value.lower(), [])
            elif key in ('allow', 'disallow'):
                rules = True
                for agent in agents if value else ():
                    groups[agent].append((key == 'allow', value))
        mine = groups.get(AGENT, groups.get('*', []))
        self._rules = [(len(path), allowed, _pattern(path)) for allowed, path in mine]

    def allow(self, path: str) -> bool:
        """Whether a path with its query may be fetched."""
        matching = [(length, allowed) for length, allowed, pattern in self._rules if pattern.match(path)]
        return max(matching)[1] if matching else True


def _pattern(path: str) -> re.Pattern[str]:
    ended = path.endswith('$')
    parts = [re.escape(part) for part in path.removesuffix('$').split('*')]
    return re.compile('.*'.join(parts) + ('$' if ended else ''))
